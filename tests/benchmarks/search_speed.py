"""How fast a search is, against two loops written as an expert would, on adult and ctg.

    python -m tests.benchmarks.search_speed [--sets adult ctg] [--trials 24] [--parts search mixed step pruning driver]
        [--data ../shared/data] [--repeats 1] [--seed 0] [--out FILE.json]

The loops (`loops.py`) train one network at a time, and are checked at the start to compute what ours computes:

- loader: nn.Module, DataLoader(TensorDataset), torch.optim.AdamW(fused=True)
- index:  the same with batches gathered by index from resident tensors

Parts:

- search: whole searches at the default space, on all cores. Ours, the loops in rounds with our rungs, and the loops as
  people write them, with Optuna's MedianPruner (`searches.py`). The arms run in turn, `--repeats` times; the least
  seconds count.
- mixed:  the same 16 configurations of the default space, mlp, tabm and half of each, trained for a share of their
  budget by ours and by the index loop, on all cores, none pruned.
- step:   the bare training step at equal sizes, one process with one thread: milliseconds a network's step, the least
  of three times, the arms timed in turn.
- pruning: 48 configurations of the default space trained to the end, then thinned in rounds as the search thins them:
  steps saved, and how much worse the best validation loss is (`pruning.py`), in 50 orders.
- driver: a search of 300 trials whose networks are not trained: what asking, reporting, telling and storing take, as a
  share of a search whose trials train as long as those of the search part, and the driver's memory (`overhead.py`).

`--out` keeps every figure; parts that are run again replace theirs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from mtl_bento.encoders._base import ENCODERS
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.network import Network, NetworkSpec
from mtl_bento.training import Cohort, Member, MemberSpec, Stack, TrainingSpec, never
from mtl_bento.trunks._base import TRUNKS
from mtl_bento_search.executors.local import make_executor
from mtl_bento_search.rounds import Packing
from mtl_bento_search.study import ROUND_SIZE
from mtl_bento_search.tuning import tune_process
from tests.benchmarks.loops import BATCHES, Loop, Plain, Rows
from tests.benchmarks.overhead import driver_marks
from tests.benchmarks.pruning import rank_correlations, replayed_often, trained_to_the_end
from tests.benchmarks.searches import (
    CORES,
    Pool,
    Searched,
    fixed_specs,
    search_by_median,
    search_by_rungs,
    search_ours,
    told_default,
    train_loops,
    train_ours,
)
from tests.benchmarks.sets import Set, read_set, sitting, trial_zero

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
CELLS = [("mlp", width, batch) for width in (32, 64, 128, 256) for batch in (64, 256)] + [
    ("tabm", width, batch) for width in (64, 128) for batch in (64, 256)
]
"""Trunk, width and batch of the bare steps."""
STEPS, STEP_REPEATS = 40, 3
FIXED = 16
"""Configurations of a mixed cohort: a round of a search."""
FIXED_SHARE = 1 / 8
"""Share of the budget that they are trained for."""
DRIVER_MARKS = (50, 150, 300)
"""Trials at which the driver is looked at."""
FOREVER = 100_000
"""A budget whose looks lie beyond what the bare steps train."""

Figures = dict[str, Any]


def whole_search(data: Set, *, trials: int, repeats: int, seed: int) -> Figures:
    """Search the default space in five ways; return the figures of each."""
    runs: list[Searched] = []
    with (
        make_executor(data.problem.dataset, n_workers=CORES) as executor,
        Pool(data, "loader") as loader,
        Pool(data, "index") as index,
        sitting(data, executor, seed=seed) as held,
    ):
        references = trial_zero(held)  # warms our workers up, too
        default = told_default(held, references)
        for _ in range(repeats):
            runs.append(search_ours(data, executor, references, trials, seed=seed))
            say(runs[-1])
            for search in (search_by_rungs, search_by_median):
                for pool in (index, loader):
                    runs.append(search(data, pool, default, trials, seed=seed))
                    say(runs[-1])
    least = {arm: min((run for run in runs if run.arm == arm), key=lambda run: run.seconds) for arm in arms_of(runs)}
    ours = least["ours"]
    print(f"{'':16} seconds  times ours  ms a step  times ours  CPU s  times ours")
    for arm, run in least.items():
        pairs = (run.seconds, ours.seconds, 8, 1), (run.step_ms, ours.step_ms, 11, 3), (run.cpu_s, ours.cpu_s, 7, 1)
        print(f"{arm:16}" + "".join(f"{own:{width}.{digits}f} {own / of:11.2f}" for own, of, width, digits in pairs))
    return {"runs": [asdict(run) | {"step_ms": run.step_ms} for run in runs]}


def arms_of(runs: list[Searched]) -> list[str]:
    """Return the arms in the order in which they ran first."""
    return list(dict.fromkeys(run.arm for run in runs))


def say(run: Searched) -> None:
    """Print one run of an arm."""
    driver = "" if run.training_s is None else f", {run.seconds - run.training_s:.1f} s of it the driver's"
    print(
        f"  {run.arm}: {run.seconds:.1f} s{driver}, {run.n_trials} trials, {run.steps} steps "
        f"({run.tabm_share:.0%} TabM's), best validation loss {run.best_loss:.4f}",
        flush=True,
    )


def mixed_cohorts(data: Set, *, repeats: int, seed: int) -> Figures:
    """Train the same configurations by ours and by the index loop; return milliseconds a step of each."""
    mlp, tabm = (fixed_specs(data, FIXED, seed=seed, trunk=trunk) for trunk in ("mlp", "tabm"))
    half = FIXED // 2
    goal = max(1, int(data.steps * FIXED_SHARE))
    found: Figures = {}
    print(
        f"{FIXED} configurations to step {goal}; ms a step on all cores\n{'':5} index    ours  index/ours", flush=True
    )
    with (
        make_executor(data.problem.dataset, n_workers=CORES) as executor,
        Pool(data, "index") as index,
        sitting(data, executor, seed=seed) as held,
    ):
        train_ours(held, mlp[:CORES], 1)
        for name, specs in (("mlp", mlp), ("tabm", tabm), ("both", mlp[:half] + tabm[:half])):
            seconds = [(train_loops(index, specs, goal), train_ours(held, specs, goal)) for _ in range(repeats)]
            steps = len(specs) * data.n_splits * goal
            a, b = (min(column) / steps * 1e3 for column in zip(*seconds, strict=True))
            found[name] = {"index_ms": a, "ours_ms": b}
            print(f"{name:5} {a:5.3f} {b:7.3f} {a / b:11.2f}", flush=True)
    return found


def bare_steps(data: Set) -> Figures:
    """Time the bare step of the three arms in this process; return milliseconds a network's step of each."""
    found: Figures = {}
    n_features = Rows.of(data.problem.dataset, step_spec(data, "mlp", 32, 64).network).numbers.shape[1]
    print(f"{n_features} ready features; ms a network's step in one thread, and how many times faster than the loops")
    print("trunk width batch   K  loader   index    ours  loader/ours  index/ours", flush=True)
    for trunk, width, batch in CELLS:
        spec = step_spec(data, trunk, width, batch)
        ours, n = stack(data, spec)
        a, b, c = least([(loop(data, spec, "loader"), 1), (loop(data, spec, "index"), 1), (ours, n)])
        found[f"{trunk} {width} {batch}"] = {"loader_ms": a, "index_ms": b, "ours_ms": c, "k": n}
        cells = f"{trunk:5} {width:5d} {batch:5d} {n:3d} {a:7.3f} {b:7.3f} {c:7.3f}"
        print(f"{cells} {a / c:12.1f} {b / c:11.1f}", flush=True)
    return found


