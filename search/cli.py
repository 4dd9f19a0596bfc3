"""The search's commands: inspect, search, report, evaluate, compare, example. Each parses, calls, prints."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtl_bento import sources
from mtl_bento import table as tables
from mtl_bento.artifact import write_file
from mtl_bento.cli import STARTED
from mtl_bento.errors import SpecError, listing, nearest
from mtl_bento_search.api import search
from mtl_bento_search.compare import comparison
from mtl_bento_search.config import Config, DataSpec, load_config, parse_targets, seconds, target_options
from mtl_bento_search.evaluation import evaluate, judged
from mtl_bento_search.examples import EXAMPLES
from mtl_bento_search.inference import Inference, infer
from mtl_bento_search.problem import make_task, suited
from mtl_bento_search.progress import Progress, Terminal, clock_text, wide_console
from mtl_bento_search.protocol import looks_like_split
from mtl_bento_search.report import write_report
from mtl_bento_search.report.words import count
from mtl_bento_search.run import REPORT, Folder, Run
from mtl_bento_search.said import after_the_test
from mtl_bento_search.verdict import NOUNS, OPPONENTS, RULE, SAME, WORSE, told

YAML = (".yaml", ".yml")


def _quiet(command: Any) -> Any:
    return click.option("--quiet", is_flag=True, help="Print errors only.")(command)


def _json(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print figures as JSON.")(command)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, ensure_ascii=False, indent=1))


def _check_duration(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    return None if value is None else seconds(value)


@click.command("inspect")
@click.argument("table")
@click.option("--target", "targets", multiple=True, help="A column to predict, NAME or NAME:KIND; repeats.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the findings as mtl.yaml, for editing.")
@_json
@_quiet
def inspect_command(table: str, targets: tuple[str, ...], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Show what each column of TABLE (or of a mtl.yaml) is taken for.

    \b
    Example:
      mtl-bento inspect flights.parquet --target cancelled --target arr_delay --out mtl.yaml
    """
    config, frame = _to_inspect(table, targets)
    wanted = {name: target_options(name, given) for name, given in config.targets.items()}
    tasks = [make_task(name, options, frame[name]) for name, options in wanted.items()]
    split = ("split",) if looks_like_split(frame) and "split" not in wanted else ()
    own = {name for name in (config.sample_weight, config.split.column) if name is not None}
    found = infer(frame, overrides=config.inputs, targets=tuple(wanted), ignore=tuple({*config.ignore, *split, *own}))
    schema = suited(found.schema, tasks, frame, rows=np.arange(frame.num_rows), chosen=config.inputs)
    if as_json:
        _print_json(
            {
                "rows": frame.num_rows,
                "targets": [task.card() for task in tasks],
                "inputs": [{"name": c.name, "kind": c.kind, "what": c.describe()} for c in schema.columns],
                "left_out": [vars(x) for x in found.left_out],
                "split": list(split),
            }
        )
    elif not quiet:
        _show_columns(frame, tasks, dataclasses.replace(found, schema=schema), split)
    if out is not None:
        _write_yaml(out, config, wanted, tasks, dataclasses.replace(found, schema=schema), split)
        if not quiet and not as_json:
            click.echo(f"Wrote {out}; edit it, then: mtl-bento search {out}")


def _to_inspect(table: str, targets: tuple[str, ...]) -> tuple[Config, Any]:
    """Return what a mtl.yaml or the options of the command line say, and the (training) table."""
    if not table.endswith(YAML):
        frame = tables.read(table)
        return Config(data=table, targets=parse_targets(targets, frame.column_names)), frame
    config = load_config(Path(table))
    _targets(table, config, targets)
    return config, tables.read(config.data.train if isinstance(config.data, DataSpec) else config.data)


def _show_columns(frame: Any, tasks: list[Any], found: Inference, split: tuple[str, ...]) -> None:
    console = wide_console()
    grid = Table(title=f"{frame.num_rows:,} rows, {len(frame.column_names)} columns", title_justify="left")
    for heading in ("column", "taken for", "what"):
        grid.add_column(heading, overflow="fold")
    for task in tasks:
        grid.add_row(escape(task.name), f"[bold]target[/bold] {task.spec.kind}", escape(task.describe()))
    for name in split:
        grid.add_row(escape(name), "split", "train, validation and test rows")
    for column in found.schema.columns:
        grid.add_row(escape(column.name), column.kind, escape(column.describe()))
    for left in found.left_out:
        grid.add_row(escape(left.name), "[yellow]left out[/yellow]", escape(f"{left.reason}; {left.remedy}"))
    console.print(grid)
    if not tasks:
        click.echo("Name what to predict: --target COLUMN (repeats).")


