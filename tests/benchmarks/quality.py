"""How good what is served is, on ten real tables: against single-task networks, alone and mixed, and tuned trees.

    python -m tests.benchmarks.quality --data FOLDER [--sets ctg,mtr_jura] [--seconds-per-arm 60] [--out FOLDER]

Each set and seed is one ordinary search, whose result is kept in `--out`: an interrupted benchmark goes on. A search of
S seconds an arm has 4 S in all: references, trials, trees as long as the trials, finals. Every column is chosen on
validation rows and scored once on the locked test rows. A loss is in units of the best constant's; what is shown is
1 - L / L(single-task network at the defaults), in percent, the mean over tasks.

`--unlabelled 0.4` removes that share of the training labels at random. `--planted` makes ten sets in which it is known
which tasks belong together and which one does harm, and compares with networks of exactly these groups.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mtl_bento as mb

SETS = ("adult", "census_income", "ctg", "emotions", "mtr_atp1d", "mtr_enb", "mtr_jura", "mtr_scpf", "mtr_wq", "tox21")
CHOSEN_ON = ("ctg", "emotions", "mtr_jura", "mtr_scpf", "mtr_enb", "mtr_wq", "adult")
"""Sets on which defaults were chosen; on the others they are reported alone."""
SMALL = 5_000
"""Rows below which a set is searched with several seeds."""
ARMS = {
    "trivial": "best constant",
    "single_task_default": "single-task",
    "single_task": "single-task tuned",
    "ensemble": "single-task ensemble",
    "shared_default": "all shared, defaults",
    "networks": "ours, networks alone",
    "ours": "ours",
    "trees": "tuned LightGBM",
}
N_PLANTED, PLANTED_ROWS, PLANTED_TEST = 10, 1_500, 3_000


def read(folder: Path, name: str) -> tuple[pa.Table, dict[str, str]]:
    """Return a set's features, targets and split, and its targets' kinds."""
    described = {d["name"]: d for d in json.loads((folder / "datasets.json").read_bytes())["datasets"]}
    data = described[name]
    targets = {target["name"]: target["kind"] for target in data["targets"]}
    features = [feature for kind in data["features"].values() for feature in kind]
    return pq.read_table(folder / data["file"], columns=[*features, *targets, data["split"]["column"]]), targets


def unlabelled(table: pa.Table, targets: Sequence[str], share: float, seed: int) -> pa.Table:
    """Return the table without a share of the labels of rows that are not test."""
    rng = np.random.default_rng(seed)
    test = np.array(table["split"].to_pylist()) == "test"
    for name in targets:
        hidden = (rng.random(table.num_rows) < share) & ~test
        place = table.column_names.index(name)
        column = table[name].combine_chunks()
        table = table.set_column(place, name, pc.if_else(pa.array(hidden), pa.scalar(None, column.type), column))
    return table


def planted(seed: int) -> tuple[pa.Table, tuple[tuple[str, ...], ...]]:
    """Return a table of five regression targets, two groups that share what matters and one that does harm.

    Each group reads a random hidden layer of its own; the harmful task is loud and of other inputs.
    """
    rng = np.random.default_rng(seed)
    n, n_inputs = PLANTED_ROWS + PLANTED_TEST, 16
    x = rng.normal(size=(n, n_inputs))
    groups = (("a1", "a2"), ("b1", "b2"), ("harm",))
    columns = {f"x{i}": pa.array(x[:, i]) for i in range(n_inputs)}
    for group in groups:
        hidden = np.tanh(x @ rng.normal(size=(n_inputs, 6)) / 2)
        noise = 2.0 if group == ("harm",) else 0.5
        for name in group:
            y = hidden @ rng.normal(size=6)
            columns[name] = pa.array(y + noise * y.std() * rng.normal(size=n))
    roles = np.where(np.arange(n) < PLANTED_TEST, "test", "train")
    return pa.table({**columns, "split": pa.array(roles.tolist())}), groups


def searched(table: pa.Table, targets: Any, out: Path, *, seconds: float, seed: int, **options: Any) -> dict[str, Any]:
    """Return the result of a search, run now or earlier."""
    if (out / "result.json").is_file():
        return dict(json.loads((out / "result.json").read_bytes()))
    run = mb.search(table, targets=targets, out=out, timeout=seconds, seed=seed, **options)
    return dict(run.result)


def gains(result: dict[str, Any]) -> dict[str, list[float]]:
    """Return 1 - L / L(single-task at the defaults) of each arm, task by task; without networks of their own, ours."""
    found: dict[str, list[float]] = {}
    for record in result["tasks"]:
        losses = record["losses"]
        for arm in ARMS:
            loss = losses.get(arm, losses["ours"] if arm == "networks" else None)
            loss = 1.0 if arm == "trivial" else loss
            gain = np.nan if loss is None else 1 - loss / losses["single_task_default"]
            found.setdefault(arm, []).append(gain)
    return found


COMPARED = (
    ("ours", "single_task_default"),
    ("ours", "trees"),
    ("networks", "single_task_default"),
    ("networks", "ensemble"),
)
"""Pairs of arms whose mean difference is printed with its interval."""
DRAWS = 2_000


def over(results: dict[str, list[dict[str, Any]]], arm: str, than: str) -> tuple[float, float, float]:
    """Return the mean over sets of 1 - L / L(than), and its 95 % interval, from draws of the sets."""
    means = []
    for runs in results.values():
        each = [
            (held.get(arm, held["ours"] if arm == "networks" else None), held.get(than))
            for held in (record["losses"] for r in runs for record in r["tasks"])
        ]
        known = [1 - loss / other for loss, other in each if loss is not None and other is not None]
        if known:
            means.append(float(np.mean(known)))
    drawn = np.random.default_rng(0).choice(means, (DRAWS, len(means))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean(means)), float(low), float(high)


def summary(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield what the aims are about: mean differences of arms, and tasks on which ours is significantly worse."""
    for arm, than in COMPARED:
        mean, low, high = over(results, arm, than)
        yield f"{ARMS[arm]} over {ARMS[than]}: {100 * mean:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f} over sets)"
    n = sum(len(r["tasks"]) for runs in results.values() for r in runs)
    for opponent in ("single_task", "trees"):
        held = [sum(count(r, opponent) for runs in results.values() for r in runs) for count in (worse, better)]
        yield f"significantly worse than {ARMS[opponent]} on {held[0]}, better on {held[1]} of {n} tasks"


