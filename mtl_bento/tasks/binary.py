"""Yes or no: the logistic loss of one logit."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mtl_bento.columns.categorical import text_of
from mtl_bento.errors import SchemaError, listing
from mtl_bento.tasks._base import TASKS, Boosted
from mtl_bento.tasks._calibration import best_threshold, labelled
from mtl_bento.tasks._levels import Label, LevelsSpec, LevelsTask, log_shares


class BinarySpec(LevelsSpec):
    """One of two labels; `levels` holds the negative one first."""

    kind: Literal["binary"] = "binary"
    positive: Label | None = None
    """The label whose probability is learned; None takes the later of the two in their natural order."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability from which on the positive label is answered; learned by calibration where positives are rare."""


@TASKS.register(BinarySpec)
class Binary(LevelsTask[BinarySpec]):
    """Logistic loss in nats; answers are the positive label's probability [B, 1]."""

    metrics = ("roc_auc", "average_precision", "log_loss", "accuracy", "f1", "balanced_accuracy")
    learned: ClassVar[tuple[str, ...]] = (*LevelsTask.learned, "threshold")

    @classmethod
    def arrange(cls, spec: BinarySpec, levels: tuple[Label, ...]) -> tuple[Label, ...]:
        """Return the two levels, the negative first; SchemaError where there are not two, or others."""
        if len(levels) != 2:
            raise SchemaError(
                f"Target {spec.name!r} has {len(levels)} different labels ({listing(map(repr, levels), most=5)}); "
                f"a binary target has two. Use '{spec.name}:multiclass'."
            )
        if spec.positive is None:
            return levels
        last = [level for level in levels if text_of(level) == text_of(spec.positive)]
        if not last:
            raise SchemaError(
                f"Target {spec.name!r}: positive {spec.positive!r} is not one of its labels "
                f"({listing(map(repr, levels))}); correct it."
            )
        return (*(level for level in levels if level is not last[0]), last[0])

    @property
    def n_outputs(self) -> int:
        """One: the logit of the positive label."""
        return 1

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 1], targets [K or 1, 1, B] -> nats [K, M, B]."""
        logit = outputs.squeeze(-1)
        return torch.nn.functional.softplus(logit) - logit * targets.clamp_min(0).to(logit.dtype)

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 1], answers [K or 1, 1, B, 1] -> cross-entropy in nats [K, M, B]."""
        del targets
        logit = outputs.squeeze(-1)
        return torch.nn.functional.softplus(logit) - logit * answers.squeeze(-1)

    def boosted(self, targets: Tensor) -> Boosted:
        """Return the logistic loss; the raw score is the logit."""
        parameters = {"objective": "binary", "metric": "binary_logloss"}
        return Boosted(parameters, targets.cpu().numpy().astype(np.float64), _log_odds)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the positive label's probability."""
        return outputs.sigmoid()

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, 1], targets [..., B] -> nats [..., B], NaN where missing."""
        p = answers.squeeze(-1)
        chosen = torch.where(targets == 1, p, 1 - p).clamp_min(1e-7)
        return torch.where(self.known(targets), -chosen.log(), torch.nan)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """answers [B, 1] -> probabilities [B, 2], the negative label first."""
        return np.concatenate([1 - answers, answers], 1)

    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: np.ndarray | None = None) -> Self:
        """Return the task with temperature, sets, and a threshold of highest F1 where positives are rare.

        Not where the user's metric is accuracy, which one half serves best.
        """
        task = super().calibrate(answers, targets, weights)
        rows, weight = labelled(self.known(targets), weights)
        p, positive = task.calibrated(answers[rows])[:, 1], targets.cpu().numpy()[rows] == 1
        return task.with_spec(threshold=None if self.metric == "accuracy" else best_threshold(p, positive, weight))

    def codes(self, table: np.ndarray) -> np.ndarray:
        """Return 1 where the positive label is answered: from the threshold on, or where it is the likelier."""
        if self.spec.threshold is None:
            return super().codes(table)
        return np.asarray(table[:, 1].astype(np.float64) >= self.spec.threshold).astype(np.int64)

    def edges(self) -> dict[str, float]:
        """Return the bound of prediction sets, and the threshold."""
        return super().edges() | ({} if self.spec.threshold is None else {"value": self.spec.threshold})

    def notes(self) -> list[str]:
        """Return what became of probabilities, sets and threshold."""
        if self.spec.threshold is None:
            return super().notes()
        words = f"{self.texts[1]!r} is answered from probability {self.spec.threshold:.3g} on: rare, and best by F1"
        return [*super().notes(), words]


def _log_odds(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    no, yes = log_shares(labels, weights, n_levels=2)
    return np.array([yes - no])
