"""The attention trunk."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.trunks._base import TrunkSizes
from mtl_bento.trunks.attention import Attention, AttentionSpec, _angles, _normalised, _turned


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(7))


def test_padding_does_not_enter_the_mean_square() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 1, 4)
    out = _normalised(x, torch.tensor([1 / 2, 1 / 4]).view(2, 1, 1, 1))
    # The mean square of 3 and 4 is 12.5.
    expected = torch.tensor([[3 / 12.5**0.5, 4 / 12.5**0.5, 0, 0], [1, 1, 1, 1]]).view(2, 1, 1, 4)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    assert not _normalised(torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 1)).any()


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_turned_queries_and_keys_meet_by_their_distance_alone(grid: tuple[int, int] | None) -> None:
    angles = torch.view_as_complex(_angles(TrunkSizes(1, 1, 12, grid), 16))
    alike = random(2, 1, 1, 16).repeat(1, 12, 1, 1)  # everywhere the same query, and the same key
    query, key = _turned(alike, angles)[:, :, 0]
    scores = query @ key.T
    torch.testing.assert_close(query.norm(dim=-1), alike[0, :, 0].norm(dim=-1))
    # Two steps on: in a grid of four columns from (0, 0) to (0, 2), and from (1, 1) to (1, 3).
    torch.testing.assert_close(scores[0, 2], scores[5, 7])
    assert (scores[0, 2] - scores[0, 1]).abs() > 1e-3
    # From the end of a line of the grid to the start of the next is no single step.
    assert bool((scores[3, 4] - scores[0, 1]).abs() > 1e-3) == (grid is not None)


def test_a_layer_equals_torchs_attention_of_its_weights() -> None:
    specs = [AttentionSpec(width=8, shared_depth=1, head_size=4, dropout=0)]
    trunk = Attention(specs, TrunkSizes(5, 1, 6), generators(1)).double()
    layer = trunk.layers[0]
    x, mask = random(1, 3, 6, 8), torch.arange(6) < torch.tensor([[6], [3], [1]])
    turnless = torch.ones(6, 1, 2, dtype=torch.complex128)
    found = layer._attended(x, mask.view(3, 1, 1, 6), turnless)
    plain = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([part.weight[0, 0].T for part in layer.reads]))
        plain.in_proj_bias.zero_()
        plain.out_proj.weight.copy_(layer.writes.weight[0, 0].T)
        plain.out_proj.bias.copy_(layer.writes.bias[0, 0, 0])
    expected, _ = plain(x[0], x[0], x[0], key_padding_mask=~mask)
    torch.testing.assert_close(found[0], expected)


def test_a_position_that_is_not_real_changes_nothing_and_has_a_state_of_zeros() -> None:
    trunk = Attention([AttentionSpec(width=8, dropout=0)], TrunkSizes(5, 2, 6), generators(1)).double()
    features, mask = random(1, 2, 6, 5), (torch.arange(6) < torch.tensor([[4], [0]])).unsqueeze(0)
    first, second = trunk(features, mask)
    assert first is second
    changed = features.clone()
    changed[:, :, 4:] = 1000
    torch.testing.assert_close(trunk(changed, mask)[0], first)
    assert not first[0, 0, 0, 4:].any()
    assert not first[0, 0, 1].any()  # a row without positions
    assert first.isfinite().all()


@pytest.mark.parametrize("length", [1, 4])
def test_a_row_with_few_positions_is_what_it_is_in_a_shorter_trunk(length: int) -> None:
    specs = [AttentionSpec(width=8, dropout=0)]
    trunk = Attention(specs, TrunkSizes(5, 1, 6), generators(1)).double()
    shorter = Attention(specs, TrunkSizes(5, 1, length), generators(1)).double()
    weights = trunk.state_dict()
    shorter.load_state_dict({**weights, "places": weights["places"][:, :length]})
    features, mask = random(1, 3, 6, 5), torch.arange(6).expand(1, 3, 6) < length
    (state,), (own,) = trunk(features, mask), shorter(features[:, :, :length], mask[:, :, :length])
    torch.testing.assert_close(state[..., :length, :], own)


def test_every_position_sees_every_other_in_one_layer() -> None:
    trunk = Attention([AttentionSpec(width=8, shared_depth=1, dropout=0)], TrunkSizes(5, 1, 20), generators(1)).double()
    features, mask = random(1, 1, 20, 5), torch.ones(1, 1, 20, dtype=torch.bool)
    changed = features.clone()
    changed[0, 0, 0] += 1
    moved = (trunk(changed, mask)[0] - trunk(features, mask)[0]).abs().sum(-1)
    assert (moved > 1e-9).all()


def test_the_last_state_has_a_mean_square_of_one_at_every_real_position_however_deep() -> None:
    specs = [AttentionSpec(width=12, shared_depth=16, dropout=0), AttentionSpec(width=7, shared_depth=1, dropout=0)]
    trunk = Attention(specs, TrunkSizes(5, 1, 6), generators(2)).double()
    (state,) = trunk(random(1, 3, 6, 5), torch.ones(1, 3, 6, dtype=torch.bool))
    for k, width in enumerate((12, 7)):
        torch.testing.assert_close(
            state[k, ..., :width].square().mean(-1), torch.ones(1, 3, 6).double(), atol=1e-3, rtol=0
        )


def test_members_of_another_head_size_do_not_share_a_stack() -> None:
    assert AttentionSpec(head_size=8).stack_key() != AttentionSpec(head_size=16).stack_key()
    assert AttentionSpec(hidden=1).stack_key() != AttentionSpec(hidden=2).stack_key()
    assert AttentionSpec(width=40).stack_key() == AttentionSpec(width=64, shared_depth=3).stack_key()


def test_weight_decay_leaves_the_learned_places_alone() -> None:
    assert Attention([AttentionSpec()], TrunkSizes(5, 1, 6), generators(1)).undecayed == {"places"}
