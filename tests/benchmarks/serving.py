"""The service on loopback: requests of one row from 1, 8 and 64 clients, and requests of 1,000 rows.

    python -m tests.benchmarks.serving [--model FOLDER] [--seconds 5] [--clients 1 8 64]

The server has one core and this program, which asks, another, where the machine has two and lets them be chosen. The
clients are plain sockets that stay open, so that what is timed is the service and hardly the client. Latencies are
from the first byte sent to the last byte received.

Prints, besides, what the model takes by itself, in this process with one thread: from a table to answers
(`model.rows`), and from the body of a request to the body of its answer (without HTTP).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mtl_bento import artifact, wire
from mtl_bento.schema import Schema
from mtl_bento.service import Worker, encode, take_process
from tests.small import make_model, make_table

ROOT = Path(__file__).parents[2]
START_S = 120
WARM_UP_S = 1.0
BULK = 1000
BODIES = 200
"""Different requests that the clients send in turn."""
BATCHES = "bentoml_service_adaptive_batch_size"


class Connection(asyncio.Protocol):
    """One client: sends a request and waits for its answer, over one connection."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.size: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what writes."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect the answer; what follows its headers is as long as they say."""
        self.received += data
        if self.size is None and (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.received[:end])
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                self.answered.set_exception(SystemExit(f"The service answered: {bytes(self.received).decode()}"))
                return
            self.size = end + 4 + int(length[1])
        if self.size is not None and len(self.received) >= self.size:
            self.received.clear()
            self.size = None
            self.answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """End the wait for an answer that will not come."""
        if not self.answered.done():
            self.answered.set_exception(SystemExit("The service closed the connection."))

    async def ask(self, request: bytes) -> float:
        """Return the seconds that the service took to answer."""
        self.answered = asyncio.get_running_loop().create_future()
        start = time.perf_counter()
        self.transport.write(request)  # type: ignore[attr-defined]
        await self.answered
        return time.perf_counter() - start


async def load(port: int, requests: list[bytes], clients: int, seconds: float) -> list[float]:
    """Return the latencies of all requests that some clients send, one after the other, for a number of seconds."""
    loop = asyncio.get_running_loop()
    waiting = itertools.cycle(requests)
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(clients)]
    end = time.perf_counter() + seconds

    async def ask(connection: Connection) -> list[float]:
        latencies = []
        while time.perf_counter() < end:
            latencies.append(await connection.ask(next(waiting)))
        connection.transport.close()
        return latencies

    return [latency for held in await asyncio.gather(*map(ask, connections)) for latency in held]


def batches(port: int) -> tuple[float, float]:
    """Return how many batches the service has answered, and how many requests were in them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    count, total = (
        sum(float(value) for value in re.findall(rf"^{BATCHES}_{part}\{{.*\}} (\S+)$", text, re.MULTILINE))
        for part in ("count", "sum")
    )
    return count, total


def readiness(port: int) -> int | None:
    """Return the status of /readyz, None where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a process with BentoML's stores in a folder of their own."""
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}


@contextlib.contextmanager
def on_core(cores: set[int]) -> Iterator[None]:
    """Run, and start processes, on some cores only, where the system lets them be chosen."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def served(model: str, home: Path, cores: set[int]) -> Iterator[int]:
    """Serve a model, by its folder or by its tag in a home, on a free port of loopback and yield the port; ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", "--arg", f"model={model}"]
    log = home / "serve.log"
    with log.open("wb") as file, on_core(cores):
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env=environment(home),
            stdout=file,
            stderr=file,
        )
    try:
        end = time.monotonic() + START_S
        while (status := readiness(port)) != 200:
            # 503: it is up, and will not serve this model.
            if status == 503 or server.poll() is not None or time.monotonic() > end:
                sys.exit(f"The service did not become ready:\n{log.read_text()}")
            time.sleep(0.2)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def bodies(schema: Schema, rows: int, n: int) -> list[bytes]:
    """Return the bodies of requests of made-up rows."""
    rng = np.random.default_rng(0)
    made = [{column.name: column.draw(rng) for column in schema.columns} for _ in range(max(rows, n))]
    chosen = (itertools.islice(itertools.cycle(made), start, start + rows) for start in range(n))
    return [json.dumps({"rows": list(part)}, ensure_ascii=False).encode() for part in chosen]


def request(body: bytes) -> bytes:
    """Return the bytes of a POST."""
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def percentiles(latencies: list[float]) -> str:
    """Return median and 99th percentile in milliseconds."""
    return " ".join(f"{value * 1e3:8.2f}" for value in np.percentile(latencies, [50, 99]))


def under_load(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], float, float]:
    """Return the latencies of a load, the requests a second and the requests a batch, after a warm-up."""
    asyncio.run(load(port, requests, clients, WARM_UP_S))
    before, start = batches(port), time.perf_counter()
    latencies = asyncio.run(load(port, requests, clients, seconds))
    rate = len(latencies) / (time.perf_counter() - start)
    count, total = (now - then for now, then in zip(batches(port), before, strict=True))
    return latencies, rate, total / count


def ask_service(model: Path, schema: Schema, *, clients: list[int], seconds: float, cores: list[int]) -> None:
    """Print a line for each load."""
    kinds = [(1, [request(body) for body in bodies(schema, 1, BODIES)], n) for n in clients]
    kinds += [(BULK, [request(body) for body in bodies(schema, BULK, 4)], n) for n in (1, 2)]
    print("rows/request clients   p50 ms   p99 ms  requests/s    rows/s  requests/batch")
    with (
        tempfile.TemporaryDirectory() as home,
        served(str(model.resolve()), Path(home), {cores[0]}) as port,
        on_core({cores[-1]}),
    ):
        for rows, requests, n in kinds:
            latencies, rate, each = under_load(port, requests, n, seconds)
            print(
                f"{rows:12d} {n:7d} {percentiles(latencies)} {rate:11.0f} {rate * rows:9.0f} {each:15.1f}", flush=True
            )


def least(run: Callable[[], object]) -> float:
    """Return the least milliseconds of a call: over half a second, three calls at least."""
    run()
    times: list[float] = []
    while sum(times) < 0.5 or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def ask_model(folder: Path, *, cores: list[int]) -> None:
    """Print what the model takes by itself."""
    take_process()
    worker = Worker(folder)
    reader = wire.Reader(worker.schema)
    print("        rows  model.rows ms  body to body ms")
    with on_core({cores[-1]}):
        for rows in (1, 64, BULK):
            (body,) = bodies(worker.schema, rows, 1)
            table = wire.cells_to_table(reader.read(body), worker.schema)
            alone = least(lambda table=table: worker.model.rows(table))  # type: ignore[misc]
            whole = least(lambda body=body: encode(worker.answers(reader.read(body))))  # type: ignore[misc]
            print(f"{rows:12d} {alone:14.2f} {whole:16.2f}", flush=True)


def main() -> None:
    """Print both tables for a model folder, or for a small model that is trained first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a small one is trained where not given")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="for requests of one row")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary) / "small"
        if options.model is None:
            make_model(make_table()).save(folder)
        manifest = artifact.read_manifest(folder)
        schema = Schema.model_validate(manifest["schema"])
        tasks = ", ".join(task["kind"] for task in manifest["tasks"])
        print(f"{len(schema.columns)} inputs, {len(manifest['members'])} networks; {tasks}; {len(cores)} cores")
        ask_model(folder, cores=cores)
        ask_service(folder, schema, clients=options.clients, seconds=options.seconds, cores=cores)


if __name__ == "__main__":
    main()
