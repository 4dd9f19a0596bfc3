"""What the image of a Bento installs, and its variables."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from mtl_bento.image import RUNTIME, environment, requirements

ROOT = Path(__file__).parents[1]


def test_the_runtime_is_the_wheels_own_dependencies_but_uv() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    assert set(RUNTIME) == names - {"uv"}


def test_requirements_are_exact_installed_versions_of_all_that_is_needed_and_of_nothing_else() -> None:
    pins = dict(line.split("==") for line in requirements())
    assert set(RUNTIME) <= pins.keys()
    assert {"pydantic-core", "starlette", "h11", "sympy"} <= pins.keys()
    assert not {"optuna", "scikit-learn", "lightgbm", "plotly", "uv", "pytest", "mtl-bento"} & pins.keys()
    assert all(importlib.metadata.version(name).split("+")[0] == version for name, version in pins.items())
    assert not any("+" in version for version in pins.values())


def test_a_foreign_kinds_distribution_is_pinned_with_what_it_needs() -> None:
    # hypothesis stands for a package that brings a kind; it needs sortedcontainers.
    pins = requirements(["hypothesis==1.2.3", "not-installed==4.5"])
    assert {"hypothesis==1.2.3", "not-installed==4.5"} <= set(pins)
    assert any(pin.startswith("sortedcontainers==") for pin in pins)


@pytest.mark.parametrize(
    ("installed", "asked", "build"),
    [
        ("2.13.0+cpu", None, "cpu"),
        ("2.13.0+cu126", None, "cu126"),
        ("2.13.0", None, None),
        ("2.13.0a0+gitabc123", None, None),
        ("2.13.0+cpu", "cu126", "cu126"),
        ("2.13.0+cpu", "", None),
    ],
)
def test_the_image_installs_the_build_of_torch_that_is_installed_here_or_asked_for(
    monkeypatch: pytest.MonkeyPatch, installed: str, asked: str | None, build: str | None
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: installed)
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    if asked is not None:
        monkeypatch.setenv("UV_TORCH_BACKEND", asked)
    tracking = {"name": "BENTOML_DO_NOT_TRACK", "value": "true"}
    assert environment() == [tracking, *([{"name": "UV_TORCH_BACKEND", "value": build}] if build else [])]
