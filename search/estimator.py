"""`MultiTaskEstimator`: a search as an estimator of scikit-learn, for several targets of any mixture of kinds.

Letters: B rows, T targets, C classes of a target.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from mtl_bento import table as tables
from mtl_bento.errors import FitError, MtlBentoError, listing, nearest
from mtl_bento.model import Model
from mtl_bento_search.api import search

LARGEST_SEED = 2**31 - 1


def _has_labels(estimator: MultiTaskEstimator) -> bool:
    """Return whether a target has classes; before fit, and with numbers alone, there is no predict_proba."""
    check_is_fitted(estimator)
    return any(_classes(task) is not None for task in estimator.model_.tasks)


class MultiTaskEstimator(BaseEstimator):  # type: ignore[misc]
    """Search one model for several targets, behind the interface of scikit-learn.

    X is a frame (pandas, polars, pyarrow) of mixed columns, missing cells and all, or an array [B, F]; Y a frame of
    mixed targets, an array [B, T], or one column [B]. Missing labels are ordinary. The kind of a target is inferred as
    on the command line: a whole-number column of at most ten values, or text, is taken for labels; `targets` says
    otherwise.

    `fit` locks a part of the rows away, tests on them once and says so in `result_`: scores of a cross-validation
    around it are of models that learned from fewer rows than they were given. The run goes to a temporary folder,
    which is removed, unless `out` is given.

    Args:
        n_trials: trials of the search.
        timeout: its wall time, in seconds or as "10m"; ten minutes where neither is given.
        random_state: seed of every draw, a RandomState that gives one, or None for another one at each fit.
        targets: kinds or options by target, `{"cancelled": "binary"}`; inferred for those not named.
        inputs, ignore, split, search: as in mtl.yaml; `search` holds trunk, weighting and space.
        out: the run folder, which stays; a fit goes on with a run that is there.
        device: "auto", "cpu" or "cuda".

    Attributes:
        model_: the `mtl_bento.Model`.
        result_: every figure of the report, that of the locked test among them.
        run_: the `Run`, where `out` is given.
        classes_: labels of each target, a list of T (None for numbers); of one column, its labels alone.
        n_features_in_, feature_names_in_: as everywhere.

    Raises FitError, which is a ValueError too, in one line.

    Tags: no kind of estimator (targets are mixed), several targets, missing cells and text allowed. Of scikit-learn's
    `check_estimator` all apply but those in `EXPECTED_FAILED_CHECKS`, which says why of each.
    """

    def __init__(
        self,
        *,
        n_trials: int | None = None,
        timeout: str | float | None = None,
        random_state: Any = None,
        targets: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        ignore: Sequence[str] | None = None,
        split: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        out: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.n_trials = n_trials
        self.timeout = timeout
        self.random_state = random_state
        self.targets = targets
        self.inputs = inputs
        self.ignore = ignore
        self.split = split
        self.search = search
        self.out = out
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Search, test once, and keep the model.

        Args:
            X: inputs, a frame or an array [B, F].
            y: targets Y, a frame of T columns, an array [B, T], or one column [B].
            sample_weight: weights [B] of the rows in losses, scores and the test.
        """
        if y is None:
            raise FitError("MultiTaskEstimator requires y to be passed, but the target y is None; give the targets.")
        with _as_value_errors():
            inputs = self._inputs(X, reset=True)
            targets, self._single = _targets(y)
            if inputs.num_rows != targets.num_rows:
                raise FitError(
                    f"X has {inputs.num_rows} rows and Y has {targets.num_rows}; give one row of Y for each."
                )
            if inputs.num_rows < 2:
                raise FitError(f"X has n_samples = {inputs.num_rows}; give at least a few dozen rows.")
            if both := sorted(set(inputs.column_names) & set(targets.column_names)):
                raise FitError(f"Column {both[0]!r} is in X and in Y; rename it in one of them.")
            table = pa.table([*inputs.columns, *targets.columns], [*inputs.column_names, *targets.column_names])
            if unknown := [name for name in self.targets or {} if name not in targets.column_names]:
                raise FitError(
                    f"targets: {unknown[0]!r} is no column of Y{nearest(unknown[0], targets.column_names) or '.'} "
                    f"Columns: {listing(targets.column_names)}."
                )
            options: dict[str, Any] = {
                key: value
                for key in ("inputs", "ignore", "split", "search")
                if (value := getattr(self, key)) is not None
            }
            if sample_weight is not None:
                name = _free("sample_weight", table.column_names)
                weights = _check_sample_weight(sample_weight, np.empty((table.num_rows, 0)), ensure_non_negative=True)
                if not weights.any():
                    raise FitError("Sample weights contain no non-zero number; give some rows weight.")
                table, options["sample_weight"] = table.append_column(name, pa.array(weights)), name
            with _folder(self.out) as folder:
                run = search(
                    table,
                    targets={name: (self.targets or {}).get(name) for name in targets.column_names},
                    out=folder,
                    n_trials=self.n_trials,
                    timeout=self.timeout,
                    seed=_seed(self.random_state),
                    device=self.device,
                    **options,
                )
                self.model_, self.result_ = run.model, run.result
                if self.out is not None:
                    self.run_ = run
        classes = [_classes(task) for task in self.model_.tasks]
        self.classes_ = classes[0] if self._single else classes
        self._frame = None if _is_array(y) else tables.read(y).schema.names
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Return answers in the form of Y: a frame of X's kind where Y was one, an array [B, T] or [B] else."""
        table = self._known(X)
        answers = self.model_.table(table)
        if self._frame is not None and not _is_array(X):
            return tables.like(answers, X)
        columns = [column.to_numpy() for column in answers.columns]
        if self._single:
            return columns[0]
        kinds = {column.dtype.kind for column in columns}
        # Text beside numbers would become text.
        dtype = object if len(kinds) > 1 and not kinds <= set("iuf") else None
        return np.stack([column.astype(dtype) if dtype else column for column in columns], axis=1)

    @available_if(_has_labels)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """Return probabilities of the classes, a list of T arrays [B, C] in the order of `classes_`, None for numbers.

        Of one column, its array alone.
        """
        table = self._known(X)
        answers = self.model_.answers(table)
        found = [
            None if _classes(task) is None else np.asarray(task.scored(answers[task.name]))
            for task in self.model_.tasks
        ]
        return found[0] if self._single else found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the mean over targets of accuracy (labels) or R² (numbers), on the labelled rows.

        These are the scores of scikit-learn's classifiers and regressors; `result_` has the metrics of the search.
        """
        answers = self.model_.answers(self._known(X))
        with _as_value_errors():
            truths, _ = _targets(y)
            if truths.num_columns != len(self.model_.tasks):
                raise FitError(f"Y has {truths.num_columns} columns; fit had {len(self.model_.tasks)}.")
            scores = []
            for task, labels in zip(self.model_.tasks, truths.columns, strict=True):
                truth, scored = task.truth(labels), task.scored(answers[task.name])
                known = truth >= 0 if _classes(task) is not None else ~np.isnan(truth)
                weights = None if sample_weight is None else np.asarray(sample_weight)[known]
                given, answered = truth[known], scored[known]
                if _classes(task) is not None:
                    scores.append(accuracy_score(given, answered.argmax(1), sample_weight=weights))
                else:
                    scores.append(r2_score(given, answered, sample_weight=weights))
        return float(np.mean(scores))

    def _known(self, X: Any) -> pa.Table:  # noqa: N803
        check_is_fitted(self)
        with _as_value_errors():
            return self._inputs(X, reset=False)

    def _inputs(self, X: Any, *, reset: bool) -> pa.Table:  # noqa: N803
        """Return X as a table, its names and number of columns noted or checked as scikit-learn does."""
        if _is_array(X):
            held = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")
            return _columns(held, "x")
        validate_data(self, X, reset=reset, skip_check_array=True)
        return tables.read(X)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = False
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return a state without networks that are being used: a model is pickled as the files of its folder."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder) / "model"
                state["model_"].save(root)
                files = [path for path in root.rglob("*") if path.is_file()]
                state["model_"] = {str(path.relative_to(root)): path.read_bytes() for path in files}
        state.pop("run_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(files := state.get("model_"), dict):
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    path = Path(folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                state["model_"] = Model.load(Path(folder))
        super().__setstate__(state)


EXPECTED_FAILED_CHECKS: dict[str, str] = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 is on one side of a split, two equal rows are "
    "dealt out on their own, and batches are drawn by row",
    "check_methods_sample_order_invariance": "wants 1e-7 of float32 probabilities: where a row is in "
    "a batch decides in which order its products are summed, which moves the last digit on some machines",
    "check_fit2d_1feature": "ten rows are too few for a locked test and folds, which the error says; "
    "one input is learned from where there are rows enough",
}
"""Checks of scikit-learn's `check_estimator` that do not hold, each with the reason."""


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    try:
        yield
    except FitError:
        raise
    except MtlBentoError as error:
        raise FitError(str(error), detail=error.detail) from error


