"""Registries of kinds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from mtl_bento.errors import SpecError, UnknownKindError
from mtl_bento.network import NetworkSpec
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec
from mtl_bento.trunks._base import TRUNKS
from mtl_bento.trunks.mlp import MLP, MLPSpec


class RoundSpec(Spec):
    kind: Literal["round"] = "round"
    radius: Annotated[float, Field(gt=0)] = 1.0


class Round:
    pass


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Any]]:
    """Return a registry over an empty folder of kinds that holds one kind."""
    (tmp_path / "empty_kinds").mkdir()
    (tmp_path / "empty_kinds" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[Any] = Registry("shape", package="empty_kinds", group="mtl_bento.test_shapes")
    registry.register(RoundSpec)(Round)
    yield registry
    sys.modules.pop("empty_kinds", None)


def test_kinds_are_found_by_name(shapes: Registry[Any]) -> None:
    assert shapes.kinds() == {"round": RoundSpec}
    assert shapes.spec_class("round") is RoundSpec
    assert shapes.class_of(RoundSpec) is Round


def test_a_spec_is_read_from_data_and_passed_through(shapes: Registry[Any]) -> None:
    spec = shapes.parse({"kind": "round", "radius": 2})
    assert spec == RoundSpec(radius=2)
    assert shapes.parse(spec) is spec


def test_our_own_kinds_are_registered_by_their_folder() -> None:
    assert {"mlp", "tabm"} <= set(TRUNKS.kinds())
    assert list(TRUNKS.kinds()) == sorted(TRUNKS.kinds())
    assert TRUNKS.class_of(MLPSpec) is MLP


def test_an_unknown_kind_is_refused_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(UnknownKindError, match=r"There is no trunk 'mpl'; did you mean 'mlp'\? Allowed: .*mlp, .*tabm"):
        TRUNKS.parse({"kind": "mpl"})


def test_an_unknown_kind_that_is_near_nothing_is_refused_in_whole_sentences() -> None:
    with pytest.raises(UnknownKindError, match=r"There is no trunk 'zzz'\. Allowed: .*mlp, "):
        TRUNKS.parse({"kind": "zzz"})


def test_a_spec_without_a_kind_is_refused() -> None:
    with pytest.raises(UnknownKindError, match=r"There is no trunk 'None'.* Allowed: .*mlp"):
        TRUNKS.parse({})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "mlp", "width": 0}, r"trunk 'mlp': width: .*greater than or equal to 1"),
        ({"kind": "mlp", "activation": "gelu"}, r"trunk 'mlp': activation: .*'relu'"),
        ({"kind": "mlp", "dropout": 1}, r"trunk 'mlp': dropout: .*less than 1"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        TRUNKS.parse(data)
    assert "\n" not in str(error.value)


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(SpecError, match=r"^trunk 'mlp': widht: is not a known key; did you mean 'width'\?") as error:
        TRUNKS.parse({"kind": "mlp", "widht": 3})
    assert str(error.value).endswith("Allowed: kind, shared_depth, width, dropout, activation.")


def test_a_kind_given_by_its_name_alone_is_refused_in_one_line() -> None:
    # It raised AttributeError: 'str' object has no attribute 'get'.
    with pytest.raises(SpecError, match=r"trunk.*'mlp'"):
        NetworkSpec.model_validate({"encoders": {}, "trunk": "mlp", "heads": {}})


def test_a_kind_registered_by_two_modules_is_refused(shapes: Registry[Any]) -> None:
    class Other(Spec):
        kind: Literal["round"] = "round"

    with pytest.raises(SpecError, match=r"shape kind 'round' is registered by .*; rename one"):
        shapes.register(Other)(Round)


def test_a_spec_keeps_its_class_and_fields_through_json() -> None:
    spec = NetworkSpec.model_validate({"encoders": {}, "trunk": {"kind": "tabm", "inner": 4}, "heads": {}})
    back = NetworkSpec.model_validate(json.loads(spec.model_dump_json()))
    assert back == spec
    assert type(back.trunk).__name__ == "TabMSpec"


def test_our_own_kinds_come_from_no_other_package() -> None:
    assert TRUNKS.origin("mlp") is None


def test_a_kind_from_no_installed_package_cannot_be_packaged(shapes: Registry[Any]) -> None:
    with pytest.raises(
        SpecError, match=r"shape 'round' is defined in .*, which is not an installed package; put it into"
    ):
        shapes.origin("round")
