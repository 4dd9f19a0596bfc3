"""A trunk from another package, found by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "package"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder that holds the foreign package as pip would leave it: its module, and its metadata beside."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"foreign_trunk-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "top_level.txt").write_text("foreign_trunk\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for group, e in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "foreign_trunk").symlink_to(PACKAGE / "foreign_trunk")
    return tmp_path


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter: this one has loaded its entry points already."""
    search = os.pathsep.join([*map(str, paths), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": search, "PYTHONWARNINGS": "error::UserWarning"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_foreign_trunk_is_found_keeps_its_promises_and_is_named_with_its_version(installed: Path) -> None:
    code = """
from mtl_bento.network import NetworkSpec
from mtl_bento.testing import check_trunk
from mtl_bento.trunks._base import TRUNKS

spec = NetworkSpec.model_validate({"encoders": {}, "trunk": {"kind": "gated", "width": 64}, "heads": {}})
assert NetworkSpec.model_validate_json(spec.model_dump_json()) == spec
assert TRUNKS.origin("gated") == ("foreign-trunk", "1.2.3"), TRUNKS.origin("gated")
check_trunk(TRUNKS.spec_class("gated"))
print("gated" in TRUNKS.kinds())
"""
    done = run(code, installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]


def test_without_its_package_a_foreign_trunk_is_an_unknown_kind() -> None:
    code = "from mtl_bento.trunks._base import TRUNKS; TRUNKS.parse({'kind': 'gated'})"
    done = run(code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mtl_bento.errors.UnknownKindError: There is no trunk 'gated'")
