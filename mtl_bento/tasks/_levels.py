"""What tasks with labels share: levels in their own type, codes for the loss, answers with probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from mtl_bento.columns.categorical import by_text, text_of
from mtl_bento.errors import SchemaError, SpecError, listing, nearest
from mtl_bento.tasks._base import Covered, Task, shortest
from mtl_bento.tasks._calibration import (
    CalibratedSpec,
    best_temperature,
    conformal_quantile,
    fewest,
    labelled,
    tempered,
)

Label = bool | int | float | str
LabelText = Annotated[str, BeforeValidator(lambda label: text_of(label) if isinstance(label, Label) else label)]
"""A label by its canonical text: YAML reads `true` and `3` as no text."""
MOST_PROBABILITIES = 10
"""How many probabilities an answer lists: the likeliest."""


class LevelsSpec(CalibratedSpec):
    """A target with labels."""

    levels: Annotated[tuple[Label, ...], Field()] = ()
    """The labels in their own type; learned where not given."""
    dtype: str = "string"
    """Arrow type of the labels."""
    class_weight: Literal["balanced"] | dict[LabelText, Annotated[float, Field(gt=0)]] | None = None
    """Weight of a label's rows in the loss, by label; "balanced" weighs each label alike."""
    frequencies: tuple[float, ...] = ()
    """Share of each level among the labelled training rows."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """What the logarithms of probabilities are divided by; learned by calibration, None where 1 is as good."""
    set_threshold: float | None = None
    """The smallest probability of a label in the prediction set; learned by calibration, None where there is no set."""


AnySpec = TypeVar("AnySpec", bound=LevelsSpec)


class LevelsTask(Task[AnySpec]):
    """A task whose labels are levels: codes in their order, -1 where missing."""

    learned: ClassVar[tuple[str, ...]] = ("calibrated_on", "temperature", "set_threshold")

    def __init__(self, spec: AnySpec) -> None:
        super().__init__(spec)
        self.texts = [text_of(level) for level in spec.levels]
        self._class_weights = _class_weights(spec, self.texts)

    @classmethod
    def survey(cls, spec: AnySpec, values: pa.ChunkedArray) -> AnySpec:
        """Return the spec with all labels as its levels, where it names none."""
        _, firsts = by_text(values, spec.name)
        return spec if spec.levels else spec.model_copy(update={"levels": natural(value for _, value in firsts)})

    @classmethod
    def fit(cls, spec: AnySpec, values: pa.ChunkedArray) -> AnySpec:
        """Return the spec with levels, dtype and frequencies; SchemaError where a label is unknown or all are alike."""
        places, firsts = by_text(values, spec.name)
        if not firsts:
            raise SchemaError(
                f"Target {spec.name!r} is missing in every training row; label some rows or leave it out."
            )
        levels = spec.levels or natural(value for _, value in firsts)
        texts = [text_of(level) for level in levels]
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise SpecError(f"Target {spec.name!r}: `levels` names {twice[0]!r} more than once; name each label once.")
        known = set(texts)
        if unknown := [text for text, _ in firsts if text not in known]:
            raise SchemaError(unknown_label(spec.name, unknown[0], levels))
        if len(firsts) < 2:
            raise SchemaError(
                f"Target {spec.name!r} is {firsts[0][1]!r} in every training row; "
                "there is nothing to learn, leave it out."
            )
        levels = cls.arrange(spec, levels)
        counts = dict(zip([text for text, _ in firsts], np.bincount(places[places >= 0]).tolist(), strict=True))
        shares = tuple(counts.get(text_of(level), 0) / sum(counts.values()) for level in levels)
        dtype = str(typed(levels, values.type).type)
        fitted = {"levels": levels, "dtype": dtype, "frequencies": shares}
        return spec.model_copy(update={**dict.fromkeys(cls.learned), **fitted})

    @classmethod
    def arrange(cls, spec: AnySpec, levels: tuple[Label, ...]) -> tuple[Label, ...]:
        """Return the levels in the order of their codes."""
        del spec
        return levels

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return codes, int64 [B], -1 where missing; raises SchemaError on a label that is not one of the levels."""
        places, firsts = by_text(values, self.name)
        codes = {text: code for code, text in enumerate(self.texts)}
        if unknown := [text for text, _ in firsts if text not in codes]:
            raise SchemaError(unknown_label(self.name, unknown[0], self.spec.levels))
        found = np.array([codes[text] for text, _ in firsts] + [-1], dtype=np.int64)
        return np.asarray(found[places])  # a missing cell's place is -1: the last

    def known(self, targets: Tensor) -> Tensor:
        """Return where the code is not -1."""
        return targets >= 0

    def emphasis(self, targets: Tensor) -> Tensor | None:
        """Return the class weight of each row's label, or None where labels weigh alike."""
        if self._class_weights is None:
            return None
        return self._class_weights.to(targets.device)[targets.clamp_min(0)]

    def trivial_loss(self, targets: Tensor) -> float:
        """Return the entropy of the known labels in nats."""
        counts = torch.bincount(targets[self.known(targets)], minlength=2).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum().clamp(max=-1e-6))

    @abstractmethod
    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """Return the probability of each level [B, C] for answers [B, O], before calibration."""

    def calibrated(self, answers: np.ndarray) -> np.ndarray:
        """Return the probability of each level [B, C] as it is answered."""
        table = self.probabilities(answers)
        return table if self.spec.temperature is None else tempered(table, self.spec.temperature)

    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: np.ndarray | None = None) -> Self:
        """Return the task with a temperature where it helps, and the bound of its prediction sets.

        A label is in the set from the probability on that a share `interval` of the rows gives its true label (least
        ambiguous sets, Sadinle et al., 2019); the label answered always is.
        """
        rows, weight = labelled(self.known(targets), weights)
        table, codes = self.probabilities(answers[rows]), targets.cpu().numpy()[rows]
        temperature = best_temperature(table, codes, weight)
        fair = table if temperature is None else tempered(table, temperature)
        chosen = np.take_along_axis(fair, codes[:, None], 1)[:, 0].astype(np.float64)
        bound = conformal_quantile(-chosen, self.spec.interval, weight)
        return self.with_spec(
            calibrated_on=len(rows), temperature=temperature, set_threshold=None if bound is None else -bound
        )

    def codes(self, table: np.ndarray) -> np.ndarray:
        """Return the code of each label answered [B] for probabilities [B, C]: the likeliest."""
        return np.asarray(table.argmax(1))

    def decided(self, scored: np.ndarray) -> np.ndarray:
        """Return 1 for the label answered and 0 for the others [B, C]."""
        return np.asarray(np.eye(len(self.texts))[self.codes(scored)])

    def covered(self, columns: Mapping[str, pa.ChunkedArray], truth: np.ndarray) -> Covered | None:
        """Return whether prediction sets hold the true label, and how many labels they have."""
        if self.spec.set_threshold is None:
            return None
        sets = columns[f"{self.name}__set"].combine_chunks()
        of_row, labels = pc.list_parent_indices(sets).to_numpy(), pa.chunked_array([pc.list_flatten(sets)])
        hits = self.encode(labels) == truth[of_row]
        held = np.bincount(of_row[hits], minlength=len(truth)) > 0
        n_labels = np.bincount(of_row, minlength=len(truth)).astype(np.float64)
        return Covered(self.spec.interval, held, n_labels, "labels")

    def edges(self) -> dict[str, float]:
        """Return the bound of prediction sets."""
        return {} if self.spec.set_threshold is None else {"set": self.spec.set_threshold}

    def notes(self) -> list[str]:
        """Return what became of probabilities and prediction sets."""
        spec = self.spec
        if spec.calibrated_on is None:
            return []
        rows = f"{spec.calibrated_on:,} labelled out-of-fold rows"
        notes = [] if spec.temperature is None else [f"probabilities are at temperature {spec.temperature:.3g}"]
        if spec.set_threshold is None:
            return [*notes, f"no prediction sets: {rows}, and {spec.interval:g} needs {fewest(spec.interval)} or more"]
        return [
            *notes,
            f"`set` holds the true label in {spec.interval:.4g} of the rows: labels of probability "
            f"{spec.set_threshold:.3g} or more, from {rows}",
        ]

    def change(self, answers: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return by how much the probability of each row's likeliest label is more than in another answer [B]."""
        own, other = self.probabilities(answers).astype(np.float64), self.probabilities(others)
        rows, likeliest = np.arange(len(own)), own.argmax(1)
        return np.asarray(own[rows, likeliest] - other[rows, likeliest])

    def truth(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return codes, int64 [B], -1 where missing."""
        return self.encode(values)

    def scored(self, answers: np.ndarray) -> np.ndarray:
        """Return probabilities [B, C]."""
        return self.calibrated(answers)

    def scored_columns(self, columns: Mapping[str, pa.ChunkedArray]) -> np.ndarray:
        """Return probabilities [B, C] from the columns `proba__LABEL`."""
        return np.stack([columns[f"{self.name}__proba__{text}"].to_numpy() for text in self.texts], 1)

    def values(self, answers: np.ndarray) -> pa.Array:
        """Return the label of each row, in the target's own dtype."""
        return self._typed().take(pa.array(self.codes(self.calibrated(answers))))

    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        """Return a column `proba__LABEL` a level, and `set` where there are prediction sets: lists of labels."""
        table = self.calibrated(answers)
        narrow = table.astype(np.float32)
        columns = {f"proba__{name}": pa.array(narrow[:, c]) for c, name in enumerate(self.texts)}
        return columns if self.spec.set_threshold is None else columns | {"set": self._sets(table)}

    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        """Return value, its probability and the likeliest labels' probabilities per row."""
        table = self.calibrated(answers)
        levels = self._typed().to_pylist()
        listed = _listed(table)
        # All numbers at once: asked row by row, their digits took longer than the network.
        numbers = shortest(np.take_along_axis(table, listed, axis=1).ravel())
        size, answered = listed.shape[1], []
        for row, (code, places) in enumerate(zip(self.codes(table).tolist(), listed.tolist(), strict=True)):
            shares = dict(zip(places, numbers[row * size : (row + 1) * size], strict=True))
            named = {self.texts[c]: share for c, share in shares.items()}
            answered.append({"value": levels[code], "probability": shares[code], "probabilities": named})
        if self.spec.set_threshold is not None:
            for answer, labels in zip(answered, self._sets(table).to_pylist(), strict=True):
                answer["set"] = labels
        return answered

    def said(self, values: pa.ChunkedArray) -> list[Any]:
        """Return the labels in the type of the answers, None where missing."""
        labels: list[Any] = [*self._typed().to_pylist(), None]  # a missing label's code is -1: the last
        return [labels[code] for code in self.encode(values).tolist()]

    def card(self) -> dict[str, Any]:
        """Return the fields of the spec, and the classes in their own type."""
        return super().card() | {"classes": self._typed().to_pylist()}

    def _sets(self, table: np.ndarray) -> pa.ListArray:
        """Return the prediction set of each row of probabilities [B, C]: labels in the order of the levels."""
        assert self.spec.set_threshold is not None
        held = table.astype(np.float64) >= self.spec.set_threshold
        held[np.arange(len(table)), self.codes(table)] = True
        ends = np.concatenate([[0], held.sum(1).cumsum()]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), self._typed().take(pa.array(np.nonzero(held)[1])))

    def _typed(self) -> pa.Array:
        return pa.array(self.spec.levels, arrow_type(self.spec.dtype))


def _listed(table: np.ndarray) -> np.ndarray:
    """Return the places of the labels that an answer lists, [B, 10 at most]: in their order, or the likeliest first."""
    if table.shape[1] <= MOST_PROBABILITIES:
        return np.broadcast_to(np.arange(table.shape[1]), table.shape)
    return np.argsort(-table, axis=1, kind="stable")[:, :MOST_PROBABILITIES]


def typed(levels: tuple[Label, ...], kind: pa.DataType) -> pa.Array:
    """Return the levels in the target's own type where they fit it, else in the type that they have."""
    try:
        return pa.array(levels, _own_type(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array(levels)


def log_shares(labels: np.ndarray, weights: np.ndarray, *, n_levels: int) -> np.ndarray:
    """Return the log of each level's share [C], each counted half a time more: finite where one is absent."""
    counts = np.bincount(labels.astype(np.int64), weights=weights, minlength=n_levels) + 0.5
    return np.asarray(np.log(counts / counts.sum()))


def natural(labels: Iterable[Label]) -> tuple[Label, ...]:
    """Return labels in their natural order, numbers before text."""
    return tuple(sorted(labels, key=lambda label: (isinstance(label, str), label)))


def _own_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that predicted labels come back in: the target's own, where its levels fit it."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Whole numbers with missing cells are floats in pandas; their levels are whole, and so is the answer.
    return kind if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_float32(kind) else None


def arrow_type(name: str) -> pa.DataType:
    return pa.type_for_alias(name)


def _class_weights(spec: LevelsSpec, texts: list[str]) -> Tensor | None:
    """Return the weight of each level, float32 [C]; raises SpecError for a label that the target lacks."""
    if spec.class_weight is None or not texts:
        return None
    if spec.class_weight == "balanced":
        return torch.tensor([1 / (len(texts) * max(share, 1e-6)) for share in spec.frequencies])
    given = dict(spec.class_weight)
    for label in given:
        if label not in texts:
            raise SpecError(
                f"Target {spec.name!r}: class_weight names {label!r}{nearest(label, texts) or '.'} "
                f"Its labels: {listing(texts)}."
            )
    return torch.tensor([given.get(label, 1.0) for label in texts])


def unknown_label(name: str, label: str, levels: tuple[Label, ...]) -> str:
    return (
        f"Target {name!r} holds {label!r}, which is not one of its levels ({listing(map(text_of, levels))}). "
        "Correct or clear those cells, or add it to `levels` and search again."
    )
