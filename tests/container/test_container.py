"""Containers built by `bentoml containerize` itself, run and asked. `make test-container` runs them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from media import searched
from pictures import content, picture
from small import make_table

from mtl_bento import table as tables
from mtl_bento import wire
from mtl_bento.client import Client
from mtl_bento.errors import SchemaError
from mtl_bento.model import Model

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed"),
]

IMAGE = "mtl-bento-container-test"


@dataclass
class Container:
    """A running container of a model."""

    id: str
    url: str


def run(*command: str, **variables: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(folder: Path, home: Path) -> None:
    """Package a model and build its image; wheels of a local folder (PIP_FIND_LINKS) come in as pip would find them."""
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    local = Path(wheels).is_dir() and wheels != ""
    # With wheels at hand, torch is taken from there instead of the index of its build.
    variables = {"BENTOML_HOME": str(home), **({"UV_TORCH_BACKEND": ""} if local else {})}
    options = [f"volume={wheels}:{wheels}:ro", f"env=UV_FIND_LINKS={wheels}"] if local else []
    program = "from mtl_bento.cli import main; main()"
    tag = run(sys.executable, "-c", program, "package", str(folder), "-o", "tag", **variables)
    listed = [word for option in options for word in ("--opt", option)]
    bentoml = (sys.executable, "-m", "bentoml", "containerize", tag, "--backend", "podman", "-t", f"{IMAGE}:test")
    run(*bentoml, *listed, **variables)


@contextlib.contextmanager
def running(folder: Path, home: Path) -> Iterator[Container]:
    """Run a container of a run or model folder on a free port of loopback; container and image are gone afterwards."""
    build(folder, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = ("-e", "BENTOML_HOST=127.0.0.1", "-e", f"BENTOML_PORT={port}")
    started = run("podman", "run", "-d", "--network", "host", *variables, f"{IMAGE}:test")
    try:
        yield Container(started, f"http://127.0.0.1:{port}")
    finally:
        run("podman", "rm", "-f", started)
        remove_image()


def remove_image() -> None:
    """Remove the image; a layer below it that another build still holds stays, which podman reports as a failure."""
    removed = subprocess.run(("podman", "rmi", f"{IMAGE}:test"), capture_output=True, text=True, check=False)
    left = subprocess.run(("podman", "image", "exists", f"{IMAGE}:test"), check=False)
    assert left.returncode == 1, removed.stdout + removed.stderr


def wait_until_ready(container: Container) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if httpx.get(f"{container.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(run("podman", "logs", container.id))


def test_the_container_answers_as_the_model_does_as_nobodys_root_and_stops_cleanly(
    model_folder: Path, model: Model, tmp_path: Path
) -> None:
    with running(model_folder, tmp_path) as container:
        wait_until_ready(container)
        check_small(container, model)


def check_small(container: Container, model: Model) -> None:
    assert run("podman", "exec", container.id, "id", "-u") == "1034"

    table = make_table(200, seed=3)
    with Client(container.url) as client:
        answers = client.predict(wire.table_to_rows(table, model.schema))
    assert wire.disagreement(answers, model.rows(table), {"hours.per week": 8.0}) is None
    assert httpx.get(f"{container.url}/metrics").status_code == 200

    installed = run("podman", "exec", container.id, "sh", "-c", "ls /app/.venv/lib/python3*/site-packages").split()
    assert "torch" in installed
    assert not {"optuna", "sklearn", "lightgbm", "mtl_bento_search"} & set(installed)

    run("podman", "stop", "-t", "60", container.id)  # SIGTERM, and SIGKILL (137) only after a minute
    assert run("podman", "inspect", "-f", "{{.State.ExitCode}}", container.id) == "0"


def test_a_container_answers_pictures_and_texts_and_refuses_a_broken_one(tmp_path: Path) -> None:
    done = searched(tmp_path, steps=32)
    home = tmp_path / "bentoml"
    home.mkdir()
    with running(done.folder, home) as container:
        wait_until_ready(container)
        table = tables.read(tmp_path / "t.parquet").slice(0, 40)
        with Client(container.url) as client:
            answers = client.predict(wire.table_to_rows(table, done.model.schema))
            assert wire.disagreement(answers, done.model.rows(table), {"amount": 1.0}) is None
            odd = [
                {"photo": content(picture(30, 50, mode=mode, left=0, right=1), "PNG")} for mode in ("L", "1", "I;16")
            ]
            odd.append({"photo": content(picture(), "WEBP")})
            odd.append({"photo": content(picture(), "JPEG")})
            pictures = pa.table({"photo": [row["photo"] for row in odd]})
            assert wire.disagreement(client.predict(odd), done.model.rows(pictures), {"amount": 1.0}) is None
            with pytest.raises(SchemaError, match=r"^rows\[0\]\.photo: the picture cannot be decoded"):
                client.predict([{"photo": content(picture())[:50]}])
        installed = run("podman", "exec", container.id, "sh", "-c", "ls /app/.venv/lib/python3*/site-packages").split()
        assert "PIL" in installed
        assert not {"optuna", "sklearn", "tokenizers", "mtl_bento_search"} & set(installed)
