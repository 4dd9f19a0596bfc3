"""What a user holds: schema, tasks, a few members and the blend that mixes them.

Members come in groups that predict together: a stack of networks, the forests of a task. The blend `[T, members]` has
rows that sum to one: a single network, a single-task network for one task, folds and ensembles are all just rows of
that matrix. A forest answers one task, and has no share in others.

Offset networks stand on the *margins* of a task: the mean over all of its forests among the members, whether or not the
blend gives these a share; 0 for a task without forests.

Letters: T tasks, K members of a group, B rows, O outputs of a head, O' numbers of an answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor

from mtl_bento import artifact, wire
from mtl_bento import table as tables
from mtl_bento.encoders._base import Encoder
from mtl_bento.errors import ArtifactError, MtlBentoError, SpecError, UnknownKindError, listing
from mtl_bento.forest import Forest
from mtl_bento.network import Inputs, NetworkSpec, Trained, answer_sizes, rows_at_once, stacks
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
    members: tuple[Trained | Forest, ...]
    blend: np.ndarray
    """Share of each member in each task's answer, float64 [T, members]; rows sum to one."""
    card: dict[str, Any] = field(default_factory=dict)
    """Provenance and metrics: run, hashes, rows trained on, metrics per task."""

    def __post_init__(self) -> None:
        used = {k: m for k, m in enumerate(self.members) if isinstance(m, Trained) and self.blend[:, k].any()}
        groups = stacks(list(used.values()), self.inputs, self.tasks)
        self._networks = [network for _, network in groups]
        places = list(used)
        order = [places[place] for held, _ in groups for place in held]
        self._trees = self._needed_trees([k for k, member in used.items() if member.spec.offset])
        self._order = [*order, *(k for trees in self._trees for k in trees.places)]
        self._encoders = (
            [cast(Encoder[Any], encoder) for encoder in self._networks[0].encoders]
            if self._networks
            else [self.inputs.encoder(block).eval() for block in self.inputs.columns]
        )
        self._chunk = rows_at_once(CHUNK, max([1, *(encoder.length for encoder in self._encoders)]))
        self._widths = answer_sizes(self.tasks, self._networks[0].length if self._networks else 0)
        shares = torch.from_numpy(self.blend[:, order].T.astype(np.float32))  # [used networks, T]
        # One share for each number of a task's answer: [used networks, 1, sum of O'].
        self._shares = shares.repeat_interleave(torch.tensor(self._widths), dim=1).unsqueeze(1)

    def _needed_trees(self, offsets: Sequence[int]) -> list[_Trees]:
        """Return the forests of each task that the blend, or an offset network at one of those places, needs.

        Raises SpecError where a forest has a share in a task that it does not answer.
        """
        forests = {k: member for k, member in enumerate(self.members) if isinstance(member, Forest)}
        for (k, forest), (t, name) in itertools.product(forests.items(), enumerate(self.targets)):
            if self.blend[t, k] and forest.task != name:
                raise SpecError(
                    f"The blend gives trees of target {forest.task!r} a share of {self.blend[t, k]:g} in target "
                    f"{name!r}, which they do not answer; set it to 0."
                )
        needed = []
        for t, name in enumerate(self.targets):
            stood_on = self.blend[t, offsets].any()
            places = [k for k, forest in forests.items() if forest.task == name and (stood_on or self.blend[t, k])]
            if any(forests[k].n_outputs != self.tasks[t].n_outputs for k in places):
                raise ValueError(f"trees of target {name!r} have not as many outputs as it has")
            if places:
                shares = torch.from_numpy(self.blend[t, places].astype(np.float32)).view(-1, 1, 1)
                needed.append(_Trees(t, places, [forests[k] for k in places], shares))
        return needed

    @property
    def targets(self) -> list[str]:
        """Names of the targets, in order."""
        return [task.name for task in self.tasks]

    @property
    def n_parameters(self) -> int:
        """Parameters of all networks that take part."""
        return sum(member.n_parameters for member in self._kept if isinstance(member, Trained))

    @property
    def _kept(self) -> list[Trained | Forest]:
        return [self.members[k] for k in self._order]

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
        """Encoded blocks [B, C] -> the answers of all tasks side by side, [B, sum of O']."""
        # What is prepared is the same for all networks: a contract of encoders.
        held = zip(self.inputs.columns, self._encoders, strict=True)
        prepared = [encoder.prepare(blocks[name]) for name, encoder in held]
        if not self._trees:
            return self._of_networks(prepared, [])
        features = self.inputs.features(blocks, prepared)
        margins = [torch.stack([forest.margins(features) for forest in trees.forests]) for trees in self._trees]
        answers = self._of_trees(margins)
        return answers + self._of_networks(prepared, margins) if self._networks else answers

    def _of_networks(self, prepared: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
        """Prepared blocks, margins [K, B, O] of tasks with trees -> the networks' part of answers, [B, sum of O']."""
        rows = [block.unsqueeze(0) for block in prepared]
        beneath = self._beneath(margins, len(prepared[0])) if any(n.offset for n in self._networks) else None
        answers = torch.cat([torch.cat(network.answers(rows, beneath), -1) for network in self._networks])
        return (answers * self._shares).sum(0)  # from [used networks, B, sum of O']

    def _of_trees(self, margins: Sequence[Tensor]) -> Tensor:
        """Margins [K, B, O] of tasks with trees -> the forests' part of all answers, [B, sum of O']."""
        parts = list(margins[0].new_zeros(margins[0].shape[1], sum(self._widths)).split(self._widths, 1))
        for trees, own in zip(self._trees, margins, strict=True):
            answers = self.tasks[trees.task].activate(own.unsqueeze(1)).mean(1)  # [K, B, O']
            parts[trees.task] = (answers * trees.shares).sum(0)
        return torch.cat(parts, 1)

    def _beneath(self, margins: Sequence[Tensor], n_rows: int) -> Tensor:
        """Return what offset networks stand on, the mean margins of all tasks side by side: [1, B, sum of O]."""
        parts = [torch.zeros(n_rows, task.n_outputs) for task in self.tasks]
        for trees, own in zip(self._trees, margins, strict=True):
            parts[trees.task] = own.mean(0)
        return torch.cat(parts, 1).unsqueeze(0)

    def save(self, folder: Path) -> None:
        """Write the model as a folder, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for i, member in enumerate(self._kept):
            held = member.tensors if isinstance(member, Forest) else member.state
            tensors |= {f"members.{i}.{name}": value for name, value in held.items()}
        for i, fitted in enumerate(self.inputs.fitted.values()):
            tensors |= {f"inputs.{i}.{name}": value for name, value in fitted.items()}
        manifest = {
            "format_version": artifact.FORMAT_VERSION,
            "schema": self.schema.model_dump(mode="json"),
            "tasks": [task.spec.model_dump(mode="json") for task in self.tasks],
            "blocks": list(self.inputs.columns),
            "members": [_described(member) for member in self._kept],
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
            entries = enumerate(manifest["members"])
            members = tuple(_member(entry, _under(tensors, f"members.{i}.")) for i, entry in entries)
            inputs = Inputs({block: schema.blocks[block] for block in manifest["blocks"]}, fitted)
            return cls(schema, tasks, inputs, members, np.array(manifest["blend"]), manifest["card"])
        except UnknownKindError as error:
            missing = [line for line in manifest["card"].get("requires", []) if not _installed(line)]
            if not missing:
                raise
            words = f"Model {folder} needs {listing(missing)}, not installed here; install it"
            raise ArtifactError(f"{words} ({str(error).split('. ')[0]}).") from None
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
        metrics, verdicts = self.card.get("metrics", {}), self.card.get("verdicts", {})
        opponents = list(dict.fromkeys(arm for held in verdicts.values() for arm in held))
        heads = ["target", "kind", "metric", "test", *(f"against {arm.replace('_', '-')}" for arm in opponents)]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for task in self.tasks:
            value = metrics.get(task.name, {}).get(task.metric)
            against = [_compared(verdicts.get(task.name, {}).get(arm)) for arm in opponents]
            lines.append("| " + " | ".join([task.name, task.spec.kind, task.metric, _figure(value), *against]) + " |")
        if opponents:
            lines += ["", "Positive differences are in this model's favour; in brackets, 95 % intervals."]
        lines += ["", f"{self._size()}, trained on {self.card.get('n_train', '?')} rows."]
        if (rows := self.card.get("refit")) is not None:
            lines[-1] += f" After the test it was trained again on all {rows}: the figures are those of before."
        if notes := [f"- {task.name}: {note}." for task in self.tasks for note in task.notes()]:
            lines += ["", "Calibrated on rows that the networks did not learn:", "", *notes]
        lines += ["", "Inputs: " + ", ".join(f"{c.name} ({c.kind})" for c in self.schema.columns) + "."]
        return "\n".join(lines) + "\n"

    def _size(self) -> str:
        """Return how many networks and trees take part, in words."""
        forests = [member for member in self._kept if isinstance(member, Forest)]
        n_networks, n_trees = len(self._order) - len(forests), sum(forest.n_trees for forest in forests)
        words = [f"{n_networks} networks, {self.n_parameters:,} parameters"] if n_networks else []
        words += [f"{len(forests)} forests of {n_trees:,} trees"] if forests else []
        return ", ".join(words)


@dataclass(frozen=True)
class _Trees:
    """The forests of a task that take part."""

    task: int
    """The task's place."""
    places: list[int]
    """The forests' places among the members."""
    forests: list[Forest]
    shares: Tensor
    """Of each forest in the task's answer, [K, 1, 1]; 0 where only offset networks need it."""


def _described(member: Trained | Forest) -> dict[str, Any]:
    """Return a member as the manifest has it: the spec of a network, or the task of a forest."""
    return {"forest": member.task} if isinstance(member, Forest) else member.spec.model_dump(mode="json")


def _installed(required: str) -> bool:
    """Return whether there is a distribution of that name, of "name==version"."""
    try:
        return bool(distribution(required.partition("==")[0]))
    except PackageNotFoundError:
        return False


def _member(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Trained | Forest:
    """Return a member of the manifest with its tensors."""
    if "forest" in entry:
        return Forest(entry["forest"], tensors)
    return Trained(NetworkSpec.model_validate(entry), tensors)


def _compared(against: dict[str, Any] | None) -> str:
    """Return what the test says against an opponent: "better: +0.0120 (+0.0040 to +0.0200) to its 0.9000"."""
    if against is None:
        return "-"
    gap, low, high = (against[key] for key in ("difference", "lower", "upper"))
    word = str(against["verdict"])
    if gap is None or word == "same":
        return word
    if (least := against.get("smallest")) is not None:
        word += f", could show {_figure(least)}"
    spread = "" if low is None or high is None else f" ({low:+.4f} to {high:+.4f})"
    return f"{word}: {gap:+.4f}{spread} to its {_figure(against['value'])}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
