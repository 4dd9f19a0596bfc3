"""`mb.search`: the main job from Python; the command line calls the same function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from mtl_bento.errors import RunError, SpecError, listing, nearest
from mtl_bento.network import positional_trunks
from mtl_bento_search.config import (
    CHOOSING,
    DEFAULT_TIMEOUT_S,
    Config,
    DataSpec,
    SearchSpec,
    parse_config,
    seconds,
    target_options,
)
from mtl_bento_search.defaults import budget, default_trunks
from mtl_bento_search.executors.local import make_executor
from mtl_bento_search.features import FOLDER, FeatureCache
from mtl_bento_search.finish import finish, kept_share
from mtl_bento_search.problem import Problem, make_problem, table_name
from mtl_bento_search.progress import Progress
from mtl_bento_search.pruning import RoundPruner
from mtl_bento_search.references import affordable, obtain
from mtl_bento_search.report import write_report
from mtl_bento_search.run import Clock, Folder, Run, spec_digest
from mtl_bento_search.sitting import Sitting
from mtl_bento_search.space import Space
from mtl_bento_search.storage import answering, claim, open_storage, own_study, without_password
from mtl_bento_search.study import Driver, make_sampler
from mtl_bento_search.tensorboard import TensorBoard
from mtl_bento_search.tuning import tune_process

SAID = 8
"""Columns left out that are named when a search starts; the report names all."""

Callback = Callable[[optuna.Study, FrozenTrial], None]


def search(
    data: Any = None,
    *,
    targets: Mapping[str, Any] | Sequence[str] | None = None,
    valid: Any = None,
    test: Any = None,
    out: str | Path | None = None,
    n_trials: int | None = None,
    timeout: str | float | None = None,
    device: str = "auto",
    storage: str | None = None,
    executor: str = "local",
    seed: int | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    callbacks: Sequence[Callback] = (),
    config: Config | None = None,
    progress: Progress | None = None,
    tensorboard: str | Path | None = None,
    started: float | None = None,
    **options: Any,
) -> Run:
    """Search, choose, test once, report, save the model; return the run.

    The same call resumes the run in `out`: `n_trials` and `timeout` are totals of the run, not of the call.

    Args:
        data: a table (path, pandas or polars frame, pyarrow table); the training rows where `valid` or `test` is given.
        targets: columns to predict: a list, or a mapping to kinds or options, `{"cancelled": "binary"}`.
        out: the run folder; `runs/<table's name>` by default.
        n_trials: total number of trials.
        timeout: total active wall time, in seconds or as "90s", "10m", "2h"; 10 minutes where neither is given.
        device: "auto" (CUDA where it is present), "cpu", "cuda".
        storage: an Optuna storage URL; a journal file in the run folder by default.
        executor: "local".
        seed: of every random draw.
        sampler, pruner, callbacks: Optuna's, in place of ours. A seeded sampler draws the same again after a restart,
            as everywhere in Optuna: give a resumed run another seed. A callback misses a trial that was told just
            before its driver was killed.
        config: a whole spec (`load_config("mtl.yaml")`); other arguments come before it.
        progress: told what happens.
        tensorboard: a folder for scalars of each trial, as TensorBoard draws them; needs the extra `tensorboard`.
        started: the `time.monotonic()` from which the timeout counts; now by default.
        options: other keys of mtl.yaml (`inputs`, `ignore`, `split`, `sample_weight`, `search`).

    Raises TableError, SchemaError, SpecError or RunError in one line, before anything is written.
    """
    started = time.monotonic() if started is None else started
    spec = _merged(config, targets, options, n_trials=n_trials, timeout=timeout, seed=seed)
    if executor != "local":
        raise SpecError(f"executor {executor!r} is not known; allowed: local.")
    if spec.data is None and data is None:
        raise SpecError("There is no data; give a table.")
    if tensorboard is not None:
        callbacks = [*callbacks, TensorBoard(tensorboard)]
    progress = progress or Progress()
    source = data if data is not None else spec.data.train if isinstance(spec.data, DataSpec) else spec.data
    place = Path(out) if out is not None else Path("runs") / table_name(source)
    try:
        with progress:
            problem = make_problem(
                spec,
                data=data,
                valid=valid,
                test=test,
                device=pick_device(device),
                progress=progress.prepared,
                cache=FeatureCache(place.parent / FOLDER),
            )
    except torch.OutOfMemoryError:
        raise SpecError(
            "The table does not fit into the memory of the device; give --device cpu, or a part of it."
        ) from None
    folder = Folder(place)
    make_space(problem, spec)  # raises before anything is written
    check_groups(spec.groups, problem.names)
    with folder.locked(), answering(storage):
        return _searched(spec, problem, folder, storage, sampler, pruner, callbacks, progress, started)


def _merged(
    config: Config | None,
    targets: Mapping[str, Any] | Sequence[str] | None,
    options: Mapping[str, Any],
    *,
    n_trials: int | None,
    timeout: str | float | None,
    seed: int | None,
) -> Config:
    """Return one spec out of a config and arguments; the arguments come first."""
    raw: dict[str, Any] = config.model_dump(exclude_unset=True) if config is not None else {}
    raw |= {key: value for key, value in options.items() if key != "ignore"}
    if "ignore" in options:
        raw["ignore"] = [*raw.get("ignore", ()), *options["ignore"]]
    if targets is not None:
        raw["targets"] = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(targets)
    given = {"n_trials": n_trials, "timeout": None if timeout is None else seconds(timeout), "seed": seed}
    held = raw.get("search") or {}
    if isinstance(held, Mapping | SearchSpec):  # anything else is refused with the other keys
        raw["search"] = {**dict(held), **{k: v for k, v in given.items() if v is not None}}
    raw.setdefault("targets", {})
    return parse_config(raw)


def make_space(problem: Problem, spec: Config, *, steps: int | None = None) -> Space:
    """Return the space of a problem; raises SpecError where `search.space` asks for what is not there."""
    inputs = problem.dataset.inputs
    blocks = list(inputs.columns)
    length, grid = inputs.positions(problem.tasks)
    by_position = [task.name for task in problem.tasks if task.positional]
    trunks = spec.search.trunk or default_trunks(
        len(problem.protocol.learned),
        positions=length > 0,
        line=grid is None,
        located=any(task.located for task in problem.tasks),
        answered=bool(by_position),
    )
    read = length if trunks[0] in positional_trunks() else 1
    batch, whole = budget(min(len(train) for train, _ in problem.protocol.splits), length=max(1, read))
    return Space(
        blocks,
        problem.names,
        by_position=by_position,
        parts={task.name: task.parts for task in problem.tasks if task.parts},
        trunks=trunks,
        weightings=spec.search.weighting,
        heads=spec.search.head,
        domains=spec.search.space,
        batch_size=batch,
        steps=steps or whole,
    )


def check_groups(groups: Sequence[Sequence[str]] | None, names: Sequence[str]) -> None:
    """Raise SpecError where `groups` names what is no target, a target twice or none, or leaves one out."""
    if groups is None:
        return
    if not all(groups):
        raise SpecError(f"groups: group {list(map(bool, groups)).index(False) + 1} is empty; remove it.")
    named = [name for group in groups for name in group]
    if unknown := [name for name in named if name not in names]:
        raise SpecError(
            f"groups: {unknown[0]!r} is no target{nearest(unknown[0], names) or '.'} Targets: {listing(names)}."
        )
    if twice := [name for name in names if named.count(name) > 1]:
        raise SpecError(f"groups: {twice[0]!r} is named twice; every target belongs to one group.")
    if missing := [name for name in names if name not in named]:
        raise SpecError(f"groups: {missing[0]!r} is in no group; add it, alone as [{missing[0]}] where it shares none.")


def _searched(
    spec: Config,
    problem: Problem,
    folder: Folder,
    storage: str | None,
    sampler: Any,
    pruner: Any,
    callbacks: Sequence[Callback],
    progress: Progress,
    started: float,
) -> Run:
    tune_process(problem.dataset.device)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    written = written_spec(spec, problem, folder.identity(), storage)
    folder.agree(written)
    state = folder.read_state()
    n_trials, timeout_s = spec.search.n_trials, spec.search.timeout
    if n_trials is None and timeout_s is None:
        timeout_s = DEFAULT_TIMEOUT_S
    clock = Clock(
        timeout_s=timeout_s, elapsed_s=state.get("elapsed_s", 0.0), phases=state.get("phases"), started=started
    )
    clock.phases["data"] = clock.phases.get("data", 0.0) + time.monotonic() - started
    attrs = {
        "run": written["id"],
        "tasks": problem.names,
        "spec_sha256": written["sha256"],
        "data_sha256": problem.data_sha256,
        "split_sha256": problem.protocol.digest(),
    }
    space = make_space(problem, spec, steps=state.get("steps"))
    held = open_storage(folder.path, storage)
    study = own_study(
        written["name"], held, attrs, space, sampler=sampler or make_sampler(0), pruner=pruner or RoundPruner()
    )
    if folder.checkpoint("references").is_file() and not study.get_trials(deepcopy=False) and state.get("told"):
        raise RunError(
            f"The study of this run, with {state['told']} trials, is not where it was "
            f"({'its journal is gone' if storage is None else 'the storage holds none'}); bring it back, "
            "or search anew with another --out."
        )
    folder.write_spec(written)  # from here on the folder is a run, and the study is that run's
    claim(study, attrs)
    notes = [f"Split: {note}." for note in problem.notes] + [f"{leak}." for leak in problem.leaks]
    for line in (*notes, *_left_out(problem)):
        progress.say(line)
    with progress, make_executor(problem.dataset) as workers:
        sitting = Sitting(
            problem, space, workers, folder, clock, spec.search.seed, progress, kept_share=kept_share(spec.search)
        )
        with sitting.interruptible():
            driver = _trials(sitting, spec, study, own_sampler=sampler is None, callbacks=callbacks)
            result = _ended(driver, written, spec)
    write_report(folder.path, result, study)
    return Run(folder.path, storage=held)


def _left_out(problem: Problem) -> list[str]:
    """Return a line for each column that is no input, and one for those beyond the first few."""
    left = problem.left_out
    lines = [f"Left out {x.name!r}: {x.reason}; {x.remedy}." for x in left[:SAID]]
    if len(left) > SAID:
        lines.append(f"Left out {len(left) - SAID} more; `mtl-bento inspect` and the report name them.")
    return lines


def _trials(
    sitting: Sitting, spec: Config, study: optuna.Study, *, own_sampler: bool, callbacks: Sequence[Callback]
) -> Driver:
    """Train the references, then search; return the driver."""
    clock, folder = sitting.clock, sitting.folder
    with clock.phase("references"):
        sitting.progress.phase("references", "trial 0, and each task alone")
        if "steps" not in folder.read_state():
            whole = sitting.space.member(sitting.space.defaults()).training.steps
            steps, seeds = affordable(sitting, whole)
            if steps < whole:
                sitting.progress.say(f"The timeout allows {steps} of {whole} steps a network; --timeout gives more.")
            folder.note(steps=steps, whole_steps=whole, reference_seeds=seeds)
            sitting.space = make_space(sitting.problem, spec, steps=steps)
        references = obtain(sitting)
        losses = dict(zip(sitting.problem.names, references.single_losses.tolist(), strict=True))
        study.set_user_attr("single_task_losses", losses)
    driver = Driver(sitting, study, references, own_sampler=own_sampler, callbacks=callbacks, halved=spec.search.trees)
    with clock.phase("search"):
        sitting.progress.phase("search")
        driver.search(n_trials=spec.search.n_trials)
    folder.note(elapsed_s=clock.elapsed_s, phases=clock.phases)
    return driver


def _ended(driver: Driver, written: dict[str, Any], spec: Config) -> dict[str, Any]:
    """Return the result: the one that stands where nothing new was tried, else choose, test and write."""
    held: dict[str, Any] | None = driver.sitting.folder.read_result()
    chosen = spec.search.model_dump(include=CHOOSING)
    if held is not None and held["trials"]["total"] == driver.n_told() and held["chosen_by"] == chosen:
        driver.sitting.progress.say(
            "Nothing new was tried since the last result; it stands. Raise --n-trials or --timeout for more."
        )
        return held
    return finish(driver, written, spec)


def pick_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA where it is present; raises SpecError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # read back: there are devices that hold no numbers
    except (RuntimeError, AssertionError, ImportError):
        cuda = ", cuda" if torch.cuda.is_available() else f"; torch {torch.__version__} sees no GPU"
        raise SpecError(f"Device {name!r} is not here; allowed: auto, cpu{cuda}.") from None
    return device


def written_spec(spec: Config, problem: Problem, identity: dict[str, str], storage: str | None) -> dict[str, Any]:
    """Return the spec as a run keeps it: what was understood, without totals, paths and passwords, and the hashes."""
    data = spec.model_dump(mode="json", exclude={"data": True, "search": {"n_trials", "timeout", *CHOOSING}})
    # What was learned from the labels (levels, means) follows from the data, whose hash is kept.
    data["targets"] = {
        t.name: {**target_options(t.name, spec.targets[t.name]), "kind": t.spec.kind} for t in problem.tasks
    }
    digest = spec_digest(data)
    hashes = {"data_sha256": problem.data_sha256, "split_sha256": problem.protocol.digest()}
    where = {} if storage is None else {"storage": without_password(storage)}
    # The hashes come last: a difference is named by the field that differs, not by a hash.
    return {**identity, **where, **data, **hashes, "sha256": digest}
