"""What a rule of the blend costs where few rows decide: pools are trained once, rules choose on some rows of them.

    python -m tests.benchmarks.blends --cache DIR [--data FOLDER] [--sets mtr_jura ctg] [--rows 100 400] [--draws 10]

For each set a pool is trained and its out-of-fold answers kept in DIR: shared networks at the defaults and at random
configurations, each task alone at the defaults and at the best of these, tuned trees, and networks on top of them.
Then, for each task and number of rows n, n validation rows are drawn at random to choose on, and all others judge: the
loss in % below those of the trees and of the single-task network that is best on the n rows, the mean over draws,
tasks, sets and n; in how many of all choices it is over 1 % above the lower of the two; and the same of each n.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.network import Trained, stacks
from mtl_bento.training import Member, MemberSpec, advance, stable_seed
from mtl_bento_search import trees
from mtl_bento_search.api import make_space
from mtl_bento_search.blend import Loss, pick
from mtl_bento_search.config import parse_config
from mtl_bento_search.problem import Problem, make_problem
from mtl_bento_search.rounds import Packing, pack
from mtl_bento_search.space import Space, alone

SETS = ("mtr_jura", "emotions", "mtr_atp1d", "mtr_enb", "mtr_scpf", "ctg", "adult")
MOST_ROWS, MOST_TASKS = 4_000, 3
N_SHARED, N_TREES = 12, 4
JUDGES = 0.4
"""Share of the rows that judge at least."""

Rule = Callable[[Sequence[np.ndarray], Sequence[str], Loss], np.ndarray]


def best(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss) -> np.ndarray:
    """Return all to the candidate with the lowest loss."""
    return np.asarray(np.eye(len(answers))[np.argmin([loss(a).mean() for a in answers])])


def equal(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss) -> np.ndarray:
    """Return equal shares of the best of each kind."""
    means = np.array([loss(a).mean() for a in answers])
    firsts = [
        min((i for i, k in enumerate(kinds) if k == kind), key=lambda i: means[i]) for kind in dict.fromkeys(kinds)
    ]
    return np.bincount(firsts, minlength=len(answers)) / len(firsts)


RULES: dict[str, Rule] = {
    "the best one": best,
    "equal shares of kinds": equal,
    "greedy": partial(pick, gain=0.0, drawn=0.0),
    "greedy, gain .2 %": partial(pick, drawn=0.0),
    "greedy, gain 1 %": partial(pick, gain=0.01, drawn=0.0),
    "drawn by 1/4": partial(pick, gain=0.0),
    "gain .2 %, drawn by 1/4 (ours)": pick,
    "gain .2 %, drawn by 1/2": partial(pick, drawn=0.5),
}


@dataclass(frozen=True)
class Pool:
    """What a set's candidates answered."""

    kinds: list[str]
    answers: list[list[np.ndarray | None]]
    """Out of fold, [V, O] by candidate and task; None where it does not answer the task."""

    def save(self, path: Path) -> None:
        """Write it as arrays."""
        held = {f"{c}|{t}": a for c, row in enumerate(self.answers) for t, a in enumerate(row) if a is not None}
        np.savez(path, kinds=np.array(self.kinds), **held)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, n_tasks: int) -> Pool:
        """Read what `save` wrote."""
        with np.load(path) as held:
            kinds = held["kinds"].tolist()
            return cls(kinds, [[held.get(f"{c}|{t}") for t in range(n_tasks)] for c in range(len(kinds))])


def read_problem(folder: Path, name: str, seed: int) -> Problem:
    """Return a set's problem at a random split of its own, of at most so many rows, in folds."""
    described = {d["name"]: d for d in json.loads((folder / "datasets.json").read_bytes())["datasets"]}[name]
    targets = {target["name"]: target["kind"] for target in described["targets"]}
    inputs = [feature for kind in described["features"].values() for feature in kind]
    table = pq.read_table(folder / described["file"], columns=[*inputs, *targets])
    kept = np.sort(np.random.default_rng(seed).permutation(table.num_rows)[:MOST_ROWS])
    options = {"targets": targets, "search": {"seed": seed}, "split": {"kind": "random", "folds": 5}}
    return make_problem(parse_config(options, where=name), data=table.take(kept))


