"""The command line: `mtl-bento predict` and `mtl-bento package`, and the commands that other packages bring.

A package adds commands by an entry point of the group `mtl_bento.plugins`, a module with `commands: list[Command]`.
A user's mistake is one line on stderr and exit code 2; anything else keeps its traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

import click

from mtl_bento import plugins
from mtl_bento.errors import MissingExtraError, MtlBentoError

STARTED = time.monotonic()
"""When this process began, but for Python's own start: a timeout counts what is imported after it, too."""
OF_SEARCH = ("inspect", "search", "report", "evaluate", "compare", "example")
"""Commands of the extra `search`, listed also where it is not installed."""


class _Mistake(click.ClickException):
    """One of our errors as click shows it: `Error: ...`, exit code 2."""

    exit_code = 2


class Commands(click.Group):
    """Our own commands and those of plugins, which are imported only when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, our own first."""
        return [*super().list_commands(ctx), *(str(command.name) for command in _plugged())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, or None."""
        own = super().get_command(ctx, cmd_name)
        return own or next((command for command in _plugged() if command.name == cmd_name), None)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; what click refuses is one line too."""
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            if not standalone_mode:
                return code
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "mtl-bento"
            click.echo(f"Error: {error.format_message().rstrip('.')}. See `{where} --help`.", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)  # as shells call it when Ctrl-C ends a command
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; one of our errors ends it in one line."""
        try:
            return super().invoke(ctx)
        except MtlBentoError as error:
            raise _Mistake(str(error)) from error


def _plugged() -> Iterator[click.Command]:
    for name in dict.fromkeys(["search", *entry_points(group=plugins.GROUP).names]):
        try:
            yield from plugins.load(name).commands
        except MissingExtraError as error:
            yield from (_stub(command, error) for command in (OF_SEARCH if name == "search" else ()))


def _stub(name: str, error: MissingExtraError) -> click.Command:
    def refuse(**_: Any) -> None:
        raise error

    return click.Command(
        name,
        callback=refuse,
        help=f"Not installed. {error}",
        params=[click.Argument(["anything"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
    )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mtl-bento")
def cli() -> None:
    """One model for many targets: searched with Optuna, verified, served with BentoML."""


@cli.command("predict")
@click.argument("source")
@click.argument("table")
@click.option("--out", default="-", show_default="CSV on standard output", help="The file to write; its suffix counts.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column of TABLE to write beside; repeats.")
@click.option("--output", type=click.Choice(["labels", "full"]), default="labels", help="full adds probabilities.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def predict_command(source: str, table: str, out: str, keep: tuple[str, ...], output: str, quiet: bool) -> None:
    """Predict all targets for the rows of TABLE, which may be larger than memory: it is read and written in parts.

    SOURCE is a model folder, a run folder, a BentoML tag, or the http address of a service. A kept column that has the
    name of a target is written as NAME__given.

    \b
    Example:
      mtl-bento predict runs/flights tomorrow.csv --keep flight --out predictions.csv
    """
    from mtl_bento import sources, streams  # with pyarrow: not for --help
    from mtl_bento import table as tables

    source_, n = sources.open_source(source), 0
    with tables.writing(out) as put:
        for part in streams.batches(table, rows=streams.rows_of(source_)):
            kept = _kept(part, keep)
            with streams.counted_from(n):
                answered = source_.predict(part, output=output)
            for name, values in zip(answered.column_names, answered.columns, strict=True):
                kept = kept.append_column(name, values)
            names = [f"{name}__given" if name in answered.column_names else name for name in dict.fromkeys(keep)]
            put(kept.rename_columns([*names, *answered.column_names]))
            n += part.num_rows
    if out != tables.STDOUT and not quiet:
        click.echo(f"{n:,} rows predicted: {out}", err=True)


def _kept(table: Any, names: tuple[str, ...]) -> Any:
    from mtl_bento.errors import SchemaError, listing, nearest

    for name in names:
        if name not in table.column_names:
            close = nearest(name, table.column_names) or f". It has: {listing(table.column_names)}."
            raise SchemaError(f"--keep: the table has no column {name!r}{close}")
    return table.select(list(dict.fromkeys(names)))


def _labels(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        labels[key] = value
    return labels


@cli.command("package")
@click.argument("source", metavar="RUN|MODEL")
@click.option("--trial", metavar="best|N", help="One trial of the run instead of the run's model.")
@click.option("--student", is_flag=True, help="The run's student instead of the run's model.")
@click.option("--name", help="What model and Bento are called; the run's name by default.")
@click.option("--version", help="Their version; one is made up by default.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", callback=_labels, help="A label; repeats.")
@click.option("-o", "--output", type=click.Choice(["tag"]), help="Print the tag only, for scripts.")
@click.option("--json", "as_json", is_flag=True, help="Print the tags as JSON.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def package_command(
    source: str,
    trial: str | None,
    student: bool,
    name: str | None,
    version: str | None,
    labels: dict[str, str],
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put a model into BentoML's stores, as a model and a Bento of one name and version.

    \b
    Example:
      mtl-bento package runs/flights --name flights --label team=planning
    """
    from mtl_bento.packaging import package  # with pyarrow and BentoML: not for --help

    packaged = package(source, name=name, version=version, labels=labels, trial=trial, student=student)
    if output == "tag":
        click.echo(packaged.tag)
    elif as_json:
        click.echo(json.dumps({"tag": packaged.tag, "bento_tag": packaged.bento_tag}))
    elif not quiet:
        click.echo(f"Packaged {packaged.tag}. What to type next:\n")
        click.echo(f"  bentoml serve {packaged.bento_tag}\n  bentoml containerize {packaged.bento_tag}")
        click.echo(f"  {_curl(packaged.tag)}")


def _curl(tag: str) -> str:
    """Return a request that can be typed: a made-up row, a few of its columns."""
    from mtl_bento import artifact, sources

    rows = artifact.read_samples(sources.model_folder(tag))["rows"]
    row = {name: value for name, value in rows[0].items() if isinstance(value, str | int | float)}
    body = json.dumps({"rows": [dict(list(row.items())[:4])]}, ensure_ascii=False)
    return f"curl -s localhost:3000/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")  # a user's own choice stands
    cli()
