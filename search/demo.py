"""`make demo`: the whole path on a real table, each step the command that a user would type."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.compute as pc
from rich.table import Table

from mtl_bento import table as tables
from mtl_bento.client import Client
from mtl_bento_search.examples import EXAMPLES
from mtl_bento_search.progress import wide_console

ROWS = 20_000
"""Rows of the example: enough for honest figures, few enough for minutes."""
TIMEOUT = "2m"
RUN = Path("runs/flights")
ASKED = 5
"""Rows to ask the service for."""
START_S = 90.0
"""Seconds that a server may take to become ready."""


def main() -> None:
    """Write the example, search, package, serve, ask, stop."""
    example = EXAMPLES["flights"]
    data = RUN.parent / "flights.parquet"
    data.parent.mkdir(exist_ok=True)
    if not data.exists():
        typed("mtl-bento", "example", "flights", "--out", str(data), "--rows", str(ROWS))
    targets = [part for target in example.targets for part in ("--target", target.partition(":")[0])]
    typed("mtl-bento", "search", str(data), *targets, "--timeout", TIMEOUT, "--out", str(RUN))
    tag = typed("mtl-bento", "package", str(RUN), "--name", "flights", "-o", "tag", quiet=True).strip()
    with served(tag) as url:
        show_answers(url, data, [target.partition(":")[0] for target in example.targets])
    print(f"\nThe server is stopped. The report lies at {RUN / 'report.html'}.")
    print("Next, from this folder:")
    print(f"  {bin_hint()}bentoml serve                   # serves the newest packaged model; http://localhost:3000")
    print(f"  {bin_hint()}bentoml containerize {tag}")


def typed(*command: str, quiet: bool = False) -> str:
    """Show a command and run it; return what it printed where it is quiet. Ends the demo with its exit code."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, text=True, check=False, stdout=subprocess.PIPE if quiet else None)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


@contextlib.contextmanager
def served(tag: str) -> Iterator[str]:
    """Serve a Bento on a free port of the loopback; yield its URL; end it by its own pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)]
    print(f"\n$ {shlex.join(command)} &", flush=True)
    log = RUN / "serve.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait(30)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service is ready; exits with its last lines where it ends or takes too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    print("".join(log.read_text().splitlines(keepends=True)[-15:]), file=sys.stderr)
    sys.exit(f"The service did not become ready; its whole log is {log}.")


def show_answers(url: str, data: Path, targets: list[str]) -> None:
    """Ask for a few test rows over HTTP and print the answers beside the truth."""
    frame = tables.read(data)
    test = frame.filter(pc.equal(frame["split"], "test"))
    rows = test.take(list(range(0, test.num_rows, max(1, test.num_rows // ASKED)))[:ASKED])
    answers = Client(url).predict(rows)
    grid = Table(title=f"{ASKED} flights that nobody trained on: answer (truth)", title_justify="left")
    for heading in ("carrier", "from", "to", *targets):
        grid.add_column(heading)
    for i in range(rows.num_rows):
        said = [f"{cell(answers[t][i].as_py())} ({cell(rows[t][i].as_py())})" for t in targets]
        grid.add_row(*(str(rows[name][i].as_py()) for name in ("carrier", "origin", "dest")), *said)
    wide_console().print(grid)


def cell(value: object) -> str:
    """Return a value as a short text."""
    return "-" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


def bin_hint() -> str:
    """Return the folder of the commands where it is not on the user's own PATH."""
    folder = Path(sys.executable).parent
    return "" if os.environ.get("VIRTUAL_ENV") else f"{os.path.relpath(folder)}/"


if __name__ == "__main__":
    main()
