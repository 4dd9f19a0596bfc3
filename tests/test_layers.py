"""Stacked layers."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from mtl_bento.layers import ACTIVATIONS, Dropout, StackedLinear, narrowed, signs, uniform, zeros


def generators(n: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in range(n)]


def plain(linear: StackedLinear, k: int, m: int, fan_in: int, fan_out: int) -> nn.Linear:
    """Return the torch layer of member k's inner member m."""
    out = nn.Linear(fan_in, fan_out, bias=linear.bias is not None)
    out.weight.data = linear.weight[k, m, :fan_in, :fan_out].T.detach()
    if linear.bias is not None:
        out.bias.data = linear.bias[k, m, 0, :fan_out].detach()
    return out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inner", [1, 3])
def test_each_member_equals_torchs_linear_at_its_own_size(inner: int, bias: bool) -> None:
    sizes = [(4, 5), (2, 7), (4, 1)]
    fan_in, fan_out = zip(*sizes, strict=True)
    linear = StackedLinear(fan_in, fan_out, generators=generators(3), inner=inner, bias=bias)
    x = torch.randn(3, inner, 6, 4, generator=Generator().manual_seed(9))
    x[1, ..., 2:] = 0
    out = linear(x)
    assert out.shape == (3, inner, 6, 7)
    for k, (i, o) in enumerate(sizes):
        for m in range(inner):
            torch.testing.assert_close(out[k, m, :, :o], plain(linear, k, m, i, o)(x[k, m, :, :i]))
            assert not out[k, m, :, o:].any()


@pytest.mark.parametrize("inner", [1, 3])
def test_one_set_of_rows_counts_for_all_members(inner: int) -> None:
    linear = StackedLinear([4, 4], [5, 2], generators=generators(2), inner=inner)
    x = torch.randn(1, 1, 6, 4, generator=Generator().manual_seed(9))
    torch.testing.assert_close(linear(x), linear(x.expand(2, inner, 6, 4)))


def test_inner_members_share_weights_where_inner_is_1() -> None:
    linear = StackedLinear([4], [5], generators=generators(1))
    x = torch.randn(1, 3, 6, 4, generator=Generator().manual_seed(9))
    out = linear(x)
    for m in range(3):
        torch.testing.assert_close(out[0, m], plain(linear, 0, 0, 4, 5)(x[0, m]))


def test_no_rows_give_no_rows() -> None:
    # It raised: a view with -1 is ambiguous where there is nothing to view.
    for inner in (1, 3):
        linear = StackedLinear([4, 4], [5, 2], generators=generators(2), inner=inner)
        assert linear(torch.zeros(1, 1, 0, 4)).shape == (2, inner, 0, 5)


def test_parameters_are_padded_to_the_largest_member_or_further() -> None:
    assert StackedLinear([2, 3], [4, 1], generators=generators(2)).weight.shape == (2, 1, 3, 4)
    wider = StackedLinear([2, 3], [4, 1], generators=generators(2), padded=(5, 6))
    assert wider.weight.shape == (2, 1, 5, 6)
    assert wider.bias is not None
    assert wider.bias.shape == (2, 1, 1, 6)
    assert not wider.weight[0, :, 2:].any()
    assert not wider.weight[0, :, :, 4:].any()


def test_a_members_initial_weights_do_not_depend_on_its_neighbours() -> None:
    for sizes in ([(3, 2)], [(3, 2), (30, 20)]):
        fan_in, fan_out = zip(*sizes, strict=True)
        linear = StackedLinear(fan_in, fan_out, generators=generators(2)[: len(sizes)])
        draw = Generator().manual_seed(0)
        expected = (torch.rand(1, 3, 2, generator=draw) * 2 - 1) / 3**0.5
        torch.testing.assert_close(linear.weight[0, :, :3, :2], expected)


def test_biases_are_not_decayed() -> None:
    assert StackedLinear([2], [2], generators=generators(1)).undecayed == {"bias"}


