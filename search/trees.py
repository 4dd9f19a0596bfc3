"""LightGBM tuned for each task alone, its boosters compiled to `mtl_bento.forest.Forest`s.

Each task has its own Optuna study, which begins with presets: LightGBM's defaults, before them what is quick and good
where rows are few. A trial trains one booster a split on most of the split's training rows; the others say when to
stop, for all splits together, as a small split's own are too few to. The validation rows judge. The best parameters are
trained again on all training rows, for a few rounds more.

Where seconds bound the tuning, the first trial of a task ends with its share of them, as far as it has come; a task for
which none are left has no trees. Where training again would take too long, the boosters of most rows are kept.

Boosters start from the best constant outputs, each label counted half a time more (`Boosted.constant`): LightGBM's own
start is 34 nats off for a label that a fold lacks.

Letters: N rows, F features, T tasks, O outputs, S splits.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor

from mtl_bento.errors import MissingExtraError
from mtl_bento.forest import Forest
from mtl_bento.tasks._base import Boosted
from mtl_bento.training import stable_seed
from mtl_bento_search.checkpoints import grouped, read, write
from mtl_bento_search.problem import Problem

FEWEST = 20
"""Labelled training rows of a split below which a task has no trees."""
MOST_TREES = 4000
"""Trees of a forest, those of all outputs together: every answer descends them all."""
STOP_SHARE = 0.15
"""Share of the training rows that says when to stop."""
MORE_ROUNDS = 1.1
"""Rounds of the boosters of all training rows, in those of most of them."""
CROSS = 5
"""Parts of the training rows of a holdout, each answered by a booster of the others."""

DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.1, "num_leaves": 31, "min_child_samples": 20, "min_sum_hessian": 1e-3, "feature_fraction": 1.0,
    "bagging_fraction": 1.0, "lambda_l1": 1e-8, "lambda_l2": 1e-8, "max_bin": 255, "extra_trees": False,
    "cat_smooth": 10.0, "cat_l2": 10.0, "min_data_per_group": 100,
}  # fmt: skip
"""LightGBM's own (1e-8 is its 0 on a logarithmic scale): the first trial, but where rows are few."""
CALM: dict[str, Any] = DEFAULTS | {
    "learning_rate": 0.04, "num_leaves": 8, "min_child_samples": 10, "feature_fraction": 0.6, "bagging_fraction": 0.8,
    "lambda_l2": 1.0,
}  # fmt: skip
"""What is good on few rows."""
BRISK: dict[str, Any] = CALM | {"learning_rate": 0.1}
"""The same in a third of the time: the first trial where rows are few."""
FEW_ROWS = 5000
"""Labelled training rows of a split below which they are few."""
COLUMNS = 64
"""Inputs that a tree of `CALM` and `BRISK` looks at, where .2 to .6 of them are as many: wide tables take no longer."""
LATE = 0.1
"""Share of the seconds by which training the best parameters again may be late; beyond it, it is left out."""
FOR_CATEGORIES = ("cat_smooth", "cat_l2", "min_data_per_group")

Told = Callable[[str, int, float], None]
"""Told of each trial: the task, how many trials it has had, its least loss so far in units of the trivial one."""


@dataclass(frozen=True)
class Trees:
    """What tuning made of one task."""

    task: str
    forests: tuple[Forest, ...]
    """One a split, of all its training rows; of most of them where time was too short to train again."""
    margins: np.ndarray
    """[N, O] float32, each row's by forests that did not learn it: a validation row's by the split's forest, a training
    row's that validates in no split by cross-fitting, the mean over the forests on all others (the test)."""
    params: dict[str, Any]
    loss: float
    """Mean loss on the validation rows in units of the trivial one, by row weight."""
    n_trials: int


