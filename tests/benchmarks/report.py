"""How large the report of a long search is, and how long a browser takes to open it.

    python -m tests.benchmarks.report RUN [--trials 1000]

Makes so many trials of a finished run's: each is one of its own with other values of the same hyperparameters and a
little noise. Prints seconds to measure importance and to write the page, its bytes, and, where Chromium is on the PATH,
what the browser says of five loads: milliseconds until the page is read, loaded and laid out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mtl_bento_search.importance import importance
from mtl_bento_search.report import write_report

NOISE = 0.02
"""Standard deviation of what is added to gains."""
TIMED = """<script>addEventListener("load", () => {
  const height = document.body.scrollHeight, laid = performance.now();
  const seen = performance.getEntriesByType("navigation")[0], said = document.createElement("pre");
  said.textContent = `TIMED read ${seen.domInteractive | 0} ms, loaded ${seen.loadEventStart | 0} ms, ` +
    `laid out ${laid | 0} ms, ${height} px high`;
  document.body.append(said);
});</script></body>"""
"""Stands at the end of the copy that is timed; reading the height lays the page out."""
BROWSER = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--dump-dom"]


def made(study: optuna.Study, n: int, rng: random.Random) -> list[FrozenTrial]:
    """Return so many trials made of a study's."""
    own = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [another(rng.choice(own), rng) for _ in range(n)]


def another(trial: FrozenTrial, rng: random.Random) -> FrozenTrial:
    """Return a trial with other numbers for its hyperparameters, and noise on its gains."""
    attrs = {k: v + rng.gauss(0, NOISE) if k.startswith("gain.") else v for k, v in trial.user_attrs.items()}
    params = {k: value(kind, trial.params[k], rng) for k, kind in trial.distributions.items()}
    return create_trial(
        state=trial.state,
        value=(trial.value or 0.0) + rng.gauss(0, NOISE),
        params=params,
        distributions=trial.distributions,
        user_attrs=attrs,
        intermediate_values=trial.intermediate_values,
    )


def value(kind: Any, held: Any, rng: random.Random) -> Any:
    """Return another number of a range, or the same choice."""
    if isinstance(kind, CategoricalDistribution):
        return held
    if isinstance(kind, IntDistribution):
        return rng.randrange(kind.low, kind.high + 1, kind.step)
    if kind.log:
        return min(kind.high, math.exp(rng.uniform(math.log(kind.low), math.log(kind.high))))
    return rng.uniform(kind.low, kind.high)


def enlarged(result: dict[str, Any], trials: list[FrozenTrial]) -> dict[str, Any]:
    """Return a result of these trials."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = max(complete, key=lambda t: t.value or 0.0)
    names = list(result["single_task_losses"])
    told = {
        "total": len(trials),
        "complete": len(complete),
        "pruned": len(trials) - len(complete),
        "best": best.number,
        "best_gain": best.value,
        "best_params": best.params,
        "gains": [[t.number, t.value, t.state.name.lower()] for t in trials],
        "task_gains": [[t.number, [t.user_attrs.get(f"gain.{name}") for name in names]] for t in complete],
    }
    return result | {"trials": result["trials"] | told, "importance": importance(complete)}


def loaded(page: Path) -> str:
    """Return what the browser says of a load of the page, without its policy, which would forbid the clock."""
    markup = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "timed.html"
        copy.write_text(markup.replace("</body>", TIMED), encoding="utf-8")
        command = [*BROWSER, f"--user-data-dir={folder}/profile", copy.as_uri()]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return re.findall(r"TIMED ([^<`$]*)<", said)[-1]


def main() -> None:
    """Make, write, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    result = json.loads((asked.run / "result.json").read_text(encoding="utf-8"))
    journal = optuna.storages.journal.JournalFileBackend(str(asked.run / "study.log"))
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))
    large = optuna.create_study(direction="maximize")
    large.add_trials(made(study, asked.trials, random.Random(0)))
    began = time.perf_counter()
    result = enlarged(result, large.get_trials())
    measured = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        page = write_report(Path(folder), result, large)
        written = time.perf_counter() - began
        n_targets = len(result["single_task_losses"])
        print(f"{asked.trials:,} trials ({result['trials']['complete']:,} complete), {n_targets} targets")
        print(f"importance {measured:.2f} s, written in {written:.2f} s, {page.stat().st_size:,} bytes")
        for _ in range(5 if shutil.which("chromium") else 0):
            print(loaded(page))


if __name__ == "__main__":
    main()
