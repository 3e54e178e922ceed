"""What is written down of a module: calls of torch functions, and where their values go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class UnsupportedModuleError(Exception):
    """The module cannot be differentiated layer by layer; the message says why."""


@dataclass(frozen=True)
class Slot:
    """Stands for a value that depends on the latents."""

    number: int


@dataclass
class Call:
    """One call of a torch function without side effects.

    Args:
        name: the bare name, such as "add" for `torch.add`, `x.add_`, `x += y` and `y + x`.
        function: what is called; never an in-place variant.
        args: its arguments, slots among them.
        kwargs: its keyword arguments, slots among them.
        result: a slot, or a tuple of slots and other values.
        differentiable: False inside `torch.no_grad()`.
        last_uses: the slots that no later call needs.
        state: what the rule keeps from one run to the next.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    differentiable: bool = True
    last_uses: list[Slot] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tape:
    """The calls of a module for latents of one shape.

    Args:
        calls: in order; slot 0 holds the latents.
        output: the slot of the images.
        size: the number of slots.
        data_dependent: whether the calls are good for these latents only, because the module looked
            at values to decide what to do.
    """

    calls: list[Call]
    output: Slot
    size: int
    data_dependent: bool
    _casts: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a tensor in another type; a constant of the tape is cast once."""
        if tensor.dtype == dtype:
            return tensor
        if id(tensor) not in self._constants:
            return tensor.to(dtype)
        key = (id(tensor), dtype)
        if key not in self._casts:
            self._casts[key] = tensor.to(dtype)
        return self._casts[key]

    @cached_property
    def _constants(self) -> frozenset[int]:
        arguments = [(call.args, call.kwargs) for call in self.calls]
        return frozenset(id(tensor) for tensor in values_of(Tensor, arguments))


def map_values(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to every leaf of nested tuples, lists, dicts and slices."""
    if isinstance(value, slice):
        parts = (map_values(function, part) for part in (value.start, value.stop, value.step))
        return slice(*parts)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(map_values(function, part) for part in value)
    if isinstance(value, list):
        return [map_values(function, part) for part in value]
    if isinstance(value, dict):
        return {key: map_values(function, part) for key, part in value.items()}
    return function(value)


def values_of(kind: type | tuple[type, ...], value: Any) -> list[Any]:
    """Returns all leaves of a kind in nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_values(lambda leaf: found.append(leaf) if isinstance(leaf, kind) else None, value)
    return found


def note_last_uses(calls: list[Call], output: Slot) -> None:
    """Fills in the `last_uses` of all calls."""
    seen = {output}
    for call in reversed(calls):
        results = set(values_of(Slot, (call.result,)))
        used = set(values_of(Slot, (call.args, call.kwargs))) | results
        call.last_uses = sorted(used - seen, key=lambda slot: slot.number)
        seen |= used