def tune(
    problem: Problem,
    *,
    features: Tensor,
    seconds: float | None = None,
    n_trials: int | None = None,
    seed: int = 0,
    n_workers: int = 1,
    progress: Told | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Trees | None, ...]:
    """Return tuned trees for each task; None for one that is not `learnable`, or for which there was no time.

    Args:
        problem: tasks, splits, labels and weights.
        features: what `Inputs.features` returns of all rows, [N, F] float32.
        seconds: wall time of all tasks together, the last training included.
        n_trials: trials a task; two runs bounded by it alone, with as many workers, give the same forests.
        seed: of the studies and of the boosters.
        n_workers: how many tasks are tuned at the same time; LightGBM has what is left of them as threads.
        progress: told of each trial, from the thread that ran it.
        stop: asked often; where it says so, tuning ends with the first trial of each task.

    Raises MissingExtraError where LightGBM is not installed, ValueError where neither bound is given.
    """
    if seconds is None and n_trials is None:
        raise ValueError("tune needs `seconds` or `n_trials`")
    _lightgbm()
    deadline = time.monotonic() + (np.inf if seconds is None else seconds)
    x = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
    learnable = [(t, boosted) for t in range(len(problem.tasks)) if (boosted := _boosted(problem, t)) is not None]
    tuned: dict[int, Trees] = {}
    if learnable and x.shape[1]:
        side_by_side = min(max(n_workers, 1), len(learnable))
        threads = max(1, n_workers // side_by_side)
        studies = [_Study(problem, t, boosted, x, seed=seed, threads=threads) for t, boosted in learnable]
        rounds = _Turns(studies, side_by_side, deadline, n_trials, progress, stop)
        with ThreadPoolExecutor(side_by_side) as pool:
            try:
                for worker in [pool.submit(rounds.work) for _ in range(side_by_side)]:
                    worker.result()
                latest = deadline + LATE * (0.0 if seconds is None else seconds)
                done = [study for study in studies if study.n_trials]
                tuned = {
                    s.place: trees for s, trees in zip(done, pool.map(lambda s: s.finish(latest), done), strict=True)
                }
            except BaseException:
                rounds.end()
                raise
    return tuple(tuned.get(t) for t in range(len(problem.tasks)))


def learnable(problem: Problem, t: int) -> bool:
    """Return whether trees can learn a task: it answers rows as a whole, and 20 rows of each split have labels."""
    return _boosted(problem, t) is not None


def again(problem: Problem, held: Trees, rows: np.ndarray, *, features: Tensor, seed: int, n_workers: int = 1) -> Trees:
    """Return the trees of a task with forests of all rows [B], of the same parameters and rounds.

    They are as many, or one where their parameters draw no rows or inputs at random: others would be the same.

    Their seeds differ, the first one's is that of the tuning. Margins, which are out of fold, stay. `features` and
    `seed` are those of `tune`.
    """
    t = problem.names.index(held.task)
    boosted = _boosted(problem, t)
    assert boosted is not None  # there are trees of it
    x = np.ascontiguousarray(features.cpu().numpy(), dtype=np.float32)
    study = _Study(problem, t, boosted, x, seed=seed, threads=n_workers)
    return replace(held, forests=study.again(held.params, rows, n=len(held.forests)))


def _boosted(problem: Problem, t: int) -> Boosted | None:
    """Return how trees learn a task, or None where they cannot."""
    task = problem.tasks[t]
    boosted = None if task.positional else task.boosted(problem.dataset.targets[t])  # trees answer rows as a whole
    if boosted is None:
        return None
    weights = _label_weights(problem, t)
    fewest = min(int((weights[train] > 0).sum()) for train, _ in problem.protocol.splits)
    return boosted if fewest >= FEWEST else None


def _label_weights(problem: Problem, t: int) -> np.ndarray:
    """Return the weight of each row in a task's loss, [N] float64: 0 where its label is missing."""
    given = problem.dataset.label_weights[t]
    if given is None:
        return np.ones(problem.table.num_rows)
    return np.asarray(given.cpu().numpy(), dtype=np.float64)


class _Turns:
    """Who trains next: of the tasks that nobody trains, the one that has had the least time."""

    def __init__(
        self,
        studies: Sequence[_Study],
        side_by_side: int,
        deadline: float,
        n_trials: int | None,
        progress: Told | None,
        stop: Callable[[], bool],
    ) -> None:
        self._studies, self._side_by_side, self._deadline, self._n_trials = studies, side_by_side, deadline, n_trials
        self._progress, self._asked, self._ended = progress, stop, False
        self._lock, self._idle = threading.Lock(), list(studies)

    def end(self) -> None:
        """End all trials now."""
        self._ended = True

    def work(self) -> None:
        """Train one trial after another until none is wanted."""
        try:
            while (study := self._next()) is not None:
                over = self._over if study.n_trials else self._first_over(study)
                if study.trial(over) and self._progress is not None:
                    self._progress(study.task.name, study.n_trials, study.loss)
                with self._lock:
                    self._idle.append(study)
        except BaseException:
            self.end()
            raise

    def _next(self) -> _Study | None:
        with self._lock:
            wanted = [study for study in self._idle if self._wants(study)]
            if not wanted or self._ended:
                return None
            study = min(wanted, key=lambda s: (s.seconds, s.place))
            self._idle.remove(study)
            return study

    def _wants(self, study: _Study) -> bool:
        if not study.n_trials:
            return self._left() > 0
        return (self._n_trials is None or study.n_trials < self._n_trials) and not self._over()

    def _left(self) -> float:
        """Return the seconds that are left, but for training the best parameters again."""
        last = sum(study.last_seconds for study in self._studies) / self._side_by_side
        return self._deadline - time.monotonic() - last

    def _over(self) -> bool:
        """Return whether the time is over."""
        return self._ended or self._left() < 0 or self._asked()

    def _first_over(self, study: _Study) -> Callable[[], bool]:
        """Return what says that the first trial of a study has had its time.

        That is what its share of what is left has beside training it again: tasks after it need theirs.
        """
        waiting = sum(not other.n_trials for other in self._studies)
        share = self._left() * self._side_by_side / max(self._side_by_side, waiting)
        until = time.monotonic() + share / (1 + study.repeats)
        return lambda: self._ended or time.monotonic() > until


@dataclass
class _Best:
    """The best trial of a task so far."""

    loss: float
    params: dict[str, Any]
    rounds: int
    boosters: list[Any]
    """Those that were judged, of most training rows."""
    seconds: float


class _Study:
    """The tuning of one task."""

    def __init__(self, problem: Problem, t: int, boosted: Boosted, x: np.ndarray, *, seed: int, threads: int) -> None:
        self.place, self.task, self.n_trials, self.seconds = t, problem.tasks[t], 0, 0.0
        self._problem, self._boosted, self._x, self._threads = problem, boosted, x, threads
        self._categorical = problem.dataset.inputs.categorical()
        self._weights = _label_weights(problem, t)
        self._seed = stable_seed(seed, "trees", self.task.name) % 2**31
        splits = [train for train, _ in problem.protocol.splits]
        self._fewest = min(int((self._weights[train] > 0).sum()) for train in splits)
        self._parts = [self._in_parts(train, round(1 / STOP_SHARE), s) for s, train in enumerate(splits)]
        validated = np.concatenate([valid for _, valid in problem.protocol.splits])
        self._crossed = np.setdiff1d(splits[0], validated)
        """Training rows that validate in no split: those of a holdout."""
        self._sets: dict[int, list[tuple[Any, Any]]] = {}
        self._best: _Best | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=self._seed, multivariate=True)
        self._study = optuna.create_study(sampler=sampler)
        fraction = {"feature_fraction": float(np.clip(COLUMNS / x.shape[1], 0.2, 0.6))}
        few = (BRISK | fraction, CALM | fraction, DEFAULTS)
        for params in few if self._fewest < FEW_ROWS else (DEFAULTS, CALM | fraction):
            self._study.enqueue_trial({name: params[name] for name in self._names()})

    @property
    def loss(self) -> float:
        """The least loss so far, of boosters of most training rows."""
        return np.inf if self._best is None else self._best.loss

    @property
    def repeats(self) -> float:
        """How often the time of a trial training its parameters again takes, about."""
        return 1 + (CROSS / len(self._parts) if self._crossed.size else 0)

    @property
    def last_seconds(self) -> float:
        """What training the best parameters again will take, about."""
        return 0.0 if self._best is None else self._best.seconds * self.repeats

    def _names(self) -> list[str]:
        return [name for name in DEFAULTS if self._categorical or name not in FOR_CATEGORIES]

    def trial(self, over: Callable[[], bool]) -> bool:
        """Train one trial and return True; False where the time ended it. The first one counts as far as it came."""
        start = time.monotonic()
        trial = self._study.ask()
        params = self._suggest(trial)
        grown = self._grow(params, over)
        if grown is not None:
            boosters, rounds = grown
            answered = [
                self._raw(booster, train[self._parts[s] != 0], valid, rounds)
                for s, (booster, (train, valid)) in enumerate(zip(boosters, self._problem.protocol.splits, strict=True))
            ]
            loss = self._loss(np.concatenate(answered))
            self._study.tell(trial, loss)
            self.n_trials += 1
            if loss < self.loss:
                self._best = _Best(loss, params, rounds, boosters, time.monotonic() - start)
        self.seconds += time.monotonic() - start
        return grown is not None

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        params: dict[str, Any] = {
            "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 3, 256 if self._fewest >= 2000 else 64, log=True),
            "min_child_samples": trial.suggest_int("min_child_samples", 1, 200, log=True),
            "min_sum_hessian": trial.suggest_float("min_sum_hessian", 1e-3, 10.0, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.2, 1.0),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 1.0),
            "lambda_l1": trial.suggest_float("lambda_l1", 1e-8, 10.0, log=True),
            "lambda_l2": trial.suggest_float("lambda_l2", 1e-8, 100.0, log=True),
            "max_bin": trial.suggest_categorical("max_bin", [63, 255, 1023]),
            "extra_trees": trial.suggest_categorical("extra_trees", [False, True]),
        }
        if self._categorical:
            params |= {
                "cat_smooth": trial.suggest_float("cat_smooth", 1.0, 100.0, log=True),
                "cat_l2": trial.suggest_float("cat_l2", 0.1, 100.0, log=True),
                "min_data_per_group": trial.suggest_int("min_data_per_group", 5, 200, log=True),
            }
        return params

    def _grow(self, params: dict[str, Any], over: Callable[[], bool]) -> tuple[list[Any], int] | None:
        """Return a booster a split and how many of their rounds are best by the mean over the splits.

        Where the time is over: the first trial as far as it is, None of any other.
        """
        held = self._sets_of(int(params["max_bin"]))
        boosters = [self._booster(params, learned) for learned, _ in held]
        for booster, (_, stopping) in zip(boosters, held, strict=True):
            booster.add_valid(stopping, "stop")
        patience = int(np.clip(4 / params["learning_rate"] + 10, 20, 300))
        best, best_rounds = np.inf, 1
        for done in range(1, max(1, MOST_TREES // self.task.n_outputs) + 1):
            if over():
                if self.n_trials:
                    return None
                if done > 1:
                    break
            exhausted = [booster.update() for booster in boosters]
            loss = float(np.mean([booster.eval_valid()[0][2] for booster in boosters]))
            if loss < best:
                best, best_rounds = loss, done
            elif done >= best_rounds + patience:
                break
            if all(exhausted):
                break
        return boosters, best_rounds

    def _sets_of(self, max_bin: int) -> list[tuple[Any, Any]]:
        """Return LightGBM's binned rows of each split: those learned, and those that say when to stop."""
        if max_bin not in self._sets:
            self._sets[max_bin] = []
            for (train, _), part in zip(self._problem.protocol.splits, self._parts, strict=True):
                learned = self._set(train[part != 0], max_bin)
                self._sets[max_bin].append(
                    (learned, self._set(train[part == 0], max_bin, like=(learned, train[part != 0])))
                )
        return self._sets[max_bin]

    def _set(self, rows: np.ndarray, max_bin: int, like: tuple[Any, np.ndarray] | None = None) -> Any:
        rows = rows[self._weights[rows] > 0]
        constant = self._constant(rows if like is None else like[1])
        return _lightgbm().Dataset(
            self._x[rows],
            self._boosted.labels[rows],
            weight=self._weights[rows],
            init_score=np.tile(constant, (len(rows), 1)) if len(constant) > 1 else np.full(len(rows), constant[0]),
            categorical_feature=self._categorical,
            reference=None if like is None else like[0],
            params={"max_bin": max_bin, "feature_pre_filter": False, "verbosity": -1, "num_threads": self._threads},
        )

    def _constant(self, rows: np.ndarray) -> np.ndarray:
        """Return where boosters of these rows start, [O]."""
        rows = rows[self._weights[rows] > 0]
        return self._boosted.constant(self._boosted.labels[rows], self._weights[rows])

    def _booster(self, params: dict[str, Any], learned: Any, *, later: int = 0) -> Any:
        """Return a booster of rows; `later` is how far its seed lies from the study's."""
        return _lightgbm().Booster(
            {
                **self._boosted.parameters,
                **params,
                "bagging_freq": 1 if params["bagging_fraction"] < 1 else 0,
                "boost_from_average": False,
                "num_threads": self._threads,
                "deterministic": True,
                "force_row_wise": True,
                "seed": self._seed + later,
                "verbosity": -1,
            },
            learned,
        )

    def _raw(self, booster: Any, learned: np.ndarray, rows: np.ndarray, rounds: int) -> np.ndarray:
        """Return raw scores [B, O] of a booster of rows `learned` on rows [B]."""
        if not len(rows):
            return np.empty((0, self.task.n_outputs))
        raw = booster.predict(self._x[rows], raw_score=True, num_iteration=rounds, num_threads=self._threads)
        return np.asarray(raw.reshape(len(rows), -1) + self._constant(learned))

    def _loss(self, raw: np.ndarray) -> float:
        """Return the mean loss of raw scores on the validation rows of all splits, in units of the trivial one."""
        dataset = self._problem.dataset
        rows = np.concatenate([valid for _, valid in self._problem.protocol.splits])
        targets = dataset.targets[self.place].cpu()[torch.from_numpy(rows)]
        losses = self.task.answer_losses(self.task.activate(torch.from_numpy(raw)), targets).double().numpy()
        weights = np.ones(len(rows)) if dataset.weights is None else dataset.weights.cpu().double().numpy()[rows]
        weights = np.where(np.isnan(losses), 0.0, weights)
        mean = np.nan_to_num(losses) @ weights / max(weights.sum(), 1e-12)
        return float(mean / float(dataset.trivial[self.place]))

    def finish(self, latest: float) -> Trees:
        """Return the forests of the best parameters, trained on all training rows, and everybody's margins.

        Where that would take longer than until `latest`, by the monotonic clock, the boosters that were judged stay.
        """
        best = self._best
        assert best is not None  # of a study that had a trial
        self._sets.clear()
        splits = self._problem.protocol.splits
        learned, boosters, rounds = [train for train, _ in splits], best.boosters, best.rounds
        if time.monotonic() + self.last_seconds <= latest:
            rounds = max(1, round(best.rounds * MORE_ROUNDS))
            boosters = [self._trained(best.params, train, rounds) for train in learned]
        else:
            learned = [train[part != 0] for train, part in zip(learned, self._parts, strict=True)]
        margins = np.empty((len(self._x), self.task.n_outputs))
        seen = [self._crossed, *(valid for _, valid in splits)]
        others = np.setdiff1d(np.arange(len(self._x)), np.concatenate(seen))
        pairs = list(zip(boosters, learned, strict=True))
        margins[others] = np.mean([self._raw(booster, own, others, rounds) for booster, own in pairs], axis=0)
        for (booster, own), (_, valid) in zip(pairs, splits, strict=True):
            margins[valid] = self._raw(booster, own, valid, rounds)
        self._cross(margins, best)
        judged = self._loss(np.concatenate([margins[valid] for _, valid in splits]))
        forests = tuple(compile(b, self.task.name, bias=self._constant(own), rounds=rounds) for b, own in pairs)
        params = best.params | {"rounds": rounds}
        return Trees(self.task.name, forests, margins.astype(np.float32), params, judged, self.n_trials)

    def again(self, params: dict[str, Any], rows: np.ndarray, *, n: int) -> tuple[Forest, ...]:
        """Return n forests of rows [B], by the parameters of `Trees`, rounds among them; one where nothing is drawn."""
        own = {name: value for name, value in params.items() if name != "rounds"}
        drawn = own["bagging_fraction"] < 1 or own["feature_fraction"] < 1 or own["extra_trees"]
        n = n if drawn else 1
        boosters = [self._trained(own, rows, int(params["rounds"]), later=i) for i in range(n)]
        return tuple(compile(booster, self.task.name, bias=self._constant(rows)) for booster in boosters)

    def _cross(self, margins: np.ndarray, best: _Best) -> None:
        """Set the margins of training rows that validate in no split, each by a booster that did not learn it."""
        train = self._problem.protocol.splits[0][0]
        part, crossed = self._in_parts(train, CROSS, "cross"), np.isin(train, self._crossed)
        for p in range(CROSS if crossed.any() else 0):
            rows, learned = train[(part == p) & crossed], train[part != p]
            booster = self._trained(best.params, learned, best.rounds)
            margins[rows] = self._raw(booster, learned, rows, best.rounds)

    def _trained(self, params: dict[str, Any], rows: np.ndarray, rounds: int, *, later: int = 0) -> Any:
        booster = self._booster(params, self._set(rows, int(params["max_bin"])), later=later)
        for _ in range(rounds):
            if booster.update():
                break
        return booster

    def _in_parts(self, rows: np.ndarray, n_parts: int, *names: Any) -> np.ndarray:
        """Return the part of each row, from 0, at random: every part has its share of each label."""
        rng = np.random.default_rng([self._seed, stable_seed(*names)])
        labels = np.where(self._weights[rows] > 0, self._boosted.labels[rows], -np.inf)  # the unlabelled by themselves
        order = np.lexsort((rng.random(len(rows)), labels))
        part = np.empty(len(rows), dtype=np.int64)
        shuffled = [rng.permutation(n_parts) for _ in range(-(-len(rows) // n_parts))]
        part[order] = np.concatenate([*shuffled, np.empty(0, dtype=np.int64)])[: len(rows)]
        return part


def compile(booster: Any, task: str, *, bias: np.ndarray | None = None, rounds: int | None = None) -> Forest:
    """Return a LightGBM booster, or its first rounds, as tensors; `bias` [O] is added to its raw predictions.

    Raises ValueError for linear trees and for boosters that average their trees.
    """
    head, *texts = booster.model_to_string(num_iteration=rounds).split("\nTree=")
    if "\naverage_output" in head:
        raise ValueError("a booster that averages its trees is no sum of them")
    n_outputs = booster.num_model_per_iteration()
    builder = _Builder()
    roots = [builder.add(_fields(text.split("\n\n")[0])) for text in texts]
    bias = np.zeros(n_outputs) if bias is None else np.asarray(bias, dtype=np.float64)
    return Forest(task, builder.tensors(np.array(roots, dtype=np.int32).reshape(-1, n_outputs), bias))


def _fields(text: str) -> dict[str, np.ndarray]:
    """Return the numbers of a tree's lines `name=numbers`."""
    pairs = (line.partition("=") for line in text.split("\n")[1:] if "=" in line)
    fields = {name: np.array(numbers.split(), dtype=np.float64) for name, _, numbers in pairs}
    if fields.get("is_linear", np.zeros(1)).any():
        raise ValueError("linear trees cannot be compiled")
    return fields


class _Builder:
    """Collects the node tables of trees."""

    def __init__(self) -> None:
        self._nodes: list[np.ndarray] = []
        self._n = 0
        self._numbers: dict[tuple[int, int], int] = {}
        self._sets: dict[tuple[int, bytes], int] = {}

    def add(self, tree: dict[str, np.ndarray]) -> int:
        """Add a tree and return its root. The right and the left child of split j are 1 + 2j and 2 + 2j nodes later."""
        n_splits, root = int(tree["num_leaves"][0]) - 1, self._n
        nodes = np.zeros(2 * n_splits + 1, dtype=NODE)
        nodes["right"] = root + np.arange(len(nodes))
        nodes["kind"] = -1  # leaves, until one is a split
        self._n += len(nodes)
        self._nodes.append(nodes)
        if not n_splits:
            nodes["value"] = tree["leaf_value"][0]
            return root
        children = np.stack([tree["right_child"], tree["left_child"]], 1).astype(np.int64)
        below = 1 + np.arange(2 * n_splits).reshape(-1, 2)  # where the children lie
        leaf = children < 0
        nodes["value"][below[leaf]] = tree["leaf_value"][~children[leaf]]
        place = np.zeros(n_splits, dtype=np.int64)  # of each split
        place[children[~leaf]] = below[~leaf]
        nodes["right"][place] = root + below[:, 0]
        decision = tree["decision_type"].astype(np.int64)
        by_set = decision & 1 > 0
        nodes["kind"][place] = by_set
        columns = [
            self._set(tree, j) if by_set[j] else self._number(int(tree["split_feature"][j]), int(decision[j]))
            for j in range(n_splits)
        ]
        nodes["column"][place] = columns
        nodes["threshold"][place] = np.where(by_set, 0.5, _down(tree["threshold"]))
        return root

    def _number(self, feature: int, decision: int) -> int:
        missing = decision >> 2 & 3
        sent = decision >> 1 & 1 if missing else 0  # to the left; where nothing is missing NaN is 0, and sent nowhere
        return self._numbers.setdefault((feature, missing << 1 | sent), len(self._numbers))

    def _set(self, tree: dict[str, np.ndarray], split: int) -> int:
        start, end = tree["cat_boundaries"][int(tree["threshold"][split]) :][:2].astype(np.int64)
        words = tree["cat_threshold"][start:end].astype(np.uint32)
        return self._sets.setdefault((int(tree["split_feature"][split]), words.tobytes()), len(self._sets))

    def tensors(self, roots: np.ndarray, bias: np.ndarray) -> dict[str, Tensor]:
        """Return the tensors of a `Forest`."""
        nodes = np.concatenate([*self._nodes, np.zeros(0, dtype=NODE)])
        words = [np.frombuffer(held, dtype=np.int32) for _, held in self._sets]
        sizes = np.array([len(held) for held in words], dtype=np.int32)
        flags = [flag for _, flag in self._numbers]
        # A leaf reads the first column there is, whatever it holds; with no split there is none, and no level either.
        column = nodes["column"] + np.where(nodes["kind"] == 1, len(self._numbers), 0)
        arrays = {
            "number_source": np.array([feature for feature, _ in self._numbers], dtype=np.int32),
            "number_zero": np.array([flag >> 1 == MISSING_ZERO for flag in flags], dtype=bool),
            "number_missing": np.array([(2 - (flag & 1)) * (flag > 1) for flag in flags], dtype=np.int8),
            "set_source": np.array([feature for feature, _ in self._sets], dtype=np.int32),
            "set_start": (np.cumsum(sizes) - sizes).astype(np.int32),
            "set_words": sizes,
            "words": np.concatenate([*words, np.zeros(0, dtype=np.int32)]),
            "column": column.astype(np.int32),
            "threshold": nodes["threshold"],
            "right": nodes["right"],
            "value": nodes["value"],
            "roots": roots,
            "depth": np.array(_depth(nodes["right"], nodes["kind"], roots.ravel()), dtype=np.int32),
            "bias": bias,
        }
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


NODE = np.dtype([("column", "i4"), ("threshold", "f4"), ("right", "i4"), ("value", "f8"), ("kind", "i1")])
"""A node as it is collected; its kind is -1 for a leaf, 0 for a number, 1 for a set."""
MISSING_ZERO = 1
"""LightGBM's types of missing: 0 none, 1 zeros and NaN, 2 NaN."""


def _down(thresholds: np.ndarray) -> np.ndarray:
    """Return the largest float32 numbers at most these: a float32 number is at most either or neither."""
    with np.errstate(over="ignore"):
        narrow = thresholds.astype(np.float32)
    return np.where(narrow > thresholds, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def _depth(right: np.ndarray, kind: np.ndarray, roots: np.ndarray) -> int:
    """Return how many splits there are at most on the way to a leaf."""
    depth, level = 0, roots[kind[roots] >= 0]
    while len(level):
        depth, below = depth + 1, np.concatenate([right[level], right[level] + 1])
        level = below[kind[below] >= 0]
    return depth


def save(path: Path, trees: Trees) -> None:
    """Write the trees of a task, beside and renamed."""
    tensors = {f"{i}.{name}": held for i, forest in enumerate(trees.forests) for name, held in forest.tensors.items()}
    info = {"task": trees.task, "params": trees.params, "loss": trees.loss, "n_trials": trees.n_trials}
    write(path, tensors | {"margins": torch.from_numpy(trees.margins)}, info | {"n_forests": len(trees.forests)})


def load(path: Path) -> Trees:
    """Return the trees of a task; raises RunError where the file is missing or damaged."""
    tensors, info = read(path)
    margins = tensors.pop("margins").numpy()
    by_forest = grouped(tensors)
    forests = tuple(Forest(info["task"], by_forest[str(i)]) for i in range(info["n_forests"]))
    return Trees(info["task"], forests, margins, info["params"], info["loss"], info["n_trials"])


def _lightgbm() -> Any:
    """Return the package, which is slow to import, and needed by nobody who goes without trees."""
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError(
            "Trees need LightGBM, which is not installed: `pip install 'mtl-bento[search]'`; or go without them."
        ) from None
    return lightgbm
