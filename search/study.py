"""The driver: references, then rounds of asked trials, then the finals, the locked test and the model.

The driver is the only one that talks to Optuna: it asks a round of trials, sorts their members into stacks, has them
advanced from rung to rung, reports, prunes, and tells in the order of the trials. Bounded by `n_trials`, everything
that it computes is a function of data, spec and seed; the clock only decides when it ends.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from mtl_bento.errors import RunError, SpecError
from mtl_bento.network import Trained
from mtl_bento.training import EVALUATIONS, Member, MemberSpec, stable_seed
from mtl_bento_search import metrics, select
from mtl_bento_search.checkpoints import load_members, load_round, save_members, save_round
from mtl_bento_search.executors._base import Executor
from mtl_bento_search.objective import gains, score, worst_ratio
from mtl_bento_search.problem import Problem
from mtl_bento_search.progress import Progress
from mtl_bento_search.pruning import ROUND, RoundPruner
from mtl_bento_search.rounds import Round, rungs
from mtl_bento_search.run import Clock, Folder
from mtl_bento_search.space import Space, alone

ROUND_SIZE = 16
"""Trials asked together: enough for several stacks, few enough that the sampler learns often."""
SEEDS = 3
"""Seeds of each single-task reference on a holdout; with folds, the folds are the repetitions."""
REFERENCE_SHARE = 0.3
"""Most of a timeout that the references may take; beyond it, every budget of steps is shortened."""
ON_ITS_WAY = "round"
"""The checkpoint of the round that is being trained."""
REPORT_S, REPORT_SHARE = 4.0, 0.03
"""Seconds, and share of the timeout, kept back for the test, the report and the model."""


@dataclass
class References:
    """What the reference cohort gave: trial 0 and each task alone."""

    default: select.Candidate
    singles: tuple[select.Candidate, ...]
    default_losses: np.ndarray
    """Losses [T] of trial 0 on validation, mean over the splits."""
    single_losses: np.ndarray
    """Losses [T] of each task alone, mean over splits and seeds: the unit of every score."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Looks at the validation rows by name, [[step, mean loss], ...]."""
    rungs: dict[int, list[float]] = field(default_factory=dict)
    """Losses [T] of trial 0 at each rung."""


@dataclass
class Trip:
    """A round on its way: which of its trials are still in it, and where their members are."""

    first: int
    """How many trials were told before it: the ordinal of its first trial."""
    living: dict[int, tuple[optuna.Trial, MemberSpec]]
    """The trials still in the round, by their place in it."""
    round: Round