def worse(result: dict[str, Any], opponent: str) -> int:
    """Return on how many tasks ours is significantly worse than an opponent, after Holm."""
    return sum(r["against"].get(opponent, {}).get("verdict") == "worse" for r in result["tasks"])


def better(result: dict[str, Any], opponent: str) -> int:
    """Return on how many tasks ours is significantly better than an opponent, after Holm."""
    return sum(r["against"].get(opponent, {}).get("verdict") == "better" for r in result["tasks"])


def table_of(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the lines of the table (Markdown): a row a set, the mean over its seeds and tasks."""
    yield "| set | " + " | ".join(ARMS.values()) + " | worse / better than single-task | than trees |"
    yield "|---|" + "---|" * (len(ARMS) + 2)
    means: dict[str, list[float]] = {arm: [] for arm in ARMS}
    ranks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for name, runs in results.items():
        each = {arm: np.array([gains(r)[arm] for r in runs]) for arm in ARMS}
        row = {arm: float(np.nanmean(held)) for arm, held in each.items()}
        order = np.argsort(np.argsort([-row[arm] for arm in ARMS])) + 1
        for arm, rank in zip(ARMS, order, strict=True):
            means[arm].append(row[arm])
            ranks[arm].append(float(rank))
        n = sum(len(r["tasks"]) for r in runs)
        against = [
            f"{sum(worse(r, o) for r in runs)} / {sum(better(r, o) for r in runs)} of {n}"
            for o in ("single_task", "trees")
        ]
        mark = "" if name in CHOSEN_ON or name.startswith("planted") else " *"
        yield (
            f"| {name}{mark} | "
            + " | ".join(f"{100 * row[arm]:+.1f}" for arm in ARMS)
            + " | "
            + " | ".join(against)
            + " |"
        )
    yield "| mean | " + " | ".join(f"{100 * np.mean(means[arm]):+.1f}" for arm in ARMS) + " | | |"
    yield "| mean rank | " + " | ".join(f"{np.mean(ranks[arm]):.1f}" for arm in ARMS) + " | | |"


def main() -> None:
    """Search every set, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="the folder of datasets.json")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seconds-per-arm", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=5, help="searches of a set of few rows")
    parser.add_argument("--unlabelled", type=float, default=0.0)
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    given = parser.parse_args()
    seconds = 4 * given.seconds_per_arm
    if given.planted:
        print_planted(given.out, seconds)
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for name in given.sets.split(","):
        table, targets = read(given.data, name)
        for seed in range(given.seeds if table.num_rows < SMALL else 1):
            rows = unlabelled(table, list(targets), given.unlabelled, seed) if given.unlabelled else table
            place = given.out / f"{name}-{given.unlabelled:g}-{seed}"
            results.setdefault(name, []).append(searched(rows, targets, place, seconds=seconds, seed=seed))
        print("\n".join(table_of({name: results[name]})), flush=True)
    print("\n".join([*table_of(results), "", *summary(results)]))


def print_planted(out: Path, seconds: float) -> None:
    """Search the planted sets freely and with the planted groups; print by how much the loss is higher."""
    ratios = []
    for seed in range(N_PLANTED):
        table, groups = planted(seed)
        names = [name for group in groups for name in group]
        targets = dict.fromkeys(names, "regression")
        options = {"search": {"trees": False}}
        free = searched(table, targets, out / f"planted-{seed}", seconds=seconds, seed=seed, **options)
        told = searched(
            table, targets, out / f"planted-told-{seed}", seconds=seconds, seed=seed, groups=groups, **options
        )
        pairs = zip(free["tasks"], told["tasks"], strict=True)
        ratios.append(float(np.mean([a["losses"]["ours"] / b["losses"]["ours"] - 1 for a, b in pairs])))
        print(f"planted {seed}: loss {100 * ratios[-1]:+.2f} % of that of the planted groups", flush=True)
    error = np.std(ratios) / np.sqrt(len(ratios))
    print(f"mean {100 * np.mean(ratios):+.2f} % (standard error {100 * error:.2f})")


if __name__ == "__main__":
    main()
