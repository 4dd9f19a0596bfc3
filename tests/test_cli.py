"""`mtl-bento predict` and `mtl-bento package`, and commands that come from elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from mtl_bento import plugins
from mtl_bento.cli import OF_SEARCH, cli
from mtl_bento.errors import MissingExtraError
from mtl_bento.model import Model
from mtl_bento.packaging import Packaged


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="mtl-bento")


def mistake(result: Result) -> str:
    """The one line of a user's mistake."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").rstrip()


@pytest.fixture
def rows(table: pa.Table, tmp_path: Path) -> Path:
    parquet.write_table(table.slice(0, 40), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_predict_writes_csv_to_standard_output(model_folder: Path, model: Model, rows: Path) -> None:
    result = run("predict", model_folder, rows)
    assert result.exit_code == 0
    assert result.stderr == ""
    written = csv.read_csv(pa.BufferReader(result.stdout_bytes))
    expected = model.predict(parquet.read_table(rows))
    assert written.column_names == ["income", "分类", "hours.per week", "smoker"]
    assert written["分类"].to_pylist() == expected["分类"].to_pylist()
    assert written["hours.per week"].to_pylist() == pytest.approx(expected["hours.per week"].to_pylist())


def test_predict_writes_a_file_with_kept_columns_first_and_says_so(
    model_folder: Path, model: Model, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predictions.parquet"
    result = run("predict", model_folder, rows, "--out", out, "--keep", "age", "--keep", "income", "--output", "full")
    assert result.exit_code == 0
    assert (result.stdout, result.stderr) == ("", f"40 rows predicted: {out}\n")
    written, given = parquet.read_table(out), parquet.read_table(rows)
    expected = model.predict(given, output="full")
    assert written.column_names == ["age", "income__given", *expected.column_names]
    assert written.select(expected.column_names).equals(expected)
    assert written["income__given"].to_pylist() == given["income"].to_pylist()
    quiet = run("predict", model_folder, rows, "--out", out, "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_mistakes_of_predict_are_one_line_and_write_nothing(model_folder: Path, rows: Path, tmp_path: Path) -> None:
    missing = mistake(run("predict", model_folder, tmp_path / "row.parquet"))
    assert "did you mean 'rows.parquet'?" in missing
    assert "did you mean 'age'?" in mistake(run("predict", model_folder, rows, "--keep", "agee"))
    assert "holds no model" in mistake(run("predict", tmp_path, rows))
    assert "No service answers at http://127.0.0.1:9" in mistake(run("predict", "http://127.0.0.1:9", rows))
    assert "has no suffix of a table" in mistake(run("predict", model_folder, rows, "--out", tmp_path / "x.doc"))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_misspelt_option_or_command_exits_with_2() -> None:
    assert run("predict", "--ouput", "full").exit_code == 2
    assert run("pridict").exit_code == 2


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> list[dict[str, Any]]:
    """Keeps what `package` is called with instead of packaging."""
    calls: list[dict[str, Any]] = []

    def package(source: str, **options: Any) -> Packaged:
        calls.append({"source": source, **options})
        return Packaged("small:v1", "small:v1")

    monkeypatch.setattr("mtl_bento.packaging.package", package)
    monkeypatch.setattr("mtl_bento.sources.model_folder", lambda _: model_folder)
    return calls


def test_package_says_what_to_type_next(packaged: list[dict[str, Any]]) -> None:
    result = run("package", "runs/small", "--label", "team=planning", "--label", "stage=a=b", "--version", "v1")
    assert result.exit_code == 0
    for line in (
        "Packaged small:v1.",
        "bentoml serve small:v1",
        "bentoml containerize small:v1",
        "curl -s localhost:3000/predict",
    ):
        assert line in result.stdout
    body = json.loads(result.stdout.partition("-d '")[2].rpartition("'")[0])
    assert body["rows"][0].keys() <= {"age", "вес, кг", "state", "children", "when"}
    labels = {"team": "planning", "stage": "a=b"}
    assert packaged == [
        {"source": "runs/small", "name": None, "version": "v1", "labels": labels, "trial": None, "student": False}
    ]


def test_package_prints_the_tag_alone_or_as_json_or_nothing(packaged: list[dict[str, Any]]) -> None:
    assert run("package", "r", "-o", "tag", "--trial", "7", "--name", "x").output == "small:v1\n"
    assert json.loads(run("package", "r", "--json").output) == {"tag": "small:v1", "bento_tag": "small:v1"}
    assert run("package", "r", "--quiet").output == ""
    assert (packaged[0]["trial"], packaged[0]["name"]) == ("7", "x")


def test_a_label_without_a_value_is_refused(packaged: list[dict[str, Any]]) -> None:
    result = run("package", "r", "--label", "team")
    assert result.exit_code == 2
    assert "'team' is not KEY=VALUE" in result.stderr
    assert packaged == []


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert mistake(run("package", tmp_path / "no")).startswith("There is no folder")


@pytest.mark.parametrize("command", ["predict", "package"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    mtl-bento {command} " in result.output
    assert "--quiet" in result.output


def test_a_plugins_commands_are_listed_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("greet")
    def greet() -> None:
        click.echo("hello")

    class Plugin:
        commands = (greet,)

    monkeypatch.setattr(plugins, "load", lambda _: Plugin)
    assert "greet" in run("--help").output
    assert run("greet").output == "hello\n"


def test_without_the_search_its_commands_are_listed_and_answer_with_the_pip_line() -> None:
    def with_no_optuna(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; sys.modules['optuna'] = None; from mtl_bento.cli import main; main()"
        return subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)

    asked = with_no_optuna("search", "flights.parquet", "--target", "cancelled")
    assert asked.returncode == 2
    assert asked.stderr == "Error: search needs optuna, which is not installed: pip install 'mtl-bento[search]'\n"
    listed = with_no_optuna("--help").stdout
    assert all(f"  {name} " in listed for name in OF_SEARCH)


def test_a_plugins_own_mistake_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ModuleNotFoundError("No module named 'mtl_bento_search.typo'", name="mtl_bento_search.typo")

    monkeypatch.setattr(plugins, "load", fail)
    assert isinstance(run("search").exception, ModuleNotFoundError)


def test_an_unexpected_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, rows: Path) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr("mtl_bento.sources.open_source", fail)
    assert isinstance(run("predict", "x", rows).exception, RuntimeError)


def test_own_commands_run_without_importing_the_search(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise MissingExtraError("never asked")

    monkeypatch.setattr(plugins, "load", refuse)
    assert run("predict", "--help").exit_code == 0


def test_the_version_is_printed() -> None:
    assert run("--version").output.startswith("mtl-bento, version ")


def test_tracking_is_off_unless_the_user_chose() -> None:
    code = (
        "import os, mtl_bento.cli as c; c.cli = lambda: print(os.environ['BENTOML_DO_NOT_TRACK']); c.main();"
        "os.environ['BENTOML_DO_NOT_TRACK'] = 'false'; c.main()"
    )
    environment = {"PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "true\nfalse\n"
