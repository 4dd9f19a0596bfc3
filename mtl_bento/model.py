"""What a user holds: schema, tasks, a few members and the blend that mixes them.

Members come in groups that predict together (a stack of networks). The blend `[T, members]` has rows that sum to one:
a single network, a single-task network for one task, folds and ensembles are all just rows of that matrix.

Letters: T tasks, K members of a group, B rows, O numbers of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from mtl_bento import artifact, wire
from mtl_bento import table as tables
from mtl_bento.errors import ArtifactError, MtlBentoError, SpecError
from mtl_bento.network import Inputs, NetworkSpec, Trained, stacks
from mtl_bento.schema import Schema
from mtl_bento.tasks._base import TASKS, Task

CHUNK = 4096
"""Rows per forward pass, so that memory stays flat; fewer where they have positions."""
N_SAMPLES = 16
"""Made-up rows kept for self-tests."""


@dataclass
class Model:
    """A model of several targets."""

    schema: Schema
    tasks: tuple[Task[Any], ...]
    inputs: Inputs
    members: tuple[Trained, ...]
    blend: np.ndarray
    """Share of each member in each task's answer, float64 [T, members]; rows sum to one."""
    card: dict[str, Any] = field(default_factory=dict)
    """Provenance and metrics: run, hashes, rows trained on, metrics per task."""

    def __post_init__(self) -> None:
        used = [k for k in range(len(self.members)) if self.blend[:, k].any()]
        groups = stacks([self.members[k] for k in used], self.inputs, self.tasks)
        self._networks = [network for _, network in groups]
        self._order = [used[place] for places, _ in groups for place in places]
        self._widths = self._networks[0].answer_sizes()
        self._chunk = self._networks[0].rows_at_once(CHUNK)
        shares = torch.from_numpy(self.blend[:, self._order].T.astype(np.float32))  # [used members, T]
        # One share for each number of a task's answer: [used members, 1, sum of O].
        self._shares = shares.repeat_interleave(torch.tensor(self._widths), dim=1).unsqueeze(1)

    @property
    def targets(self) -> list[str]:
        """Names of the targets, in order."""
        return [task.name for task in self.tasks]

    @property
    def n_parameters(self) -> int:
        """Parameters of all members that take part."""
        return sum(self.members[k].n_parameters for k in self._order)

    def predict(self, data: Any, *, output: str = "labels") -> Any:
        """Return predictions for a table, in the caller's kind of frame.

        Args:
            data: a path, a pandas or polars frame or a pyarrow table.
            output: "labels" gives exactly the targets as columns, in their own dtypes; "full" adds probabilities
                (`income__proba__>50K`), intervals (`hours__lower`) and prediction sets (`income__set`).

        Raises TableError or SchemaError where the data cannot be read or contradict the schema.
        """
        return tables.like(self.table(tables.read(data), output=output), data)

    def predict_proba(self, data: Any) -> dict[str, Any]:
        """Return, for each target with labels, a frame of the caller's kind with a column per class."""
        table = tables.read(data)
        answers = self.answers(table)
        probabilities = {
            task.name: {k.removeprefix("proba__"): v for k, v in columns.items() if k.startswith("proba__")}
            for task in self._placed(table)
            if (columns := task.columns(answers[task.name]))
        }
        return {name: tables.like(pa.table(columns), data) for name, columns in probabilities.items() if columns}

    def table(self, table: pa.Table, *, output: str = "labels") -> pa.Table:
        """Return predictions for an Arrow table as an Arrow table; see `predict`."""
        if output not in ("labels", "full"):
            raise SpecError(f"output {output!r} is not known; allowed: 'labels', 'full'.")
        answers = self.answers(table)
        columns: dict[str, pa.Array] = {}
        for task in self._placed(table):
            columns[task.name] = task.values(answers[task.name])
            if output == "full":
                extra = task.columns(answers[task.name])
                columns |= {f"{task.name}__{suffix}": values for suffix, values in extra.items()}
        return pa.table(columns)

    def rows(self, table: pa.Table) -> list[dict[str, Any]]:
        """Return one JSON object per row, as `POST /predict` answers: `{"income": {"value": ..., ...}, ...}`."""
        answers = self.answers(table)
        listed = [task.rows(answers[task.name]) for task in self._placed(table)]
        return [dict(zip(self.targets, row, strict=True)) for row in zip(*listed, strict=True)]

    def answers(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Return blended answers by target, float32 [B, O]: probabilities, or standardised numbers.

        What answers by position has the numbers of all positions side by side.
        """
        blocks = {name: torch.from_numpy(block) for name, block in self.schema.encode(table).items()}
        n = table.num_rows
        with torch.inference_mode():
            parts = [
                self._blended({name: block[start : start + self._chunk] for name, block in blocks.items()})
                for start in range(0, max(n, 1), self._chunk)
            ]
            by_task = torch.cat(parts).split(self._widths, dim=1)
        return {name: answers.numpy() for name, answers in zip(self.targets, by_task, strict=True)}

    def _placed(self, table: pa.Table) -> list[Task[Any]]:
        """Return the tasks for the rows of a table, whose cells some need to put an answer into words."""
        return [task.place(table, self.schema.columns) for task in self.tasks]

    def _blended(self, blocks: dict[str, Tensor]) -> Tensor:
        """Encoded blocks [B, C] -> the answers of all tasks side by side, [B, sum of O]."""
        # What is prepared is the same for all networks: a contract of encoders.
        prepared = [block.unsqueeze(0) for block in self._networks[0].prepare(blocks)]
        answers = torch.cat([torch.cat(network.answers(prepared), -1) for network in self._networks])
        return (answers * self._shares).sum(0)  # from [used members, B, sum of O]

    def save(self, folder: Path) -> None:
        """Write the model as a folder, whole or not at all."""
        kept = [self.members[k] for k in self._order]
        tensors = {f"members.{i}.{name}": value for i, m in enumerate(kept) for name, value in m.state.items()}
        for i, fitted in enumerate(self.inputs.fitted.values()):
            tensors |= {f"inputs.{i}.{name}": value for name, value in fitted.items()}
        manifest = {
            "format_version": artifact.FORMAT_VERSION,
            "schema": self.schema.model_dump(mode="json"),
            "tasks": [task.spec.model_dump(mode="json") for task in self.tasks],
            "blocks": list(self.inputs.columns),
            "members": [m.spec.model_dump(mode="json") for m in kept],
            "blend": self.blend[:, self._order].tolist(),
            "card": self.card,
        }
        weights = safetensors.torch.save({name: value.contiguous().cpu() for name, value in tensors.items()})
        files = {
            artifact.MANIFEST: artifact.to_json(manifest),
            artifact.WEIGHTS: weights,
            artifact.SAMPLES: artifact.to_json(self._samples()),
            artifact.CARD: self.card_text().encode(),
        }
        for column in self.schema.columns:
            files |= column.files()
        artifact.write_folder(Path(folder), files)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model of a folder; raises ArtifactError where it is damaged, incomplete or too new."""
        folder = Path(folder)
        manifest = artifact.read_manifest(folder)
        try:
            tensors = safetensors.torch.load_file(folder / artifact.WEIGHTS)
            schema = Schema.model_validate(manifest["schema"])
            for column in schema.columns:
                column.find_files(folder)
            tasks = tuple(TASKS.class_of(type(spec))(spec) for spec in map(TASKS.parse, manifest["tasks"]))
            fitted = {block: _under(tensors, f"inputs.{i}.") for i, block in enumerate(manifest["blocks"])}
            specs = [NetworkSpec.model_validate(spec) for spec in manifest["members"]]
            members = tuple(Trained(spec, _under(tensors, f"members.{i}.")) for i, spec in enumerate(specs))
            inputs = Inputs({block: schema.blocks[block] for block in manifest["blocks"]}, fitted)
            return cls(schema, tasks, inputs, members, np.array(manifest["blend"]), manifest["card"])
        except MtlBentoError:
            raise
        except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise ArtifactError(
                f"Model {folder} does not fit this version of mtl-bento ({error}); package the run anew."
            ) from error

    def _samples(self) -> dict[str, Any]:
        """Return made-up rows, one of them empty, and their answers."""
        rng = np.random.default_rng(0)
        rows: list[dict[str, Any]] = [
            {column.name: column.draw(rng) for column in self.schema.columns} for _ in range(N_SAMPLES - 1)
        ]
        rows.append({})
        return {"rows": rows, "answers": self.rows(wire.rows_to_table(rows, self.schema))}

    def card_text(self) -> str:
        """Return the model card in words (Markdown)."""
        lines = [
            f"# {self.card.get('name', 'Model')}",
            "",
            "Targets, and how well they were predicted on locked test rows:",
            "",
        ]
        lines += ["| target | kind | metric | test |", "|---|---|---|---|"]
        metrics = self.card.get("metrics", {})
        for task in self.tasks:
            value = metrics.get(task.name, {}).get(task.metric)
            lines.append(
                f"| {task.name} | {task.spec.kind} | {task.metric} | {'-' if value is None else f'{value:.4f}'} |"
            )
        lines += [
            "",
            f"{len(self._order)} networks, {self.n_parameters:,} parameters, "
            f"trained on {self.card.get('n_train', '?')} rows.",
        ]
        if notes := [f"- {task.name}: {note}." for task in self.tasks for note in task.notes()]:
            lines += ["", "Calibrated on rows that the networks did not learn:", "", *notes]
        lines += ["", "Inputs: " + ", ".join(f"{c.name} ({c.kind})" for c in self.schema.columns) + "."]
        return "\n".join(lines) + "\n"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
