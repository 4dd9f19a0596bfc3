"""Trained members on disk: one safetensors file a configuration, its specs and losses in the file's own header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from mtl_bento.artifact import write_file
from mtl_bento.errors import RunError
from mtl_bento.network import NetworkSpec, Trained


def save_members(path: Path, members: Sequence[Trained], info: dict[str, Any]) -> None:
    """Write trained members and what else is known of them (JSON), beside and renamed."""
    tensors = {f"{i}.{name}": t.contiguous().cpu() for i, m in enumerate(members) for name, t in m.state.items()}
    header = {"specs": [m.spec.model_dump(mode="json") for m in members], "info": info}
    write_file(path, safetensors.torch.save(tensors, metadata={"mtl_bento": json.dumps(header, ensure_ascii=False)}))


def load_members(path: Path) -> tuple[list[Trained], dict[str, Any]]:
    """Return trained members and their info; raises RunError where the file is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["mtl_bento"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        raise RunError(
            f"{path} is missing or damaged; remove the run folder, or search again with another --out."
        ) from None
    members = []
    for i, spec in enumerate(header["specs"]):
        own = {name.partition(".")[2]: t for name, t in tensors.items() if name.partition(".")[0] == str(i)}
        members.append(Trained(NetworkSpec.model_validate(spec), own))
    return members, header["info"]
