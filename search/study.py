"""The driver: references, then rounds of asked trials, then the finals, the locked test and the model.

The driver is the only one that talks to Optuna: it asks a round of trials, sorts their members into stacks, has them
advanced from rung to rung, reports, prunes, and tells in the order of the trials. Bounded by `n_trials`, everything
that it computes is a function of data, spec and seed; the clock only decides when it ends.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
from optuna.trial import FrozenTrial, TrialState

from mtl_bento.errors import SpecError
from mtl_bento.network import Trained
from mtl_bento.training import Learned, MemberSpec, stable_seed
from mtl_bento_search import metrics, select
from mtl_bento_search.checkpoints import load_members, load_round, save_members, save_round
from mtl_bento_search.journal import together
from mtl_bento_search.objective import gains, score, worst_ratio
from mtl_bento_search.pruning import ROUND, RoundPruner
from mtl_bento_search.references import References
from mtl_bento_search.rounds import Round, rungs
from mtl_bento_search.sitting import Sitting

ROUND_SIZE, MOST_ROUNDS = 16, 3
"""Least trials asked together, few enough that the sampler learns often; and how many times as many, at most, where it
takes more to give each worker a stack worth having after the first trials are given up."""
ROUNDS = 4
"""Rounds that a timeout should suffice for before they become larger than the least."""
FINALS_ENTRIES = 2.0
"""Networks that the finals train, in those of each task alone: these, some groups, and networks on top of trees."""
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
    curves: dict[int, list[list[float]]] = field(default_factory=dict)
    """Looks at the validation rows by place, [[step, score], ...]; a stack forgets its own when it is made anew."""
    spent_s: float = 0.0
    """Seconds of training, also those before a kill."""


class Driver:
    """Asks, trains, prunes and tells trials in one sitting of a search.

    Args:
        sitting: data, space, executor, run folder, clock and seed.
        study: the Optuna study; its sampler is replaced before each ask where `own_sampler`.
        references: the losses that every score is measured by.
        own_sampler: whether the sampler is ours (re-seeded before each ask, so that a resumed run asks the same).
        callbacks: called as `callback(study, trial)` after each trial is told.
        halved: whether the trials leave as much time as they take, over all sittings, for trees to be tuned.
    """

    def __init__(
        self,
        sitting: Sitting,
        study: optuna.Study,
        references: References,
        *,
        own_sampler: bool = True,
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = (),
        halved: bool = False,
    ) -> None:
        self.sitting, self.study, self.references = sitting, study, references
        self._halved, self._started = halved, time.monotonic()
        self.own_sampler, self.callbacks = own_sampler, list(callbacks)
        self._left: list[FrozenTrial] = []
        """Trials that a dead driver asked for a round which it did not begin, in their order."""

    def search(self, *, n_trials: int | None) -> None:
        """Ask rounds of trials until `n_trials` are told, the time is up, or somebody interrupts."""
        trip = self._resumed_trip()
        self._left = self._left_running(trip)
        self.study._thread_local.in_optimize_loop = True  # a sampler or callback of the user's may call `study.stop`
        try:
            if self.n_told() == 0:
                self._tell_default()
            if trip is not None:
                self._go(trip, self._deadline())
            self._ask_and_go(n_trials)
        finally:
            self.study._thread_local.in_optimize_loop = False
        for frozen in self._left:  # nobody wants them any more: the totals are lower, or the time is up
            self.study.tell(frozen.number, state=TrialState.FAIL)

    def _ask_and_go(self, n_trials: int | None) -> None:
        while not self.sitting.interrupted and not self.study._stop_flag and time.monotonic() < self._deadline():
            left = math.inf if n_trials is None else n_trials - self.n_told()
            if left <= 0:
                break
            if not self.sitting.space.distributions:
                break  # everything is fixed: there is exactly one configuration, and it is trial 0
            n = self._affordable(int(min(self.round_size, left)))
            if n == 0:
                break
            started = time.monotonic()
            self._go(self._ask_round(n), self._deadline())
            self.sitting.folder.note(trial_s=(time.monotonic() - started) / n)

    @property
    def round_size(self) -> int:
        """How many trials are asked together: as many as give each worker `ROUND_SIZE` networks, within bounds."""
        wanted = ROUND_SIZE * self.sitting.packing.n_workers // self.sitting.n_splits
        return min(MOST_ROUNDS * ROUND_SIZE, max(ROUND_SIZE, wanted))

    def _affordable(self, n: int) -> int:
        """Return how many of n trials the time left is enough for: a round that cannot end would leave nothing."""
        left = self._deadline() - time.monotonic()
        trial_s = float(self.sitting.folder.read_state().get("trial_s", 0.0))
        if math.isinf(left) or not trial_s:
            return n
        within = max(0, int(left / trial_s))
        return min(n, within, max(ROUND_SIZE, within // ROUNDS))

    def _deadline(self) -> float:
        """Return when trials must end, so that each task alone can still be trained at the best configuration."""
        train_s = float(self.best_trial().user_attrs.get("train_s", 0.0)) if self.n_told() else 0.0
        at_defaults = float(self.sitting.folder.read_state().get("finals_s", 0.0))
        wanted = FINALS_ENTRIES * max(at_defaults, train_s * len(self.sitting.problem.names))
        most = FINALS_SHARE * (self.sitting.clock.timeout_s or 0.0)
        end = self.sitting.deadline(min(wanted, most))
        if not self._halved:
            return end
        earlier = self.sitting.clock.phases.get("search", 0.0)
        return self._started + max(0.0, (end - self._started - earlier) / 2)

    def _left_running(self, trip: Trip | None) -> list[FrozenTrial]:
        """Return the trials that a dead driver left running, but those of the round that is taken over."""
        kept = set() if trip is None else {trial.number for trial, _ in trip.living.values()}
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if trial.number not in kept]

    def n_told(self) -> int:
        """Return how many trials are complete or pruned."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def _ask(self, ordinal: int, first: int) -> tuple[optuna.Trial, dict[str, Any]]:
        """Ask a trial of the round that begins with trial `first`, or take one over that a dead driver asked."""
        if self.own_sampler:
            # Seeded by the trial's place among those that did not fail: a resumed run draws what the whole one drew.
            self.study.sampler = make_sampler(stable_seed(self.sitting.seed, "ask", ordinal) % 2**32)
        if self._left:
            frozen = self._left.pop(0)
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            if ROUND in frozen.user_attrs:
                return trial, frozen.params
            if self.own_sampler:
                # It was being asked. It draws again from its first parameter on, and so draws the same.
                trial._cached_frozen_trial = copy.copy(trial._cached_frozen_trial)
                trial._cached_frozen_trial.params, trial._cached_frozen_trial.distributions = {}, {}
        else:
            trial = self.study.ask()
        with _fitting(self.study.sampler, ours=self.own_sampler):
            params = self.sitting.space.suggest(trial)
        trial.set_user_attr(ROUND, first)  # the last thing that is said of it: now it is asked
        return trial, params

    def _tell_default(self) -> None:
        """Tell trial 0, which the reference cohort trained, at once."""
        space, found = self.sitting.space, self.references
        params, members = space.defaults(), found.default.networks
        self._save_weights(0, members, found.default_losses)
        trial = optuna.trial.create_trial(
            value=self._score(found.default_losses),
            params=params,
            distributions={name: space.distributions[name] for name in params},
            user_attrs={ROUND: 0, **self._attrs(found.default_losses, members)},
            intermediate_values={step: self._score(np.array(losses)) for step, losses in found.rungs.items()},
        )
        self.study.add_trial(trial)
        self._told(self.study.get_trials(deepcopy=False)[-1])

    def _ask_round(self, n: int) -> Trip:
        """Ask n trials and stack their members; from here on they survive a kill."""
        first = self.n_told()
        asked = []
        with together(self.study):
            for i in range(n):
                trial, params = self._ask(first + i, first)
                asked.append((trial, self.sitting.space.member(params)))
        members = [m for i, (_, spec) in enumerate(asked) for m in self.sitting.members(spec, "trial", first + i)]
        trip = Trip(first, dict(enumerate(asked)), self.sitting.round(members, seed=self._round_seed(first)))
        self._save_trip(trip)
        return trip

    def _round_seed(self, first: int) -> int:
        return stable_seed(self.sitting.seed, "round", first)

    def _save_trip(self, trip: Trip) -> None:
        info = {
            "first": trip.first,
            "numbers": {str(i): trial.number for i, (trial, _) in trip.living.items()},
            "curves": {str(i): curve for i, curve in trip.curves.items()},
            "spent_s": trip.spent_s,
        }
        save_round(self.sitting.folder.checkpoint(ON_ITS_WAY), trip.round.packed, info)

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
        round_ = self.sitting.round([], seed=self._round_seed(first), packed=packed)
        return Trip(first, living, round_, {int(i): held for i, held in info["curves"].items()}, info["spent_s"])

    def _go(self, trip: Trip, deadline: float) -> None:
        """Take a round through its rungs; every step of it can be repeated after a kill without another outcome."""
        living = trip.living
        steps = next(iter(living.values()))[1].training.steps
        started = time.monotonic() - trip.spent_s
        reference = self.references.single_losses.clip(0.01, None).tolist()
        losses: dict[int, np.ndarray] = {}
        for rung, goal in enumerate(rungs(steps)):
            if goal <= trip.round.step and goal < steps:
                continue  # passed before a kill
            if goal > trip.round.step:
                trip.round.advance(goal, reference=reference, deadline=deadline)
                self._note_curves(trip)
                trip.spent_s = time.monotonic() - started
            losses = self._losses(trip.round, living)
            if trip.round.step < goal:
                if self.sitting.interrupted:
                    return  # it goes on from its checkpoint another time
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
                self._complete_all(trip, losses)
        self.sitting.folder.checkpoint(ON_ITS_WAY).unlink(missing_ok=True)
        clock = self.sitting.clock
        self.sitting.folder.note(elapsed_s=clock.elapsed_s, phases=clock.phases, told=self.n_told())

    def _thin(self, trip: Trip, losses: dict[int, np.ndarray], goal: int, *, last: bool) -> None:
        """Report every living trial at a rung, then drop those that the pruner gives up."""
        known = {t.number for t in self.study.get_trials(deepcopy=False) if goal in t.intermediate_values}
        for i in sorted(trip.living):
            trial = trip.living[i][0]
            if trial.number not in known:
                trial.report(self._score(losses[i]), goal)
        if last:
            return
        with _fitting(self.study.pruner, ours=isinstance(self.study.pruner, RoundPruner)):
            given_up = [i for i in sorted(trip.living) if trip.living[i][0].should_prune()]
        for i in given_up:
            self._prune(trip.living.pop(i)[0], losses[i])

    def _complete_all(self, trip: Trip, losses: dict[int, np.ndarray]) -> None:
        """Keep each trial's weights, then tell it: a trial that the study calls complete has its weights on disk."""
        train_s = round(trip.spent_s / max(1, len(trip.living)), 3)
        held = trip.round.members()
        for i, (trial, _) in sorted(trip.living.items()):
            places = range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits)
            members = tuple(held[p][0].trained(held[p][1]) for p in places)
            self._save_weights(trial.number, members, losses[i])
            timed = {"train_s": train_s, "curve": trip.curves[i]}
            for name, value in {**self._attrs(losses[i], members), **timed}.items():
                trial.set_user_attr(name, value)
            self._told(self.study.tell(trial, self._score(losses[i])))

    def _losses(self, trip: Round, living: dict[int, Any]) -> dict[int, np.ndarray]:
        """Return each living trial's losses [T], the mean over its splits at their best looks."""
        held = trip.members()
        found = {}
        for i in living:
            places = range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits)
            found[i] = np.mean([held[p][0].losses[held[p][1]] for p in places], axis=0)
        return found

    def _note_curves(self, trip: Trip) -> None:
        """Add the looks of the trials still in a round since their stacks were made."""
        for i in trip.living:
            curve = trip.curves.setdefault(i, [])
            known = {int(step) for step, _ in curve}
            looks = trip.round.looks(range(i * self.sitting.n_splits, (i + 1) * self.sitting.n_splits))
            curve += [
                [step, self._score(np.mean(losses, axis=0))] for step, losses in looks.items() if step not in known
            ]

    def _prune(self, trial: optuna.Trial, losses: np.ndarray) -> None:
        for name, value in self._attrs(losses).items():
            trial.set_user_attr(name, value)
        self._told(self.study.tell(trial, state=TrialState.PRUNED))

    def _save_weights(self, number: int, members: Sequence[Learned], losses: np.ndarray) -> None:
        save_members(self.sitting.folder.checkpoint(f"trial-{number:05d}"), members, {"losses": losses.tolist()})

    def _score(self, losses: np.ndarray) -> float:
        return score(losses, self.references.single_losses, self.sitting.weights)

    def _attrs(self, losses: np.ndarray, members: tuple[Trained, ...] = ()) -> dict[str, Any]:
        """Return what the study says of a trial besides its gain, and of its networks where they are kept."""
        found: dict[str, Any] = {}
        each = gains(losses, self.references.single_losses)
        for name, loss, gain in zip(self.sitting.problem.names, losses.tolist(), each.tolist(), strict=True):
            found[f"gain.{name}"] = gain
            if math.isfinite(loss):
                found[f"val.{name}.loss"] = loss
        ratio = worst_ratio(losses, self.references.single_losses)
        if math.isfinite(ratio):
            found["worst_ratio"] = ratio
        if members:
            found |= {**self._valid_metrics(members), "n_params": members[0].n_parameters}
        return found

    def _valid_metrics(self, members: tuple[Trained, ...]) -> dict[str, float]:
        """Return `val.<task>.<metric>` of a configuration on its validation rows, none judged by who learned it."""
        answered = select.out_of_fold(members, self.sitting.dataset)
        rows = select.validation_rows(self.sitting.dataset)
        found = {}
        problem = self.sitting.problem
        for task, answers in zip(problem.placed(rows), answered, strict=True):
            truth = task.truth(problem.table[task.name].take(pa.array(rows)))
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
        members, _ = load_members(self.sitting.folder.checkpoint(f"trial-{number:05d}"))
        return select.Candidate(f"trial {number}", "shared", tuple(members)), members[0].member.spec


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return our sampler: TPE that models conditional parameters jointly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


@contextlib.contextmanager
def _fitting(part: optuna.samplers.BaseSampler | optuna.pruners.BasePruner, *, ours: bool) -> Iterator[None]:
    """Turn what a sampler or pruner of the user's refuses into one line; raises SpecError."""
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        if ours:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise SpecError(
            f"{type(part).__name__} cannot be used in this search ({reason}): it must work with one objective and "
            "with the parameters of the space; leave it out for ours."
        ) from error