def thinned_rounds(data: Set, *, n: int, seed: int) -> Figures:
    """Train n configurations to the end and replay their rungs; return steps saved and regrets."""
    with (
        make_executor(data.problem.dataset, n_workers=CORES) as executor,
        sitting(data, executor, seed=seed) as held,
    ):
        curves = trained_to_the_end(held, fixed_specs(data, n, seed=seed))
    replays = replayed_often(curves, seed=seed)
    correlations = [f"{c:.2f}" for c in rank_correlations(curves)[:-1]]
    print(f"{n} configurations; rank correlation with the end at steps {curves.goals[:-1]}: {', '.join(correlations)}")
    print(f"steps saved: {np.mean([r.saved for r in replays]):.2f} times")
    print("regret of the best validation loss, %:  own order   mean  9 of 10 below")
    found: Figures = {"losses": curves.losses.tolist(), "saved": [r.saved for r in replays]}
    for name, regrets in (
        ("thinned in rounds", [r.regret for r in replays]),
        ("as many steps on fewer, all to the end", [r.regret_of_fewer for r in replays]),
    ):
        cells = f"{regrets[0]:9.2f} {np.mean(regrets):6.2f} {np.quantile(regrets, 0.9):14.2f}"
        print(f"{name:39} {cells}", flush=True)
        found[name] = regrets
    return found


