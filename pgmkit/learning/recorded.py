"""Work on CUDA that is recorded as a graph, and launched at once from then on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def recorded(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Returns a module on CUDA, recorded forward and backward, which takes inputs of these shapes.

    What it returns and the gradients of its parameters are overwritten by the next call. While it
    is recorded it runs a few times, of which its buffers keep nothing.

    Args:
        module: reads nothing but tensors that stay in their place; all its parameters learn.
        inputs: what it takes, without gradients.
    """
    kept = [buffer.clone() for buffer in module.buffers()]
    run: Callable[..., Any] = torch.cuda.make_graphed_callables(
        module, tuple(torch.clone(x) for x in inputs)
    )
    for buffer, before in zip(module.buffers(), kept, strict=True):
        buffer.copy_(before)
    return run


class Recorded:
    """A function of nothing that changes tensors in their place; on CUDA it is recorded once.

    Args:
        function: without gradients.
        device: of the tensors.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.function, self.device = function, device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Calls the function."""
        if self.device.type != "cuda":
            self.function()
        elif self._graph is not None:
            self._graph.replay()
        else:
            self._begin()

    def _begin(self) -> None:
        """Calls the function as it is, and records it."""
        here, other = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        other.wait_stream(here)
        with torch.cuda.stream(other):
            self.function()
        here.wait_stream(other)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.function()
