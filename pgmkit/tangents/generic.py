"""Pushes tangents through a call that has no rule, by automatic differentiation of that call."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import first_line
from pgmkit.machine import is_out_of_memory
from pgmkit.tangents.dual import Application, Dual, total
from pgmkit.tangents.tape import UnsupportedModuleError, map_values

FORWARD_MODE = threading.Lock()
"""Forward-mode autograd keeps its level in a global of torch: one thread at a time."""


def push_generic(call: Application) -> Any:
    """Pushes tangents through any call, by forward mode or else by reverse mode.

    Latents are taken to be independent, which the program checks.

    Raises:
        UnsupportedModuleError: the call can be differentiated neither way.
    """
    pushed: tuple[Tensor, ...] = ()
    reasons = []
    outputs = _float_outputs(call.primal)
    for output in outputs:
        call.dual.demand_latents_first(output)
    ways = (_forward_mode, _double_reverse_mode, _reverse_mode) if outputs else ()
    for way in ways:
        try:
            pushed = way(call)
            break
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reasons.append(first_line(error))
    else:
        if outputs:
            raise UnsupportedModuleError(
                f"{call.name} cannot be differentiated ({'; '.join(reasons)})"
            )
    remaining = iter(pushed)
    return map_values(
        lambda leaf: call.dual.like(leaf, next(remaining)) if _is_float(leaf) else leaf,
        call.primal,
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _float_outputs(result: Any) -> tuple[Tensor, ...]:
    outputs: list[Tensor] = []
    map_values(lambda leaf: outputs.append(leaf) if _is_float(leaf) else None, result)
    return tuple(outputs)


def _function(call: Application) -> Callable[..., tuple[Tensor, ...]]:
    """Returns the call as a function of its differentiable arguments alone."""
    return lambda *primals: _float_outputs(call.with_duals(primals))


def _full_tangents(dual: Dual) -> Tensor:
    """Returns tangents in the type of the primal, one set for every latent."""
    tangents = dual.tangents.to(dual.primal.dtype)
    if dual.batched:
        tangents = tangents.expand(len(dual.primal), *tangents.shape[1:])
    return tangents


def _forward_mode(call: Application) -> tuple[Tensor, ...]:
    function = _function(call)
    primals = tuple(dual.primal for dual in call.duals)

    def push(*tangents: Tensor) -> tuple[Tensor, ...]:
        pushed: tuple[Tensor, ...] = torch.func.jvp(function, primals, tangents)[1]
        return pushed

    axis = call.dual.directions_axis
    with FORWARD_MODE:
        result: tuple[Tensor, ...] = torch.func.vmap(push, in_dims=axis, out_dims=axis)(
            *map(_full_tangents, call.duals)
        )
    return result


def _double_reverse_mode(call: Application) -> tuple[Tensor, ...]:
    """Pulls back Jᵀu is linear in u; its own pull-back of the tangents is J times them."""
    with torch.enable_grad():
        leaves = [dual.primal.detach().clone().requires_grad_() for dual in call.duals]
        outputs = _function(call)(*leaves)
        weights = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        pulled = torch.autograd.grad(outputs, leaves, weights, create_graph=True)
    axis = call.dual.directions_axis
    full = [_full_tangents(dual).unbind(axis) for dual in call.duals]
    pushed = [
        torch.autograd.grad(pulled, weights, direction, retain_graph=True)
        for direction in zip(*full, strict=True)
    ]
    return tuple(torch.stack(part, dim=axis) for part in zip(*pushed, strict=True))


def _reverse_mode(call: Application) -> tuple[Tensor, ...]:
    """Pulls back one row of the Jacobian after the other."""
    with torch.enable_grad():
        leaves = [dual.primal.detach().clone().requires_grad_() for dual in call.duals]
        outputs = _function(call)(*leaves)
    axis = call.dual.directions_axis
    full = [_full_tangents(dual).flatten(axis + 1) for dual in call.duals]
    result = []
    for output in outputs:
        rows = []
        latents = len(output) if call.dual.batched else 1
        for index in range(output.numel() // latents):
            row = torch.zeros_like(output).reshape(latents, -1)
            row[:, index] = 1
            pulled = torch.autograd.grad(
                output, leaves, row.view_as(output), retain_graph=True, materialize_grads=True
            )
            parts = [
                (part * gradient.reshape(latents, -1)[:, None]).sum(-1)
                if call.dual.batched
                else part @ gradient.flatten()
                for part, gradient in zip(full, pulled, strict=True)
            ]
            rows.append(total(parts))
        shape = output.shape[1:] if call.dual.batched else output.shape
        stacked = torch.stack(rows, dim=-1)
        result.append(stacked.reshape(*stacked.shape[:-1], *shape))
    return tuple(result)