def train(dataset: Dataset, specs: Sequence[MemberSpec], seed: int) -> list[list[np.ndarray]]:
    """Return the out-of-fold answers of each configuration, trained to the end on each split: [V, O] a task."""
    n = len(dataset.splits)
    members = [Member(s, stable_seed(seed, i, k), k) for i, s in enumerate(specs) for k in range(n)]
    held: dict[int, Trained] = {}
    packing = Packing.suited(dataset.device, n_workers=1, n_features=sum(b.shape[-1] for b in dataset.blocks), length=1)
    for places, stack in pack(members, packing, seed=seed):
        done = advance(stack, dataset, specs[0].training.steps)
        held |= {place: done.trained(k) for k, place in enumerate(places)}
    parts = [[answered(held[i * n + k], dataset, k) for k in range(n)] for i in range(len(specs))]
    return [[np.concatenate(task) for task in zip(*own, strict=True)] for own in parts]


def answered(member: Trained, dataset: Dataset, split: int) -> list[np.ndarray]:
    """Return the answers of a member on the validation rows of its split: [B, O] a task."""
    [(_, network)] = stacks([member], dataset.inputs, dataset.tasks)
    index = dataset.splits[split].valid.unsqueeze(0)
    with torch.inference_mode():
        margins = dataset.margins_of(index, network)
        return [a[0].numpy() for a in network.answers(dataset.inputs_of(index), margins)]


def make_pool(problem: Problem, *, seed: int, steps: int) -> Pool:
    """Train a pool's candidates and return what they answer."""
    dataset, names, rows = problem.dataset, problem.names, validation(problem)
    space = make_space(problem, parse_config({"targets": dict.fromkeys(names)}, where="blends"), steps=steps)
    specs = [space.member(space.defaults()), *drawn(space, N_SHARED - 1, seed)]
    pool = Pool([], [])

    def add(kind: str, found: Sequence[np.ndarray | None]) -> None:
        pool.kinds.append(kind)
        pool.answers.append(list(found))

    shared = train(dataset, specs, seed)
    for found in shared:
        add("shared", found)
    losses = [np.mean([np.nanmean(loss_of(problem, t, rows)(a)) for t, a in enumerate(own)]) for own in shared]
    top = specs[int(np.argmin(losses))]
    singles = [alone(spec, name, names) for spec in (specs[0], top) for name in names]
    for n, found in enumerate(train(dataset, singles, seed + 1)):
        add("single", [a if t == n % len(names) else None for t, a in enumerate(found)])
    blocks = {name: torch.from_numpy(block) for name, block in problem.schema.encode(problem.table).items()}
    grown = trees.tune(problem, features=dataset.inputs.features(blocks, dataset.blocks), n_trials=N_TREES, seed=seed)
    margins = [np.zeros((problem.table.num_rows, task.n_outputs), np.float32) for task in problem.tasks]
    for t, held in enumerate(grown):
        if held is not None:
            margins[t] = held.margins
            own = problem.tasks[t].activate(torch.from_numpy(held.margins[rows])).numpy()
            add("trees", [own if t == other else None for other in range(len(names))])
    on_top = [s.model_copy(update={"network": s.network.model_copy(update={"offset": True})}) for s in (specs[0], top)]
    for found in train(dataset.with_margins(np.concatenate(margins, 1)), on_top, seed + 2):
        add("offset", found)
    return pool


def drawn(space: Space, n: int, seed: int) -> list[MemberSpec]:
    """Return random configurations of the space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.member(space.suggest(study.ask())) for _ in range(n)]


def validation(problem: Problem) -> np.ndarray:
    """Return the validation rows of all splits."""
    return np.concatenate([split.valid.numpy() for split in problem.dataset.splits])


def loss_of(problem: Problem, t: int, rows: np.ndarray) -> Loss:
    """Return the loss of a task's answers on rows, in units of the trivial loss."""
    task, dataset = problem.tasks[t], problem.dataset
    targets, unit = dataset.targets[t][torch.from_numpy(rows)], float(dataset.trivial[t])

    def loss(answers: np.ndarray) -> np.ndarray:
        return np.asarray(task.answer_losses(torch.from_numpy(answers), targets).double().numpy() / unit)

    return loss


