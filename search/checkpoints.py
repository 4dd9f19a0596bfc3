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

import numpy as np
import safetensors
from torch import Tensor

from mtl_bento.artifact import write_file
from mtl_bento.errors import RunError
from mtl_bento.training import Learned, Member, MemberState, Stack

HEADER = "mtl_bento"
"""Where the header of a safetensors file holds ours."""
MATRICES = ("data", "first", "second", "best")
"""What a member in training is, each by parameter name."""


def save_members(path: Path, members: Sequence[Learned], info: dict[str, Any]) -> None:
    """Write trained members and what else is known of them (JSON), beside and renamed."""
    tensors = {f"{i}.{name}": tensor for i, m in enumerate(members) for name, tensor in m.state.items()}
    held = [{**m.member.plain(), "step": m.step} for m in members]
    write(path, tensors, {"members": held, "info": info})


def load_members(path: Path) -> tuple[list[Learned], dict[str, Any]]:
    """Return trained members and their info; raises RunError where the file is missing or damaged."""
    tensors, header = read(path)
    by_member = grouped(tensors)
    try:
        held = [(Member.of(data), data["step"]) for data in header["members"]]
    except KeyError:
        raise RunError(f"{path} is of another version of mtl-bento; search again with another --out.") from None
    found = [Learned(m.spec.network, by_member.get(str(i), {}), m, step) for i, (m, step) in enumerate(held)]
    return found, header["info"]


def save_round(path: Path, packed: Sequence[tuple[Sequence[int], Stack]], info: dict[str, Any]) -> None:
    """Write a round on its way: its stacks, the places of their members in the round, and what else is known (JSON).

    Of a stack at the end of its budget only the best looks: nobody trains it further.
    """
    tensors: dict[str, Tensor] = {}
    stacks = []
    for s, (places, stack) in enumerate(packed):
        matrices = ("best",) if stack.step == stack.members[0].spec.training.steps else MATRICES
        for k, state in enumerate(stack.states):
            for matrix in matrices:
                tensors |= {f"{s}/{k}/{matrix}.{name}": held for name, held in state.tensors[matrix].items()}
        stacks.append({"places": list(places), **_plain(stack)})
    write(path, tensors, {"stacks": stacks, "info": info})


def load_round(path: Path) -> tuple[list[tuple[list[int], Stack]], dict[str, Any]]:
    """Return the stacks of a round and its info; raises RunError where the file is missing or damaged."""
    tensors, header = read(path)
    by_matrix = grouped(tensors)
    packed = []
    for s, data in enumerate(header["stacks"]):
        states = tuple(
            MemberState(
                {matrix: held for matrix in MATRICES if (held := by_matrix.get(f"{s}/{k}/{matrix}"))},
                state["score"],
                state["losses"],
                state["step"],
            )
            for k, state in enumerate(data["states"])
        )
        members = tuple(map(Member.of, data["members"]))
        curve = tuple((step, losses) for step, losses in data["curve"])
        packed.append((data["places"], Stack(members, data["seed"], data["step"], states, curve)))
    return packed, header["info"]


def _plain(stack: Stack) -> dict[str, Any]:
    """Return a stack without its tensors, as JSON holds it."""
    return {
        "members": [member.plain() for member in stack.members],
        "seed": stack.seed,
        "step": stack.step,
        "states": [{"score": state.score, "losses": state.losses, "step": state.step} for state in stack.states],
        "curve": [[step, losses] for step, losses in stack.curve],
    }


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return tensors by the part of their name before the first dot, under the rest of it."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write a safetensors file from the tensors where they lie: the library would copy them twice, one by one."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    # Wide numbers first, as the library does: every tensor then begins at a multiple of its item's size.
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    text = json.dumps(header, ensure_ascii=False)
    head = _head(arrays, {HEADER: text, "sha256": _digest(arrays, text)})
    write_file(path, head, *(array.data for array in arrays.values()))


def _head(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Return what a safetensors file begins with: the length of its header in 8 bytes, and its header (JSON)."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        entries[name] = {"dtype": _dtype(array), "shape": array.shape, "data_offsets": (start, end)}
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _dtype(array: np.ndarray) -> str:
    """Return what safetensors calls a type of numbers."""
    kind = array.dtype.kind
    return "BOOL" if kind == "b" else f"{kind.upper()}{array.itemsize * 8}"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a safetensors file; raises RunError where it is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if metadata["sha256"] != _digest(arrays, metadata[HEADER]):
            raise ValueError("its checksum differs")
        header: dict[str, Any] = json.loads(metadata[HEADER])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{path} is missing or damaged ({str(error).splitlines()[0]}). Put a whole copy in its place, or search "
            "anew with another --out; unless it is a trial's, it is also trained again where you remove it."
        ) from None
    return tensors, header


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """Return a hash of everything that a file says, whatever the order of its tensors: 64 hexadecimal digits."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {_dtype(array)} {array.shape}".encode())
        sha.update(array.data)
    return sha.hexdigest()
