"""Pushes all latent directions through a network layer by layer.

Forward-mode autograd pushes tangents through any module, but it carries the primal along with every
tangent and its state is global to the process. For networks made of common layers there is a
shorter way: run the primal once, and send the tangents of all directions through each layer's
derivative as one batch. That uses plain tensor operations, so several threads can do it at once.
"""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


class UnsupportedModuleError(Exception):
    """The module has a part without a rule; the message names it."""


@dataclass
class _Dual:
    """A value with its tangents.

    Args:
        primal: (B, ...).
        tangents: (B or 1, D, ...) for D directions; 1 as long as they are the same for all latents.
    """

    primal: Tensor
    tangents: Tensor

    def linear(self, function: Callable[[Tensor], Tensor], primal: Tensor) -> "_Dual":
        """Applies a map that is linear in the tangents and works on a batch."""
        latents, directions = self.tangents.shape[:2]
        pushed = function(self.tangents.flatten(0, 1))
        return _Dual(primal, pushed.unflatten(0, (latents, directions)))


_LINEAR = (nn.Linear, _ConvNd)
_ELEMENTWISE = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.SiLU,
    nn.GELU,
    nn.Softplus,
    nn.Hardtanh,
    nn.Tanh,
    nn.Sigmoid,
)
_RESHAPING = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.Dropout,
    nn.Dropout2d,
)
"""Linear layers without weights; drop-out is the identity in eval mode."""

_RESHAPING_METHODS = ("reshape", "view", "flatten", "contiguous", "unflatten")
_ELEMENTWISE_FUNCTIONS = (torch.tanh, torch.sigmoid, torch.relu, nn.functional.relu)
_ELEMENTWISE_METHODS = ("tanh", "sigmoid", "relu")


class TangentProgram:
    """The Jacobian of a module as a program of plain tensor operations.

    Args:
        module: in eval mode; maps latents (B, M) to images.

    Raises:
        UnsupportedModuleError: the module cannot be traced, or has a part without a rule.
    """

    def __init__(self, module: nn.Module) -> None:
        try:
            self.graph = fx.Tracer().trace(module)
        except Exception as error:
            raise UnsupportedModuleError(f"cannot be traced: {error}") from error
        self.rules = {node: self._rule(node, module) for node in self.graph.nodes}

    @torch.no_grad()
    def push_forward(self, z: Tensor) -> Tensor:
        """Returns J·e for all M latent directions, (B, M, C·H·W), for latents z (B, M)."""
        directions = torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = _Dual(z, directions[None])
                continue
            arguments = fx.map_arg(node.args, lambda argument: values[argument])
            if node.op == "output":
                result = arguments[0]
                tangents: Tensor = result.tangents.flatten(2)
                return tangents.expand(len(z), -1, -1)
            values[node] = self.rules[node](*arguments)
            for used in node.all_input_nodes:
                if list(used.users)[-1] is node:
                    values[used] = None
        raise AssertionError("a traced module has an output")

    def _rule(self, node: fx.Node, root: nn.Module) -> Callable[..., Any]:
        if node.kwargs and node.op != "placeholder":
            raise UnsupportedModuleError(f"{node.format_node()} has keyword arguments")
        if node.op in ("placeholder", "output"):
            return lambda value: value
        if node.op == "call_module":
            return _module_rule(root.get_submodule(str(node.target)))
        if node.op == "call_function" and node.target is operator.getitem:
            return _index
        if node.op == "call_function" and node.target in _ELEMENTWISE_FUNCTIONS:
            return lambda dual: _elementwise(dual, node.target)  # type: ignore[arg-type]
        if node.op == "call_function" and node.target is operator.add:
            return _add
        if node.op == "call_method" and node.target in _ELEMENTWISE_METHODS:
            return lambda dual: _elementwise(dual, operator.methodcaller(str(node.target)))
        if node.op == "call_method" and node.target in _RESHAPING_METHODS:
            return lambda dual, *shape: _reshape(dual, str(node.target), shape)
        if node.op == "call_method" and node.target == "size":
            return lambda dual, *dim: dual.primal.size(*dim)
        if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
            return lambda dual, name: dual.primal.shape
        raise UnsupportedModuleError(f"there is no rule for {node.op} {node.target}")


def _module_rule(module: nn.Module) -> Callable[[_Dual], _Dual]:
    if isinstance(module, _LINEAR):
        without_bias = copy.copy(module)
        without_bias._parameters = {**module._parameters, "bias": None}
        return lambda dual: dual.linear(without_bias, module(dual.primal))
    if isinstance(module, _BatchNorm) and module.running_var is not None:
        return lambda dual: _batch_norm(dual, module)
    if isinstance(module, nn.ReLU):
        return _relu
    if isinstance(module, nn.Tanh):
        return _tanh
    if isinstance(module, _ELEMENTWISE):
        return lambda dual: _elementwise(dual, module)
    if isinstance(module, _RESHAPING):
        return lambda dual: dual.linear(module, module(dual.primal))
    raise UnsupportedModuleError(f"there is no rule for {type(module).__name__}")


def _batch_norm(dual: _Dual, norm: _BatchNorm) -> _Dual:
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps) ** -0.5
    if norm.weight is not None:
        scale = scale * norm.weight
    shape = (-1, *[1] * (dual.primal.ndim - 2))
    return _Dual(norm(dual.primal), dual.tangents * scale.reshape(shape))


def _relu(dual: _Dual) -> _Dual:
    return _scale(dual, dual.primal.relu(), (dual.primal > 0).to(dual.primal.dtype))


def _tanh(dual: _Dual) -> _Dual:
    value = dual.primal.tanh()
    return _scale(dual, value, 1 - value * value)


def _elementwise(dual: _Dual, function: Callable[[Tensor], Tensor]) -> _Dual:
    """Any function of single values: reverse mode gives all its derivatives in one pass."""
    with torch.enable_grad():
        leaf = dual.primal.detach().clone().requires_grad_()
        value = function(leaf * 1)  # a copy, since the function may work in place
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return _scale(dual, value.detach(), slope)


def _scale(dual: _Dual, primal: Tensor, slope: Tensor) -> _Dual:
    return _Dual(primal, dual.tangents * slope[:, None])


def _add(left: Any, right: Any) -> _Dual:
    if not isinstance(left, _Dual) or not isinstance(right, _Dual):
        dual, constant = (left, right) if isinstance(left, _Dual) else (right, left)
        return _Dual(dual.primal + constant, dual.tangents)
    return _Dual(left.primal + right.primal, left.tangents + right.tangents)


def _reshape(dual: _Dual, method: str, arguments: tuple[Any, ...]) -> _Dual:
    """Reshapes within each latent; the batch size, which may be among the arguments, is kept."""
    primal = getattr(dual.primal, method)(*arguments)
    if primal.shape[0] != dual.primal.shape[0]:
        raise UnsupportedModuleError(f"{method} mixes latents")
    shape = (*dual.tangents.shape[:2], *primal.shape[1:])
    return _Dual(primal, dual.tangents.reshape(shape))


def _index(value: Any, index: Any) -> Any:
    if not isinstance(value, _Dual):
        return value[index]
    if not isinstance(index, tuple) or index[0] not in (slice(None), Ellipsis):
        raise UnsupportedModuleError(f"the index {index!r} picks latents")
    if index[0] is Ellipsis:
        return _Dual(value.primal[index], value.tangents[index])
    return _Dual(value.primal[index], value.tangents[(slice(None), *index)])
