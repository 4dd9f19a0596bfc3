"""The contract checks themselves: they pass what keeps its promises, and name the promise that a broken kind breaks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from mtl_bento.columns._base import COLUMNS
from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.encoders._base import ENCODERS, EncoderSpec
from mtl_bento.encoders.vector import VectorEncoder
from mtl_bento.heads._base import HEADS
from mtl_bento.heads.dense import DenseHead, DenseHeadSpec
from mtl_bento.layers import Dropout
from mtl_bento.registry import Registry
from mtl_bento.spec import MustMatch, Searched, Spec
from mtl_bento.tasks._base import TASKS
from mtl_bento.tasks.regression import Regression, RegressionSpec
from mtl_bento.testing import (
    BrokenPromiseError,
    check_column,
    check_encoder,
    check_head,
    check_spec,
    check_task,
    check_trunk,
    check_weighting,
    sample_dataset,
    sample_members,
)
from mtl_bento.trunks._base import TRUNKS, TrunkSizes, TrunkSpec
from mtl_bento.trunks.mlp import MLP, MLPSpec
from mtl_bento.weighting._base import WEIGHTINGS
from mtl_bento.weighting.static import StaticWeighting, StaticWeightingSpec


@contextmanager
def registered(registry: Registry[Any], spec: type[Spec], built: type) -> Iterator[None]:
    """Register a kind for as long as the block lasts."""
    registry.kinds()
    registry.register(spec)(built)
    try:
        yield
    finally:
        del registry._specs[spec.model_fields["kind"].default], registry._classes[spec]


class BrokenSpec(TrunkSpec):
    kind: Literal["test_broken"] = "test_broken"
    gain: float = 1.0
    groups: Annotated[int, Field(ge=1, le=4), Searched(1, 4)] = 1


class Trunk(MLP):
    """A trunk that works; those below each break one promise."""

    def __init__(self, specs: Sequence[Any], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.prepare()

    def prepare(self) -> None:
        pass

    def forward(self, features: Tensor) -> list[Tensor]:
        return [self.change(state) for state in super().forward(features)]

    def change(self, state: Tensor) -> Tensor:
        """state [K, 1, B, D] -> the same shape."""
        return state


class SeesOtherRows(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state - state.sum(2, keepdim=True) / 10


class SeesOtherMembers(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state * (1 + state[:1].mean(-1, keepdim=True))


class FillsPadding(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state + 1


class LosesAParameter(Trunk):
    def prepare(self) -> None:
        self.scale = nn.Parameter(torch.ones(()))

    def change(self, state: Tensor) -> Tensor:
        return state * self.scale


class TakesTheFirstMembersField(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state * self.specs[0].groups


class TakesTheFirstMembersUnmarkedField(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state * self.specs[0].gain


class DrawsFromTheGlobalGenerator(Trunk):
    def change(self, state: Tensor) -> Tensor:
        drawing = self.training and any(spec.dropout for spec in self.specs)
        return state * (torch.rand(state.shape[-2:-1])[:, None] > 0.5) if drawing else state


class DropsWithoutARate(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return nn.functional.dropout(state, 0.5, self.training)


class KeepsAStatistic(Trunk):
    steps: Tensor

    def prepare(self) -> None:
        self.register_buffer("steps", torch.zeros(()))

    def change(self, state: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return state


class HasNoGradientAtZero(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state + (state * 0).sqrt()


class HasNoGradientBehindDropout(Trunk):
    def prepare(self) -> None:
        self.dropout = Dropout([spec.dropout for spec in self.specs])

    def change(self, state: Tensor) -> Tensor:
        return self.dropout(state).sqrt()  # what a ReLU holds back is fine, but not what dropout makes 0


class DropsTheInnerAxis(Trunk):
    def change(self, state: Tensor) -> Tensor:
        return state.squeeze(1)


class MakesFewerStates(Trunk):
    def forward(self, features: Tensor) -> list[Tensor]:
        return super().forward(features)[1:]


def test_a_trunk_that_keeps_its_promises_passes() -> None:
    with registered(TRUNKS, BrokenSpec, Trunk):
        check_trunk(BrokenSpec)
        check_trunk(BrokenSpec(width=4, groups=2), BrokenSpec(width=9, shared_depth=1), BrokenSpec(dropout=0.2))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (SeesOtherRows, "rows must not see each other"),
        (SeesOtherMembers, "members must not see each other"),
        (FillsPadding, "states beyond a member's width .* must be zero"),
        (LosesAParameter, r"every parameter must be made by `stack`.*trunk\.scale"),
        (TakesTheFirstMembersField, "member 1 of the stack must equal that member alone"),
        (TakesTheFirstMembersUnmarkedField, "member 1 of the stack must equal that member alone"),
        (DrawsFromTheGlobalGenerator, "draw nothing from a global generator"),
        (DropsWithoutARate, "with dropout 0, training must answer as evaluation does"),
        (KeepsAStatistic, r"buffer trunk\.steps changed in training"),
        (HasNoGradientAtZero, "gradients must be finite"),
        (HasNoGradientBehindDropout, "parameters must stay finite in training"),
        (DropsTheInnerAxis, r"states must be T of \[K, M, B, D\]"),
        (MakesFewerStates, r"states must be T of \[K, M, B, D\]"),
    ],
)
def test_a_broken_trunk_is_told_which_promise_it_breaks(broken: type[Trunk], promise: str) -> None:
    with registered(TRUNKS, BrokenSpec, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_trunk(BrokenSpec)


def test_a_field_that_must_match_and_is_not_compared_is_found() -> None:
    class ForgetfulSpec(TrunkSpec):
        kind: Literal["test_forgetful"] = "test_forgetful"
        experts: Annotated[int, MustMatch] = 4

        def stack_key(self) -> tuple[Any, ...]:
            return (self.kind, self.activation)

    with (
        registered(TRUNKS, ForgetfulSpec, Trunk),
        pytest.raises(BrokenPromiseError, match=r"differ in 'experts', which"),
    ):
        check_trunk(ForgetfulSpec)


def test_a_spec_that_is_not_registered_is_found() -> None:
    with pytest.raises(BrokenPromiseError, match="BrokenSpec must be registered as 'test_broken'"):
        check_trunk(BrokenSpec)


def test_a_spec_that_json_changes_is_found() -> None:
    class LossySpec(TrunkSpec):
        kind: Literal["test_lossy"] = "test_lossy"
        parts: Any = (1, 2)

    with registered(TRUNKS, LossySpec, Trunk), pytest.raises(BrokenPromiseError, match="the spec must survive JSON"):
        check_spec(LossySpec, TRUNKS)


class HeadSpec(DenseHeadSpec):
    kind: Literal["test_head"] = "test_head"  # type: ignore[assignment]


class CentringHead(DenseHead):
    def forward(self, state: Tensor) -> Tensor:
        out = super().forward(state)
        return out - out.sum(2, keepdim=True)


class MixingHead(DenseHead):
    def forward(self, state: Tensor) -> Tensor:
        return super().forward(state).cumsum(1)


class HastyHead(DenseHead):
    @classmethod
    def together(cls, heads: Sequence[Any], state: Tensor) -> list[Tensor]:
        return [heads[0](state)] * len(heads)

    def forward(self, state: Tensor) -> Tensor:
        return DenseHead.together([self], state)[0]


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (CentringHead, "rows must not see each other"),
        (MixingHead, "TabM's inner members must not see each other"),
        (HastyHead, "heads of one state must answer together as they do alone"),
    ],
)
def test_a_broken_head_is_told_which_promise_it_breaks(broken: type[DenseHead], promise: str) -> None:
    with registered(HEADS, HeadSpec, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_head(HeadSpec)


class BlockSpec(EncoderSpec):
    kind: Literal["test_block"] = "test_block"
    power: Annotated[int, MustMatch] = 1


class ForgetfulEncoder(VectorEncoder):
    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        return (torch.cat([prepared, prepared[..., self.first].isnan().to(prepared.dtype)], -1),)


class CentringEncoder(VectorEncoder):
    def prepare(self, values: Tensor) -> Tensor:
        return (super().prepare(values) - values.nanmean(0)).nan_to_num(0.0)


class MiscountingEncoder(VectorEncoder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.n_features += 1


class PreparingEncoder(VectorEncoder):
    def __init__(self, specs: Sequence[BlockSpec], *args: Any) -> None:
        super().__init__(specs, *args)  # type: ignore[arg-type]
        self.power = specs[0].power

    def prepare(self, values: Tensor) -> Tensor:
        return super().prepare(values) * self.power


def vectors() -> dict[str, Any]:
    values = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    values[:5] = np.nan
    return {"columns": [NumericColumn(name=name) for name in "abc"], "values": values}


def test_an_encoder_of_a_block_of_somebody_elses_is_checked_on_rows_that_are_given() -> None:
    with registered(ENCODERS, BlockSpec, VectorEncoder):
        check_encoder(BlockSpec, **vectors())
        with pytest.raises(TypeError, match="there are no sample rows for block 'test_block'; give `columns` and"):
            check_encoder(BlockSpec)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ForgetfulEncoder, "features must be finite, also of missing and unseen values"),
        (CentringEncoder, "rows must be prepared alike alone"),
        (MiscountingEncoder, r"features must be \[K or 1, B, F\]"),
        (PreparingEncoder, "`prepare` must not depend on the spec"),
    ],
)
def test_a_broken_encoder_is_told_which_promise_it_breaks(broken: type[VectorEncoder], promise: str) -> None:
    with registered(ENCODERS, BlockSpec, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_encoder(BlockSpec(power=2), **vectors())


class WeighingSpec(StaticWeightingSpec):
    kind: Literal["test_weighing"] = "test_weighing"  # type: ignore[assignment]


class CompetingWeighting(StaticWeighting):
    def forward(self, losses: Tensor) -> Tensor:
        return super().forward(losses) / losses.sum()


class SummedWeighting(StaticWeighting):
    def forward(self, losses: Tensor) -> Tensor:
        return super().forward(losses).sum()


class DeafWeighting(StaticWeighting):
    def forward(self, losses: Tensor) -> Tensor:
        return super().forward(losses * torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (CompetingWeighting, "member 0 of a stack must be weighed as it is alone"),
        (SummedWeighting, r"must return one number a member, \[K\]"),
        (DeafWeighting, "a loss must count exactly where `weight\\(task\\)` is above 0"),
    ],
)
def test_a_broken_weighting_is_told_which_promise_it_breaks(broken: type[StaticWeighting], promise: str) -> None:
    with registered(WEIGHTINGS, WeighingSpec, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_weighting(WeighingSpec)


class NumberSpec(RegressionSpec):
    kind: Literal["test_number"] = "test_number"  # type: ignore[assignment]


class EmptyMeanTask(Regression):
    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        del weights
        losses = self.row_losses(outputs, targets.unsqueeze(1)).mean(1)
        return torch.stack(
            [row[known].mean() for row, known in zip(losses, self.known(targets).expand(len(losses), -1), strict=True)]
        )


class UnweightedTask(Regression):
    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        del weights
        return super().loss(outputs, targets)


class TrustingTask(Regression):
    @classmethod
    def fit(cls, spec: Any, values: pa.ChunkedArray) -> Any:
        del values
        return spec


class MisjudgingTask(Regression):
    def answer_losses(self, answers: Tensor, targets: Tensor) -> Tensor:
        return super().answer_losses(answers, targets).abs().sqrt()


class ContraryTask(Regression):
    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        return super().soft_losses(outputs, -answers, targets)


class LabelledOnlyTask(Regression):
    def soft_losses(self, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
        return torch.where(self.known(targets), super().soft_losses(outputs, answers, targets), 0.0)


class NumpyTask(Regression):
    def rows(self, answers: np.ndarray) -> list[dict[str, Any]]:
        return [{"value": (float(answer),)} for answer in answers[:, 0]]


class MeanShiftingTask(Regression):
    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: Any = None) -> Any:
        return super().calibrate(answers, targets, weights).with_spec(mean=float(answers.mean()))


class ForgetfulOfWeightsTask(Regression):
    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: Any = None) -> Any:
        del weights
        return super().calibrate(answers, targets)


class ReadingUnlabelledTask(Regression):
    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: Any = None) -> Any:
        task = super().calibrate(answers, targets, weights)
        return task.with_spec(half_width=float(np.ptp(answers))) if len(answers) else task


class PilingUpTask(Regression):
    def calibrate(self, answers: np.ndarray, targets: Tensor, weights: Any = None) -> Any:
        before = self.spec.half_width or 0.0
        task = super().calibrate(answers, targets, weights)
        return task.with_spec(half_width=task.spec.half_width and task.spec.half_width + before)


class NarrowTask(Regression):
    def columns(self, answers: np.ndarray) -> dict[str, pa.Array]:
        columns = super().columns(answers)
        return {**columns, "lower": columns["upper"]} if columns else {}


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (EmptyMeanTask, "a batch without labels must have loss 0"),
        (UnweightedTask, "a weight must have the effect of repeating a row"),
        (TrustingTask, "`fit` must raise SchemaError where all labels are missing"),
        (MisjudgingTask, "`answer_losses` of one network must be its `row_losses`"),
        (ContraryTask, "nothing may lose less against a teacher than the teacher itself"),
        (LabelledOnlyTask, "every row must learn from a teacher's answer, also one without a label"),
        (NumpyTask, "`rows` must be what JSON can hold"),
        (MeanShiftingTask, r"`calibrate` must set only what `learned` names, not \['mean'\]"),
        (ForgetfulOfWeightsTask, "a row of weight 0 must count for nothing"),
        (ReadingUnlabelledTask, "the answer to a row without a label must not matter"),
        (PilingUpTask, "an earlier calibration must be replaced"),
        (NarrowTask, "an interval or set must hold the value that is answered"),
    ],
)
def test_a_broken_task_is_told_which_promise_it_breaks(broken: type[Regression], promise: str) -> None:
    with registered(TASKS, NumberSpec, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_task(NumberSpec(name="y"), [1.0, None, 3.0, float("nan"), 2.0])


def test_labels_that_are_all_known_cannot_show_that_missing_ones_are_masked() -> None:
    with pytest.raises(ValueError, match="give labels of which some are missing"):
        check_task(RegressionSpec(name="y"), [1.0, 2.0])


CELLS: dict[str, Any] = {
    "numeric": [1.0, 2.5, None, 3.0, -4.0, 5.0, 6.0],
    "categorical": ["a"] * 6 + ["b"] * 5 + [None],
    "datetime": ["2020-01-01"] * 5 + ["2021-05-06T07:00:00", None],
    "vector": [[1.0, 2.0], None, [3.0, 4.0], [5.0, None]],
}


@pytest.mark.parametrize("kind", CELLS)
def test_our_own_columns_pass(kind: str) -> None:
    check_column(COLUMNS.spec_class(kind), CELLS[kind])


class ColumnA(NumericColumn):
    kind: Literal["test_column"] = "test_column"  # type: ignore[assignment]


class CentringColumn(ColumnA):
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        encoded = super().encode(values)
        return encoded - np.nanmin(encoded, initial=0)


class WideColumn(ColumnA):
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        return super().encode(values).astype(np.float64)


class FillingColumn(ColumnA):
    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        return np.nan_to_num(super().encode(values))


class ChattyColumn(ColumnA):
    def draw(self, rng: np.random.Generator) -> Any:
        return np.float64(rng.random()), 1


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (CentringColumn, "rows must be encoded alike alone"),
        (WideColumn, "`encode` must return float32, not float64"),
        (FillingColumn, "cells of Arrow's null type must be missing"),
        (ChattyColumn, "drawn cells must be what JSON can hold"),
    ],
)
def test_a_broken_column_is_told_which_promise_it_breaks(broken: type[ColumnA], promise: str) -> None:
    with registered(COLUMNS, broken, broken), pytest.raises(BrokenPromiseError, match=promise):
        check_column(broken, CELLS["numeric"])


def test_sample_members_differ_in_all_that_is_not_given() -> None:
    dataset = sample_dataset()
    members = sample_members(dataset, trunks=[MLPSpec(width=4), MLPSpec(width=5)])
    assert [member.spec.network.trunk.width for member in members] == [4, 5]
    assert len({member.spec.training.lr for member in members}) == 2
    assert {member.split for member in members} == {0, 1}


def test_the_sample_has_all_that_can_go_wrong() -> None:
    dataset = sample_dataset()
    assert set(dataset.inputs.columns) == {"numeric", "categorical", "vector"}
    assert any(block.isnan().any() for block in dataset.blocks)
    assert all(
        not task.known(target).all() for task, target in zip(dataset.tasks[1:], dataset.targets[1:], strict=True)
    )
    assert dataset.weights is not None
    assert len(dataset.weights.unique()) == 2


def test_checks_need_no_pytest() -> None:
    # They ship in the wheel, whose dependencies have no pytest.
    code = "import sys, mtl_bento.testing; assert not {'pytest', '_pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
