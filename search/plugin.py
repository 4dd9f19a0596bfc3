"""What the search adds to `mtl_bento`, found by entry point: commands of the command line, and `mb.search`."""

from __future__ import annotations

import os

import click

from mtl_bento.model import Model
from mtl_bento_search.api import search
from mtl_bento_search.cli import (
    compare_command,
    evaluate_command,
    example_command,
    inspect_command,
    report_command,
    search_command,
)
from mtl_bento_search.compare import compare
from mtl_bento_search.estimator import MultiTaskEstimator
from mtl_bento_search.objective import Objective
from mtl_bento_search.run import Run

commands: list[click.Command] = [
    inspect_command,
    search_command,
    report_command,
    evaluate_command,
    compare_command,
    example_command,
]


def trial_model(run: str | os.PathLike[str], trial: str) -> Model:
    """Return the model of one trial of a run; see `Run.trial_model`."""
    return Run(run).trial_model(trial)


__all__ = ["MultiTaskEstimator", "Objective", "Run", "commands", "compare", "search", "trial_model"]