def test_initialisers_draw_what_they_say() -> None:
    drawn = uniform(4)((1000,), Generator().manual_seed(0))
    assert drawn.abs().max() <= 0.5
    assert drawn.abs().max() > 0.49
    assert set(signs((100,), Generator().manual_seed(0)).tolist()) == {-1, 1}
    assert not zeros((3,), Generator()).any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_maps_0_to_0_which_padding_needs(name: str) -> None:
    assert ACTIVATIONS[name](torch.zeros(1)).item() == 0


def test_padding_gets_no_gradient() -> None:
    first = StackedLinear([3, 3], [4, 2], generators=generators(2))
    second = StackedLinear([4, 2], [2, 1], generators=generators(2))
    out: Tensor = second(ACTIVATIONS["silu"](first(torch.randn(2, 1, 5, 3, generator=Generator().manual_seed(9)))))
    out[0].square().sum().backward(retain_graph=True)
    out[1, ..., :1].square().sum().backward()
    for gradient, width in ((first.weight.grad, (3, 2)), (second.weight.grad, (2, 1))):
        assert gradient is not None
        assert not gradient[1, :, width[0] :].any()
        assert not gradient[1, :, :, width[1] :].any()
        assert gradient[1].any()


def test_dropout_does_nothing_in_evaluation_and_at_rate_0() -> None:
    x = torch.randn(2, 1, 4, 3, generator=Generator().manual_seed(0))
    assert torch.equal(Dropout([0.5, 0.0]).eval()(x), x)
    assert torch.equal(Dropout([0.0, 0.0])(x), x)


def test_dropout_drops_each_members_share_and_scales_the_rest() -> None:
    dropout = Dropout([0.25, 0.0, 0.5])
    dropout.generator = Generator().manual_seed(0)
    out = dropout(torch.ones(3, 2, 500, 100))
    assert out[0].unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out[1].unique().tolist() == [1]
    assert out[2].unique().tolist() == [0, 2]
    # 100,000 draws: five standard deviations of the share are 0.0068 and 0.0079.
    assert (out[0] == 0).double().mean().item() == pytest.approx(0.25, abs=0.007)
    assert (out[2] == 0).double().mean().item() == pytest.approx(0.5, abs=0.008)


def test_dropout_bits_come_from_the_generator_that_was_set() -> None:
    dropout, x = Dropout([0.5]), torch.ones(1, 1, 100, 7)
    outs = []
    for seed in (1, 1, 2):
        dropout.generator = Generator().manual_seed(seed)
        outs.append(dropout(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert not torch.equal(dropout(x), outs[2])  # the next step draws other bits


def test_dropout_bits_differ_between_rows_units_and_members() -> None:
    dropout = Dropout([0.5, 0.5])
    dropout.generator = Generator().manual_seed(0)
    kept = dropout(torch.ones(2, 1, 64, 64)) > 0
    flat = [kept[0].flatten(), kept[1].flatten(), kept[0].transpose(1, 2).flatten(), kept[0].roll(1, 1).flatten()]
    for other in flat[1:]:
        assert (flat[0] == other).double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_dropout_takes_every_rate_that_a_spec_allows() -> None:
    # 0.999 is 256 / 256 after rounding: it raised ZeroDivisionError.
    dropout = Dropout([0.999])
    dropout.generator = Generator().manual_seed(0)
    assert torch.isfinite(dropout(torch.ones(1, 1, 10, 10))).all()


def test_dropout_keeps_the_dtype() -> None:
    dropout = Dropout([0.5])
    dropout.generator = Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        assert dropout.to(dtype)(torch.ones(1, 1, 2, 2, dtype=dtype)).dtype == dtype


def test_no_rows_are_dropped_from_no_rows() -> None:
    dropout = Dropout([0.5])
    dropout.generator = Generator().manual_seed(0)
    assert dropout(torch.ones(1, 1, 0, 3)).shape == (1, 1, 0, 3)


def test_narrowed_changes_the_first_members_only() -> None:
    x = torch.ones(3, 2)
    assert narrowed(x, 2, lambda part: part * 2).tolist() == [[2, 2], [2, 2], [1, 1]]
    assert narrowed(x, 3, lambda part: part * 2).tolist() == [[2, 2]] * 3
