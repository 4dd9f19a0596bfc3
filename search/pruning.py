"""Our pruner: the better half of a round goes on, whatever the order in which its trials are asked.

Optuna's halving, asked one by one at a rung, keeps 1 or 16 of 16 trials depending on their order; this one ranks all
trials of the round that reported the rung. It is an ordinary `BasePruner` and works with ask and tell.
"""

from __future__ import annotations

import math

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

ROUND = "round"
"""The user attribute that says which round a trial belongs to."""


class RoundPruner(BasePruner):
    """Keep the best `1 / factor` of each round at every rung.

    Args:
        factor: how many trials compete for one place; 2 keeps the better half.
        keep: trials that are never pruned, by number: trial 0 is everybody's point of comparison.
    """

    def __init__(self, *, factor: int = 2, keep: tuple[int, ...] = (0,)) -> None:
        self.factor, self.keep = factor, keep

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is not among the best of its round at the rung that it reported last."""
        step = trial.last_step
        if step is None or trial.number in self.keep:
            return False
        mine = trial.user_attrs.get(ROUND)
        values = [
            (other.intermediate_values[step], -other.number)
            for other in study.get_trials(deepcopy=False)
            if other.user_attrs.get(ROUND) == mine and step in other.intermediate_values
        ]
        held = math.ceil(len(values) / self.factor)
        ranked = sorted(values, key=lambda v: (v[0] if v[0] == v[0] else -math.inf, v[1]), reverse=True)
        return (trial.intermediate_values[step], -trial.number) not in ranked[:held]
