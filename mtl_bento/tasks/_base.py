"""What every task kind promises: targets out of cells, a loss for training, answers out of outputs.

Missing labels are decided here, once: NaN for numbers, -1 for class codes, from the table to the loss.

Letters: K members, M TabM's inner members, B rows, L positions, O outputs of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from mtl_bento.columns._base import Column
from mtl_bento.errors import SpecError, listing, nearest
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec
from mtl_bento.table import plain

FEW = 32
"""Numbers that numpy writes at most: Arrow takes as long for a few of them, and a sixth of the time for thousands."""


class TaskSpec(Spec):
    """One target: what the user says of it, and what was learned from the training labels."""

    kind: str
    name: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much the user cares: the weight of this task in the score of a trial, never in a loss."""
    metric: str | None = None
    """The metric shown first; None takes the kind's own."""


AnySpec = TypeVar("AnySpec", bound=TaskSpec)


@dataclass(frozen=True)
class Boosted:
    """How gradient-boosted trees learn a task: what LightGBM is told, and labels as it reads them."""

    parameters: dict[str, Any]
    """`objective`, `metric` (the task's loss, by LightGBM's name), and what else they need."""
    labels: np.ndarray
    """[B] float64; any number where the label is missing."""
    constant: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """labels [B], weights [B] -> the best constant outputs [O], float64; finite where a class is absent."""


class Covered(NamedTuple):
    """Whether intervals or prediction sets hold the truth."""

    level: float
    """The share of rows that they are made for."""
    held: np.ndarray
    """bool [B]; of no meaning where the row has no label."""
    size: np.ndarray
    """Width in the target's own unit, or number of labels, float64 [B]."""
    measure: str = "wide"
    """What a size counts, as it stands behind the number: "1.7 wide", "1.2 labels"."""


