"""Which hyperparameters decided the gain of the trials, and how far their ranks can be trusted.

Below about a hundred trials ranks of importance differ from run to run, so each is shown with what it is on bootstrap
draws of the trials.

Letters: N trials, P parameters, D draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial
from scipy.stats import rankdata
from sklearn.tree import ExtraTreeRegressor

MIN_FOR_IMPORTANCE = 30
"""Complete trials below which nothing is measured: a draw leaves out a third, too few to tell anything by."""
DRAWS, FEWEST_DRAWS = 32, 16
"""Bootstrap draws, and how many at least where the time is up."""
N_TREES = 8
"""Trees of a draw; the mean over the draws is over all of them."""
MOST_DRAWN, MOST_JUDGED = 256, 96
"""Trials that a draw learns, and is judged by, at most: what keeps thousands of trials as quick as hundreds."""
SURE = 0.95
"""Share of the draws in which the same parameters must be ahead to be called settled."""
SPENT_S, SPENT_SHARE = 0.5, 0.005
"""Seconds, and share of the timeout, that this may take at the end of a search."""
ABSENT = -1.0
"""What stands for a parameter that a trial did not have; those that it had lie between 0 and 1."""


def importance(
    trials: Sequence[FrozenTrial], *, seed: int = 0, timeout_s: float | None = None
) -> dict[str, Any] | None:
    """Return the importance of each hyperparameter with its interval and ranks over bootstrap draws of the trials.

    For each draw a few extremely randomised trees (Geurts et al., 2006) learn the place of a trial in the order of the
    gains; importance is by how much their squared error on trials outside the draw rises when a parameter's values are
    shuffled among these, as a share of the variance of the places. Places, not gains, so that one diverged trial does
    not decide. Unlike Optuna's evaluators it judges by trials that were not learned, so that a parameter which does
    nothing is about 0 however many values it has, and takes in parameters that only some trials have: these are
    shuffled among the trials that have them.

    Args:
        trials: complete ones; those without a finite value do not count.
        seed: of the draws and the trees.
        timeout_s: of the whole search. Without one it is always the same work, and the same result.

    Returns {trials, draws, told, settled, ranked}: `told` is the share of the variance of unseen trials' places that
    the trees foretell; `ranked` has {name, importance, lower, upper, rank: [low, high]} of each parameter, the most
    important first, the middle 90 % of the draws; `settled` is the smallest number of parameters at the head that are
    ahead of all others in 95 % of the draws, None where there is none. None with fewer than MIN_FOR_IMPORTANCE trials,
    where nothing differs, or without time for FEWEST_DRAWS.
    """
    deadline = math.inf if timeout_s is None else time.monotonic() + SPENT_S + SPENT_SHARE * timeout_s
    held = [t for t in trials if t.value is not None and math.isfinite(t.value)]
    names, x = encoded(held)  # [N, P]
    if len(held) < MIN_FOR_IMPORTANCE or not names:
        return None
    places = rankdata([t.value for t in held]) / len(held)  # [N]
    if not places.std():
        return None
    rng = np.random.default_rng(seed)
    rises: list[np.ndarray] = []
    told: list[float] = []
    while len(rises) < DRAWS and time.monotonic() < deadline:
        drawn = rng.integers(0, len(held), min(len(held), MOST_DRAWN))
        left = np.setdiff1d(np.arange(len(held)), drawn)
        judged = rng.permutation(left)[:MOST_JUDGED]
        rise, error = _rises(x, places, drawn, judged, rng)
        rises.append(rise / places.var())
        told.append(1 - error / places.var())
    return summary(names, np.array(rises), told, n=len(held)) if len(rises) >= FEWEST_DRAWS else None


def encoded(trials: Sequence[FrozenTrial]) -> tuple[list[str], np.ndarray]:
    """Return the parameters that differ between the trials, and their values [N, P] from 0 to 1, ABSENT where none."""
    kinds = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    x = np.full((len(trials), len(kinds)), ABSENT, dtype=np.float32)
    for p, (name, kind) in enumerate(kinds.items()):
        for n, trial in enumerate(trials):
            if name in trial.params:
                x[n, p] = place(kind, trial.params[name])
    differs = [len(np.unique(x[x[:, p] != ABSENT, p])) > 1 for p in range(len(kinds))]
    return [name for name, kept in zip(kinds, differs, strict=True) if kept], x[:, differs]


def place(kind: BaseDistribution, value: Any) -> float:
    """Return where a value lies in its range, from 0 to 1: by its logarithm where it was searched so."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices.index(value) / max(len(kind.choices) - 1, 1)
    low, high = float(kind.low), float(kind.high)  # type: ignore[attr-defined]  # a range, whole or not
    at = float(value)
    if kind.log:  # type: ignore[attr-defined]
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / ((high - low) or 1.0)


def _rises(
    x: np.ndarray, places: np.ndarray, drawn: np.ndarray, judged: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return by how much the squared error rises where each parameter is shuffled [P], and the error before."""
    n, p = len(judged), x.shape[1]
    asked = np.repeat(x[judged][None], p + 1, axis=0)  # as it is, then with each parameter shuffled: [1 + P, N, P]
    for j in range(p):
        has = np.flatnonzero(x[judged, j] != ABSENT)
        asked[j + 1, has, j] = asked[j + 1, rng.permutation(has), j]
    asked = asked.reshape(-1, p)
    found = np.zeros(len(asked))
    for _ in range(N_TREES):
        tree = ExtraTreeRegressor(max_features=1.0, min_samples_leaf=2, random_state=int(rng.integers(2**31)))
        # The fitted tree's own arrays: `predict` checks its input again each time, which takes longer than the answer.
        found += tree.fit(x[drawn], places[drawn], check_input=False).tree_.predict(asked)[:, 0]
    errors = ((found.reshape(p + 1, n) / N_TREES - places[judged]) ** 2).mean(1)
    return errors[1:] - errors[0], float(errors[0])


def summary(names: Sequence[str], rises: np.ndarray, told: Sequence[float], *, n: int) -> dict[str, Any]:
    """Return the record of all draws [D, P]."""
    order = np.argsort(-rises.mean(0), kind="stable")
    rises = rises[:, order]
    ranks = rankdata(-rises, axis=1, method="ordinal")  # [D, P]
    low, high = np.quantile(rises, [0.05, 0.95], axis=0)
    best, last = (np.quantile(ranks, q, axis=0, method="nearest") for q in (0.05, 0.95))
    ahead = [float((ranks[:, :k].max(1) == k).mean()) for k in range(1, len(names))]
    return {
        "trials": n,
        "draws": len(rises),
        "told": float(np.mean(told)),
        "settled": next((k for k, share in enumerate(ahead, 1) if share >= SURE), None),
        "ranked": [
            {
                "name": names[place],
                "importance": float(rises[:, p].mean()),
                "lower": float(low[p]),
                "upper": float(high[p]),
                "rank": [int(best[p]), int(last[p])],
            }
            for p, place in enumerate(order)
        ],
    }
