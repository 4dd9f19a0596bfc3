"""`--tensorboard DIR`: what a search does as scalars that TensorBoard draws.

    DIR/RUN                 by trial number: gain, best gain, each task's gain, metrics, seconds, parameters
    DIR/RUN/trial-00012     by step: the score at each look; and the trial's hyperparameters with its gain

A callback of Optuna's, called for each trial that is told; a resumed run writes on where it stopped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mtl_bento.errors import MissingExtraError, SpecError

KEPT = ("gain.", "val.", "loss.")
"""How the attributes of a trial begin that are drawn."""


class TensorBoard:
    """Writes each trial of a study.

    Args:
        folder: where TensorBoard looks (`tensorboard --logdir FOLDER`).

    Raises MissingExtraError with the pip line where tensorboard is not installed, SpecError where the folder cannot be
    written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._summary_writer = _writer_class()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"--tensorboard {str(self.folder)!r} cannot be written ({error.strerror}); choose another folder."
            ) from None

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Write a trial that was told."""
        root = self.folder / study.study_name
        drawn = {name: value for name, value in trial.user_attrs.items() if name.startswith(KEPT)}
        drawn |= {name: trial.user_attrs[name] for name in ("n_params", "train_s") if name in trial.user_attrs}
        if trial.state == TrialState.COMPLETE:
            drawn |= {"gain": trial.value, "best gain": study.best_value}
        with self._summary_writer(str(root)) as writer:
            for name, value in drawn.items():
                if _is_number(value):
                    writer.add_scalar(name.replace(".", "/", 1), value, trial.number)
        self._write_curve(root / f"trial-{trial.number:05d}", trial)

    def _write_curve(self, folder: Path, trial: FrozenTrial) -> None:
        curve = trial.user_attrs.get("curve") or sorted(trial.intermediate_values.items())
        with self._summary_writer(str(folder)) as writer:
            for step, value in curve:
                if _is_number(value):
                    writer.add_scalar("score", value, step)
            if trial.state == TrialState.COMPLETE:
                writer.add_hparams(_plain(trial.params), {"final/gain": trial.value}, run_name=".")


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra: most searches do without
    except ImportError:
        raise MissingExtraError(
            "--tensorboard needs tensorboard, which is not installed: pip install 'mtl-bento[tensorboard]'"
        ) from None
    return SummaryWriter


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in params.items()
    }