def driver_overhead(data: Set, *, searched: Figures | None, seed: int) -> Figures:
    """Time a driver of 300 trials; `searched` are the figures of the search part, where it was run."""
    marks = driver_marks(data, DRIVER_MARKS, n_workers=CORES, seed=seed)
    print(f"{'driver, ms a trial':18}" + "".join(f"{f'to {mark.n_trials}':>9}" for mark in marks))
    for part in sorted(marks[-1].seconds, key=lambda part: -marks[-1].seconds[part]):
        cells = [mark.seconds.get(part, 0.0) / mark.n_trials * 1e3 for mark in marks]
        print(f"{part:18}" + "".join(f"{cell:9.1f}" for cell in cells))
    print(f"{'together':18}" + "".join(f"{mark.total_s / mark.n_trials * 1e3:9.1f}" for mark in marks))
    print(f"{'memory, MB':18}" + "".join(f"{mark.memory_mb:9.0f}" for mark in marks))
    trial_s = training_of_a_trial(data, searched, seed=seed)
    n, driver_s = marks[-1].n_trials, marks[-1].total_s
    share = driver_s / (driver_s + n * trial_s)
    print(f"{n} trials: driver {driver_s:.1f} s, training {n * trial_s:.0f} s ({trial_s:.2f} s a trial): {share:.1%}")
    return {"marks": [asdict(mark) for mark in marks], "training_s_a_trial": trial_s, "share": share}


def training_of_a_trial(data: Set, searched: Figures | None, *, seed: int) -> float:
    """Return the seconds of training of a trial of ours: from the search part, or from a search of one round."""
    if searched is not None:
        runs = [run for run in searched["runs"] if run["training_s"] is not None]
        return float(min(run["training_s"] / run["n_trials"] for run in runs))
    with (
        make_executor(data.problem.dataset, n_workers=CORES) as executor,
        sitting(data, executor, seed=seed) as held,
    ):
        run = search_ours(data, executor, trial_zero(held), ROUND_SIZE, seed=seed)
    assert run.training_s is not None
    return run.training_s / run.n_trials


def step_spec(data: Set, trunk: str, width: int, batch: int) -> MemberSpec:
    """Return a network of two layers with dropout and linear heads."""
    dataset = data.problem.dataset
    network = NetworkSpec(
        encoders={block: ENCODERS.spec_class(block)() for block in dataset.inputs.columns},
        trunk=TRUNKS.parse({"kind": trunk, "width": width, "shared_depth": 2, "dropout": 0.1}),
        heads={task.name: DenseHeadSpec() for task in dataset.tasks},
    )
    return MemberSpec(network=network, training=TrainingSpec(batch_size=batch, steps=FOREVER))


