"""How much memory training takes, told from a few images."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from pgmkit.learning.checkpoints import Part
from pgmkit.learning.ema import Average


class Activations:
    """Counts what autograd keeps for backward passes while the block lasts.

    Storages that several functions keep count once, and weights not at all. What lives but for a
    moment, such as gradients on their way, is not counted.

    Args:
        modules: whose weights and buffers do not count.

    Attributes:
        most: the largest number of bytes that were kept at one time.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.most = 0
        self._now = 0
        self._holders: Counter[int] = Counter()
        self._weights = {
            tensor.untyped_storage().data_ptr()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _keep(self, tensor: Tensor) -> "_Kept":
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._weights:
            return _Kept(tensor, lambda: None)
        self._now += 0 if self._holders[place] else size
        self._holders[place] += 1
        self.most = max(self.most, self._now)
        return _Kept(tensor, lambda: self._let_go(place, size))

    def _let_go(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        self._now -= 0 if self._holders[place] else size


class _Kept:
    """A tensor in the hands of autograd, and what to do when it is let go."""

    def __init__(self, tensor: Tensor, let_go: Callable[[], None]) -> None:
        self.tensor = tensor
        self._let_go = let_go

    def __del__(self) -> None:
        self._let_go()


def lasting_memory(parts: Mapping[str, Part]) -> dict[str, int]:
    """Returns the bytes that stay while something is trained, by what they are for.

    Args:
        parts: of a task; see `pgmkit.learning.Task`. Optimizers have their state once they have
            made a step.

    Returns:
        "weights" with buffers, "gradients", "optimizer" and "average".
    """
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    averages = [part.module for part in parts.values() if isinstance(part, Average)]
    states = [
        value
        for part in parts.values()
        if isinstance(part, torch.optim.Optimizer)
        for state in part.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    learned = [p for module in modules for p in module.parameters() if p.requires_grad]
    return {
        "weights": _bytes(_tensors(modules)),
        "gradients": _bytes(learned),
        "optimizer": _bytes(states),
        "average": _bytes(_tensors(averages)),
    }


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [t for module in modules for t in (*module.parameters(), *module.buffers())]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
