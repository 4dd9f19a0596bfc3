"""What is built and installed: a wheel that works anywhere, beside whatever the user has there."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, the wheel built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", out, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_both_packages_ship_in_one_wheel_with_their_data(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "mtl_bento/py.typed",
        "mtl_bento/trunks/tabm.py",
        "mtl_bento_search/py.typed",
        "mtl_bento_search/api.py",
    ):
        assert name in names
    assert "mtl_bento_search/examples/flights.py" in names
    assert "mtl_bento_search/report/page.css" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"mtl_bento", "mtl_bento_search", *(t for t in tops if t.endswith(".dist-info"))}


def test_every_module_of_the_checkout_is_in_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("mtl_bento", "mtl_bento"), ("search", "mtl_bento_search")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in names


def test_the_sdist_holds_the_licence(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())


def test_the_installed_wheel_works_outside_the_checkout_beside_a_search_py_of_the_users(
    built: Path, tmp_path: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    (work / "search.py").write_text("raise RuntimeError('the user\\'s own search.py was imported')\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True)
    script = (
        f"import sys; sys.path[:0] = ['', {str(site)!r}]\n"
        "import mtl_bento as mb, mtl_bento_search.api\n"
        f"assert mb.__file__.startswith({str(site)!r}) and mtl_bento_search.api.__file__.startswith({str(site)!r})\n"
        "assert callable(mb.search)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_heavy_is_imported_with_the_package_or_the_client() -> None:
    script = (
        "import sys, mtl_bento, mtl_bento.client\n"
        "heavy = {'torch', 'optuna', 'sklearn', 'pandas', 'polars', 'plotly', 'bentoml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
