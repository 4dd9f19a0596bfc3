"""A weighting that learns: its parameters are trained, stacked and restored like those of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from small import make_dataset, make_table, network_spec
from torch import Generator, Tensor

from mtl_bento.layers import zeros
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento.trunks.mlp import MLPSpec
from mtl_bento.weighting._base import WEIGHTINGS, Weighting, WeightingSpec


class LearnedSpec(WeightingSpec):
    """Homoscedastic uncertainty (Kendall et al., CVPR 2018), for this test."""

    kind: Literal["learned_in_test"] = "learned_in_test"


class Learned(Weighting[LearnedSpec]):
    """exp(-s) * loss + s, s learned by task."""

    log_variance: Tensor

    def __init__(self, specs: Sequence[LearnedSpec], tasks: Sequence[str]) -> None:
        super().__init__(specs, tasks)
        n = len(specs)
        self.stack("log_variance", [(len(tasks),)] * n, [zeros] * n, [Generator()] * n, decay=False)

    def forward(self, losses: Tensor) -> Tensor:
        return (torch.exp(-self.log_variance) * losses + self.log_variance).sum(-1)


def test_a_learned_weighting_is_trained_and_a_member_in_a_stack_equals_itself_alone(monkeypatch: object) -> None:
    monkeypatch.setitem(WEIGHTINGS._specs, "learned_in_test", LearnedSpec)  # type: ignore[attr-defined]
    monkeypatch.setitem(WEIGHTINGS._classes, LearnedSpec, Learned)  # type: ignore[attr-defined]
    _, dataset = make_dataset(make_table(200), dtype=torch.float64)
    training = TrainingSpec(batch_size=32, steps=32, lr=1e-2, weighting=LearnedSpec())
    members = tuple(
        Member(MemberSpec(network=network_spec(dataset, MLPSpec(width=w, dropout=0.0)), training=training), seed=w)
        for w in (8, 16)
    )
    stacked = advance(Stack(members, 0), dataset, 32)
    for k, member in enumerate(members):
        alone = advance(Stack((member,), 0), dataset, 32)
        name = "weighting.log_variance"
        together = stacked.states[k].tensors["data"][name]
        assert together.abs().max() > 0.01
        torch.testing.assert_close(together, alone.states[0].tensors["data"][name], rtol=0, atol=1e-12)
