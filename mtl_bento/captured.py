"""A step of training on a GPU, captured once as a CUDA graph and replayed: its kernels are launched together.

Python launches the few hundred kernels of a step one by one, which takes ten times as long as a GPU takes to run them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Generator, Tensor

WARM = 3
"""Calls before the capture, in which libraries settle what they keep (torch, "CUDA semantics")."""


class Captured:
    """A function of tensors as a CUDA graph.

    The first calls run the function as it is. Then it is captured and replayed, if it can be: something in it, for
    instance another package's layer, may wait for the device. Then all calls run it as it is. What the host counts or
    draws is captured as it was then.

    Args:
        function: reads and writes tensors on the device only, its arguments always of the same shapes.
        generator: of the random numbers that it draws.
        renew: takes a generator that continues `generator`, should the capture fail, which spoils that one.
    """

    def __init__(self, function: Callable[..., None], generator: Generator, renew: Callable[[Generator], None]) -> None:
        self.function, self.generator, self.renew = function, generator, renew
        self.given: tuple[Tensor, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls, self.fails = 0, False

    def __call__(self, *given: Tensor) -> None:
        """Run the function on tensors; raises what it raises, out of memory too."""
        with torch.cuda.device(self.generator.device):
            self._called(given)

    def _called(self, given: tuple[Tensor, ...]) -> None:
        self.calls += 1
        if not self.given:
            self.given = tuple(value.clone() for value in given)
        else:
            for held, value in zip(self.given, given, strict=True):
                held.copy_(value)
        if self.calls > WARM and self.graph is None and not self.fails:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
        else:
            self._beside()

    def _beside(self) -> None:
        """Run the function on a stream of its own, as before a capture it must be."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.function(*self.given)
        current.wait_stream(side)

    def _capture(self) -> None:
        state, graph = self.generator.get_state(), torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph):
                self.function(*self.given)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture that failed fails too
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            self.fails = True
            renewed = Generator(self.generator.device)
            renewed.set_state(state)
            self.renew(renewed)
            warnings.warn(f"Steps are launched one kernel at a time: {cause}".split("\n")[0], stacklevel=2)
        else:
            self.graph = graph
