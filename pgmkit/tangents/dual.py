"""Values with their tangents, and the calls that rules push them through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgmkit.tangents.tape import map_values, values_of


class LatentsMoveError(Exception):
    """A call moves or mixes the dimension of the latents; one latent at a time may still do."""


@dataclass
class Dual:
    """A value with its tangents for D directions.

    Args:
        primal: (B, ...) if batched, else any shape.
        stored: tangents; if batched (B or 1, D, ...), 1 as long as they are the same for all
            latents; else (D, *primal.shape), for one latent whose dimension may be anywhere.
        batched: whether the first dimension of the primal counts latents.
        shared: whether another value may use the memory of the tangents, too.
        live: if given, the tangents are those stored where it is true and zero elsewhere, bool,
            shaped like the primal of batched latents. What comes behind a ReLU can be used without
            that ever being carried out.
        constant: whether the tangents depend on the directions only, not on the latents.
        spare: whether the current call may overwrite the tangents: they are not shared, and no
            later call needs them.

    Either way a dimension of the primal that does not count latents has the same number, counted
    from the end, in the tangents.
    """

    primal: Tensor
    stored: Tensor
    batched: bool = True
    shared: bool = True
    spare: bool = False
    live: Tensor | None = None
    constant: bool = False

    @property
    def tangents(self) -> Tensor:
        """The tangents, with those of dead units zero."""
        if self.live is not None:
            factors = self.live[:, None].to(self.stored.dtype)
            if not self.shared and len(self.stored) == len(factors):
                self.stored.mul_(factors)
            else:
                self.stored, self.shared = self.stored * factors, False
            self.live = None
        return self.stored

    @property
    def directions_axis(self) -> int:
        """Where the tangents count directions."""
        return 1 if self.batched else 0

    def like(self, primal: Tensor, tangents: Tensor) -> "Dual":
        """Returns another value in the same layout."""
        return Dual(primal, tangents, self.batched)

    def demand(self, held: bool, what: str = "it") -> None:
        """Raises LatentsMoveError if a batched value does not meet what a rule needs."""
        if self.batched and not held:
            raise LatentsMoveError(f"{what} moves or mixes latents")

    def demand_latents_first(self, primal: Tensor) -> None:
        """Raises LatentsMoveError unless a result still counts latents in its first dimension."""
        self.demand(primal.ndim > 0 and primal.shape[0] == self.primal.shape[0])

    def lift(self, value: Tensor, ndim: int | None = None) -> Tensor:
        """Makes a value broadcast against tangents as it does against a primal of `ndim` axes."""
        if value.is_floating_point():
            value = value.to(self.tangents.dtype)
        ndim = self.primal.ndim if ndim is None else ndim
        self.demand(value.ndim <= ndim)
        return value.unsqueeze(1) if self.batched and value.ndim == ndim else value

    def shape(self, primal_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of tangents for a primal of some shape."""
        if self.batched:
            return (*self.tangents.shape[:2], *primal_shape[1:])
        return (self.tangents.shape[0], *primal_shape)

    def widen(self, ndim: int) -> Tensor:
        """Returns the tangents for a primal that gains axes in front, as in broadcasting."""
        missing = ndim - self.primal.ndim
        self.demand(missing == 0)
        if missing == 0:
            return self.tangents
        return self.tangents.reshape(len(self.tangents), *[1] * missing, *self.primal.shape)

    def axis(self, dim: int) -> int:
        """Returns a dimension of the primal as it is in the tangents, counted from the end."""
        ndim = max(self.primal.ndim, 1)
        dim = dim % ndim
        self.demand(dim != 0)
        return dim - ndim

    def axes(self, dims: int | Sequence[int] | None) -> tuple[int, ...]:
        """Returns dimensions as they are in the tangents; None means all of them."""
        if dims is None or (isinstance(dims, Sequence) and not dims):
            dims = range(self.primal.ndim)
        elif isinstance(dims, int):
            dims = (dims,)
        return tuple(self.axis(dim) for dim in dims)

    def scaled(self, primal: Tensor, slope: Tensor) -> "Dual":
        """Multiplies the tangents with a slope of the shape of the primal, in place if it may."""
        slope = self.lift(slope, primal.ndim)
        tangents = self.widen(primal.ndim)
        if self.spare and np.broadcast_shapes(tangents.shape, slope.shape) == tangents.shape:
            return self.like(primal, tangents.mul_(slope))
        return self.like(primal, tangents * slope)

    def rows(self, primal: Tensor, function: Callable[[Tensor], Tensor]) -> "Dual":
        """Applies a linear map that works on a batch to all tangents at once."""
        pushed = function(self.tangents.flatten(0, 1))
        return self.like(primal, pushed.unflatten(0, self.tangents.shape[:2]))


def primal_of(value: Any) -> Any:
    """Returns a value without its tangents."""
    return value.primal if isinstance(value, Dual) else value


@dataclass
class Application:
    """One call with the values of this run.

    Args:
        name: of the rule.
        function: what is called.
        args: its arguments, duals among them.
        kwargs: its keyword arguments, duals among them.
        cast: returns a weight in another type, cast once for all runs.
        state: what the rule keeps from one run to the next.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cast: Callable[[Tensor, torch.dtype], Tensor]
    state: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def duals(self) -> list[Dual]:
        """The arguments with tangents."""
        return values_of(Dual, (self.args, self.kwargs))

    @property
    def dual(self) -> Dual:
        """The first argument with tangents."""
        first: Dual = self.duals[0]
        return first

    @cached_property
    def primal(self) -> Any:
        """What the call returns without tangents."""
        args, kwargs = map_values(primal_of, (self.args, self.kwargs))
        return self.function(*args, **kwargs)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """Returns an argument that is given by its position or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def only_dual(self, value: Any) -> bool:
        """Whether a value is the one argument with tangents."""
        return isinstance(value, Dual) and len(self.duals) == 1

    def with_duals(self, values: Sequence[Any]) -> Any:
        """Calls the function with other values in the place of the arguments with tangents."""
        remaining = iter(values)
        args, kwargs = map_values(
            lambda leaf: next(remaining) if isinstance(leaf, Dual) else leaf,
            (self.args, self.kwargs),
        )
        return self.function(*args, **kwargs)


Rule = Callable[[Application], Any]
"""Pushes the tangents of a call."""


class NoRuleError(Exception):
    """A rule does not cover these arguments; the generic way may."""


def demand_rule(held: bool) -> None:
    """Raises NoRuleError unless a rule covers its arguments."""
    if not held:
        raise NoRuleError


def rule_for(names: str, rule: Rule) -> dict[str, Rule]:
    """Returns the entries of a table of rules for some names."""
    return dict.fromkeys(names.split(), rule)


def of_first(rule: Rule) -> Rule:
    """Returns a rule for functions whose other arguments lend a type, device or shape alone."""

    def push(call: Application) -> Any:
        return rule(call) if isinstance(call.args[0], Dual) else call.primal

    return push


def total(parts: list[Tensor]) -> Tensor:
    """Returns the sum of parts that broadcast."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
