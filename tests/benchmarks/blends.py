"""Rules by which the blend may choose, replayed on the answers of one pool: chosen on some sets, reported on others.

    python -m tests.benchmarks.blends --cache DIR [--sets ...] [--seeds 0 1] [--data ../shared/data] [--steps 512]

For each set and seed (of another split), a pool is trained once and its answers are kept in DIR: shared networks at the
defaults and at random configurations, each task alone at the defaults and at the best of these, LightGBM (the best of a
few configurations, out of fold), and networks on top of its out-of-fold margins. Each rule then chooses by task on the
out-of-fold answers, and the test rows say what it is worth: loss in % below the trees' and below the single-task
default's, mean over tasks. `HERE` are the sets to choose a rule on, the others are there to report it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import optuna
import pyarrow.parquet as pq
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.network import Trained, stacks
from mtl_bento.training import Member, MemberSpec, advance, stable_seed
from mtl_bento_search.api import make_space
from mtl_bento_search.blend import Loss
from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import Problem, make_problem
from mtl_bento_search.rounds import Packing, pack
from mtl_bento_search.space import Space, alone
from tests.benchmarks.rules import RULES

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
HERE = ("mtr_jura", "mtr_wq", "adult", "mtr_atp1d")
"""Sets on which a rule is chosen."""
THERE = ("emotions", "mtr_scpf", "ctg", "tox21")
"""Sets on which it is reported."""
MOST_ROWS = 4_000
N_SHARED, N_TREES = 12, 4


@dataclass(frozen=True)
class Pool:
    """What a set's candidates answered."""

    names: list[str]
    kinds: list[str]
    valid: list[list[np.ndarray | None]]
    """Out-of-fold answers [V, O] by candidate and task; None where it does not answer the task."""
    test: list[list[np.ndarray | None]]

    def save(self, path: Path) -> None:
        """Write it as arrays."""
        held = {
            f"{part}|{c}|{t}": a
            for part, parts in (("valid", self.valid), ("test", self.test))
            for c, row in enumerate(parts)
            for t, a in enumerate(row)
            if a is not None
        }
        np.savez(path, names=np.array(self.names), kinds=np.array(self.kinds), **held)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, n_tasks: int) -> Pool:
        """Read what `save` wrote."""
        with np.load(path) as held:
            names, kinds = held["names"].tolist(), held["kinds"].tolist()
            valid, test = (
                [[held.get(f"{part}|{c}|{t}") for t in range(n_tasks)] for c in range(len(names))]
                for part in ("valid", "test")
            )
        return cls(names, kinds, valid, test)


def read_problem(folder: Path, name: str, seed: int) -> Problem:
    """Return a set's problem at a random split of its own, of at most so many rows."""
    described = {d["name"]: d for d in json.loads((folder / "datasets.json").read_bytes())["datasets"]}[name]
    targets = {target["name"]: target["kind"] for target in described["targets"]}
    inputs = [feature for kind in described["features"].values() for feature in kind]
    table = pq.read_table(folder / described["file"], columns=[*inputs, *targets])
    kept = np.sort(np.random.default_rng(seed).permutation(table.num_rows)[:MOST_ROWS])
    config = parse_config({"targets": targets, "search": {"seed": seed}, "split": {"kind": "random"}}, where=name)
    return make_problem(config, data=table.take(kept))


def train(dataset: Dataset, specs: Sequence[MemberSpec], seed: int) -> list[tuple[Trained, ...]]:
    """Return each configuration trained to the end, one member a split."""
    n = len(dataset.splits)
    members = [Member(s, stable_seed(seed, i, k), k) for i, s in enumerate(specs) for k in range(n)]
    held: dict[int, Trained] = {}
    packing = Packing.suited(dataset.device, n_workers=1, n_features=sum(b.shape[-1] for b in dataset.blocks), length=1)
    for places, stack in pack(members, packing, seed=seed):
        done = advance(stack, dataset, specs[0].training.steps)
        held |= {place: done.trained(k) for k, place in enumerate(places)}
    return [tuple(held[i * n + k] for k in range(n)) for i in range(len(specs))]


