"""The space: names of the study, narrowing, defaults, members out of parameters."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mtl_bento.errors import SpecError, UnknownKindError
from mtl_bento.heads.conv import ConvHeadSpec
from mtl_bento.heads.dense import DenseHeadSpec
from mtl_bento.samples import SamplePositionsSpec
from mtl_bento.spec import Searched
from mtl_bento.trunks._base import TRUNKS, TrunkSpec
from mtl_bento.weighting._base import WEIGHTINGS, WeightingSpec
from mtl_bento_search.config import Choice
from mtl_bento_search.defaults import budget, default_trunks
from mtl_bento_search.space import Space, within

TASKS = ["income", "分类"]


def space(**domains: object) -> Space:
    return Space(["numeric"], TASKS, domains=domains)  # type: ignore[arg-type]


def test_parameters_are_named_as_the_study_shows_them() -> None:
    assert sorted(space().distributions) == sorted(
        ["trunk", "shared_depth", "width", "dropout", "lr", "weight_decay"]
        + [f"{name}.{task}" for name in ("head_width", "loss_weight") for task in TASKS]
    )


def test_loss_weights_are_searched_on_a_log_scale_over_three_e_folds() -> None:
    found = space().distributions["loss_weight.income"]
    assert found == FloatDistribution(math.exp(-1.5), math.exp(1.5), log=True)


def test_one_task_has_no_loss_weight() -> None:
    assert not [name for name in Space(["numeric"], ["y"]).distributions if name.startswith("loss_weight")]


def test_a_list_is_choices_a_range_a_range_and_a_value_is_fixed() -> None:
    held = space(width=[32, 128], lr=Choice(low=1e-4, high=1e-2, log=True), dropout=0)
    assert held.distributions["width"] == CategoricalDistribution([32, 128])
    assert held.distributions["lr"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert "dropout" not in held.distributions
    assert held.member(held.defaults()).network.trunk.dropout == 0


def test_a_name_without_its_task_speaks_for_every_task_and_the_exact_one_comes_first() -> None:
    held = space(head_width=64, **{"head_width.分类": 16})
    member = held.member(held.defaults())
    assert (member.network.heads["income"].width, member.network.heads["分类"].width) == (64, 16)  # type: ignore[attr-defined]


def test_fields_that_are_not_searched_can_be_set() -> None:
    held = space(**{"numeric.n_bins": 4, "tabm.inner": 4, "steps": 64})
    member = held.member(held.defaults())
    assert member.network.encoders["numeric"].n_bins == 4  # type: ignore[attr-defined]
    assert member.network.trunk.inner == 4  # type: ignore[attr-defined]
    assert member.training.steps == 64


def test_defaults_move_into_a_narrower_space() -> None:
    held = space(width=Choice(low=16, high=48), lr=[1e-4, 5e-4])
    assert held.defaults()["width"] == 48  # the default is 128
    assert held.defaults()["lr"] == 5e-4  # the default is 2e-3


def test_sampled_loss_weights_are_divided_by_their_geometric_mean_and_fixed_ones_are_not() -> None:
    member = space().member({**space().defaults(), "loss_weight.income": 4.0, "loss_weight.分类": 1.0})
    assert member.training.weighting.loss_weight == pytest.approx({"income": 2.0, "分类": 0.5})  # type: ignore[attr-defined]
    fixed = space(loss_weight=3.0)
    assert fixed.member(fixed.defaults()).training.weighting.loss_weight == {"income": 3.0, "分类": 3.0}  # type: ignore[attr-defined]


def test_a_member_for_some_tasks_gives_the_others_no_weight() -> None:
    held = space()
    member = held.member({**held.defaults(), "loss_weight.income": 3.0, "loss_weight.分类": 0.5})
    alone, both = within(member, ["分类"], TASKS), within(member, TASKS, TASKS)
    assert alone.training.weighting.loss_weight == {"income": 0.0, "分类": 1.0}  # type: ignore[attr-defined]
    assert both.training.weighting == member.training.weighting


def test_everything_fixed_leaves_nothing_to_search() -> None:
    held = Space(
        ["numeric"],
        TASKS,
        trunks=["mlp"],
        domains={
            "width": 32,
            "shared_depth": 1,
            "dropout": 0,
            "lr": 1e-3,
            "weight_decay": 0,
            "head_width": 0,
            "loss_weight": 1,
        },
    )
    assert held.distributions == {}
    assert held.defaults() == {}


def test_suggested_parameters_are_those_of_the_trunk_that_was_drawn() -> None:
    trial = optuna.trial.FixedTrial({**space().defaults(), "trunk": "mlp"})
    params = space().suggest(trial)
    assert params["trunk"] == "mlp"
    assert not [name for name in params if name.startswith("tabm.")]
    assert isinstance(space().distributions["width"], IntDistribution)


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        ({"widht": 3}, r"no parameter 'widht'; did you mean 'width'\?"),
        ({"dropout": 2}, "space: dropout"),
        ({"dropout": []}, "an empty list"),
        ({"activation": "sinus"}, "space: activation"),
        ({"trunk": ["mlp"]}, r"trunk is set by `search: \{trunk"),
    ],
)
def test_what_the_space_does_not_allow_is_named(domains: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        space(**domains)


def test_a_range_must_ascend_and_a_log_range_start_above_zero() -> None:
    with pytest.raises(SpecError, match=r"low 0\.5 must be below high 0\.1"):
        space(dropout=Choice(low=0.5, high=0.1))
    with pytest.raises(SpecError, match="must start above 0"):
        space(weight_decay=Choice(low=0, high=0.1))


def test_a_second_weighting_is_a_choice_and_its_fields_are_named_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tempered(WeightingSpec):
        """A weighting for this test."""

        kind: Literal["tempered"] = "tempered"
        heat: Annotated[float, Searched(0.5, 2.0)] = 1.0
        """Made up."""

    monkeypatch.setitem(WEIGHTINGS._specs, "tempered", Tempered)
    held = Space(["numeric"], TASKS, weightings=["static", "tempered"])
    assert held.distributions["weighting"] == CategoricalDistribution(["static", "tempered"])
    assert "tempered.heat" not in held.defaults()
    params = held.suggest(optuna.trial.FixedTrial({**held.defaults(), "weighting": "tempered", "tempered.heat": 1.5}))
    assert "loss_weight.income" not in params
    assert held.member(params).training.weighting == Tempered(heat=1.5)


def test_a_trunk_that_narrows_a_common_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deep(TrunkSpec):
        """A trunk for this test."""

        kind: Literal["deep"] = "deep"
        shared_depth: Annotated[int, Searched(4, 8)] = 4

    monkeypatch.setitem(TRUNKS._specs, "deep", Deep)
    with pytest.raises(SpecError, match="Trunk 'deep' narrows shared_depth, which all trunks share"):
        Space(["numeric"], TASKS, trunks=["deep", "mlp"])


def test_an_unknown_trunk_lists_those_there_are() -> None:
    with pytest.raises(UnknownKindError, match=r"no trunk 'tabn'; did you mean 'tabm'\? Allowed: .*mlp, .*tabm"):
        Space(["numeric"], TASKS, trunks=["tabn"])


def test_common_fields_reach_every_trunk_and_not_only_the_last() -> None:
    held = space()
    for kind in ("tabm", "mlp"):
        member = held.member({**held.defaults(), "trunk": kind, "width": 77, "dropout": 0.25})
        assert (member.network.trunk.kind, member.network.trunk.width, member.network.trunk.dropout) == (kind, 77, 0.25)


# Inputs with positions

MEDIA = ["numeric", "sample_positions:photo", "sample_positions:photo.side"]


def test_an_input_with_positions_has_parameters_under_its_own_name() -> None:
    held = Space(MEDIA, ["y"], domains={"photo.learned": 2})
    assert held.distributions["photo.pooling"] == CategoricalDistribution(["mean", "flatten"])
    params = {**held.defaults(), "photo.pooling": "flatten", "photo.side.pooling": "mean"}
    encoders = held.member(params).network.encoders
    assert encoders["sample_positions:photo"] == SamplePositionsSpec(pooling="flatten", learned=2)
    assert encoders["sample_positions:photo.side"] == SamplePositionsSpec()


def test_pooling_is_asked_of_trunks_that_read_no_positions_alone() -> None:
    held = Space(MEDIA, ["y"], trunks=["mlp", "sample_positional"])
    for trunk in held.trunks:
        params = held.suggest(optuna.trial.FixedTrial({**held.defaults(), "trunk": trunk}))
        assert ("photo.pooling" in params) == (trunk == "mlp")
        assert held.member(params).network.trunk.kind == trunk
        assert held.member(params).network.encoders["sample_positions:photo"] == SamplePositionsSpec()


def test_a_task_by_position_allows_trunks_that_read_positions_alone() -> None:
    with pytest.raises(
        SpecError, match=r"Trunk 'mlp' reads no positions, by which target 'y' answers; allowed: .*sample"
    ):
        Space(MEDIA, ["x", "y"], by_position=["y"], trunks=["sample_positional", "mlp"])
    with pytest.raises(
        SpecError, match=r"Trunk 'sample_positional' reads positions, but no input is an image or a text;"
    ):
        Space(["numeric"], ["y"], trunks=["sample_positional"])
    held = Space(MEDIA, ["x", "y"], by_position=["y"], trunks=["sample_positional"])
    assert "photo.pooling" not in held.defaults()


def test_the_kind_of_head_is_one_choice_for_all_tasks_that_answer_by_position() -> None:
    held = Space(MEDIA, ["x", "y", "z"], by_position=["y", "z"], trunks=["sample_positional"], heads=["dense", "conv"])
    assert held.distributions["head"] == CategoricalDistribution(["dense", "conv"])
    default = held.defaults()
    assert {name for name in default if "head" in name} == {"head", *(f"head_width.{task}" for task in "xyz")}
    wanted = {**default, "head": "conv", "conv_head_width.y": 16, "conv_head_width.z": 64}
    params = held.suggest(optuna.trial.FixedTrial(wanted))
    assert "head_width.y" not in params
    heads = held.member(params).network.heads
    assert heads == {"x": DenseHeadSpec(), "y": ConvHeadSpec(width=16), "z": ConvHeadSpec(width=64)}


def test_without_a_task_by_position_every_head_is_dense_and_there_is_no_choice() -> None:
    held = Space(MEDIA, ["y"], trunks=["sample_positional"], heads=["dense", "conv"])
    assert "head" not in held.distributions
    assert held.member(held.defaults()).network.heads == {"y": DenseHeadSpec()}
    with pytest.raises(SpecError, match=r"space: head is set by `search: \{head: \[\.\.\.\]\}`"):
        Space(MEDIA, ["y"], domains={"head": "conv"})


def test_parts_of_a_loss_are_weighed_on_a_log_scale_and_by_their_geometric_mean() -> None:
    held = Space(["numeric"], ["x", "box"], parts={"box": ("objectness", "coordinates")})
    assert held.distributions["part_weight.box.coordinates"] == FloatDistribution(0.2, 5.0, log=True)
    assert held.member(held.defaults()).training.part_weight == {"box.objectness": 1, "box.coordinates": 1}
    drawn = {**held.defaults(), "part_weight.box.objectness": 0.5, "part_weight.box.coordinates": 2.0}
    assert held.member(drawn).training.part_weight == pytest.approx({"box.objectness": 0.5, "box.coordinates": 2.0})
    double = {name: value * 2 if name.startswith("part_weight") else value for name, value in drawn.items()}
    assert held.member(double).training.part_weight == pytest.approx(held.member(drawn).training.part_weight)
    fixed = Space(["numeric"], ["box"], parts={"box": ("a", "b")}, domains={"part_weight": 2, "part_weight.box.b": 3})
    assert fixed.member(fixed.defaults()).training.part_weight == {"box.a": 2, "box.b": 3}
    assert not [name for name in fixed.distributions if name.startswith("part_weight")]
    assert held.member(drawn).training.stack_key() == held.member(held.defaults()).training.stack_key()


def test_trunks_that_read_positions_are_tried_where_there_are_some_and_first_where_a_task_asks_where() -> None:
    assert default_trunks(100) == ("tabm", "mlp")
    assert default_trunks(100, positions=True) == ("tabm", "mlp", "conv", "attention")
    assert default_trunks(50_000, positions=True) == ("mlp", "tabm", "conv", "attention")
    assert default_trunks(100, positions=True, located=True) == ("conv", "attention", "tabm", "mlp")
    assert default_trunks(100, positions=True, located=True, answered=True) == ("conv", "attention")
    assert default_trunks(100, positions=True, line=True, located=True, answered=True) == ("attention", "conv")


def test_a_batch_has_as_many_rows_as_have_a_thousand_positions_and_at_least_eight() -> None:
    assert budget(10_000) == (128, 1536)
    assert budget(10_000, length=61) == (16, 1536)
    assert budget(2_000, length=36) == (32, 1024)
    assert budget(2_000, length=300) == (8, 1024)
    assert budget(5, length=300) == (5, 1024)
