"""A run: its folder, its state on disk, and what a user holds of it.

spec.yaml          the spec as it was understood, and the hashes of spec, data and split
study.log          Optuna's journal (unless the study lives elsewhere)
checkpoints/       weights of the references, of every complete trial, of the finals
model/             the served model
student/           one network that learned from it, where asked for
report.html        the report
result.json        every figure of the report
predictions.parquet  what it answered on rows that it did not learn: out of fold, and on the locked test
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import yaml
from optuna.trial import TrialState

from mtl_bento import table as tables
from mtl_bento.artifact import heal, sweep, to_json, write_file
from mtl_bento.errors import RunError, SpecError, listing
from mtl_bento.model import Model
from mtl_bento_search import explain as explaining
from mtl_bento_search.checkpoints import load_members
from mtl_bento_search.oof import part_of, read_predictions
from mtl_bento_search.storage import STUDY, answering, open_storage, repair_journal
from mtl_bento_search.verdict import names, told

SPEC, CHECKPOINTS, MODEL, STUDENT, REPORT, RESULT, STATE, LOCK = (
    "spec.yaml", "checkpoints", "model", "student", "report.html", "result.json", "state.json", ".lock",
)  # fmt: skip
RESULT_VERSION = 2
"""Of result.json: 2 compares every task with several opponents."""
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
"""What a file system says that is full, read-only or broken."""


class Run:
    """A run folder.

    Raises RunError where the folder holds no run.
    """

    def __init__(self, folder: str | os.PathLike[str], *, storage: Any = None) -> None:
        self.folder = Path(folder)
        self._storage = storage
        if not (self.folder / SPEC).is_file():
            raise RunError(f"{self.folder} is no run folder; `mtl-bento search TABLE --target NAME` makes one.")

    @property
    def name(self) -> str:
        """The run's name, which is the study's."""
        return str(self.spec["name"])

    @property
    def spec(self) -> dict[str, Any]:
        """The spec as it was understood, with the hashes of spec, data and split."""
        data: dict[str, Any] = yaml.safe_load((self.folder / SPEC).read_text(encoding="utf-8"))
        return data

    @property
    def result(self) -> dict[str, Any]:
        """Every figure of the report; raises RunError where the run has none yet, or one of another version."""
        path = self.folder / RESULT
        if not path.is_file():
            raise RunError(f"{self.folder} has no result yet; run the same search again to finish it.")
        data: dict[str, Any] = json.loads(path.read_bytes())
        if (version := data.get("version")) != RESULT_VERSION:
            raise RunError(
                f"{path} is of version {version}, this mtl-bento reads version {RESULT_VERSION}; "
                "run the same search again: it keeps the trials and writes the result anew."
            )
        return data

    @property
    def model(self) -> Model:
        """The served model."""
        return Model.load(self.folder / MODEL)

    @property
    def student(self) -> Model:
        """The one network that learned from the served model; raises RunError where the run has none."""
        if not (self.folder / STUDENT).is_dir():
            raise RunError(f"{self.folder} has no student; run the same search again with --student for one.")
        return Model.load(self.folder / STUDENT)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study itself."""
        url = self.spec.get("storage")
        storage = self._storage if self._storage is not None else open_storage(self.folder, url)
        with answering(url):
            try:
                return optuna.load_study(study_name=self.name, storage=storage)
            except KeyError:
                where = self.folder / STUDY if url is None else url
                raise RunError(f"There is no study {self.name!r} in {where}; run the same search again.") from None

    @property
    def comparison(self) -> Any:
        """A frame with a row per task: metric, ours, who serves it, and what the test says against each opponent.

        The columns of an opponent are its figure by name (`single_task`, `trees`, ...), and `OPPONENT_difference`,
        `_lower`, `_upper`, `_p` (before Holm's correction), `_verdict`, `_smallest`; see `mtl_bento_search.verdict`.
        """
        tasks = self.result["tasks"]
        columns: dict[str, list[Any]] = {name: [task[name] for task in tasks] for name in ("task", "metric", "ours")}
        for arm in told(tasks):
            held = [task["against"].get(arm, {}) for task in tasks]
            columns[arm] = [against.get("value") for against in held]
            for key in ("difference", "lower", "upper", "p", "verdict", "smallest"):
                columns[f"{arm}_{key}"] = [against.get(key) for against in held]
        columns["served_by"] = [names(task["served_by"]) for task in tasks]
        return tables.like(pa.table(columns), "frame")

    def leaderboard(self) -> Any:
        """A frame with a row per trial, the best first: number, state, gain, each task's gain, parameters."""
        return tables.like(self.trials(), "frame")

    def trials(self) -> pa.Table:
        """Return the leaderboard as an Arrow table."""
        trials = sorted(
            self.study.get_trials(deepcopy=False), key=lambda t: -(t.value if t.value is not None else -np.inf)
        )
        params = list(dict.fromkeys(name for trial in trials for name in trial.params))
        attrs = list(dict.fromkeys(n for t in trials for n in t.user_attrs if n.startswith("gain.")))
        columns: dict[str, list[Any]] = {
            "trial": [t.number for t in trials],
            "state": [t.state.name.lower() for t in trials],
            "gain": [t.value for t in trials],
        }
        columns |= {name: [t.user_attrs.get(name) for t in trials] for name in attrs}
        columns |= {name: [t.params.get(name) for t in trials] for name in params}
        return pa.table(columns)

    def out_of_fold(self) -> Any:
        """A frame with a row per validation row: row (of the table), fold, weight, and each target's label and answer.

        The answers are those of the served blend, each by members that did not learn the row: `NAME__given` is the
        label, `NAME` the answer, `NAME__proba__LABEL` probabilities. Raises RunError where the run has none yet.
        """
        table = part_of(read_predictions(self.folder), "valid").remove_column(1)
        return tables.like(table, "frame")

    def importance(self, data: Any = None, *, groups: Mapping[str, Sequence[str]] | None = None) -> Any:
        """A frame with a row per task and input: by how much the loss rises when the input is shuffled, and a spread.

        Columns: task, input, importance, lower, upper, in units of the loss of the best constant answer, 95 %. Without
        `data` what was measured at the end of the search, out of fold on validation rows; with a labelled table, which
        should hold rows that the run did not learn, of the served model on (at most 1,000 of) its rows. `groups`
        names inputs that are shuffled together, {"place": ["origin", "dest"]}; it needs a table.

        Raises RunError where there is none, SpecError for a wrong group, SchemaError for a table without labels.
        """
        if data is not None:
            model, table = self.model, tables.read(data)
            rows = explaining.affordable_rows(model, np.arange(table.num_rows))
            records = explaining.importance([(model, rows)], table, groups=groups)
        elif groups is not None:
            raise SpecError("Groups of inputs are measured on a labelled table; give one: run.importance(table, ...).")
        else:
            records = self.result.get("input_importance")
        if not records:
            raise RunError(
                f"{self.folder} has no importance of inputs, as its time was up; give a labelled table: "
                "run.importance(table)."
            )
        return tables.like(pa.table({name: [r[name] for r in records] for name in records[0]}), "frame")

    def explain(self, data: Any, *, groups: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """Return, for each task, a frame of the caller's kind: by how much each input changed each row's answer.

        The answer with the input minus the answer without it (its cell missing): of a number in its own unit, of a
        label in the probability of the likeliest one. `groups` names inputs that are left out together.
        """
        changes = explaining.explain(self.model, tables.read(data), groups=groups)
        return {task: tables.like(pa.table(columns), data) for task, columns in changes.items()}

    def trial_model(self, trial: int | str) -> Model:
        """Return the model of exactly one complete trial, by number or "best", for every task.

        Its members, one a fold, are mixed equally; its card has no test metrics, since it was not tested.
        Raises RunError where the trial is not there, or not complete and so without weights.
        """
        trials = self.study.get_trials(deepcopy=False)
        complete = {t.number: t for t in trials if t.state == TrialState.COMPLETE}
        number = self._trial_number(trial, complete)
        if number not in complete:
            known = {t.number: t.state.name.lower() for t in trials}
            what = f"is {known[number]} and has no weights" if number in known else "is not there"
            raise RunError(f"Trial {number} {what}; complete trials: {listing(map(str, sorted(complete)), most=20)}.")
        members, _ = load_members(self.folder / CHECKPOINTS / f"trial-{number:05d}.safetensors")
        served = self.model
        card = {k: v for k, v in served.card.items() if k not in ("metrics", "verdicts", "served_by", "refit")}
        blend = np.full((len(served.tasks), len(members)), 1 / len(members))
        return Model(served.schema, served.tasks, served.inputs, tuple(members), blend, card | {"trial": number})

    @staticmethod
    def _trial_number(trial: int | str, complete: dict[int, Any]) -> int:
        if trial == "best":
            return int(max(complete.values(), key=lambda t: (t.value, -t.number)).number)
        try:
            return int(trial)
        except ValueError:
            raise RunError(f"Trial {trial!r} is no number; give one, or best.") from None

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


class Folder:
    """A run folder being written by one driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second driver, and tidy up after a dead one.

        Raises RunError where another holds it, or where it cannot be written, now or later on.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / LOCK).open("a")
        with handle, self.writing():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is in use by another search; wait for it, or choose another --out."
                ) from None
            fresh = {item.name for item in self.path.iterdir()} <= {LOCK}
            try:
                for name in (MODEL, STUDENT):
                    heal(self.path / name)
                for folder in (self.path, self.path / CHECKPOINTS):
                    sweep(folder)
                repair_journal(self.path / STUDY)
                yield
            finally:
                if fresh and not (self.path / SPEC).is_file():  # it came to nothing: leave nothing
                    shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what a full disk or a read-only folder fails with into one line; raises RunError."""
        try:
            yield
        except OSError as error:
            elsewhere = isinstance(error.filename, str) and not self._holds(error.filename)
            if error.errno not in UNWRITABLE or elsewhere:  # a callback of the user's may write where it likes
                raise
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}). Make room there, or make it writable, and run the "
                "same search again: it goes on where it stopped; or choose another folder with --out."
            ) from None

    def _holds(self, path: str) -> bool:
        return Path(path).resolve().is_relative_to(self.path.resolve())

    def identity(self) -> dict[str, str]:
        """Return the run's name, which is the folder's when it was made, and what tells it from others of that name.

        Both are kept, so that a moved folder goes on.
        """
        path = self.path / SPEC
        if not path.is_file():
            return {"name": self.path.resolve().name, "id": uuid.uuid4().hex}
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {key: str(held[key]) for key in ("name", "id")}

    def agree(self, spec: dict[str, Any]) -> None:
        """Compare a spec with the run's, where there is one; raises RunError naming the first difference."""
        path = self.path / SPEC
        if not path.is_file():
            return
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        if changed := difference(held, spec):
            raise RunError(
                f"{self.path} holds a run with another {changed}. "
                f"Continue it with its own, or start anew: --out {self.path}-2."
            )

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write the spec: from here on the folder is a run."""
        write_file(self.path / SPEC, yaml.safe_dump(spec, allow_unicode=True, sort_keys=False).encode())

    def read_state(self) -> dict[str, Any]:
        """Return what the driver noted: seconds of earlier sittings, steps, times that the test was scored."""
        path = self.path / STATE
        self._state = json.loads(path.read_bytes()) if path.is_file() else {}
        return dict(self._state)

    def note(self, **changes: Any) -> None:
        """Note facts for the next sitting."""
        self._state |= changes
        write_file(self.path / STATE, to_json(self._state))

    def read_result(self) -> dict[str, Any] | None:
        """Return result.json, or None where the run has none yet, or one of another version."""
        path = self.path / RESULT
        held: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        return held if held.get("version") == RESULT_VERSION else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_file(self.path / RESULT, to_json(plain(result)))

    def checkpoint(self, name: str) -> Path:
        """Return the path of a weights file."""
        return self.path / CHECKPOINTS / f"{name}.safetensors"

    def keep_only(self, name: str, prefix: str) -> None:
        """Remove the weights files whose names begin with `prefix`, but not with `name`."""
        for path in (self.path / CHECKPOINTS).glob(f"{prefix}*.safetensors"):
            if not path.name.startswith(name):
                path.unlink()


def difference(held: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> str:
    """Return the path and both values of the first difference of two specs, or an empty string."""
    for key in dict.fromkeys([*held, *wanted]):
        a, b = held.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := difference(a, b, f"{prefix}{key}."):
                return inner
        elif a != b:
            shown = [listing(map(str, v)) if isinstance(v, list) else str(v)[:60] for v in (a, b)]
            return f"{prefix}{key} ({shown[0]}; now {shown[1]})"
    return ""


def spec_digest(spec: dict[str, Any]) -> str:
    """Return a hash of a spec: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: numpy numbers plain, NaN and infinities null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


class Clock:
    """Active wall time of a run over all its sittings, and how it divides into phases."""

    def __init__(
        self,
        *,
        timeout_s: float | None,
        elapsed_s: float = 0.0,
        phases: dict[str, float] | None = None,
        started: float | None = None,
    ) -> None:
        """`started` is the `time.monotonic()` at which this sitting began, now by default."""
        self._start = (time.monotonic() if started is None else started) - elapsed_s
        self.timeout_s = timeout_s
        self.phases = dict(phases or {})

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, without the time between its sittings."""
        return time.monotonic() - self._start

    def deadline(self, reserve_s: float = 0.0) -> float:
        """Return the `time.monotonic()` at which the time is up but for `reserve_s`; infinite without a timeout."""
        return float("inf") if self.timeout_s is None else self._start + self.timeout_s - reserve_s

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside to a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - start