class Task(ABC, Generic[AnySpec]):
    """One thing to predict; built from its spec, stateless beside it."""

    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics that this kind reports, the default first (`mtl_bento_search.metrics` computes them)."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Names of the parts P of its loss that a search weighs against each other; none where the loss is one whole."""

    located: ClassVar[bool] = False
    """Whether it asks where something lies: trunks that read positions are then the first choice."""

    positional: ClassVar[bool] = False
    """Whether it answers by position: outputs [K, M, B, L, O], targets [B, L], answers [B, L * O'] side by side."""

    learned: ClassVar[tuple[str, ...]] = ()
    """Spec fields that `calibrate` sets, None until then; no others change."""

    def __init__(self, spec: AnySpec) -> None:
        self.spec = spec
        if spec.metric is not None and spec.metric not in self.metrics:
            raise SpecError(
                f"Target {spec.name!r}: there is no metric {spec.metric!r} for a {spec.kind} target"
                f"{nearest(spec.metric, self.metrics) or '.'} Allowed: {listing(self.metrics)}."
            )

    @property
    def name(self) -> str:
        """The target column's name."""
        return self.spec.name

    @property
    def metric(self) -> str:
        """The metric shown first."""
        return self.spec.metric or self.metrics[0]

    @property
    def reads(self) -> str | None:
        """The input column whose positions or picture it speaks of; None where it is none, or the only one there is."""
        return None

    def settled(self, columns: Sequence[Column]) -> Self:
        """Return the task with the input that it `reads` named in its spec, where the model's columns leave one choice.

        Raises SpecError where it names one that there is not.
        """
        del columns
        return self

    def suited(self, column: Column, table: pa.Table, rows: np.ndarray) -> Column:
        """Return an input column of the kind that it reads, as it needs it: a picture with a grid of its own shape.

        `table` holds that column and the target; `rows` are the indices of the training rows.
        """
        del table, rows
        return column

    def describe(self) -> str:
        """Return what the target is in a few words: its labels, or "number"."""
        classes = self.card().get("classes")
        return "number" if classes is None else listing(map(str, classes))

    def place(self, table: pa.Table, columns: Sequence[Column]) -> Self:
        """Return the task for the rows of a table, where labels and answers cannot be read without the inputs.

        Whoever encodes labels, or turns answers into values, columns, rows or scores, places the task on the same rows
        first. `columns` are the model's inputs; the table may lack some of them.
        """
        del table, columns
        return self

    @classmethod
    def recognises(cls, values: pa.ChunkedArray) -> bool:
        """Return whether some labels, none missing, can only be meant as this kind, where the user names none."""
        del values
        return False

    @classmethod
    def survey(cls, spec: AnySpec, values: pa.ChunkedArray) -> AnySpec:
        """Return the spec with what may be known of all labels, those of the test rows too: which labels there are."""
        del values
        return spec

    @classmethod
    @abstractmethod
    def fit(cls, spec: AnySpec, values: pa.ChunkedArray) -> AnySpec:
        """Return the spec completed from training labels (levels, mean, spread).

        Raises SchemaError where the labels are all missing, hold one value only, or are not of this kind.
        """

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """How many numbers a head answers with."""

    @abstractmethod
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return labels [B, ...] for the loss: float32 with NaN, or int64 with -1, where missing."""

    @abstractmethod
    def known(self, targets: Tensor) -> Tensor:
        """Return which rows are labelled: bool [..., B]."""

    def emphasis(self, targets: Tensor) -> Tensor | None:
        """Return a factor [..., B] of each row's loss by its label, or None for equal ones."""
        del targets
        return None

    @abstractmethod
    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row in nats or squared training standard deviations.

        outputs [K, M, B, O], targets [K or 1, 1, B, ...] -> [K, M, B]; finite (any value) where the label is missing.
        """

    def row_parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the same by part, [K, M, B, P] in the order of `parts`; their sum is `row_losses`."""
        return self.row_losses(outputs, targets).unsqueeze(-1)

    @abstractmethod
    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row against a teacher's answer, in the unit of `row_losses`.

        outputs [K, M, B, O], answers [K or 1, 1, B, O'] as `activate` gives them, targets [K or 1, 1, B, ...] ->
        [K, M, B]. Least where `activate(outputs)` is the answer, and the loss of a label where the answer is as sure as
        that. Rows without a label learn too; targets only say which parts of a row are asked for.
        """

    def soft_parts(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the same by part, [K, M, B, P] in the order of `parts`; their sum is `soft_losses`."""
        return self.soft_losses(outputs, answers, targets).unsqueeze(-1)

    def label_weights(self, targets: Tensor, weights: Tensor | None = None) -> Tensor | None:
        """Return each label's weight in the loss [..., B], 0 where it is missing; None where all are 1.

        targets [..., B, ...], weights [..., B] of the rows, or None for equal ones.
        """
        known = self.known(targets)
        weight = known.to(torch.get_default_dtype() if weights is None else weights.dtype)
        for factor in (weights, self.emphasis(targets)):
            weight = weight if factor is None else weight * factor
        return None if weight.numel() and bool((weight == 1).all()) else weight

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return each member's mean loss over its labelled rows and over M: [K]; 0 where no row is labelled.

        outputs [K, M, B, O], targets [K or 1, B, ...], weights [K or 1, B] of the rows or None for equal ones.
        """
        return self.mean_loss(outputs, targets, self.label_weights(targets, weights))

    def mean_loss(
        self, outputs: Tensor, targets: Tensor, label_weights: Tensor | None, part_weights: Tensor | None = None
    ) -> Tensor:
        """Return the same with the weight of each label [K or 1, B] already known, as training has it once for all.

        `part_weights` [K, P] weigh the parts of each member's loss; None where all are 1.
        """
        if part_weights is None:
            losses = self.row_losses(outputs, targets.unsqueeze(1))  # [K, M, B]
        else:
            losses = (self.row_parts(outputs, targets.unsqueeze(1)) * part_weights[:, None, None]).sum(-1)
        return _weighted_mean(losses, label_weights)

    def soft_loss(
        self,
        outputs: Tensor,
        answers: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        part_weights: Tensor | None = None,
    ) -> Tensor:
        """Return each member's mean loss against a teacher's answers over all rows and over M: [K].

        outputs [K, M, B, O], answers [K or 1, B, O'], targets [K or 1, B, ...], weights [K or 1, B] of the rows or None
        for equal ones, part_weights [K, P] or None where all are 1.
        """
        if part_weights is None:
            losses = self.soft_losses(outputs, answers.unsqueeze(1), targets.unsqueeze(1))  # [K, M, B]
        else:
            parts = self.soft_parts(outputs, answers.unsqueeze(1), targets.unsqueeze(1))
            losses = (parts * part_weights[:, None, None]).sum(-1)
        return _weighted_mean(losses, weights)

    def boosted(self, targets: Tensor) -> Boosted | None:
        """Return how boosted trees learn labels [B, ...], with raw scores as the head's outputs; None: they cannot."""
        del targets
        return None

    @abstractmethod
    def activate(self, outputs: Tensor) -> Tensor:
        """Return outputs in the space where averaging makes sense: probabilities [..., C] or numbers [..., 1]."""

    @abstractmethod
    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the loss [..., B] of averaged answers [..., B, O] in the unit of `row_losses`; NaN where missing."""

    @abstractmethod
    def trivial_loss(self, targets: Tensor) -> float:
        """Return the loss of the best constant answer on these labels (label entropy, variance)."""

    @abstractmethod
    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return labels as metrics read them, [B, ...]: codes with -1, or numbers in their own unit with NaN."""

    @abstractmethod
    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return answers [B, O] as metrics read them: probabilities [B, C], or numbers [B] in their own unit."""

    @abstractmethod
    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return the same from the columns of `output="full"`, whoever answered."""

    @abstractmethod
    def values(self, answers: np.ndarray) -> pa.Array:
        """Return the predicted labels [B] for answers [B, O], in the target's own dtype."""

    @abstractmethod
    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return the columns of `output="full"` by suffix ("proba__>50K", "lower"), the values not among them."""

    @abstractmethod
    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return one JSON object per row, as the service answers (design: value, probability, probabilities)."""

    def change(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return how far each row's answer [B, O] is from another one, float64 [B].

        The mean distance of their numbers; kinds whose answers have one number that matters give its change, signed.
        """
        return np.asarray(np.abs(answers.astype(np.float64) - others).mean(1))

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return labels [B] as "value" of `rows` says answers, None where missing: what a report shows as the truth."""
        said: list[Any] = plain(values).to_pylist()
        return said

    def empty(self, targets: Tensor) -> Tensor:
        """Return where labels say that there is nothing to be found, no object and no span: bool [..., B]."""
        return torch.zeros_like(self.known(targets))

    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: np.ndarray | None = None) -> Self:
        """Return the task with what out-of-fold answers [V, O] and their targets [V, ...] teach of its answers.

        A temperature, an interval, a threshold: whatever turns the same answers into fairer values, columns and rows.
        Losses stay as they are. `weights` [V] of the rows, or None for equal ones. Rows without a label or weight count
        for nothing; an earlier calibration is replaced; from too few rows nothing is learned.
        """
        del answers, targets, weights
        return self

    def decided(self, scored: np.ndarray) -> np.ndarray:
        """Return scored answers as metrics of labels read them: such that the likeliest is the label answered."""
        return scored

    def covered(self, columns: Mapping[str, pa.ChunkedArray], truth: np.ndarray) -> Covered | None:
        """Return whether intervals or sets in the columns of `output="full"` hold the truth; None where none is given.

        truth [B, ...] as `truth` returns it.
        """
        del columns, truth
        return None

    def edges(self) -> dict[str, float]:
        """Return the probability at which a part of an answer ("value", "set") changes, where it is not a tie."""
        return {}

    def notes(self) -> list[str]:
        """Return in sentences what calibration did to the answers, and what it could not do; empty before it."""
        return []

    def card(self) -> dict[str, Any]:
        """Return what `GET /model` says of the task: the fields of its spec, and the notes on its calibration."""
        notes = self.notes()
        return self.spec.model_dump(mode="json") | ({"calibration": notes} if notes else {})

    def with_spec(self, **changes: Any) -> Self:
        """Return the same task with changed spec fields."""
        return type(self)(self.spec.model_copy(update=changes))


TASKS: Registry[Task[Any]] = Registry("task kind", package="mtl_bento.tasks", group="mtl_bento.tasks")


def _weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean [K] of losses [K, M, B] by the rows' weights [K or 1, B], None for equal ones; 0 without any."""
    if weights is None:
        return losses.mean((1, 2))
    weight = weights.to(losses.dtype)
    # Not `losses[known].mean()`: with no labelled row it would be NaN and poison the other tasks.
    return (losses.mean(1) * weight).sum(-1) / weight.sum(-1).clamp_min(1e-12)


def zero_fill(targets: Tensor, known: Tensor) -> Tensor:
    """Return targets with 0 where they are not known, so that arithmetic on them stays finite."""
    return torch.where(known, targets, torch.zeros_like(targets))


def shortest(numbers: np.ndarray) -> list[float]:
    """Return numbers [B] as floats that print with the fewest digits that tell their float32 values apart."""
    narrow = numbers.astype(np.float32)
    if len(narrow) <= FEW:
        return [float(digits) for digits in narrow.astype(str)]
    shortest_digits: list[float] = pa.array(narrow).cast(pa.string()).cast(pa.float64()).to_pylist()
    return shortest_digits
