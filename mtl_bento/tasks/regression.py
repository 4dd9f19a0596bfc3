"""A number: squared error on standardised labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field
from torch import Tensor

from mtl_bento.errors import SchemaError
from mtl_bento.spec import Finite
from mtl_bento.table import plain
from mtl_bento.tasks._base import TASKS, Boosted, Covered, Task, shortest, zero_fill
from mtl_bento.tasks._calibration import CalibratedSpec, conformal_quantile, fewest, labelled


class RegressionSpec(CalibratedSpec):
    """A number to predict; mean and spread are learned from the training labels."""

    kind: Literal["regression"] = "regression"
    mean: Finite = 0.0
    spread: Finite = 1.0
    """Standard deviation of the training labels."""
    dtype: str = "double"
    """Arrow type of the predictions: the target's own where it is a float."""
    half_width: Annotated[float, Field(ge=0)] | None = None
    """Half the width of the interval around a value, in the target's own unit; learned by calibration."""


LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a label may be."""


@TASKS.register(RegressionSpec)
class Regression(Task[RegressionSpec]):
    """Squared error in units of the training labels' variance; answers are standardised numbers [B, 1]."""

    metrics = ("r2", "rmse", "mae")
    learned: ClassVar[tuple[str, ...]] = ("calibrated_on", "half_width")

    @classmethod
    def fit(cls, spec: RegressionSpec, values: pa.ChunkedArray) -> RegressionSpec:
        """Return the spec with mean, spread and dtype of the labels; SchemaError where they are no numbers or one."""
        numbers = _numbers(spec.name, values)
        known = numbers[~np.isnan(numbers)]
        if not len(known):
            raise SchemaError(
                f"Target {spec.name!r} is missing in every training row; label some rows or leave it out."
            )
        if known.min() == known.max():
            raise SchemaError(
                f"Target {spec.name!r} is {known[0]:g} in every training row; there is nothing to learn, leave it out."
            )
        dtype = "float" if values.type == pa.float32() else "double"
        fitted = {"mean": float(known.mean()), "spread": float(known.std()), "dtype": dtype}
        return spec.model_copy(update={**dict.fromkeys(cls.learned), **fitted})

    @property
    def n_outputs(self) -> int:
        """One: the standardised number."""
        return 1

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return standardised labels, float32 [B], NaN where missing."""
        return ((_numbers(self.name, values) - self.spec.mean) / self.spec.spread).astype(np.float32)

    def known(self, targets: Tensor) -> Tensor:
        """Return where the label is not NaN."""
        return ~targets.isnan()

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 1], targets [K or 1, 1, B] -> squared errors [K, M, B]."""
        return (outputs.squeeze(-1) - zero_fill(targets, self.known(targets)).to(outputs.dtype)).square()

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 1], answers [K or 1, 1, B, 1] -> squared differences [K, M, B]."""
        del targets
        return (outputs - answers).squeeze(-1).square()

    def boosted(self, targets: Tensor) -> Boosted:
        """Return squared error on standardised labels; the raw score is the standardised number."""
        return Boosted({"objective": "regression", "metric": "l2"}, targets.cpu().numpy().astype(np.float64), _mean)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the standardised numbers as they are."""
        return outputs

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, 1], targets [..., B] -> squared errors [..., B], NaN where missing."""
        return (answers.squeeze(-1) - targets).square()

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the variance of the known standardised labels."""
        return float(targets[self.known(targets)].double().var(unbiased=False).clamp_min(1e-12))

    def change(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return by how much each row's number is more than in another answer, in the target's unit [B]."""
        return np.asarray(self._numbers(answers) - self._numbers(others))

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return labels in their own unit, float64 [B], NaN where missing."""
        return _numbers(self.name, values)

    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return predicted numbers in the target's unit, float64 [B]."""
        return self._numbers(answers)

    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return the column of predicted numbers."""
        return _numbers(self.name, columns[self.name])

    def values(self, answers: np.ndarray) -> pa.Array:
        """Return predictions in the target's own unit."""
        return pa.array(self._numbers(answers)).cast(self.spec.dtype)

    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return the ends of the interval, `lower` and `upper`, once calibrated."""
        return {name: pa.array(ends).cast(self.spec.dtype) for name, ends in self._bounds(answers).items()}

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return `{"value": number}` per row, and `lower` and `upper` once calibrated."""
        columns = {"value": self._numbers(answers), **self._bounds(answers)}
        each = zip(*(shortest(numbers) for numbers in columns.values()), strict=True)
        return [dict(zip(columns, numbers, strict=True)) for numbers in each]

    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: np.ndarray | None = None) -> Self:
        """Return the task with the half width of its intervals: the conformal quantile of absolute residuals."""
        rows, weight = labelled(self.known(targets), weights)
        residuals = np.abs(answers[rows, 0].astype(np.float64) - targets.cpu().numpy()[rows])
        bound = conformal_quantile(residuals, self.spec.interval, weight)
        return self.with_spec(calibrated_on=len(rows), half_width=None if bound is None else bound * self.spec.spread)

    def covered(self, columns: Mapping[str, pa.ChunkedArray], truth: np.ndarray) -> Covered | None:
        """Return whether intervals hold the truth, and their widths."""
        if self.spec.half_width is None:
            return None
        lower, upper = (_numbers(self.name, columns[f"{self.name}__{end}"]) for end in ("lower", "upper"))
        return Covered(self.spec.interval, (lower <= truth) & (truth <= upper), upper - lower)

    def notes(self) -> list[str]:
        """Return what became of the interval."""
        spec = self.spec
        if spec.calibrated_on is None:
            return []
        rows = f"{spec.calibrated_on:,} labelled out-of-fold rows"
        if spec.half_width is None:
            return [f"no interval: {rows}, and {spec.interval:g} needs {fewest(spec.interval)} or more"]
        return [
            f"`lower` to `upper` holds the truth in {spec.interval:.4g} of the rows: {spec.half_width:.4g} on either "
            f"side of the value, from {rows}"
        ]

    def _bounds(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Return the ends of the interval [B] by name; none before calibration."""
        if self.spec.half_width is None:
            return {}
        numbers = self._numbers(answers)
        return {"lower": numbers - self.spec.half_width, "upper": numbers + self.spec.half_width}

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return the numbers, None where missing."""
        return [None if math.isnan(number) else number for number in self.truth(values).tolist()]

    def _numbers(self, answers: np.ndarray) -> np.ndarray:
        return answers[:, 0].astype(np.float64) * self.spec.spread + self.spec.mean


def _mean(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.array([np.average(labels, weights=weights)])


def _numbers(name: str, values: pa.ChunkedArray) -> np.ndarray:
    """Return labels as float64 [B] with NaN where missing; raises SchemaError naming the first that is no number."""
    cells = plain(values)
    if pa.types.is_large_string(cells.type):  # an empty text is missing, as in inputs
        cells = pc.if_else(pc.equal(pc.utf8_trim_whitespace(cells), ""), pa.scalar(None, cells.type), cells)
    try:
        numbers = pc.cast(cells, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise SchemaError(_not_a_number(name, values)) from None
    endless = np.abs(numbers) > LARGEST  # beyond 32 bits, where squares and answers are infinite
    if endless.any():
        row = int(endless.argmax())
        what = "infinity" if np.isinf(numbers[row]) else f"{numbers[row]:g} (beyond 32 bits)"
        raise SchemaError(f"Target {name!r}, row {row}: {what} is not a label; clear the cell or correct it.")
    return np.asarray(numbers, dtype=np.float64)


def _not_a_number(name: str, values: pa.ChunkedArray) -> str:
    for row, value in enumerate(values.to_pylist()):
        try:
            if value is not None:
                float(value)
        except (TypeError, ValueError):
            return (
                f"Target {name!r}, row {row}: {value!r} is not a number; a regression target holds numbers only. "
                f"Use '{name}:multiclass' for labels."
            )
    return f"Target {name!r} holds {values.type}, which is not a number; a regression target holds numbers only."