class Driver:
    """One sitting of a search on a problem.

    Args:
        problem, space: the data, and what to choose from.
        study: the Optuna study; its sampler is replaced before each ask where `own_sampler`.
        executor: where stacks train.
        folder, clock: the run.
        seed: of everything.
        own_sampler: whether the sampler is ours (re-seeded before each ask, so that a resumed run asks the same).
        callbacks: called as `callback(study, trial)` after each trial is told.
        progress: told what happens.
    """

    def __init__(
        self,
        problem: Problem,
        space: Space,
        study: optuna.Study,
        executor: Executor,
        folder: Folder,
        clock: Clock,
        *,
        seed: int,
        own_sampler: bool = True,
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = (),
        progress: Progress,
    ) -> None:
        self.problem, self.space, self.study, self.executor = problem, space, study, executor
        self.folder, self.clock, self.seed, self.own_sampler = folder, clock, seed, own_sampler
        self.callbacks, self.progress = list(callbacks), progress
        self.dataset = problem.dataset
        self.weights = [task.spec.weight for task in problem.tasks]
        self.interrupted = False
        self.finals_s = 0.0
        self.curves: dict[int, list[list[float]]] = {}

    @property
    def n_splits(self) -> int:
        """Members of a configuration: one a split."""
        return len(self.dataset.splits)

    def deadline(self, reserve_s: float = 0.0) -> float:
        """Return the `time.monotonic()` by which training must end, `reserve_s` earlier than the report needs."""
        return self.clock.deadline(REPORT_S + REPORT_SHARE * (self.clock.timeout_s or 0.0) + reserve_s)

    # -- references ---------------------------------------------------------------------------------------------

    def references(self) -> References:
        """Train, or read back, trial 0 and each task alone."""
        path = self.folder.checkpoint("references")
        if path.is_file():
            return self._read_references(path)
        spec = self.space.member(self.space.defaults())
        members = self._members(spec, "trial", 0)
        seeds = 1 if self.n_splits > 1 else SEEDS
        names = self.problem.names
        for name in names:
            for seed in range(seeds):
                members += self._members(alone(spec, name, names), "single", name, seed)
        marks = rungs(spec.training.steps)
        trip = Round(members, self.executor, seed=stable_seed(self.seed, "references"))
        own = range(self.n_splits)
        at_rungs: dict[int, list[float]] = {}
        started = time.monotonic()
        for goal in marks:
            whole = trip.advance(goal, reference=None, deadline=self.deadline())
            held = trip.members()
            at_rungs[goal] = np.mean([held[p][0].losses[held[p][1]] for p in own], axis=0).tolist()
            if not whole:
                break
        spent = time.monotonic() - started
        found = self._gathered(trip, seeds, at_rungs)
        n_finals = len(names) * self.n_splits
        self.folder.note(finals_s=spent * n_finals / len(members) * 1.3)
        info = {
            "default_losses": found.default_losses.tolist(),
            "single_losses": found.single_losses.tolist(),
            "curves": found.curves,
            "rungs": {str(step): losses for step, losses in at_rungs.items()},
        }
        save_members(path, [m for c in (found.default, *found.singles) for m in c.members], info)
        return found

    def _gathered(self, trip: Round, seeds: int, at_rungs: dict[int, list[float]]) -> References:
        held = trip.members()
        n, names = self.n_splits, self.problem.names
        losses = [held[p][0].losses[held[p][1]] for p in sorted(held)]
        if not np.isfinite(np.array([losses[p] for p in range(n)])).any():
            raise RunError("The search ended before anything was trained; give it more time: --timeout 10m.")

        def trained(first: int) -> tuple[Trained, ...]:
            return tuple(held[p][0].trained(held[p][1]) for p in range(first, first + n))

        singles, single_losses = [], []
        for t, name in enumerate(names):
            first = n + t * seeds * n
            singles.append(select.Candidate(f"single-task {name}", trained(first)))
            own = np.array([losses[p][t] for p in range(first, first + seeds * n)])
            single_losses.append(float(np.nanmean(np.where(np.isfinite(own), own, 1.0))))
        curves = {"trial 0": _curve(held, range(n))}
        for t, name in enumerate(names):
            curves[name] = _curve(held, range(n + t * seeds * n, n + (t + 1) * seeds * n), task=t)
        default_losses = np.nanmean([losses[p] for p in range(n)], axis=0)
        return References(
            select.Candidate("trial 0", trained(0)),
            tuple(singles),
            default_losses,
            np.array(single_losses),
            curves,
            at_rungs,
        )

    def _read_references(self, path: Path) -> References:
        members, info = load_members(path)
        n = self.n_splits
        cut = [tuple(members[i : i + n]) for i in range(0, len(members), n)]
        singles = tuple(
            select.Candidate(f"single-task {t}", c) for t, c in zip(self.problem.names, cut[1:], strict=True)
        )
        return References(
            select.Candidate("trial 0", cut[0]),
            singles,
            np.array(info["default_losses"]),
            np.array(info["single_losses"]),
            info["curves"],
            {int(step): losses for step, losses in info["rungs"].items()},
        )

    def _members(self, spec: MemberSpec, *identity: Any) -> list[Member]:
        """Return the members of a configuration, one a split, their seeds from what identifies them."""
        return [Member(spec, stable_seed(self.seed, *identity, split), split) for split in range(self.n_splits)]

    # -- trials -------------------------------------------------------------------------------------------------

    def search(self, references: References, *, n_trials: int | None) -> None:
        """Ask rounds of trials until `n_trials` are told, the time is up, or somebody interrupts."""
        trip = self._resumed_trip()
        self._forget_the_dead(trip)
        deadline = self.deadline(float(self.folder.read_state().get("finals_s", 0.0)))
        if self.n_told() == 0:
            self._tell_default(references)
        if trip is not None:
            self._go(trip, references, deadline)
        while not self.interrupted and time.monotonic() < deadline:
            left = math.inf if n_trials is None else n_trials - self.n_told()
            if left <= 0:
                break
            if not self.space.distributions:
                break  # everything is fixed: there is exactly one configuration, and it is trial 0
            self._go(self._ask_round(int(min(ROUND_SIZE, left))), references, deadline)

    def _forget_the_dead(self, living: Trip | None) -> None:
        """Fail the trials that a dead driver left running, but those taken over: their ordinals are asked again."""
        kept = set() if living is None else {trial.number for trial, _ in living.living.values()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in kept:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def n_told(self) -> int:
        """Return how many trials are complete or pruned."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def _ask(self, ordinal: int) -> tuple[optuna.Trial, dict[str, Any]]:
        if self.own_sampler:
            # Seeded by the trial's place among those that did not fail: a resumed run draws what the whole one drew.
            self.study.sampler = make_sampler(stable_seed(self.seed, "ask", ordinal) % 2**32)
        trial = self.study.ask()
        return trial, self.space.suggest(trial)

    def _tell_default(self, references: References) -> None:
        """Tell trial 0, which the reference cohort trained."""
        self.study.enqueue_trial(self.space.defaults())
        trial, params = self._ask(0)
        trial.set_user_attr(ROUND, 0)
        for step, losses in references.rungs.items():
            trial.report(score(np.array(losses), references.single_losses, self.weights), step)
        self._complete(
            trial, self.space.member(params), references.default.members, references.default_losses, references
        )

    def _ask_round(self, n: int) -> Trip:
        """Ask n trials and stack their members; from here on they survive a kill."""
        first = self.n_told()
        asked = []
        for i in range(n):
            trial, params = self._ask(first + i)
            trial.set_user_attr(ROUND, first)
            asked.append((trial, self.space.member(params)))
        members = [m for i, (_, spec) in enumerate(asked) for m in self._members(spec, "trial", first + i)]
        trip = Trip(first, dict(enumerate(asked)), Round(members, self.executor, seed=self._round_seed(first)))
        self._save_trip(trip)
        return trip

    def _round_seed(self, first: int) -> int:
        return stable_seed(self.seed, "round", first)

    def _save_trip(self, trip: Trip) -> None:
        numbers = {str(i): trial.number for i, (trial, _) in trip.living.items()}
        save_round(self.folder.checkpoint(ON_ITS_WAY), trip.round.packed, {"first": trip.first, "numbers": numbers})

    def _resumed_trip(self) -> Trip | None:
        """Return the round that a dead driver left on its way, with its running trials, or None."""
        path = self.folder.checkpoint(ON_ITS_WAY)
        if not path.is_file():
            return None
        packed, info = load_round(path)
        held = {t.number: t for t in self.study.get_trials(deepcopy=False)}
        living = {}
        for slot, number in info["numbers"].items():
            frozen = held.get(number)
            if frozen is not None and frozen.state == TrialState.RUNNING:
                # The same trial goes on: failing it and asking again would put it elsewhere in the sampler's history.
                trial = optuna.trial.Trial(self.study, frozen._trial_id)
                living[int(slot)] = (trial, self.space.member(frozen.params))
        if not living:
            path.unlink()
            return None
        first = int(info["first"])
        return Trip(first, living, Round([], self.executor, seed=self._round_seed(first), packed=packed))

    def _go(self, trip: Trip, references: References, deadline: float) -> None:
        """Take a round through its rungs; every step of it can be repeated after a kill without another outcome."""
        living = trip.living
        steps = next(iter(living.values()))[1].training.steps
        started = time.monotonic()
        reference = references.single_losses.clip(0.01, None).tolist()
        losses: dict[int, np.ndarray] = {}
        for rung, goal in enumerate(rungs(steps)):
            if goal < trip.round.step:
                continue  # passed before a kill
            if goal > trip.round.step:
                whole = trip.round.advance(goal, reference=reference, deadline=deadline)
                if whole:
                    self._save_trip(trip)
            losses = self._losses(trip.round, living)
            self._note_curves(trip.round, living, references)
            if trip.round.step < goal:
                for i in sorted(living):
                    self._prune(living[i][0], losses[i], references)
                break
            self._thin(trip, references, losses, goal, last=goal == steps)
            if goal == steps or not living:
                break
            self.progress.rung(trip.first + len(living), goal, steps, len(living))
            trip.round.keep(lambda place: place // self.n_splits in living, rung=rung)
        if trip.round.step == steps:
            self._complete_all(trip, references, losses, started)
        self.folder.checkpoint(ON_ITS_WAY).unlink(missing_ok=True)
        self.folder.note(elapsed_s=self.clock.elapsed_s, phases=self.clock.phases)

    def _thin(
        self, trip: Trip, references: References, losses: dict[int, np.ndarray], goal: int, *, last: bool
    ) -> None:
        """Report every living trial at a rung, then drop those that the pruner gives up."""
        for i in sorted(trip.living):
            trial = trip.living[i][0]
            if goal not in self.study._storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(score(losses[i], references.single_losses, self.weights), goal)
        if last:
            return
        for i in [i for i in sorted(trip.living) if trip.living[i][0].should_prune()]:
            self._prune(trip.living.pop(i)[0], losses[i], references)

    def _complete_all(self, trip: Trip, references: References, losses: dict[int, np.ndarray], started: float) -> None:
        share = (time.monotonic() - started) / max(1, len(trip.living))
        held = trip.round.members()
        for i in sorted(trip.living):
            places = range(i * self.n_splits, (i + 1) * self.n_splits)
            trained = tuple(held[p][0].trained(held[p][1]) for p in places)
            self._complete(*trip.living[i], trained, losses[i], references, train_s=share)

    def _losses(self, trip: Round, living: dict[int, Any]) -> dict[int, np.ndarray]:
        """Return each living trial's losses [T], the mean over its splits at their best looks."""
        held = trip.members()
        found = {}
        for i in living:
            places = range(i * self.n_splits, (i + 1) * self.n_splits)
            found[i] = np.mean([held[p][0].losses[held[p][1]] for p in places], axis=0)
        return found

    def _note_curves(self, trip: Round, living: dict[int, Any], references: References) -> None:
        held = trip.members()
        for i, (trial, _) in living.items():
            places = range(i * self.n_splits, (i + 1) * self.n_splits)
            looks = _looks(held, places)
            known = {int(step) for step, _ in self.curves.get(trial.number, [])}
            fresh = [
                [step, score(np.mean(losses, axis=0), references.single_losses, self.weights)]
                for step, losses in looks.items()
                if step not in known
            ]
            self.curves.setdefault(trial.number, []).extend(fresh)

    def _prune(self, trial: optuna.Trial, losses: np.ndarray, references: References) -> None:
        self._set_attrs(trial, losses, references)
        self._told(self.study.tell(trial, state=TrialState.PRUNED))

    def _complete(
        self,
        trial: optuna.Trial,
        spec: MemberSpec,
        members: tuple[Trained, ...],
        losses: np.ndarray,
        references: References,
        *,
        train_s: float | None = None,
    ) -> None:
        """Keep the weights, then tell: a trial that the study calls complete has its weights on disk."""
        info = {"losses": losses.tolist(), "spec": spec.model_dump(mode="json")}
        save_members(self.folder.checkpoint(f"trial-{trial.number:05d}"), members, info)
        self._set_attrs(trial, losses, references)
        for name, value in self._valid_metrics(members).items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("n_params", members[0].n_parameters)
        if train_s is not None:
            trial.set_user_attr("train_s", round(train_s, 3))
        if curve := self.curves.get(trial.number):
            trial.set_user_attr("curve", curve)
        self._told(self.study.tell(trial, score(losses, references.single_losses, self.weights)))

    def _set_attrs(self, trial: optuna.Trial, losses: np.ndarray, references: References) -> None:
        each = gains(losses, references.single_losses)
        for name, loss, gain in zip(self.problem.names, losses.tolist(), each.tolist(), strict=True):
            trial.set_user_attr(f"gain.{name}", gain)
            if math.isfinite(loss):
                trial.set_user_attr(f"val.{name}.loss", loss)
        ratio = worst_ratio(losses, references.single_losses)
        if math.isfinite(ratio):
            trial.set_user_attr("worst_ratio", ratio)

    def _valid_metrics(self, members: tuple[Trained, ...]) -> dict[str, float]:
        """Return `val.<task>.<metric>` of a configuration on its validation rows, none judged by who learned it."""
        answered = select.out_of_fold(select.Candidate("", members), self.dataset)
        rows = select.validation_rows(self.dataset)
        found = {}
        for task, answers in zip(self.problem.tasks, answered, strict=True):
            truth = task.truth(self.problem.table[task.name])[rows]
            value = metrics.measure(task.metric, truth, task.scored(answers))
            if math.isfinite(value):
                found[f"val.{task.name}.{task.metric}"] = value
        return found

    def _told(self, frozen: FrozenTrial) -> None:
        for callback in self.callbacks:  # ask and tell fire none by themselves
            callback(self.study, frozen)
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((t.value for t in trials if t.value is not None), default=None)
        self.progress.told(self.n_told(), best)

    # -- finals -------------------------------------------------------------------------------------------------

    def best_trial(self) -> FrozenTrial:
        """Return the complete trial of the highest gain, the earliest among equals."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(trials, key=lambda t: (t.value if t.value is not None else -math.inf, -t.number))

    def _ordinal(self, number: int) -> int:
        """Return a trial's place among those that did not fail: kills shift numbers, never this."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.number < number and t.state != TrialState.FAIL for t in trials)

    def candidate(self, number: int) -> tuple[select.Candidate, MemberSpec]:
        """Return a complete trial's members from disk and its spec."""
        members, info = load_members(self.folder.checkpoint(f"trial-{number:05d}"))
        return select.Candidate(f"trial {number}", tuple(members)), MemberSpec.model_validate(info["spec"])

    def finals(self, best: FrozenTrial, references: References) -> list[list[select.Candidate]]:
        """Return, for each task, its single-task candidates: at the defaults, and at the best trial's configuration.

        The latter are trained here; where the time is up or somebody interrupts, the defaults stand alone.
        """
        singles = [[candidate] for candidate in references.singles]
        names = self.problem.names
        if best.number == 0 or len(names) == 1:
            return singles
        path = self.folder.checkpoint(f"singles-of-trial-{best.number:05d}")
        if not path.is_file():
            spec, ordinal = self.candidate(best.number)[1], self._ordinal(best.number)
            members = [m for name in names for m in self._members(alone(spec, name, names), "final", ordinal, name)]
            trip = Round(members, self.executor, seed=stable_seed(self.seed, "finals", ordinal))
            whole = not self.interrupted and trip.advance(spec.training.steps, reference=None, deadline=self.deadline())
            if not whole:
                return singles
            held = trip.members()
            save_members(path, [held[p][0].trained(held[p][1]) for p in sorted(held)], {"trial": best.number})
        members_, _ = load_members(path)
        for t, name in enumerate(names):
            own = tuple(members_[t * self.n_splits : (t + 1) * self.n_splits])
            singles[t].append(select.Candidate(f"single-task {name} at trial {best.number}", own))
        return singles

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a first Ctrl-C end the training and finish with what there is, and a second one stop at once."""

        def interrupt(_number: int, _frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.progress.say(
                "Interrupted: writing model and report from what is finished (Ctrl-C again stops at once)."
            )
            self.executor.stop()

        try:
            held = signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # not the main thread: whoever owns it decides
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, held)


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return our sampler: TPE that models conditional parameters jointly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def open_study(
    name: str, storage: Any, *, sampler: Any = None, pruner: Any = None, attrs: dict[str, Any] | None = None
) -> optuna.Study:
    """Return the run's study, made where it is not there; raises SpecError for one of several objectives."""
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler or make_sampler(0),
        pruner=pruner or RoundPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    if len(study.directions) != 1 or study.direction != optuna.study.StudyDirection.MAXIMIZE:
        raise SpecError(
            f"Study {name!r} does not maximise one objective; name another run with --out, or another storage."
        )
    if not study.metric_names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(["gain"])
    for key, value in (attrs or {}).items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return study


def budget(n_rows: int) -> tuple[int, int]:
    """Return (batch size, steps) for a number of training rows: about 100 batches an epoch, at most 512 rows each."""
    batch = int(2 ** round(math.log2(min(512, max(32, n_rows / 100)))))
    steps = 1024 if n_rows < 3_000 else 1536 if n_rows < 30_000 else 2560
    return min(batch, n_rows), steps


def shortened_steps(driver: Driver, steps: int, *, timeout_s: float | None) -> int:
    """Return how many steps the references can take within their share of a timeout: `steps`, or fewer.

    The speed is measured on a few steps of trial 0 and noted in the run, so that a resumed run has the same budget.
    """
    if timeout_s is None:
        return steps
    spec = driver.space.member(driver.space.defaults())
    names = driver.problem.names
    n_members = driver.n_splits * (1 + len(names) * (1 if driver.n_splits > 1 else SEEDS))
    probe = [Member(spec, seed=k) for k in range(4 * driver.executor.n_workers)]
    trip = Round(probe, driver.executor, seed=0)
    # Each advance ends with a look at the validation rows; the first also warms up.
    times = []
    for goal in (2, 6, 22):
        started = time.monotonic()
        trip.advance(goal, reference=None, deadline=math.inf)
        times.append((time.monotonic() - started) / len(probe))
    per_step = max((times[2] - times[1]) / 12, 1e-7)
    look = max(times[1] - 4 * per_step, 0.0)
    affordable = (REFERENCE_SHARE * timeout_s / n_members - EVALUATIONS * look) / per_step
    return steps if affordable >= steps else max(32, int(affordable) // 16 * 16)


def pick_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA where it is present; raises SpecError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise SpecError(
            f"Device {name!r} is not here; allowed: auto, cpu" + (", cuda" if torch.cuda.is_available() else "") + "."
        ) from None
    return device


def _looks(held: dict[int, Any], places: Sequence[int]) -> dict[int, list[list[float]]]:
    """Return the losses [T] of each of some members by step, where all of them looked."""
    found: dict[int, list[list[float]]] = {}
    for place in places:
        stack, k = held[place]
        for step, losses in stack.curve:
            found.setdefault(step, []).append(losses[k])
    return {step: losses for step, losses in sorted(found.items()) if len(losses) == len(places)}


def _curve(held: dict[int, Any], places: Sequence[int], *, task: int | None = None) -> list[list[float]]:
    """Return [[step, mean loss], ...] of some members: of one task, or the mean over tasks."""
    looks = _looks(held, places)
    cut = slice(None) if task is None else slice(task, task + 1)
    return [[step, float(np.nanmean(np.array(losses)[:, cut]))] for step, losses in looks.items()]