def _write_yaml(
    out: Path, config: Config, wanted: dict[str, Any], tasks: list[Any], found: Inference, split: tuple[str, ...]
) -> None:
    """Write what was found, with the options that were given; what else a mtl.yaml said stays."""
    held, paths = config.model_dump(mode="json", exclude_defaults=True), config.data
    near = {n: os.path.relpath(p, out.parent) for n, p in held["data"].items()} if isinstance(paths, DataSpec) else None
    data: dict[str, Any] = {
        "version": 1,
        **held,
        "data": os.path.relpath(str(paths), out.parent) if near is None else near,
        "targets": {task.name: {"kind": task.spec.kind, **wanted[task.name]} for task in tasks},
        "inputs": {c.name: config.inputs.get(c.name, c.kind) for c in found.schema.columns},
    }
    if ignored := dict.fromkeys([*config.ignore, *(left.name for left in found.left_out)]):
        data["ignore"] = list(ignored)
    if split and "split" not in held:
        data["split"] = {"kind": "column", "column": split[0]}
    try:
        write_file(out, yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode())
    except OSError as error:
        raise SpecError(f"{out} cannot be written ({error.strerror}); choose another file with --out.") from None


@click.command("search")
@click.argument("table")
@click.option(
    "--target", "targets", multiple=True, help="A column to predict: NAME, NAME:KIND or a pattern 'NR-*'; repeats."
)
@click.option("--valid", help="A table of validation rows.")
@click.option("--test", help="A table of test rows, scored once at the end.")
@click.option("--split", "split_column", help="A column that says train, val or test.")
@click.option("--ignore", multiple=True, help="A column that is no input; repeats.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder; runs/TABLE's name by default.")
@click.option("--n-trials", type=click.IntRange(min=1), help="Total number of trials of the run.")
@click.option(
    "--timeout", callback=_check_duration, help="Total wall time of the run: seconds, 90s, 10m, 2h. [default: 10m]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--storage", help="An Optuna storage URL; a journal file in the run folder by default.")
