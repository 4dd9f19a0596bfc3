"""Steps captured as CUDA graphs; on a machine without a GPU there is nothing to capture."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from mtl_bento.captured import WARM, Captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def generator() -> Generator:
    return Generator("cuda").manual_seed(5)


def drawn(function: object, values: Tensor, given: Tensor) -> list[float]:
    for value in given:
        function(value)  # type: ignore[operator]
    return values.tolist()  # type: ignore[no-any-return]


def test_calls_that_are_replayed_draw_what_calls_one_by_one_draw() -> None:
    given, results = torch.arange(8.0, device="cuda"), []
    for captured in (False, True):
        own, total = generator(), torch.zeros(3, device="cuda")

        def add(value: Tensor, own: Generator = own, total: Tensor = total) -> None:
            total.add_(value * torch.rand(3, device="cuda", generator=own))

        held = Captured(add, own, lambda _: None) if captured else add
        results.append(drawn(held, total, given))
        assert not captured or held.graph is not None  # type: ignore[union-attr]
    assert results[0] == results[1]


def test_a_function_that_waits_for_the_device_is_run_as_it_is_and_says_so() -> None:
    given, results = torch.arange(8.0, device="cuda"), []
    for captured in (False, True):
        holder, total = [generator()], torch.zeros(3, device="cuda")

        def add(value: Tensor, holder: list[Generator] = holder, total: Tensor = total) -> None:
            if value.item() >= 0:
                total.add_(value * torch.rand(3, device="cuda", generator=holder[0]))

        def renew(own: Generator, holder: list[Generator] = holder) -> None:
            holder[0] = own

        if not captured:
            results.append(drawn(add, total, given))
            continue
        held = Captured(add, holder[0], renew)
        with pytest.warns(UserWarning, match="launched one kernel at a time"):
            results.append(drawn(held, total, given))
        assert (held.graph, held.fails, held.calls) == (None, True, 8)
        assert held.calls > WARM
    assert results[0] == results[1]


def test_running_out_of_memory_in_a_capture_is_told() -> None:
    calls: list[int] = []

    def grow(value: Tensor) -> None:
        calls.append(1)
        value.add_(1)
        if len(calls) > WARM:
            raise torch.OutOfMemoryError("CUDA out of memory")

    held, value = Captured(grow, generator(), lambda _: None), torch.zeros((), device="cuda")
    for _ in range(WARM):
        held(value)
    with pytest.raises(torch.OutOfMemoryError):
        held(value)
