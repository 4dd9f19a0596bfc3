"""What tasks share that give a class to every position: cross-entropy averaged over a row's known positions.

Letters: K members, M TabM's inner members, B rows, L positions, C classes, O outputs of a position.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from mtl_bento.tasks._base import Task, TaskSpec

AnySpec = TypeVar("AnySpec", bound=TaskSpec)


class PositionsTask(Task[AnySpec]):
    """A class a position: targets int64 [B, L], -1 where not known; answers are probabilities [B, L * O]."""

    located = positional = True

    @property
    @abstractmethod
    def n_classes(self) -> int:
        """How many classes a position may have."""

    @property
    def n_outputs(self) -> int:
        """One logit a class; of two classes that of the second alone."""
        return 1 if self.n_classes == 2 else self.n_classes

    def known(self, targets: Tensor) -> Tensor:
        """Return the rows with a known position."""
        return (targets >= 0).any(-1)

    def empty(self, targets: Tensor) -> Tensor:
        """Return where every known position has the first class: the background, outside of all spans."""
        return (targets <= 0).all(-1) & self.known(targets)

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, L, O], targets [K or 1, 1, B, L] -> nats, the mean of a row's known positions [K, M, B]."""
        if self.n_outputs == 1:
            logit = outputs.squeeze(-1)
            losses = softplus(logit) - logit * targets.clamp_min(0).to(logit.dtype)
        else:
            losses = outputs.logsumexp(-1) - _chosen(outputs, targets)
        return _row_means(losses, targets >= 0)

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, L, O], answers [K or 1, 1, B, L * O] -> nats [K, M, B].

        The mean of a row's known positions; of a row without any, that of all. Answers are NaN where there is none.
        """
        table = answers.unflatten(-1, outputs.shape[-2:])  # [K or 1, 1, B, L, O]
        real = ~table.isnan().any(-1)
        table = table.nan_to_num()
        if self.n_outputs == 1:
            logit = outputs.squeeze(-1)
            losses = softplus(logit) - logit * table.squeeze(-1)
        else:
            losses = -(outputs.log_softmax(-1) * table).sum(-1)
        known = targets >= 0
        return _row_means(losses, known | (real & ~known.any(-1, keepdim=True)))

    def activate(self, outputs: Tensor) -> Tensor:
        """outputs [..., L, O] -> probabilities side by side [..., L * O], those of a position together."""
        return (outputs.sigmoid() if self.n_outputs == 1 else outputs.softmax(-1)).flatten(-2)

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, L * O], targets [..., B, L] -> nats [..., B], NaN where no position is known."""
        table = answers.unflatten(-1, (targets.shape[-1], self.n_outputs))  # [..., B, L, O]
        if self.n_outputs == 1:
            p = table.squeeze(-1)
            chosen = torch.where(targets == 1, p, 1 - p)
        else:
            chosen = _chosen(table, targets)
        return torch.where(self.known(targets), _row_means(-chosen.clamp_min(1e-7).log(), targets >= 0), torch.nan)

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the entropy in nats of the classes, each row's known positions counting as one label together."""
        known = targets >= 0
        share = known.double() / known.sum(-1, keepdim=True).clamp_min(1)
        counts = torch.bincount(targets[known], weights=share[known], minlength=2)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum().clamp(max=-1e-6))

    def table(self, answers: np.ndarray) -> np.ndarray:
        """Return the probability of each class at each position [B, L, C] for answers [B, L * O]."""
        table = answers.reshape(len(answers), answers.shape[1] // self.n_outputs, self.n_outputs)
        return np.concatenate([1 - table, table], -1) if self.n_outputs == 1 else table


def _chosen(table: Tensor, targets: Tensor) -> Tensor:
    """Return the numbers [..., L] of the targets' classes out of [..., L, C]."""
    places = targets.clamp_min(0).expand(table.shape[:-1]).unsqueeze(-1)
    return table.gather(-1, places).squeeze(-1)


def _row_means(losses: Tensor, known: Tensor) -> Tensor:
    """Return the mean [..., B] of losses [..., B, L] over the known positions, 0 where there is none."""
    known = known.to(losses.dtype)
    return (losses * known).sum(-1) / known.sum(-1).clamp_min(1)