@click.option("--executor", default="local", show_default=True, help="Where networks train.")
@click.option("--seed", type=click.IntRange(min=0), help="Of every random draw. [default: 0]")
@click.option("--no-trees", is_flag=True, help="Tune no trees, neither to compare with nor to serve.")
@click.option("--members", type=click.Choice(["all", "networks"]), help="What may serve. [default: all]")
@click.option("--max-members", type=click.IntRange(1, 64), help="Configurations that may serve a task. [default: 8]")
@click.option(
    "--max-latency-ms", type=click.FloatRange(0, min_open=True), help="Most that one row, and 64, may take to answer."
)
@click.option("--student", is_flag=True, help="Have one network learn from what is served, tested and saved beside it.")
@click.option("--refit", is_flag=True, help="Train what is served again on all rows, once it is tested.")
@click.option("--tensorboard", metavar="DIR", help="Write each trial's scalars for `tensorboard --logdir DIR`.")
@_json
@_quiet
def search_command(
    table: str,
    targets: tuple[str, ...],
    valid: str | None,
    test: str | None,
    split_column: str | None,
    ignore: tuple[str, ...],
    out: Path | None,
    n_trials: int | None,
    timeout: float | None,
    device: str,
    storage: str | None,
    executor: str,
    seed: int | None,
    no_trees: bool,
    members: str | None,
    max_members: int | None,
    max_latency_ms: float | None,
    student: bool,
    refit: bool,
    tensorboard: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search one model for all targets of TABLE (or of a mtl.yaml): choose, test once, report, save.

    The same command resumes a run; --n-trials and --timeout are its totals.

    \b
    Example:
      mtl-bento search flights.parquet --target cancelled --target arr_delay --target air_time --target dep_late
    """
    config = load_config(Path(table)) if table.endswith(YAML) else None
    options: dict[str, Any] = {}
    if split_column is not None:
        options["split"] = {"kind": "column", "column": split_column}
    if ignore:
        options["ignore"] = list(ignore)
    chosen = {"members": members, "max_members": max_members, "max_latency_ms": max_latency_ms}
    chosen |= {"trees": False if no_trees else None, "student": student or None, "refit": refit or None}
    if given := {key: value for key, value in chosen.items() if value is not None}:
        held = config.search.model_dump(exclude_unset=True) if config is not None else {}
        options["search"] = {**held, **given}
    data = None if config is not None else table
    wanted = _targets(table, config, targets)
    console = Console(stderr=True)
    shown: Progress = Progress() if quiet or as_json else Terminal(console, timeout_s=timeout, n_trials=n_trials)
    run = search(
        data,
        targets=wanted,
        valid=valid,
        test=test,
        out=out if out is not None or config is None else Path("runs") / Path(table).stem,
        n_trials=n_trials,
        timeout=timeout,
        device=device,
        storage=storage,
        executor=executor,
        seed=seed,
        config=config,
        progress=shown,
        tensorboard=tensorboard,
        started=STARTED,
        **options,
    )
    if as_json:
        _print_json(run.result)
    elif not quiet:
        show_result(run)


def _targets(table: str, config: Config | None, targets: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the targets of the command line; None where mtl.yaml names them."""
    if config is not None:
        if targets:
            raise SpecError("--target and mtl.yaml exclude each other; name the targets in one of them.")
        return None
    if not targets:
        raise SpecError(f"No target is given; name at least one: mtl-bento search {table} --target COLUMN.")
    # Patterns and the nearest name need the columns; the names alone are enough where all are plain.
    return parse_targets(targets, tables.read(table).column_names)


def show_result(run: Run) -> None:
    """Print what a run found, where the report lies, and what to type next."""
    result, console = run.result, wide_console()
    grid = Table(title=f"Test: {result['rows']['test']:,} locked rows", title_justify="left")
    opponents = told(result["tasks"])
    for heading in ("task", "metric", "ours", *(f"against {OPPONENTS[arm]}" for arm in opponents)):
        grid.add_column(heading, overflow="fold")
    for task in result["tasks"]:
        against = [_against(task["against"].get(arm)) for arm in opponents]
        grid.add_row(escape(task["task"]), task["metric"], _figure(task["ours"]), *against)
    console.print(grid)
    for line in _losing(result["tasks"], opponents):
        click.echo(line)
    if opponents:
        console.print(RULE, style="dim", highlight=False)
    trials, phases = result["trials"], result["phases_s"]
    total = sum(phases.values()) or 1.0
    click.echo(
        f"{count(trials['total'], 'trial')} ({trials['complete']} complete, {trials['pruned']} pruned), "
        f"best: trial {trials['best']}, "
        f"gain {trials['best_gain']:+.1%} over single-task on validation."
    )
    click.echo(f"Time {clock_text(total)}: " + ", ".join(f"{name} {s / total:.0%}" for name, s in phases.items()) + ".")
    for line in after_the_test(result):
        click.echo(line)
    if result["test_looks"] > 1:
        click.echo(
            f"Note: the test rows were scored {result['test_looks']} times; only the first look is a clean test."
        )
    click.echo(f"Report: {run.folder / REPORT}")
    student = "" if result.get("student") is None else " (--student for the student)"
    click.echo(f"Next:   mtl-bento package {shlex.quote(str(run.folder))}{student}")


def _against(held: dict[str, Any] | None) -> str:
    """Return what the test says against an opponent: its figure and the verdict, and the difference below."""
    if held is None:
        return "-"
    return f"{_figure(held['value'])} {_verdict(held)}"


def _verdict(held: dict[str, Any]) -> str:
    """Return a verdict, and the difference below."""
    if held["verdict"] == SAME or held["difference"] is None:
        return str(held["verdict"])
    least = "" if held["smallest"] is None else f", could show {_figure(held['smallest'])}"
    difference = f"{_signed(held['difference'])} ({_signed(held['lower'])} to {_signed(held['upper'])})"
    return f"{held['verdict']}{least}\n{difference}"


def _losing(records: list[dict[str, Any]], opponents: list[str]) -> list[str]:
    """Return a line for each opponent that is better on some task: which, and by how much."""
    lines = []
    for arm in opponents:
        worse = [
            f"{r['task']} by {_figure(-held['difference'])} ({_figure(-held['upper'])} to {_figure(-held['lower'])})"
            for r in records
            if (held := r["against"].get(arm)) is not None and held["verdict"] == WORSE
        ]
        if worse:
            lines.append(f"{NOUNS[arm][:1].upper()}{NOUNS[arm][1:]} are better on " + ", ".join(worse) + ".")
    return lines


def _signed(value: float | None) -> str:
    return _figure(value) if value is None or value < 0 else f"+{_figure(value)}"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) >= 10 else f"{round(value, 4) + 0.0:.4f}"  # + 0.0: no minus before a zero


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@click.option(
    "--trials", metavar="FILE", help="Write all trials as a table too (CSV by its suffix, or `-`; Parquet ...)."
)
@_quiet
def report_command(run: Path, opens: bool, trials: str | None, quiet: bool) -> None:
    """Write the HTML report of a RUN again.

    \b
    Example:
      mtl-bento report runs/flights --open
      mtl-bento report runs/flights --trials trials.csv
    """
    held = Run(run)
    if trials is not None:
        tables.write(held.trials(), trials)
    with Folder(held.folder).writing():
        path = write_report(held.folder, held.result, held.study)
    if not quiet:
        if trials is not None and trials != tables.STDOUT:
            click.echo(f"All trials: {trials}", err=True)
        click.echo(str(path), err=trials == tables.STDOUT)
    if opens:
        webbrowser.open(path.resolve().as_uri())


