"""Pictures and texts served on loopback: one request with a picture or a text, 16 clients, and the backbone by itself.

    python -m tests.benchmarks.media [--seconds 5] [--clients 1 16] [--only picture text]

Two models are made first, each by a search of one trial of few steps: pictures of the example `scenes` (96 x 96 pixels,
PNG in base64) read by efficientnet_lite0, texts of the example `texts` read by wordllama. Each is packaged into a store
of its own and served from there with the defaults, batches over requests included. A request has one row. The server
has one core and this program another, as in `serving`.

Besides what a request takes it prints what is in it, in this process with one thread: the backbone on one and on 16
rows, all of the model on rows that are decoded, and everything from the bodies of the requests to those of the answers.
How much of the service's time is the backbone's, and the model's with it, is what they take here for as many rows.
Compare figures of one run only.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import mtl_bento as mb
from mtl_bento import wire
from mtl_bento.encoders._positions import BackboneEncoder
from mtl_bento.model import Model
from mtl_bento.service import Worker, encode, take_process
from mtl_bento_search.examples import scenes, texts
from tests.benchmarks.serving import environment, least, on_core, percentiles, request, served, under_load

ROWS = 600
"""Of a table: how long an answer takes does not depend on how much was learned."""
BODIES = 100
"""Different requests that the clients send in turn."""
TOGETHER = 16
"""Clients, and rows of what the backbone is asked at once."""
SEARCH = {"trunk": ["conv"], "space": {"steps": 64}}
SPLIT = {"kind": "column", "column": "split", "folds": 0}
"""No folds: a model of them is served by five times as many networks, and the time is theirs."""


@dataclass(frozen=True)
class Case:
    """A table with one input."""

    input: str
    backbone: str
    make: Callable[[int], pa.Table]
    targets: dict[str, str]

    def rows(self) -> pa.Table:
        """Return the table without rows whose input is missing."""
        table = self.make(ROWS)
        return table.filter(table[self.input].is_valid())

    def searched(self, out: Path) -> Path:
        """Return the folder of a finished run."""
        inputs = {self.input: {"kind": "image" if self.input == "picture" else "text", "backbone": self.backbone}}
        mb.search(self.rows(), targets=self.targets, out=out, n_trials=1, inputs=inputs, split=SPLIT, search=SEARCH)
        return out


CASES = (
    Case("picture", "efficientnet_lite0", scenes.make, {"digit": "multiclass", "box": "box"}),
    Case("text", "wordllama", texts.make, {"intent": "multiclass", "sentiment": "multiclass", "entities": "tagging"}),
)


def packaged(run: Path, home: Path) -> str:
    """Put a run into BentoML's store of a home; return the tag of its model."""
    program = "from mtl_bento.cli import main; main()"
    command = [sys.executable, "-c", program, "package", str(run), "--name", "media", "--version", "v1"]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return "media:v1"


def bodies(table: pa.Table, name: str) -> list[bytes]:
    """Return the bodies of requests of one row."""
    cells = table[name].slice(0, BODIES).to_pylist()
    sent = [base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in cells]
    return [json.dumps({"rows": [{name: cell}]}, ensure_ascii=False).encode() for cell in sent]


def backbone_ms(model: Model, table: pa.Table) -> float:
    """Return the milliseconds of the backbone on the rows of a table, which are decoded or cut into tokens before."""
    (network, *_) = model._networks
    (encoder,) = network.encoders
    assert isinstance(encoder, BackboneEncoder)
    (cells,) = (torch.from_numpy(block) for block in model.schema.encode(table).values())
    with torch.inference_mode():
        return least(lambda: encoder.by_position(encoder.column, cells, encoder.backbone))


def alone(folder: Path, sent: Sequence[bytes], rows: int) -> tuple[float, float, float]:
    """Return the milliseconds of backbone, model and everything but HTTP for requests of one row each."""
    worker = Worker(folder)
    reader = wire.Reader(worker.schema)
    table = wire.cells_to_table([cell for body in sent[:rows] for cell in reader.read(body)], worker.schema)

    def whole() -> None:
        answers = worker.answers([cell for body in sent[:rows] for cell in reader.read(body)])
        for answer in answers:
            encode([answer])

    return backbone_ms(worker.model, table), least(lambda: worker.model.rows(table)), least(whole)


def measure(case: Case, folder: Path, *, clients: Sequence[int], seconds: float, cores: Sequence[int]) -> None:
    """Print a line for each number of clients."""
    run, home = case.searched(folder / "run"), folder / "bentoml"
    home.mkdir()
    tag, sent = packaged(run, home), bodies(case.rows(), case.input)
    model = Model.load(run / "model")
    size = int(np.mean([len(body) for body in sent]))
    print(
        f"{case.input}: {model.schema.columns[0].describe()}; {len(model.members)} networks; {size:,} bytes a request"
    )
    print("   in this process, rows together  backbone ms  model ms  body to body ms")
    with on_core({cores[-1]}):
        own = {rows: alone(run / "model", sent, rows) for rows in (1, TOGETHER)}
    for rows, (backbone, whole_model, whole) in own.items():
        print(f"{rows:33d} {backbone:12.2f} {whole_model:9.2f} {whole:16.2f}")
    print("   clients   p50 ms   p99 ms  requests/s  requests/batch  time for: backbone  all of the model")
    with served(tag, home, {cores[0]}) as port, on_core({cores[-1]}):
        for n in clients:
            latencies, rate, each = under_load(port, [request(body) for body in sent], n, seconds)
            together = 1 if n == 1 else TOGETHER
            shares = [rate * ms / together / 1e3 for ms in own[together][:2]]
            print(
                f"{n:10d} {percentiles(latencies)} {rate:11.0f} {each:15.1f} {shares[0]:19.0%} {shares[1]:17.0%}",
                flush=True,
            )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, TOGETHER], help=f"(default: 1 {TOGETHER})")
    parser.add_argument("--only", nargs="+", choices=[case.input for case in CASES], help="all by default")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    take_process()
    for case in CASES:
        if options.only is None or case.input in options.only:
            with tempfile.TemporaryDirectory() as folder:
                measure(case, Path(folder), clients=options.clients, seconds=options.seconds, cores=cores)


if __name__ == "__main__":
    main()
