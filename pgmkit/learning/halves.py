"""A network that sees a batch in two halves at the same time, each on a thread of its own."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.learning.recorded import recorded
from pgmkit.machine import tensor_threads

Half = Callable[[int], Tensor]
_LARGE = 31 * 2**20
"""Bytes; the largest block that glibc learns from has 32 MiB."""


class Halves:
    """Runs a network on two halves of a batch, and back; on a CPU both at the same time.

    Two threads with operations of one thread each end with the same bytes on any number of cores,
    and do not stall where others are busy, as one operation on two threads does. On CUDA both
    halves are one graph, recorded when their shapes are first seen, since to launch the kernels of
    a small network one by one takes longer than they do. Batch norms take the statistics of each
    half, and the mean of both for later.

    Args:
        network: in training mode; on CUDA its weights and buffers stay where they are in memory.
    """

    def __init__(self, network: nn.Module) -> None:
        # glibc learns from a large block that is freed to keep such blocks for the next steps,
        # where getting their pages anew would take a tenth of a step.
        torch.empty(_LARGE, dtype=torch.uint8)
        self.network = network
        self.twin = _twin_of(network)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._recorded: dict[tuple[torch.Size, ...], Callable[..., tuple[Tensor, Tensor]]] = {}

    def __call__(self, make: Half) -> tuple[Tensor, Tensor]:
        """Returns what the network makes of both halves, differentiable by its parameters.

        Args:
            make: the input of half 0 or 1; called on the thread of that half, and without
                gradients.
        """
        if self._parameters[0].is_cuda:
            with torch.no_grad():
                inputs = make(0), make(1)
            shapes = inputs[0].shape, inputs[1].shape
            if shapes not in self._recorded:
                self._recorded[shapes] = recorded(_Pair(self), inputs)
            return self._recorded[shapes](*inputs)
        first, second = _InHalves.apply(self, make, *self._parameters)
        return first, second

    def forward(self, make: Half) -> list[Tensor]:
        """Returns the outputs of both halves, with their graphs."""
        networks = (self.network, self.twin)

        def run(half: int) -> Tensor:
            with torch.no_grad():
                inputs = make(half)
            with torch.enable_grad():
                output: Tensor = networks[half](inputs)
            return output

        with self.averaged():
            return _both(run, self._parameters[0].device)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives both networks the same buffers, and then ours the mean of both."""
        # Of these, autograd would complain, although nothing on the way back reads them.
        kept = [
            (a.data, b.data)
            for a, b in zip(self.network.buffers(), self.twin.buffers(), strict=True)
        ]
        for ours, theirs in kept:
            theirs.copy_(ours)
        yield
        for ours, theirs in kept:
            if ours.is_floating_point():
                ours.add_(theirs).div_(2)


class _Pair(nn.Module):
    """Both halves as one module, for the parameters that learn; those of both are the same."""

    def __init__(self, halves: Halves) -> None:
        super().__init__()
        self.network, self.twin = halves.network, halves.twin
        self._averaged = halves.averaged

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        with self._averaged():
            return self.network(first), self.twin(second)


class _InHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: Halves, make: Half, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.outputs, ctx.parameters = halves.forward(make), parameters
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        def run(half: int) -> Sequence[Tensor]:
            # Of a scalar: handed the gradient of a tensor, torch imports its compiler to compare
            # shapes, and that takes a second.
            with torch.enable_grad():
                pulled = (ctx.outputs[half] * gradients[half]).sum()
            found: Sequence[Tensor] = torch.autograd.grad(pulled, ctx.parameters)
            return found

        first, second = _both(run, ctx.parameters[0].device)
        return None, None, *(one + other for one, other in zip(first, second, strict=True))


def _both(run: Callable[[int], Any], device: torch.device) -> list[Any]:
    """Returns what `run` makes of 0 and 1."""
    if device.type != "cpu":
        return [run(0), run(1)]
    with (
        tensor_threads(1),
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as other,
    ):
        second = other.submit(run, 1)
        return [run(0), second.result()]


def _twin_of(network: nn.Module) -> nn.Module:
    """Returns a copy with the same parameters, but buffers of its own."""
    known: dict[int, Any] = {id(parameter): parameter for parameter in network.parameters()}
    return copy.deepcopy(network, known)