@click.command("evaluate")
@click.argument("source")
@click.argument("table")
@click.option("--sample-weight", metavar="COLUMN", help="Row weights; those of the search where TABLE has them.")
@_json
@_quiet
def evaluate_command(source: str, table: str, sample_weight: str | None, as_json: bool, quiet: bool) -> None:
    """Score SOURCE (model folder, run, BentoML tag or URL) on a labelled TABLE, with intervals.

    \b
    Example:
      mtl-bento evaluate runs/flights flights.parquet
    """
    opened = sources.open_source(source)
    tasks, inputs, card = judged(opened)
    data = tables.read(table)
    if sample_weight is None and card.get("sample_weight") in data.column_names:
        sample_weight = card["sample_weight"]
    records = evaluate(partial(opened.predict, output="full"), tasks, data, inputs=inputs, sample_weight=sample_weight)
    n_train = int(card.get("n_train", 0))
    if as_json:
        _print_json({"n_train": n_train, "sample_weight": sample_weight, "metrics": records})
    elif not quiet:
        weighed = "" if sample_weight is None else f", rows weighed by {sample_weight!r}"
        again = "" if "refit" not in card else ", the locked rows of its search among them"
        title = f"{source}: trained on {int(card.get('refit', n_train)):,} rows{again}{weighed}"
        grid = Table(title=escape(title), title_justify="left")
        for heading in ("task", "metric", "value", "95 % interval", "rows"):
            grid.add_column(heading, overflow="fold")
        for r in records:
            spread = f"{_figure(r['lower'])} to {_figure(r['upper'])}"
            metric = f"coverage (aim {r['level']:g})" if "level" in r else r["metric"]
            grid.add_row(escape(r["task"]), metric, _figure(r["value"]), spread, f"{r['n']:,}")
        wide_console().print(grid)


@click.command("compare")
@click.argument("first", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("second", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--data", metavar="TABLE", help="The table of both, needed where a target is a grid or tags.")
@_json
@_quiet
def compare_command(first: Path, second: Path, data: str | None, as_json: bool, quiet: bool) -> None:
    """Say, task by task, whether the second RUN is better than the first on the locked test rows of both.

    Both must have learned from one table, with the same rows locked. Verdicts are those of a search: better, worse,
    tie, or inconclusive, with the smallest difference that these rows could have shown.

    \b
    Example:
      mtl-bento compare runs/flights runs/flights-longer
    """
    records = comparison(first, second, data=data)
    if as_json:
        _print_json({"first": str(first), "second": str(second), "tasks": records})
    elif not quiet:
        title = f"first: {first}, second: {second}, on the locked rows of both"
        grid = Table(title=escape(title), title_justify="left")
        for heading in ("task", "rows", "metric", "first", "second", "second against first"):
            grid.add_column(heading, overflow="fold")
        for r in records:
            figures = (_figure(r["first"]), _figure(r["second"]))
            grid.add_row(escape(r["task"]), f"{r['n_test']:,}", r["metric"], *figures, _verdict(r))
        wide_console().print(grid)
        wide_console().print(RULE, style="dim", highlight=False)


@click.command("example")
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; NAME.parquet by default.")
@click.option("--rows", type=click.IntRange(min=1), help="Write so many rows, evenly spaced over all.")
@_quiet
def example_command(name: str | None, out: Path | None, rows: int | None, quiet: bool) -> None:
    """Write a table to try, or list what there is.

    `flights` is real. `scenes` and `texts` are composed: handwritten digits pasted on drawn pictures; real tweets
    beside made-up sentences with names. They show pictures and texts at work, not how hard real ones are.

    \b
    Example:
      mtl-bento example flights --out flights.parquet --rows 20000
      mtl-bento example scenes
    """
    if name is None:
        for example in EXAMPLES.values():
            click.echo(f"{example.name}: {example.description}")
        return
    if name not in EXAMPLES:
        raise SpecError(f"There is no example {name!r}{nearest(name, EXAMPLES) or '.'} Examples: {listing(EXAMPLES)}.")
    example = EXAMPLES[name]
    path = out if out is not None else Path(f"{name}.parquet")
    table = example.make(rows)
    tables.write(table, path)
    if not quiet:
        click.echo(f"Wrote {path}: {table.num_rows:,} rows. Next:")
        targets = " ".join(f"--target {shlex.quote(t)}" for t in example.targets)
        click.echo(f"  mtl-bento search {shlex.quote(str(path))} {targets}")
    sys.stdout.flush()