def answered(members: Sequence[Trained], dataset: Dataset, rows: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Return answers [B, O] of each member on its own rows, for each task: [members][T]."""
    found = []
    for member, own in zip(members, rows, strict=True):
        [(_, network)] = stacks([member], dataset.inputs, dataset.tasks)
        index = torch.from_numpy(own).unsqueeze(0)
        with torch.inference_mode():
            margins = dataset.margins_of(index, network)
            found.append([a[0].numpy() for a in network.answers(dataset.inputs_of(index), margins)])
    return found


def both(members: Sequence[Trained], dataset: Dataset, test: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the out-of-fold answers and those on the test rows of a configuration, by task."""
    out = answered(members, dataset, [split.valid.numpy() for split in dataset.splits])
    tested = answered(members, dataset, [test] * len(members))
    return [np.concatenate(p) for p in zip(*out, strict=True)], [np.mean(p, axis=0) for p in zip(*tested, strict=True)]


def forest(problem: Problem, features: np.ndarray, t: int, seed: int) -> np.ndarray:
    """Return LightGBM's margins [N, O] of a task: out of fold, on the test rows the mean over the folds.

    Early stopping reads a fifth of the training rows; of a few configurations the one with the lowest loss out of fold.
    """
    task, dataset = problem.tasks[t], problem.dataset
    labels, test = dataset.targets[t], problem.protocol.test
    known, y, rng = task.known(labels).numpy(), labels.numpy(), np.random.default_rng(seed)
    goal = {"binary": "binary", "multiclass": "multiclass", "regression": "regression"}[task.spec.kind]
    best, least = np.empty(0), np.inf
    for n in range(N_TREES):
        chosen: dict[str, Any] = {} if not n else {
            "num_leaves": int(rng.integers(3, 48)), "min_child_samples": int(rng.integers(3, 40)),
            "learning_rate": float(np.exp(rng.uniform(np.log(0.02), np.log(0.15)))),
            "feature_fraction": rng.uniform(0.3, 1), "lambda_l2": float(np.exp(rng.uniform(-5, 3))),
            "bagging_fraction": rng.uniform(0.5, 1), "bagging_freq": 1,
        }  # fmt: skip
        settings = {"objective": goal, "verbose": -1, "num_threads": 1, "seed": seed, "learning_rate": 0.05, **chosen}
        if goal == "multiclass":
            settings["num_class"] = task.n_outputs
        margins = np.zeros((len(y), task.n_outputs), dtype=np.float32)
        for train_, valid in problem.protocol.splits:
            own = rng.permutation(train_[known[train_]])
            cut = len(own) // 5
            data = lightgbm.Dataset(features[own[cut:]], y[own[cut:]], params={"verbose": -1})
            stop = lightgbm.Dataset(features[own[:cut]], y[own[:cut]], reference=data)
            quiet = [lightgbm.early_stopping(30, verbose=False)]
            booster = lightgbm.train(settings, data, 600, valid_sets=[stop], callbacks=quiet)
            raw = partial(booster.predict, raw_score=True)
            margins[valid] = np.reshape(raw(features[valid]), (len(valid), -1))
            margins[test] += np.reshape(raw(features[test]), (len(test), -1)) / len(problem.protocol.splits)
        rows = np.concatenate([valid for _, valid in problem.protocol.splits])
        loss = task.answer_losses(task.activate(torch.from_numpy(margins[rows])), labels[rows])
        if (mean := float(np.nanmean(loss.numpy()))) < least:
            best, least = margins, mean
    return best


def make_pool(problem: Problem, *, seed: int, steps: int) -> Pool:
    """Train a pool's candidates and return what they answer."""
    dataset, test, names = problem.dataset, problem.protocol.test, problem.names
    if len(dataset.splits) == 1:
        raise SystemExit("This benchmark wants folds; give it sets of fewer rows.")
    config = parse_config({"targets": dict.fromkeys(names)}, where="blends")
    space = make_space(problem, config, steps=steps)
    specs = [space.member(space.defaults()), *drawn(space, N_SHARED - 1, seed)]
    pool = Pool([], [], [], [])

    def add(name: str, kind: str, found: tuple[list[np.ndarray], list[np.ndarray]], task: int | None = None) -> None:
        pool.names.append(name)
        pool.kinds.append(kind)
        for parts, own in ((pool.valid, found[0]), (pool.test, found[1])):
            parts.append([a if task in (None, t) else None for t, a in enumerate(own)])

    for n, members in enumerate(train(dataset, specs, seed)):
        add(f"trial {n}", "shared", both(members, dataset, test))
    rows = np.concatenate([split.valid.numpy() for split in dataset.splits])
    losses = [
        np.mean([np.nanmean(loss_of(problem, t, rows)(a)) for t, a in enumerate(c) if a is not None])
        for c in pool.valid
    ]
    best = specs[int(np.argmin(losses))]
    singles = [alone(spec, name, names) for spec in (specs[0], best) for name in names]
    for n, members in enumerate(train(dataset, singles, seed + 1)):
        add(f"single {n}", "single", both(members, dataset, test), n % len(names))
    blocks = problem.schema.encode(problem.table)
    features = np.concatenate([np.where(v < 0, np.nan, v) if b == "categorical" else v for b, v in blocks.items()], 1)
    margins = [forest(problem, features, t, seed) for t in range(len(names))]
    for t, held in enumerate(margins):
        grown = problem.tasks[t].activate(torch.from_numpy(held)).numpy()
        blank = [np.empty(0)] * t
        add(f"trees {t}", "trees", ([*blank, grown[rows], *[np.empty(0)] * (len(names) - t - 1)],
                                    [*blank, grown[test], *[np.empty(0)] * (len(names) - t - 1)]), t)  # fmt: skip
    stood = dataset.with_margins(np.concatenate(margins, 1))
    on_top = [s.model_copy(update={"network": s.network.model_copy(update={"offset": True})}) for s in (specs[0], best)]
    for n, members in enumerate(train(stood, on_top, seed + 2)):
        add(f"offset {n}", "offset", both(members, stood, test))
    return pool


def drawn(space: Space, n: int, seed: int) -> list[MemberSpec]:
    """Return random configurations of the space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.member(space.suggest(study.ask())) for _ in range(n)]


def loss_of(problem: Problem, t: int, rows: np.ndarray) -> Loss:
    """Return the loss of a task's answers on rows, in units of the trivial loss."""
    task, dataset = problem.tasks[t], problem.dataset
    targets, unit = dataset.targets[t][torch.from_numpy(rows)], float(dataset.trivial[t])

    def loss(answers: np.ndarray) -> np.ndarray:
        return np.asarray(task.answer_losses(torch.from_numpy(answers), targets).double().numpy() / unit)

    return loss


def replay(problem: Problem, pool: Pool, rule: Callable[..., np.ndarray], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a rule's choice costs on the test rows by task, beside the trees and the single-task default."""
    valid = np.concatenate([split.valid.numpy() for split in problem.dataset.splits])
    records = []
    for t in range(len(problem.tasks)):
        held = [c for c, a in enumerate(pool.valid) if a[t] is not None]
        names = [c for c in held if pool.kinds[c] in kinds]
        shares = rule([pool.valid[c][t] for c in names], [pool.kinds[c] for c in names], loss_of(problem, t, valid))
        tested = loss_of(problem, t, problem.protocol.test)
        mixed = sum(share * pool.test[c][t] for share, c in zip(shares, names, strict=True) if share)  # type: ignore
        ours = tested(np.asarray(mixed))
        record: dict[str, Any] = {"members": int((shares > 0).sum())}
        for kind in ("trees", "single"):
            other = tested(pool.test[next(c for c in held if pool.kinds[c] == kind)][t])  # type: ignore[arg-type]
            gap = (other - ours)[~np.isnan(ours)]
            error = max(gap.std() / np.sqrt(len(gap)), 1e-12)
            record[kind] = float(gap.mean() / np.nanmean(other) * 100)
            record[f"{kind}_z"] = float(gap.mean() / error)
        records.append(record)
    return records


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="+", default=[*HERE, *THERE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", default=["shared", "single", "trees", "offset"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[list[dict[str, Any]]]]] = {rule: {} for rule in RULES}
    for name in asked.sets:
        for seed in asked.seeds:
            started, problem = time.monotonic(), read_problem(asked.data, name, seed)
            path = asked.cache / f"{name}-{seed}-{asked.steps}.npz"
            if not path.exists():
                make_pool(problem, seed=seed, steps=asked.steps).save(path)
                print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)
            pool = Pool.load(path, len(problem.tasks))
            for rule, choose in RULES.items():
                found[rule].setdefault(name, []).append(replay(problem, pool, choose, asked.kinds))
    print_table(found, asked.sets)


def print_table(found: dict[str, dict[str, list[list[dict[str, Any]]]]], sets: Sequence[str]) -> None:
    """Print a rule a line: means of both groups of sets, the worst set, tasks clearly worse, members, each set."""
    for against in ("trees", "single"):
        print(f"\ntest loss below that of {against}, %")
        print("| rule | chosen on | reported on | worst set | tasks 2 SE worse / better | members |", *sets, sep=" | ")
        print("|---" * (6 + len(sets)) + "|")
        for rule, by_set in found.items():
            mean = {s: float(np.mean([r[against] for run in by_set[s] for r in run])) for s in sets}
            flat = [r for runs in by_set.values() for run in runs for r in run]
            here, there = (float(np.mean([mean[s] for s in sets if s in own] or [np.nan])) for own in (HERE, THERE))
            worse = sum(r[f"{against}_z"] < -2 for r in flat), sum(r[f"{against}_z"] > 2 for r in flat)
            members = float(np.mean([r["members"] for r in flat]))
            cells = [f"{here:+.2f}", f"{there:+.2f}", f"{min(mean.values()):+.1f}", f"{worse[0]} / {worse[1]}"]
            print("|", " | ".join([rule, *cells, f"{members:.1f}", *(f"{mean[s]:+.1f}" for s in sets)]), "|")


if __name__ == "__main__":
    main()
