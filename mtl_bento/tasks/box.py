"""The place of one object in a picture: whether there is one, and its box, by five sigmoids.

Letters: K members, M TabM's inner members, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from mtl_bento.columns._base import Column
from mtl_bento.errors import SchemaError
from mtl_bento.tasks._base import TASKS, Task, TaskSpec, shortest, zero_fill
from mtl_bento.tasks._cells import all_alike, lists, picture, refusal

SIDES = ("x", "y", "w", "h")
"""Centre and size of a box."""
WANTED = (
    "a box is [centre x, centre y, width, height] as shares of the picture, such as [0.5, 0.4, 0.2, 0.3]; "
    "null where there is no object, four NaN where the box is not known"
)
BEYOND = 0.02
"""How far a box may reach beyond the picture, as a share of it: boxes are rounded to pixels."""


class BoxSpec(TaskSpec):
    """A box: centre x, centre y, width and height, as shares of the picture; null where there is no object."""

    kind: Literal["box"] = "box"
    image: str | None = None
    """The picture that the box lies in, where there are several."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the labelled training rows that have an object."""

    spread: ClassVar[float] = 1.0
    """Answers are compared on the scale of the whole picture."""


@TASKS.register(BoxSpec)
class Box(Task[BoxSpec]):
    """Log loss of the object in nats, and for known boxes mean absolute error plus 1 - GIoU: two parts, weighed apart.

    The generalised IoU (Rezatofighi et al., CVPR 2019) has a gradient also where boxes lie apart. Answers are the
    object's probability and the four shares, [B, 5]; targets are 1, x, y, w, h, or 0 and four NaN without an object.
    """

    metrics = ("mean_iou", "iou_50", "object_average_precision")
    parts = ("objectness", "coordinates")
    located = True

    @property
    def reads(self) -> str | None:
        """The picture."""
        return self.spec.image

    def settled(self, columns: Sequence[Column]) -> Self:
        """Return the task with its picture named; raises SpecError where it names what is none."""
        return self.with_spec(image=picture(self.name, self.spec.image, columns))

    @classmethod
    def recognises(cls, values: pa.ChunkedArray) -> bool:
        """Return whether every cell is a box or four NaN."""
        boxes = [_numbers(cell) for cell in lists(values)]
        return all(box is not None and (np.isnan(box).all() or not _wrong(box)) for box in boxes)

    @classmethod
    def fit(cls, spec: BoxSpec, values: pa.ChunkedArray) -> BoxSpec:
        """Return the spec with the share of rows that have an object; SchemaError where boxes are none or all alike."""
        boxes = _boxes(spec.name, values)
        known = boxes[~np.isnan(boxes[:, 0])]
        if not len(known):
            raise SchemaError(
                f"Target {spec.name!r} is not known in any training row; label some rows or leave it out."
            )
        if not known[:, 0].any():
            raise SchemaError(f"Target {spec.name!r} has no box in any training row (null is no object); {WANTED}.")
        if (known == known[0]).all():
            raise all_alike(spec.name, str(known[0, 1:].tolist()))
        return spec.model_copy(update={"share": float(known[:, 0].mean())})

    def describe(self) -> str:
        """Return "one box a picture, an object in 82 % of the labelled rows"."""
        return f"one box a picture, an object in {self.spec.share:.0%} of the labelled rows".replace("%", " %")

    @property
    def n_outputs(self) -> int:
        """Five: the logits of the object and of x, y, w, h."""
        return 5

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return float32 [B, 5]: 1 and the box; 0 and NaN where there is no object; NaN where it is not known."""
        return _boxes(self.name, values).astype(np.float32)

    def known(self, targets: Tensor) -> Tensor:
        """Return where it is known whether there is an object."""
        return ~targets[..., 0].isnan()

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 5], targets [K or 1, 1, B, 5] -> nats plus box losses [K, M, B]."""
        return self.row_parts(outputs, targets).sum(-1)

    def row_parts(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 5], targets [K or 1, 1, B, 5] -> nats and box losses [K, M, B, 2]."""
        logit, known = outputs[..., 0], ~targets.isnan()
        truth = zero_fill(targets, known).to(outputs.dtype)
        boxes = _box_losses(outputs[..., 1:].sigmoid(), truth[..., 1:])
        # Masked by `where`: a product with 0 would keep the gradients of boxes that are not there.
        boxes = torch.where(known[..., 1], boxes, 0.0)
        return torch.stack([softplus(logit) - logit * truth[..., 0], boxes], -1)

    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 5], answers [K or 1, 1, B, 5] -> cross-entropy plus box losses [K, M, B]."""
        return self.soft_parts(outputs, answers, targets).sum(-1)

    def soft_parts(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        """outputs [K, M, B, 5], answers [K or 1, 1, B, 5] -> cross-entropy and box losses [K, M, B, 2].

        A box counts as far as the teacher believes in an object.
        """
        del targets
        logit, there = outputs[..., 0], answers[..., 0]
        boxes = _box_losses(outputs[..., 1:].sigmoid(), answers[..., 1:])
        return torch.stack([softplus(logit) - logit * there, there * boxes], -1)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the object's probability and the box, [..., 5]."""
        return outputs.sigmoid()

    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        """answers [..., B, 5], targets [..., B, 5] -> losses [..., B], NaN where missing."""
        p, there = answers[..., 0], targets[..., 0]
        nats = -torch.where(there == 1, p, 1 - p).clamp_min(1e-7).log()
        boxes = _box_losses(answers[..., 1:], zero_fill(targets, ~targets.isnan())[..., 1:].to(answers.dtype))
        losses = nats + torch.where(there == 1, boxes, 0.0)
        return torch.where(self.known(targets), losses, torch.nan)

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the entropy of the object, and the loss of the mean box: nearly the best constant answer."""
        known = targets[self.known(targets)].double()
        boxes = known[known[:, 0] == 1, 1:]
        mean = boxes.mean(0) if len(boxes) else torch.full((4,), 0.5, dtype=torch.float64)
        constant = torch.cat([known[:, :1].mean(0), mean])
        return float(self.answer_losses(constant.expand_as(known), known).mean().clamp_min(1e-6))

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return float64 [B, 5] as `encode` does."""
        return _boxes(self.name, values)

    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return the object's probability and the part of the box inside the picture, [B, 5]."""
        corners = answers[:, None, 1:3] + answers[:, None, 3:] * np.array([[-0.5], [0.5]], answers.dtype)  # [B, 2, 2]
        low, high = corners.clip(0, 1).swapaxes(0, 1)
        return np.concatenate([answers[:, :1], (low + high) / 2, high - low], 1)

    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return the same from the columns probability, x, y, w, h."""
        return np.stack([columns[f"{self.name}__{suffix}"].to_numpy() for suffix in ("probability", *SIDES)], 1)

    def values(self, answers: np.ndarray) -> pa.Array:
        """Return the boxes as lists of four, null where no object is the likelier."""
        cells = self.scored(answers).astype(np.float32)
        # Not lists of a fixed size: with nulls among them not every pyarrow reads back from Parquet what it wrote.
        boxes = pa.ListArray.from_arrays(4 * np.arange(len(cells) + 1, dtype=np.int32), pa.array(cells[:, 1:].ravel()))
        return pc.if_else(pa.array(cells[:, 0] >= 0.5), boxes, pa.scalar(None, boxes.type))

    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return the object's probability, and the box that there would be: x, y, w, h."""
        cells = self.scored(answers).astype(np.float32)
        return {name: pa.array(cells[:, place]) for place, name in enumerate(("probability", *SIDES))}

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return the box and the probability of the object; where none is the likelier, null and where it would be."""
        numbers = shortest(self.scored(answers).ravel())
        cells = [numbers[start : start + 5] for start in range(0, len(numbers), 5)]
        boxes = [dict(zip(SIDES, box, strict=True)) for _, *box in cells]
        return [
            {"value": box, "probability": p} if p >= 0.5 else {"value": None, "probability": p, "box": box}
            for (p, *_), box in zip(cells, boxes, strict=True)
        ]

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return the boxes, null where there is no object or the box is not known."""
        boxes = _boxes(self.name, values).tolist()
        return [dict(zip(SIDES, box, strict=True)) if there == 1 else None for there, *box in boxes]

    def empty(self, targets: Tensor) -> Tensor:
        """Return where there is no object."""
        return targets[..., 0] == 0


def overlap(one: Any, other: Any) -> Any:
    """Return the intersection over union [...] of boxes [..., 4], tensors or arrays; 0 where both are empty."""
    return _overlap(one, other)[0]


def _overlap(one: Any, other: Any) -> tuple[Any, Any, Any]:
    """Return intersection over union, union and the smallest box around both, [...] each."""
    library: Any = torch if isinstance(one, Tensor) else np
    low = library.maximum(one[..., :2] - one[..., 2:] / 2, other[..., :2] - other[..., 2:] / 2)
    high = library.minimum(one[..., :2] + one[..., 2:] / 2, other[..., :2] + other[..., 2:] / 2)
    sides = (high - low).clip(0)
    shared = sides[..., 0] * sides[..., 1]
    union = one[..., 2] * one[..., 3] + other[..., 2] * other[..., 3] - shared
    outer = library.maximum(one[..., :2] + one[..., 2:] / 2, other[..., :2] + other[..., 2:] / 2) - library.minimum(
        one[..., :2] - one[..., 2:] / 2, other[..., :2] - other[..., 2:] / 2
    )
    return shared / (union + 1e-9), union, outer[..., 0] * outer[..., 1]


def _box_losses(answers: Tensor, truth: Tensor) -> Tensor:
    """Return mean absolute error + 1 - GIoU, [...] from boxes [..., 4]."""
    iou, union, around = _overlap(answers, truth)
    losses: Tensor = (answers - truth).abs().mean(-1) + 2 - iou - union / (around + 1e-9)
    return losses


def _boxes(name: str, values: pa.ChunkedArray) -> np.ndarray:
    """Return labels as float64 [B, 5]: object (NaN not known), x, y, w, h (NaN without an object)."""
    boxes = np.full((len(values), 5), np.nan)
    for row, cell in enumerate(lists(values)):
        if cell is None:
            boxes[row, 0] = 0
            continue
        numbers = _numbers(cell)
        if numbers is None:
            raise refusal(name, row, cell, wrong="is no box", wanted=WANTED)
        if np.isnan(numbers).all():
            continue
        if wrong := _wrong(numbers):
            raise refusal(name, row, numbers.tolist(), wrong=wrong, wanted=WANTED)
        boxes[row] = [1, *numbers.clip(0, 1)]
    return boxes


def _numbers(cell: Any) -> np.ndarray | None:
    if isinstance(cell, dict):
        cell = [cell.get(side) for side in SIDES] if set(cell) == set(SIDES) else None
    if not isinstance(cell, list) or len(cell) != 4:
        return None
    if any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in cell):
        return None
    return np.array(cell, dtype=np.float64)


def _wrong(box: np.ndarray) -> str | None:
    """Return what is wrong with four numbers that should be a box, or None."""
    if np.isnan(box).any():
        return "is partly missing"
    if (box > 1 + BEYOND).any():
        return "is in pixels, it seems (a number is above 1)"
    if (box < -BEYOND).any():
        return "has a number below 0"
    if (box[2:] <= 0).any():
        return "has no size"
    if (box[:2] + box[2:] / 2 > 1 + BEYOND).any() or (box[:2] - box[2:] / 2 < -BEYOND).any():
        return "reaches beyond the picture: two corners, it seems"
    return None