@dataclass(frozen=True)
class Judged:
    """A rule's choice for one task on some rows, judged on the others."""

    ours: float
    single: float
    """Of the single-task network that is the best one on the same rows."""
    trees: float
    members: int


def replay(problem: Problem, pool: Pool, t: int, rule: Rule, *, n: int, draws: int) -> list[Judged]:
    """Return what a rule's choices for task t on n rows come to on the others; none where too few are left."""
    held = [(kind, np.float64(a[t])) for kind, a in zip(pool.kinds, pool.answers, strict=True) if a[t] is not None]
    kinds, answers = [kind for kind, _ in held], [a for _, a in held]
    rows = validation(problem)
    known = np.flatnonzero(~np.isnan(loss_of(problem, t, rows)(answers[0])))
    found = []
    for draw in range(draws if n <= (1 - JUDGES) * len(known) else 0):
        order = np.random.default_rng((draw, n, t)).permutation(known)
        chosen, rest = order[:n], order[n:]
        choose, judge = loss_of(problem, t, rows[chosen]), loss_of(problem, t, rows[rest])
        shares = rule([a[chosen] for a in answers], kinds, choose)
        single = min((i for i, k in enumerate(kinds) if k == "single"), key=lambda i: choose(answers[i][chosen]).mean())
        mixed = sum(share * a[rest] for share, a in zip(shares, answers, strict=True) if share)
        losses = [float(judge(a).mean()) for a in (mixed, answers[single][rest], answers[kinds.index("trees")][rest])]
        found.append(Judged(*losses, members=int((shares > 0).sum())))
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[100, 200, 400, 800])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=384)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked.cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[tuple[str, int], list[list[Judged]]]] = {rule: defaultdict(list) for rule in RULES}
    for name in asked.sets:
        for seed in asked.seeds:
            started, problem = time.monotonic(), read_problem(asked.data, name, seed)
            path = asked.cache / f"{name}-{seed}-{asked.steps}.npz"
            if not path.exists():
                make_pool(problem, seed=seed, steps=asked.steps).save(path)
                print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)
            pool = Pool.load(path, len(problem.tasks))
            for rule, choose in RULES.items():
                for n in asked.rows:
                    for t in range(min(len(problem.tasks), MOST_TASKS)):
                        judged = replay(problem, pool, t, choose, n=n, draws=asked.draws)
                        found[rule][name, n] += [judged] if judged else []
    print_table(found, asked.rows)


def print_table(found: dict[str, dict[tuple[str, int], list[list[Judged]]]], rows: Sequence[int]) -> None:
    """Print a rule a line."""
    print("| rule | below trees, % | below single | worst set | harmed, % | members", *rows, sep=" | ", end=" |\n")
    print("|---" * (6 + len(rows)) + "|")
    for rule, cells in found.items():
        figures = {cell: figures_of(judged) for cell, judged in cells.items() if judged}
        trees_, single, harmed, members = np.mean(list(figures.values()), axis=0)
        sets = {name for name, _ in figures}
        worst = min(np.mean([f[:2].min() for (name, _), f in figures.items() if name == own]) for own in sets)
        by_rows = [[f for (_, own), f in figures.items() if own == n] for n in rows]
        means = [np.mean(held, axis=0) if held else None for held in by_rows]
        shown = ["-" if f is None else f"{f[0]:+.1f} {f[1]:+.1f} ({f[2]:.0f})" for f in means]
        line = [rule, f"{trees_:+.2f}", f"{single:+.2f}", f"{worst:+.1f}", f"{harmed:.0f}", f"{members:.1f}", *shown]
        print("|", " | ".join(line), "|")


def figures_of(tasks: Sequence[Sequence[Judged]]) -> np.ndarray:
    """Return how far below the trees and the single-task network a set's tasks are and how many are harmed, in %."""
    below = [
        [1 - np.mean([j.ours for j in task]) / np.mean([getattr(j, other) for j in task]) for task in tasks]
        for other in ("trees", "single")
    ]
    harmed = np.mean([j.ours > 1.01 * min(j.trees, j.single) for task in tasks for j in task])
    members = np.mean([j.members for task in tasks for j in task])
    return np.array([100 * np.mean(below[0]), 100 * np.mean(below[1]), 100 * harmed, members])


if __name__ == "__main__":
    main()
