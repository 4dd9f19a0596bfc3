"""Servers on loopback for tests: `bentoml serve` on a free port, ended by its own process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


def environment_of(home: Path) -> dict[str, str]:
    """The variables of a server with stores of its own; warnings are errors in our tests, not in a server."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "MTL_BENTO_MODEL")}
    return {**kept, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}


def bentoml_command(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bentoml", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment_of(home), capture_output=True, text=True, check=False, timeout=120
    )


class Server:
    """`bentoml serve` on a free port of loopback, with its log in a file."""

    def __init__(self, *arguments: str, home: Path, cwd: Path, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = home / f"serve-{port}.log"
        command = [sys.executable, "-m", "bentoml", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
        with self.log_path.open("wb") as log:
            env = environment_of(home) | variables
            self.process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait(self, status: int) -> None:
        """Wait until /readyz answers with a status."""
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(self.log)

    def stop(self) -> int:
        """End the server by its own process id; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
