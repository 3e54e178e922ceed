"""A network that sees a batch in two halves at the same time, each on a thread of its own."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.machine import tensor_threads

Half = Callable[[int], Tensor]
_LARGE = 31 * 2**20
"""Bytes; the largest block that glibc learns from has 32 MiB."""


class Halves:
    """Runs a network on two halves of a batch, and back; on a CPU both at the same time.

    Two threads with operations of one thread each end with the same bytes on any number of cores,
    and do not stall where others are busy, as one operation on two threads does. Batch norms take
    the statistics of each half, and the mean of both for later.

    Args:
        network: in training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        # glibc learns from a large block that is freed to keep such blocks for the next steps,
        # where getting their pages anew would take a tenth of a step.
        torch.empty(_LARGE, dtype=torch.uint8)
        self.network = network
        self._twin = _twin_of(network)
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    def __call__(self, make: Half) -> tuple[Tensor, Tensor]:
        """Returns what the network makes of both halves, differentiable by its parameters.

        Args:
            make: the input of half 0 or 1; called on the thread of that half, and without
                gradients.
        """
        first, second = _InHalves.apply(self, make, *self._parameters)
        return first, second

    def forward(self, make: Half) -> list[Tensor]:
        """Returns the outputs of both halves, with their graphs."""
        networks = (self.network, self._twin)
        # Of these, autograd would complain, although nothing on the way back reads them.
        kept = [
            (a.data, b.data)
            for a, b in zip(self.network.buffers(), self._twin.buffers(), strict=True)
        ]
        for ours, theirs in kept:
            theirs.copy_(ours)

        def run(half: int) -> Tensor:
            with torch.no_grad():
                inputs = make(half)
            with torch.enable_grad():
                output: Tensor = networks[half](inputs)
            return output

        outputs = _both(run, self._parameters[0].device)
        for ours, theirs in kept:
            if ours.is_floating_point():
                ours.add_(theirs).div_(2)
        return outputs


class _InHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: Halves, make: Half, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.outputs, ctx.parameters = halves.forward(make), parameters
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        def run(half: int) -> Sequence[Tensor]:
            output, gradient = ctx.outputs[half], gradients[half]
            found: Sequence[Tensor] = torch.autograd.grad(output, ctx.parameters, gradient)
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
