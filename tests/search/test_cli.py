"""The search's commands as a user types them: what they print, and one line and exit code 2 for every mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_tokenizer
import torch
import yaml
from click.testing import CliRunner, Result
from pictures import noise
from rich.console import Console
from small import make_table

from mtl_bento.cli import cli
from mtl_bento.columns import text
from mtl_bento_search import api, inference, metrics
from mtl_bento_search.cli import show_result
from mtl_bento_search.executors.local import InProcess
from mtl_bento_search.progress import Terminal
from mtl_bento_search.run import Run


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Train in this process, with few draws of the bootstrap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "make_executor", InProcess)
        patch.setattr(metrics, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and a mtl.yaml of a search of seconds."""
    path = tmp_path_factory.mktemp("cli")
    pq.write_table(make_table(240), path / "t.parquet")
    small = {"n_trials": 2, "trunk": ["mlp"], "space": {"steps": 16, "width": 8, "batch_size": 64}}
    spec = {"data": "t.parquet", "targets": {"income": "binary", "分类": None}, "split": {"folds": 0}, "search": small}
    (path / "mtl.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_folder(folder: Path) -> Path:
    """The run of that mtl.yaml."""
    done = invoke("search", folder / "mtl.yaml", "--out", folder / "run", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.output == ""
    return folder / "run"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def refused(*arguments: Any) -> str:
    """Run a command that must fail as a user's mistake does; return its one line."""
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    lines = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.output
    return lines[0]


@pytest.mark.parametrize("command", ["inspect", "search", "report", "evaluate", "example"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"mtl-bento {command}" in done.output


def test_inspect_shows_every_column_and_writes_a_spec_that_search_reads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mtl.yaml"
    done = invoke("inspect", folder / "t.parquet", "--target", "分类", "--out", out)
    assert done.exit_code == 0, done.output
    for name in ("age", "state", "分类", "embedding"):
        assert name in done.output
    spec = yaml.safe_load(out.read_text(encoding="utf-8"))
    assert spec["targets"] == {"分类": {"kind": "multiclass"}}
    assert spec["inputs"]["when"] == "datetime"
    from mtl_bento_search.config import load_config

    assert Path(str(load_config(out).data)).resolve() == folder / "t.parquet"


def test_inspect_shows_pictures_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BACKBONE_PACKAGES", {})
    monkeypatch.setattr(text, "_HELD", {})
    monkeypatch.setattr(text, "_packaged", lambda _: tiny_tokenizer.write(tmp_path / "tokenizer.json"))
    for place in range(3):
        (tmp_path / f"{place}.jpg").write_bytes(noise(place, 120, 160, "JPEG"))
    table = {"photo": [f"{n}.jpg" for n in range(3)], "note": [f"take me {n}" for n in range(3)], "y": [1, 2, 1]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = json.loads(invoke("inspect", tmp_path / "t.parquet", "--target", "y", "--json").output)
    assert found["inputs"] == [
        {"name": "photo", "kind": "image", "what": "160 x 192 pixels, 5 x 6 cells, for efficientnet_lite0"},
        {"name": "note", "kind": "text", "what": "text of up to 3 tokens, for wordllama"},
    ]


def test_inspect_reads_a_spec_and_keeps_its_options(tmp_path: Path) -> None:
    cells = {"photo": [noise(n, 32, 64, "PNG") for n in range(3)], "road": [[0, 1], [1, 1], [0, 0]], "id": [1, 2, 3]}
    pq.write_table(pa.table(cells), tmp_path / "t.parquet")
    photo = {"kind": "image", "backbone": "pixels", "size": [32, 64]}
    given = {
        "data": "t.parquet",
        "targets": {"road": {"kind": "grid", "shape": [1, 2], "weight": 2}},
        "inputs": {"photo": photo},
        "ignore": "id",
        "search": {"n_trials": 7},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    done = invoke("inspect", tmp_path / "given.yaml", "--out", tmp_path / "out.yaml")
    assert done.exit_code == 0, done.output
    assert "1 x 2 cells: 0, 1" in done.output
    written = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert written == {**given, "version": 1, "ignore": ["id"]}
    message = refused("inspect", tmp_path / "given.yaml", "--target", "road")
    assert message == "Error: --target and mtl.yaml exclude each other; name the targets in one of them."


def test_inspect_prints_json(folder: Path) -> None:
    found = json.loads(invoke("inspect", folder / "t.parquet", "--target", "income", "--json").output)
    assert found["rows"] == 240
    assert found["targets"][0]["classes"] == ["<=50K", ">50K"]


def test_a_run_can_be_reported_and_evaluated_again(folder: Path, run_folder: Path) -> None:
    assert invoke("report", run_folder).output.strip() == str(run_folder / "report.html")
    done = invoke("evaluate", run_folder, folder / "t.parquet", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["n_train"] == 128  # 240 rows, 48 locked for the test, a third of the others for validation
    assert {record["task"] for record in found["metrics"]} == {"income", "分类"}
    assert all(r["lower"] <= r["value"] <= r["upper"] for r in found["metrics"] if r["metric"] == "accuracy")


def test_a_report_of_a_result_of_another_version_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    old = shutil.copytree(run_folder, tmp_path / "old")
    held = json.loads((old / "result.json").read_bytes())
    (old / "result.json").write_text(json.dumps(held | {"version": 1}), encoding="utf-8")
    assert refused("report", old) == (
        f"Error: {old / 'result.json'} is of version 1, this mtl-bento reads version 2; "
        "run the same search again: it keeps the trials and writes the result anew."
    )


def test_the_table_has_a_column_an_opponent_and_words_for_those_that_win(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Run(run_folder).result
    record = result["tasks"][0]
    base = {"difference": 0.04, "lower": 0.01, "upper": 0.07, "smallest": None, "value": 0.81, "name": "x"}
    less = {"difference": -0.012, "lower": -0.02, "upper": -0.004, "value": 0.862, "verdict": "worse"}
    few = {"verdict": "inconclusive", "lower": -0.01, "smallest": 0.05}
    record |= {"task": "income", "ours": 0.85, "metric": "roc_auc"}
    record["against"] = {"single_task": base | {"verdict": "better"}, "trees": base | less}
    other = record | {"task": "smoker", "against": {"single_task": base | few}}
    trials = result["trials"] | {"total": 1, "complete": 1, "pruned": 0}
    monkeypatch.setattr(Run, "result", result | {"tasks": [record, other], "trials": trials})
    show_result(Run(run_folder))
    printed = " ".join(capsys.readouterr().out.split())
    assert "│ against single-task │ against tuned trees" in printed.replace("┃", "│")
    assert "ensemble" not in printed
    assert " 1 trial (1 complete, 0 pruned), best: " in printed
    assert "│ 0.8100 better │ 0.8620 worse" in printed
    assert "│ +0.0400 (+0.0100 to +0.0700) │ -0.0120 (-0.0200 to -0.0040)" in printed
    assert "0.8100 inconclusive, could show 0.0500 │ - │" in printed
    assert "Tuned trees are better on income by 0.0120 (0.0040 to 0.0200)." in printed
    assert "Single-task networks are better" not in printed
    assert "Better and worse hold after Holm's correction over the targets, at 5 %." in printed


def test_the_search_prints_figures_as_json_and_nothing_else(folder: Path, run_folder: Path) -> None:
    done = invoke("search", folder / "mtl.yaml", "--out", run_folder, "--json")
    assert json.loads(done.output)["trials"]["total"] == 2


def test_lines_are_said_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(Console(width=80), timeout_s=None, n_trials=None)
    terminal.say("Left out '[x]': empty.")
    terminal.prepared("image:[y]", 1, 10)
    terminal.phase("finals", "[z]")
    assert capsys.readouterr().out.splitlines() == ["Left out '[x]': empty.", "features [y], 10 rows", "finals [z]"]


def test_examples_are_listed_and_a_wrong_name_is_named() -> None:
    listed = invoke("example").output
    assert [line.partition(":")[0] for line in listed.splitlines()] == ["flights", "scenes", "texts"]
    assert [line.partition(":")[0] for line in listed.splitlines() if "composed" in line] == ["scenes", "texts"]
    assert "`scenes` and `texts` are composed" in " ".join(invoke("example", "--help").output.split())
    assert "did you mean 'flights'" in refused("example", "flight")


def bad_tables(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return tables that cannot be read, each with the words that must say why."""
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (folder / "empty.csv").write_text("")
    (folder / "twice.csv").write_text("a,a\n1,2\n")
    (folder / "header.csv").write_text("a,b\n")
    (folder / "sheet.xlsx").write_bytes(b"PK")
    pq.write_table(pa.table({"x": [1.0, float("inf")] * 30, "y": [0, 1] * 30}), folder / "inf.parquet")
    return {
        "ragged": (folder / "ragged.csv", "3"),
        "binary": (folder / "binary.csv", "text"),
        "empty": (folder / "empty.csv", "empty"),
        "twice": (folder / "twice.csv", "'a'"),
        "header": (folder / "header.csv", "no row"),
        "sheet": (folder / "sheet.xlsx", "xlsx"),
        "folder": (folder, "folder"),
        "missing": (folder / "t.parqet", "t.parquet"),
        "inf": (folder / "inf.parquet", "x"),
    }


@pytest.mark.parametrize("case", ["ragged", "binary", "empty", "twice", "header", "sheet", "folder", "missing", "inf"])
def test_a_table_that_cannot_be_read_is_one_line_and_exit_code_2(case: str, folder: Path, tmp_path: Path) -> None:
    path, words = bad_tables(folder)[case]
    assert words in refused("search", path, "--target", "y", "--n-trials", "1", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "incom"], "did you mean 'income'"),
        ([], "name at least one"),
        (["--target", "income", "--timeout", "soon"], "write seconds or 90s, 10m, 2h"),
        (["--target", "income", "--split", "part"], "no column 'part'"),
        (["--target", "income", "--storage", "foo://user:secret@host"], "The storage foo://user@host cannot be used"),
        (["--target", "income", "--seed", "-1"], "See `"),
        (["--target", "income", "--n-trials", "0"], "See `"),
        (["--target", "income", "--ignore", "income"], "cannot be ignored as well"),
        (["--target", "income:regression"], "is not a number"),
        (["--target", "age:binary"], "different labels"),
        (["--target", "income", "--ignore", "stat"], "did you mean 'state'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: list[str], words: str, folder: Path, tmp_path: Path
) -> None:
    assert words in refused("search", folder / "t.parquet", *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cuda_without_a_gpu_is_one_line_and_auto_then_takes_the_cpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(*_: Any, **__: Any) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert api.pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch, "zeros", no_gpu)
    line = refused("search", folder / "t.parquet", "--target", "income", "--device", "cuda", "--out", tmp_path / "run")
    assert line == f"Error: Device 'cuda' is not here; allowed: auto, cpu; torch {torch.__version__} sees no GPU."
    assert not (tmp_path / "run").exists()


def test_a_password_of_a_storage_is_never_printed(folder: Path, tmp_path: Path) -> None:
    url = "postgresql://user:secret@127.0.0.1:1/db"
    assert "secret" not in refused(
        "search", folder / "t.parquet", "--target", "income", "--storage", url, "--out", tmp_path / "run"
    )


def test_where_inspect_cannot_write_is_one_line(folder: Path) -> None:
    assert "cannot be written" in refused(
        "inspect", folder / "t.parquet", "--target", "income", "--out", "/proc/no/m.yaml"
    )


def test_a_misspelt_key_of_the_spec_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mtl.yaml"
    path.write_text(f"data: {folder / 't.parquet'}\ntargets: {{income: binary}}\nserach: {{}}\n")
    assert "did you mean 'search'" in refused("search", path)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    assert "is no run folder" in refused("report", tmp_path)