@contextlib.contextmanager
def _folder(out: str | os.PathLike[str] | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="mtl-bento-") as folder:
        yield Path(folder) / "run"


def _is_array(data: Any) -> bool:
    return not (hasattr(data, "columns") or isinstance(data, pa.Table | pa.RecordBatch | str | os.PathLike))


def _targets(given: Any) -> tuple[pa.Table, bool]:
    """Return targets as a table, and whether they are one column [B] without a second axis."""
    if not _is_array(given):
        return tables.read(given, role="Y"), False
    name = getattr(given, "name", None)
    held = np.asarray(given)
    if held.ndim not in (1, 2) or not held.size:
        raise FitError(f"Y has the shape {held.shape}; give a frame, an array of two axes, or one column.")
    if held.dtype.kind == "c":
        raise FitError("Complex data not supported: Y holds complex numbers; give real ones.")
    if held.dtype.kind == "f" and np.isinf(held).any():
        raise FitError("Input Y contains infinity; clear those cells.")
    if held.ndim == 1:
        return _columns(held[:, None], "y", [str(name)] if isinstance(name, str) else None), True
    return _columns(held, "y"), False


def _columns(held: np.ndarray, letter: str, names: list[str] | None = None) -> pa.Table:
    """Return the columns of an array [B, F] as a table, named x0, x1, ..."""
    names = names or [f"{letter}{place}" for place in range(held.shape[1])]
    cells = []
    for name, column in zip(names, held.T, strict=True):
        values = column.tolist() if column.dtype.kind == "O" else np.ascontiguousarray(column)
        try:
            cells.append(pa.array(values, from_pandas=True))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FitError(f"Column {name!r} cannot be read ({reason}); give its cells one type.") from None
    return pa.table(cells, names)


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _seed(random_state: Any) -> int:
    drawn = check_random_state(random_state)  # refuses what is no seed, in scikit-learn's words
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(drawn.randint(LARGEST_SEED))


def _classes(task: Any) -> np.ndarray | None:
    """Return the labels of a task in the order of its probabilities, None where it answers otherwise."""
    classes = None if task.positional else task.card().get("classes")
    return None if classes is None else np.array(classes)
