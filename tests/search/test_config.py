"""mtl.yaml and options: durations, targets, keys that do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import mtl_bento as mb
from mtl_bento.errors import SpecError, UnknownKindError
from mtl_bento_search.config import load_config, parse_config, parse_targets, seconds, split_kind, target_options


@pytest.mark.parametrize(("text", "expected"), [(90, 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45)])
def test_durations_are_seconds_with_or_without_a_unit(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "ten minutes", "-5", "0", "10d", True, None])
def test_what_is_no_duration_is_named_with_what_is_allowed(text: object) -> None:
    with pytest.raises(SpecError, match=r"is not a duration; write seconds or 90s, 10m, 2h"):
        seconds(text)


def test_a_suffix_is_split_off_only_where_it_is_a_known_kind() -> None:
    assert split_kind("income:binary") == ("income", "binary")
    assert split_kind("ratio 1:2") == ("ratio 1:2", None)
    assert split_kind("分类:multiclass") == ("分类", "multiclass")


def test_patterns_name_every_matching_column_in_order() -> None:
    columns = ["NR-AR", "age", "NR-ER", "a[b]"]
    assert parse_targets(["NR-*:binary"], columns) == {"NR-AR": "binary", "NR-ER": "binary"}
    assert parse_targets(["a[b]"], columns) == {"a[b]": None}  # a name that is there is never a pattern


def test_a_misspelt_target_suggests_the_nearest_column() -> None:
    with pytest.raises(SpecError, match=r"There is no column 'incom' for a target; did you mean 'income'\?"):
        parse_targets(["incom"], ["income", "age"])


def test_an_unknown_task_kind_lists_the_kinds() -> None:
    with pytest.raises(UnknownKindError, match=r"there is no task kind 'binry'; did you mean 'binary'\?"):
        target_options("y", "binry")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"targets": {"y": None}, "tragets": 1}, r"tragets is not a known key; did you mean 'targets'\?"),
        (
            {"targets": {"y": None}, "search": {"n_trial": 3}},
            r"search.n_trial is not a known key; did you mean 'n_trials'",
        ),
        ({"targets": {"y": None}, "split": {"kind": "tme"}}, "split.kind"),
        ({"targets": {"y": None}, "search": {"n_trials": 0}}, "search.n_trials"),
        (
            {"targets": {"y": None}, "search": {"space": {"lr": {"lo": 1, "high": 2}}}},
            r"lr.lo is not a known key; did you",
        ),
        (
            {"targets": {"y": None}, "data": {"train": "a", "tset": "b"}},
            r"data.tset is not a known key; did you mean 'test'",
        ),
        ({"targets": {"y": None}, "search": {"trunk": []}}, "search.trunk"),
        ({"targets": {"y": None}, "inputs": {"x": ["image"]}}, "^mtl.yaml: inputs.x: Input should be a valid "),
        ({"targets": {"y": None}, "split": {"column": "when"}}, "a column needs a kind: column, fold, time or group"),
    ],
)
def test_wrong_keys_and_values_are_one_line_that_names_them(raw: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        parse_config(raw, where="mtl.yaml")
    assert "\n" not in str(caught.value)


def test_lists_and_bare_words_are_taken_for_what_they_mean() -> None:
    config = parse_config({"targets": ["y", "z"], "ignore": "id", "search": {"trunk": "mlp"}}, where="x")
    assert config.targets == {"y": None, "z": None}
    assert config.ignore == ("id",)
    assert config.search.trunk == ("mlp",)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mtl.yaml"
    path.write_text("data: t.csv\ntargets: {a: null}\ntargets: {b: null}\n")
    with pytest.raises(SpecError, match="'targets' is given twice"):
        load_config(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mtl.yaml"
    path.write_text("data: sub/t.csv\ntargets: {分类: multiclass}\n", encoding="utf-8")
    config = load_config(path)
    assert config.data == str(tmp_path / "sub/t.csv")
    assert config.targets == {"分类": "multiclass"}


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mtl.yaml"
    path.write_text("data: [unclosed\n")
    with pytest.raises(SpecError, match="cannot be read as YAML"):
        load_config(path)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"n_trials": 0}, "search.n_trials: Input should be greater than or equal to 1."),
        ({"search": {"spce": 1}}, r"search.spce is not a known key; did you mean 'space'\? Allowed: n_trials, .*"),
        ({"search": 5}, "search: Input should be a mapping."),
        ({"groups": "y"}, "groups: Input should be a list."),
        ({"targets": {"y": 5}}, "targets.y: Input should be a mapping."),
        ({"search": {"space": {"lr": 1000}}}, "space: lr: Input should be less than or equal to 1."),
    ],
)
def test_a_complaint_about_an_argument_names_its_key_once(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(100.0) % 17, "y": np.arange(100) % 2})
    with pytest.raises(SpecError, match=f"^{line}$"):
        mb.search(table, out=tmp_path / "run", **{"targets": ["y"], **given})
    assert not (tmp_path / "run").exists()
