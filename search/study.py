"""The driver: references, then rounds of asked trials, then the finals, the locked test and the model.

The driver is the only one that talks to Optuna: it asks a round of trials, sorts their members into stacks, has them
advanced from rung to rung, reports, prunes, and tells in the order of the trials. Bounded by `n_trials`, everything
that it computes is a function of data, spec and seed; the clock only decides when it ends.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mtl_bento.errors import RunError, SpecError
from mtl_bento.network import Trained
from mtl_bento.training import MemberSpec, stable_seed
from mtl_bento_search import metrics, select
from mtl_bento_search.checkpoints import load_members, load_round, save_members, save_round
from mtl_bento_search.journal import together
from mtl_bento_search.objective import gains, score, worst_ratio
from mtl_bento_search.pruning import ROUND, RoundPruner
from mtl_bento_search.references import References
from mtl_bento_search.rounds import Round, rungs
from mtl_bento_search.sitting import Sitting

ROUND_SIZE = 16
"""Trials asked together: enough for several stacks, few enough that the sampler learns often."""
FINALS_SHARE = 0.2
"""Most of a timeout that is kept back for the finals."""
ON_ITS_WAY = "round"
"""The checkpoint of the round that is being trained."""


@dataclass
class Trip:
    """A round on its way: which of its trials are still in it, and where their members are."""

    first: int
    """How many trials were told before it: the ordinal of its first trial."""
    living: dict[int, tuple[optuna.Trial, MemberSpec]]
    """The trials still in the round, by their place in it."""
    round: Round


class Driver:
    """Asks, trains, prunes and tells trials in one sitting of a search.

    Args:
        sitting: data, space, executor, run folder, clock and seed.
        study: the Optuna study; its sampler is replaced before each ask where `own_sampler`.
        references: the losses that every score is measured by.
        own_sampler: whether the sampler is ours (re-seeded before each ask, so that a resumed run asks the same).
        callbacks: called as `callback(study, trial)` after each trial is told.
    """

    def __init__(
        self,
        sitting: Sitting,
        study: optuna.Study,
        references: References,
        *,
        own_sampler: bool = True,
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = (),
    ) -> None:
        self.sitting, self.study, self.references = sitting, study, references
        self.own_sampler, self.callbacks = own_sampler, list(callbacks)
        self.curves: dict[int, list[list[float]]] = {}

    def search(self, *, n_trials: int | None) -> None:
        """Ask rounds of trials until `n_trials` are told, the time is up, or somebody interrupts."""
        trip = self._resumed_trip()
        self._forget_the_dead(trip)
        if self.n_told() == 0:
            self._tell_default()
        if trip is not None:
            self._go(trip, self._deadline())
        while not self.sitting.interrupted and time.monotonic() < self._deadline():
            left = math.inf if n_trials is None else n_trials - self.n_told()
            if left <= 0:
                break
            if not self.sitting.space.distributions:
                break  # everything is fixed: there is exactly one configuration, and it is trial 0
            n = self._affordable(int(min(ROUND_SIZE, left)))
            if n == 0:
                break
            started = time.monotonic()
            self._go(self._ask_round(n), self._deadline())
            self.sitting.folder.note(trial_s=(time.monotonic() - started) / n)

    def _affordable(self, n: int) -> int:
        """Return how many of n trials the time left is enough for: a round that cannot end would leave nothing."""
        left = self._deadline() - time.monotonic()
        trial_s = float(self.sitting.folder.read_state().get("trial_s", 0.0))
        return n if math.isinf(left) or trial_s * n <= left else max(0, int(left / trial_s))

    def _deadline(self) -> float:
        """Return when trials must end, so that each task alone can still be trained at the best configuration."""
        train_s = float(self.best_trial().user_attrs.get("train_s", 0.0)) if self.n_told() else 0.0
        at_defaults = float(self.sitting.folder.read_state().get("finals_s", 0.0))
        wanted = max(at_defaults, train_s * len(self.sitting.problem.names))
        most = FINALS_SHARE * (self.sitting.clock.timeout_s or 0.0)
        return self.sitting.deadline(min(wanted, most))

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
            self.study.sampler = make_sampler(stable_seed(self.sitting.seed, "ask", ordinal) % 2**32)
        trial = self.study.ask()
        return trial, self.sitting.space.suggest(trial)

    def _tell_default(self) -> None:
        """Tell trial 0, which the reference cohort trained."""
        self.study.enqueue_trial(self.sitting.space.defaults())
        trial, params = self._ask(0)
        trial.set_user_attr(ROUND, 0)
        for step, losses in self.references.rungs.items():
            trial.report(score(np.array(losses), self.references.single_losses, self.sitting.weights), step)
        self._complete(
            trial, self.sitting.space.member(params), self.references.default.members, self.references.default_losses
        )

    def _ask_round(self, n: int) -> Trip:
        """Ask n trials and stack their members; from here on they survive a kill."""
        first = self.n_told()
        asked = []
        with together(self.study):
            for i in range(n):
                trial, params = self._ask(first + i)
                trial.set_user_attr(ROUND, first)
                asked.append((trial, self.sitting.space.member(params)))
        members = [m for i, (_, spec) in enumerate(asked) for m in self.sitting.members(spec, "trial", first + i)]
        trip = Trip(first, dict(enumerate(asked)), self.sitting.round(members, seed=self._round_seed(first)))
        self._save_trip(trip)
        return trip

    def _round_seed(self, first: int) -> int:
        return stable_seed(self.sitting.seed, "round", first)

    def _save_trip(self, trip: Trip) -> None:
        numbers = {str(i): trial.number for i, (trial, _) in trip.living.items()}
        save_round(
            self.sitting.folder.checkpoint(ON_ITS_WAY), trip.round.packed, {"first": trip.first, "numbers": numbers}
        )

    def _resumed_trip(self) -> Trip | None:
        """Return the round that a dead driver left on its way, with its running trials, or None."""
        path = self.sitting.folder.checkpoint(ON_ITS_WAY)
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
                living[int(slot)] = (trial, self.sitting.space.member(frozen.params))
        if not living:
            path.unlink()
            return None
        first = int(info["first"])
        return Trip(first, living, self.sitting.round([], seed=self._round_seed(first), packed=packed))

    def _go(self, trip: Trip, deadline: float) -> None:
        """Take a round through its rungs; every step of it can be repeated after a kill without another outcome."""
        living = trip.living
        steps = next(iter(living.values()))[1].training.steps
        started = time.monotonic()
        reference = self.references.single_losses.clip(0.01, None).tolist()
        losses: dict[int, np.ndarray] = {}
        for rung, goal in enumerate(rungs(steps)):
            if goal <= trip.round.step and goal < steps:
                continue  # passed before a kill
            if goal > trip.round.step:
                trip.round.advance(goal, reference=reference, deadline=deadline)
            losses = self._losses(trip.round, living)
            self._note_curves(trip.round, living)
            if trip.round.step < goal:
                for i in sorted(living):
                    self._prune(living[i][0], losses[i])
                break
            with together(self.study):
                self._thin(trip, losses, goal, last=goal == steps)
            if not living:
                break
            if goal < steps:
                self.sitting.progress.rung(trip.first + len(living), goal, steps, len(living))
                trip.round.keep(lambda place: place // self.sitting.n_splits in living, rung=rung)
            self._save_trip(trip)  # only now: half as much, since the others are told
        if trip.round.step == steps:
            with together(self.study):
                self._complete_all(trip, losses, started)
        self.sitting.folder.checkpoint(ON_ITS_WAY).unlink(missing_ok=True)
        self.sitting.folder.note(elapsed_s=self.sitting.clock.elapsed_s, phases=self.sitting.clock.phases)

    def _thin(self, trip: Trip, losses: dict[int, np.ndarray], goal: int, *, last: bool) -> None:
        """Report every living trial at a rung, then drop those that the pruner gives up."""
        known = {t.number for t in self.study.get_trials(deepcopy=False) if goal in t.intermediate_values}
        for i in sorted(trip.living):
            trial = trip.living[i][0]
            if trial.number not in known:
                trial.report(score(losses[i], self.references.single_losses, self.sitting.weights), goal)
        if last:
            return
        for i in [i for i in sorted(trip.living) if trip.living[i][0].should_prune()]:
            self._prune(trip.living.pop(i)[0], losses[i])

    def _complete_all(self, trip: Trip, losses: dict[int, np.ndarray], started: float) -> None:
        share = (time.monotonic() - started) / max(1, len(trip.living))
        held = trip.round.members()
        for i in sorted(trip.living):
            places = range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits)
            trained = tuple(held[p][0].trained(held[p][1]) for p in places)
            self._complete(*trip.living[i], trained, losses[i], train_s=share)

    def _losses(self, trip: Round, living: dict[int, Any]) -> dict[int, np.ndarray]:
        """Return each living trial's losses [T], the mean over its splits at their best looks."""
        held = trip.members()
        found = {}
        for i in living:
            places = range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits)
            found[i] = np.mean([held[p][0].losses[held[p][1]] for p in places], axis=0)
        return found

    def _note_curves(self, trip: Round, living: dict[int, Any]) -> None:
        for i, (trial, _) in living.items():
            places = range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits)
            looks = trip.looks(places)
            known = {int(step) for step, _ in self.curves.get(trial.number, [])}
            fresh = [
                [step, score(np.mean(losses, axis=0), self.references.single_losses, self.sitting.weights)]
                for step, losses in looks.items()
                if step not in known
            ]
            self.curves.setdefault(trial.number, []).extend(fresh)

    def _prune(self, trial: optuna.Trial, losses: np.ndarray) -> None:
        self._set_attrs(trial, losses)
        self._told(self.study.tell(trial, state=TrialState.PRUNED))

    def _complete(
        self,
        trial: optuna.Trial,
        spec: MemberSpec,
        members: tuple[Trained, ...],
        losses: np.ndarray,
        *,
        train_s: float | None = None,
    ) -> None:
        """Keep the weights, then tell: a trial that the study calls complete has its weights on disk."""
        info = {"losses": losses.tolist(), "spec": spec.model_dump(mode="json")}
        save_members(self.sitting.folder.checkpoint(f"trial-{trial.number:05d}"), members, info)
        self._set_attrs(trial, losses)
        for name, value in self._valid_metrics(members).items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("n_params", members[0].n_parameters)
        if train_s is not None:
            trial.set_user_attr("train_s", round(train_s, 3))
        if curve := self.curves.get(trial.number):
            trial.set_user_attr("curve", curve)
        self._told(self.study.tell(trial, score(losses, self.references.single_losses, self.sitting.weights)))

    def _set_attrs(self, trial: optuna.Trial, losses: np.ndarray) -> None:
        each = gains(losses, self.references.single_losses)
        for name, loss, gain in zip(self.sitting.problem.names, losses.tolist(), each.tolist(), strict=True):
            trial.set_user_attr(f"gain.{name}", gain)
            if math.isfinite(loss):
                trial.set_user_attr(f"val.{name}.loss", loss)
        ratio = worst_ratio(losses, self.references.single_losses)
        if math.isfinite(ratio):
            trial.set_user_attr("worst_ratio", ratio)

    def _valid_metrics(self, members: tuple[Trained, ...]) -> dict[str, float]:
        """Return `val.<task>.<metric>` of a configuration on its validation rows, none judged by who learned it."""
        answered = select.out_of_fold(select.Candidate("", members), self.sitting.dataset)
        rows = select.validation_rows(self.sitting.dataset)
        found = {}
        for task, answers in zip(self.sitting.problem.tasks, answered, strict=True):
            truth = task.truth(self.sitting.problem.table[task.name])[rows]
            value = metrics.measure(task.metric, truth, task.scored(answers))
            if math.isfinite(value):
                found[f"val.{task.name}.{task.metric}"] = value
        return found

    def _told(self, frozen: FrozenTrial) -> None:
        for callback in self.callbacks:  # ask and tell fire none by themselves
            callback(self.study, frozen)
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max((t.value for t in trials if t.value is not None), default=None)
        self.sitting.progress.told(self.n_told(), best)

    def best_trial(self) -> FrozenTrial:
        """Return the complete trial of the highest gain, the earliest among equals."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(trials, key=lambda t: (t.value if t.value is not None else -math.inf, -t.number))

    def ordinal(self, number: int) -> int:
        """Return a trial's place among those that did not fail: kills shift numbers, never this."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(t.number < number and t.state != TrialState.FAIL for t in trials)

    def candidate(self, number: int) -> tuple[select.Candidate, MemberSpec]:
        """Return a complete trial's members from disk and its spec."""
        members, info = load_members(self.sitting.folder.checkpoint(f"trial-{number:05d}"))
        return select.Candidate(f"trial {number}", tuple(members)), MemberSpec.model_validate(info["spec"])


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return our sampler: TPE that models conditional parameters jointly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def open_study(
    name: str, storage: Any, *, sampler: Any = None, pruner: Any = None, attrs: dict[str, Any] | None = None
) -> optuna.Study:
    """Return the run's study, made where it is not there; raises SpecError for one of several objectives."""
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler or make_sampler(0),
            pruner=pruner or RoundPruner(),
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError, ValueError) as error:
        # Not the error's text: it may hold the URL with its password.
        raise RunError(
            f"The storage cannot be used ({type(error).__name__}): check its address, password and driver, "
            "for instance sqlite:///study.db; without --storage the run keeps a journal file."
        ) from None
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
