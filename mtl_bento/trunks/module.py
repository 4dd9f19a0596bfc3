"""An ordinary torch module as a trunk: a copy a member, looped over. Slower than a stack, under the same contract.

class MySpec(ModuleTrunkSpec):
    kind: Literal["mine"] = "mine"

    def module(self, n_features: int) -> nn.Module:        # rows [B, n_features] -> states [B, self.width]
        return nn.Sequential(nn.Linear(n_features, self.width), nn.ReLU())

TRUNKS.register(MySpec)(ModuleTrunk)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from mtl_bento.errors import SpecError
from mtl_bento.layers import PerMember, Random
from mtl_bento.trunks._base import Trunk, TrunkSizes, TrunkSpec


class ModuleTrunkSpec(TrunkSpec):
    """A trunk whose network is an ordinary module; subclass it, give it a `kind` and write `module`."""

    @abstractmethod
    def module(self, n_features: int) -> nn.Module:
        """Return a module from features [B, F] to states [B, width]."""


class ModuleTrunk(Trunk[ModuleTrunkSpec], Random):
    """K ordinary modules, looped over."""

    def __init__(self, specs: Sequence[ModuleTrunkSpec], sizes: TrunkSizes, generators: Sequence[Generator]) -> None:
        super().__init__(specs, sizes, generators)
        self.modules_of_members = PerMember(
            _seeded(spec, sizes.n_features, generator) for spec, generator in zip(specs, generators, strict=True)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """features [K or 1, B, F] -> T of [K, 1, B, D]; narrower members' states are padded with zeros."""
        members = features.expand(len(self.specs), -1, -1)
        with self._drawing(features.device):
            states = [module(x) for module, x in zip(self.modules_of_members, members, strict=True)]
        for spec, state in zip(self.specs, states, strict=True):
            if state.shape[-1] != spec.width:
                raise SpecError(f"Trunk {spec.kind!r}: its module answers {state.shape[-1]} numbers, not {spec.width}.")
        widest = max(self.widths)
        padded = [nn.functional.pad(state, (0, widest - state.shape[-1])) for state in states]
        return [torch.stack(padded).unsqueeze(1)] * self.sizes.n_tasks

    @contextmanager
    def _drawing(self, device: torch.device) -> Iterator[None]:
        """Let modules that draw from the global generator (nn.Dropout) draw what this stack's own seeds."""
        if not self.training or self.generator is None:
            yield
            return
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed = torch.randint(2**62, (), generator=self.generator, device=device)
            torch.manual_seed(int(seed))
            yield


def _seeded(spec: ModuleTrunkSpec, n_features: int, generator: Generator) -> nn.Module:
    """Return the member's module, its initial weights drawn from the member's own generator."""
    with torch.random.fork_rng(devices=[]):  # an ordinary module draws from the global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        module = spec.module(n_features)
    if next(module.buffers(), None) is not None:
        raise SpecError(
            f"Trunk {spec.kind!r}: its module has buffers (running statistics?), which members cannot keep; "
            "use parameters only (LayerNorm instead of BatchNorm)."
        )
    return module