def loop(data: Set, spec: MemberSpec, kind: str) -> Callable[[], None]:
    """Return a function that takes `STEPS` steps of a loop."""
    rows = Rows.of(data.problem.dataset, spec.network)
    held = Loop(spec, rows, seed=0, split=0)
    source = BATCHES[kind](rows.training(0), spec.training.batch_size)
    return lambda: held.train(source, held.step + STEPS)


def stack(data: Set, spec: MemberSpec) -> tuple[Callable[[], None], int]:
    """Return a function that takes `STEPS` steps of a stack as a search makes it, and its K."""
    dataset = data.problem.dataset
    n_features = Network([spec.network], dataset.inputs, dataset.tasks, [0]).trunk.sizes.n_features
    packing = Packing.suited(dataset.device, n_features=n_features, n_workers=1)
    n = packing.stack_size([Member(spec, seed=0)])
    cohort = Cohort(Stack(tuple(Member(spec, seed=k) for k in range(n)), 0), dataset)
    generator = torch.Generator(dataset.device).manual_seed(0)
    cohort.network.set_generator(generator)
    runner = cohort._runner(dataset, generator)

    def run() -> None:
        cohort._train(dataset, runner, cohort.step + STEPS, never)

    return run, n


def least(arms: list[tuple[Callable[[], None], int]]) -> list[float]:
    """Return the least milliseconds a network's step of each arm, the arms timed in turn."""
    best = [float("inf")] * len(arms)
    for run, _ in arms:
        run()  # warm up
    for _ in range(STEP_REPEATS):
        for i, (run, members) in enumerate(arms):
            started = time.perf_counter()
            run()
            best[i] = min(best[i], (time.perf_counter() - started) / STEPS / members * 1e3)
    return best


def check_loops(data: Set) -> None:
    """Assert that a loop's network answers what ours answers with the same parameters."""
    dataset = data.problem.dataset
    for trunk in ("mlp", "tabm"):
        spec = fixed_specs(data, 1, seed=0, trunk=trunk)[0].network
        rows = Rows.of(dataset, spec)
        ours = Network([spec], dataset.inputs, dataset.tasks, [0]).eval()
        theirs = Plain(spec, rows).eval()
        theirs.load(ours.member_state(0))
        places = torch.arange(min(256, len(rows.numbers)))
        with torch.no_grad():
            answers = theirs(rows.numbers[places], rows.codes[places])
            for a, b in zip(answers, ours(dataset.inputs_of(places.view(1, -1))), strict=True):
                torch.testing.assert_close(a, b[0] if theirs.inner else b[0, 0], rtol=1e-5, atol=1e-5)


def main() -> None:
    """Run the parts that are asked for, set by set."""
    figures: Figures = {}
    parts: dict[str, Callable[[Set, argparse.Namespace], Figures]] = {
        "search": lambda data, o: whole_search(data, trials=o.trials, repeats=o.repeats, seed=o.seed),
        "mixed": lambda data, o: mixed_cohorts(data, repeats=o.repeats, seed=o.seed),
        "step": lambda data, _: bare_steps(data),
        "pruning": lambda data, o: thinned_rounds(data, n=o.configurations, seed=o.seed),
        "driver": lambda data, o: driver_overhead(data, searched=figures.get(data.name, {}).get("search"), seed=o.seed),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["adult", "ctg"])
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--trials", type=int, default=24, help="after trial 0; a round has 16")
    parser.add_argument("--configurations", type=int, default=48, help="of the pruning part")
    parser.add_argument("--steps", type=int, help="another budget of a network than the default, to try this out")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets and datasets.json")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.out and options.out.is_file():
        figures |= json.loads(options.out.read_bytes())
    for name in options.sets:
        data = read_set(options.data, name, steps=options.steps)
        check_loops(data)
        for part in options.parts:
            print(f"\n{name}: {part}", flush=True)
            figures.setdefault(name, {})[part] = parts[part](data, options)
            if options.out:
                options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
