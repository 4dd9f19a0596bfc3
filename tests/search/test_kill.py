"""Nothing lost: killed at any moment and started again, a search ends as if nobody had touched it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState
from small import make_table

from mtl_bento.errors import RunError
from mtl_bento_search.checkpoints import load_members, load_round
from mtl_bento_search.run import Run

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from small import TARGETS
import mtl_bento as mb
from mtl_bento_search import api, metrics
from mtl_bento_search.executors.local import InProcess
api.make_executor, metrics.RESAMPLES = InProcess, 20
small = {{"trunk": ["mlp", "tabm"], "space": {{"steps": 96, "width": [8, 24], "tabm.inner": 2, "batch_size": 64}}}}
print("ready", flush=True)
mb.search({table!r}, targets=TARGETS, out={out!r}, n_trials={n_trials}, seed=4, search=small, split={{"folds": 0}})
"""


def outcome(run: Run) -> dict[str, Any]:
    """What must not depend on kills: trials in order, and every figure of the result."""
    trials = [t for t in run.study.trials if t.state != TrialState.FAIL]
    result = run.result
    return {
        "trials": [(t.state, t.value, t.params, t.intermediate_values) for t in trials],
        "single": result["single_task_losses"],
        "tasks": [(t["task"], t["ours"], t["single_task"]) for t in result["tasks"]],
        "network": result["network"]["groups"][0]["parameters"],
    }


def start(folder: Path, name: str, n_trials: int) -> tuple[subprocess.Popen[str], Path]:
    """Start a search in a process of its own and return once it has imported what it needs."""
    table = folder / "t.parquet"
    if not table.exists():
        pq.write_table(make_table(300), table)
    out = folder / name / "run"
    tests = str(Path(__file__).parents[1])
    script = SCRIPT.format(tests=tests, table=str(table), out=str(out), n_trials=n_trials)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process.stdout as pipe:  # type: ignore[union-attr]
        pipe.readline()
    return process, out


def killed_and_finished(folder: Path, *, kills: int, n_trials: int, seed: int) -> tuple[Run, Run, int]:
    """Return an uninterrupted run, one that was killed until it was finished, and how often."""
    process, out = start(folder, "whole", n_trials)
    began = time.monotonic()
    assert process.wait(300) == 0
    whole_s = time.monotonic() - began
    rng, done = random.Random(seed), 0
    while True:
        process, killed = start(folder, "killed", n_trials)
        try:
            process.wait(rng.uniform(0.02, max(0.2, whole_s * 0.3)) if done < kills else 300)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
    assert process.returncode == 0
    return Run(out), Run(killed), done


def test_a_search_killed_at_random_points_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, killed, kills = killed_and_finished(tmp_path, kills=6, n_trials=20, seed=1)
    assert kills >= 3
    assert outcome(killed) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_two_hundred_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    whole, killed, _ = killed_and_finished(tmp_path, kills=20, n_trials=36, seed=seed)
    assert outcome(killed) == outcome(whole)


def test_a_checkpoint_with_a_flipped_byte_is_named(tmp_path: Path) -> None:
    process, out = start(tmp_path, "whole", 2)
    assert process.wait(300) == 0
    path = out / "checkpoints" / "trial-00000.safetensors"
    assert load_members(path)[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"trial-00000\.safetensors is missing or damaged \(its checksum differs\)"):
        load_members(path)
    with pytest.raises(RunError, match="is missing or damaged"):
        load_round(tmp_path / "nothing.safetensors")
