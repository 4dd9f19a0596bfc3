"""What a run keeps of its networks on disk: one safetensors file each, its specs in the header, its bytes under a hash.

Two things are kept: trained members (a configuration that can be served), and a round on its way, whole stacks with
weights, moments and best looks, from which a killed search goes on as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mtl_bento.artifact import write_file
from mtl_bento.errors import RunError
from mtl_bento.network import NetworkSpec, Trained
from mtl_bento.training import Member, MemberSpec, MemberState, Stack

HEADER = "mtl_bento"
"""Where the header of a safetensors file holds ours."""


def save_members(path: Path, members: Sequence[Trained], info: dict[str, Any]) -> None:
    """Write trained members and what else is known of them (JSON), beside and renamed."""
    tensors = {f"{i}.{name}": tensor for i, m in enumerate(members) for name, tensor in m.state.items()}
    _write(path, tensors, {"specs": [m.spec.model_dump(mode="json") for m in members], "info": info})


def load_members(path: Path) -> tuple[list[Trained], dict[str, Any]]:
    """Return trained members and their info; raises RunError where the file is missing or damaged."""
    tensors, header = _read(path)
    by_member = _grouped(tensors)
    specs = [NetworkSpec.model_validate(spec) for spec in header["specs"]]
    return [Trained(spec, by_member.get(str(i), {})) for i, spec in enumerate(specs)], header["info"]


def save_round(path: Path, packed: Sequence[tuple[Sequence[int], Stack]], info: dict[str, Any]) -> None:
    """Write a round on its way: its stacks, the places of their members in the round, and what else is known (JSON)."""
    tensors: dict[str, Tensor] = {}
    stacks = []
    for s, (places, stack) in enumerate(packed):
        for k, state in enumerate(stack.states):
            for matrix, held in state.tensors.items():
                tensors |= {f"{s}/{k}/{matrix}.{name}": tensor for name, tensor in held.items()}
        stacks.append({"places": list(places), **_plain(stack)})
    _write(path, tensors, {"stacks": stacks, "info": info})


def load_round(path: Path) -> tuple[list[tuple[list[int], Stack]], dict[str, Any]]:
    """Return the stacks of a round and its info; raises RunError where the file is missing or damaged."""
    tensors, header = _read(path)
    by_matrix = _grouped(tensors)
    packed = []
    for s, data in enumerate(header["stacks"]):
        states = tuple(
            MemberState(
                {matrix: by_matrix[f"{s}/{k}/{matrix}"] for matrix in ("data", "first", "second", "best")},
                state["score"],
                state["losses"],
            )
            for k, state in enumerate(data["states"])
        )
        members = tuple(Member(MemberSpec.model_validate(m["spec"]), m["seed"], m["split"]) for m in data["members"])
        curve = tuple((step, losses) for step, losses in data["curve"])
        packed.append((data["places"], Stack(members, data["seed"], data["step"], states, curve)))
    return packed, header["info"]


def _plain(stack: Stack) -> dict[str, Any]:
    """Return a stack without its tensors, as JSON holds it."""
    return {
        "members": [{"spec": m.spec.model_dump(mode="json"), "seed": m.seed, "split": m.split} for m in stack.members],
        "seed": stack.seed,
        "step": stack.step,
        "states": [{"score": state.score, "losses": state.losses} for state in stack.states],
        "curve": [[step, losses] for step, losses in stack.curve],
    }


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return tensors by the part of their name before the first dot, under the rest of it."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps(header, ensure_ascii=False)
    metadata = {HEADER: text, "sha256": _digest(held, text)}
    write_file(path, safetensors.torch.save(held, metadata=metadata))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata["sha256"] != _digest(tensors, metadata[HEADER]):
            raise ValueError("its checksum differs")
        header: dict[str, Any] = json.loads(metadata[HEADER])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{path} is missing or damaged ({str(error).splitlines()[0]}). Put a whole copy in its place, or search "
            "anew with another --out; unless it is a trial's, it is also trained again where you remove it."
        ) from None
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()
