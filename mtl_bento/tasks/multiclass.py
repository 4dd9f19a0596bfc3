"""One of several labels: cross-entropy."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtl_bento.tasks._base import TASKS, Boosted
from mtl_bento.tasks._levels import LevelsSpec, LevelsTask, log_shares


class MulticlassSpec(LevelsSpec):
    """One of several labels."""

    kind: Literal["multiclass"] = "multiclass"


@TASKS.register(MulticlassSpec)
class Multiclass(LevelsTask[MulticlassSpec]):
    """Cross-entropy in nats; answers are probabilities [B, C]."""

    metrics = ("accuracy", "log_loss", "f1_macro", "balanced_accuracy", "roc_auc_ovr")

    @property
    def n_outputs(self) -> int:
        """One logit a level."""
        return len(self.spec.levels)

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, C], targets [K or 1, 1, B] -> nats [K, M, B]."""
        places = targets.clamp_min(0).expand(outputs.shape[:-1]).unsqueeze(-1)
        return outputs.logsumexp(-1) - outputs.gather(-1, places).squeeze(-1)

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, C], answers [K or 1, 1, B, C] -> cross-entropy in nats [K, M, B]."""
        del targets
        return -(outputs.log_softmax(-1) * answers).sum(-1)

    def boosted(self, targets: Tensor) -> Boosted:
        """Return cross-entropy; the raw scores are the logits."""
        parameters = {"objective": "multiclass", "metric": "multi_logloss", "num_class": self.n_outputs}
        constant = partial(log_shares, n_levels=self.n_outputs)
        return Boosted(parameters, targets.cpu().numpy().astype(np.float64), constant)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities."""
        return outputs.softmax(-1)

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, C], targets [..., B] -> nats [..., B], NaN where missing."""
        places = targets.clamp_min(0).expand(answers.shape[:-1]).unsqueeze(-1)
        losses = -answers.gather(-1, places).squeeze(-1).clamp_min(1e-7).log()
        return torch.where(self.known(targets), losses, torch.nan)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the answers, which are probabilities [B, C]."""
        return answers
