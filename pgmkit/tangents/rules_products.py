"""Rules of maps with weights, and of products of values that depend on latents."""

import string
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.tangents.convolutions import LIVE, Convolution
from pgmkit.tangents.dual import (
    Application,
    Dual,
    Rule,
    demand_rule,
    primal_of,
    rule_for,
    total,
)
from pgmkit.tangents.tape import map_values


def _push_linear(call: Application) -> Dual:
    value, weight = call.args[0], call.argument(1, "weight")
    if not call.only_dual(value):
        return _add_bias_tangents(call, _push_products(_without_bias(call)))
    dual = call.dual
    dual.demand(dual.primal.ndim > 1)
    weight = call.cast(weight, dual.tangents.dtype)
    return dual.like(call.primal, torch.nn.functional.linear(dual.tangents, weight))


def _push_convolution(call: Application) -> Dual:
    value, weight = call.args[0], call.argument(1, "weight")
    ndim = primal_of(weight).ndim
    if not call.only_dual(value):
        return _add_bias_tangents(call, _push_products(_without_bias(call)))
    dual = call.dual
    dual.demand(dual.primal.ndim == ndim)
    demand_rule(dual.primal.ndim == ndim)
    source, convolution = call.state.get("convolution", (None, None))
    if source is not weight:  # the same for all runs if it is a constant
        convolution = _convolution(call, call.cast(weight, dual.stored.dtype))
        call.state["convolution"] = (weight, convolution)
    if call.state.pop("calibrate", False):
        call.state["faster"] = convolution.faster_kernels(dual.stored, dual.live)
    if convolution.kernel in LIVE and dual.live is not None:
        return dual.like(call.primal, convolution(dual.stored, dual.live))
    return dual.like(call.primal, convolution(dual.tangents))


def _convolution(call: Application, weight: Tensor) -> Convolution:
    """Reads the arguments of a call."""
    dims = weight.ndim - 2
    transposed = "transpose" in call.name
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    places = {name: place for place, name in enumerate(("stride", "padding", *names), 3)}

    def option(name: str, default: int) -> Any:
        value = call.argument(places[name], name, default=default) if name in places else default
        if isinstance(value, str) or name == "groups":
            return value
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * dims if len(values) == 1 else values

    return Convolution(
        weight=weight,
        stride=option("stride", 1),
        padding=option("padding", 0),
        dilation=option("dilation", 1),
        output_padding=option("output_padding", 0),
        groups=option("groups", 1),
        transposed=transposed,
        kernel=call.state.get("kernel", "dense"),
    )


def _without_bias(call: Application) -> Application:
    args, kwargs = call.args, {key: v for key, v in call.kwargs.items() if key != "bias"}
    if len(args) > 2:
        args = (*args[:2], None, *args[3:])
    return replace(call, args=args, kwargs=kwargs)


def _add_bias_tangents(call: Application, product: Dual) -> Dual:
    bias = call.argument(2, "bias")
    tangents = product.tangents
    if isinstance(bias, Dual):
        bias.demand(False, "a bias that depends on latents")
        trailing = 0 if call.name == "linear" else product.primal.ndim - 2
        tangents = tangents + bias.tangents.reshape(len(tangents), 1, -1, *[1] * trailing)
    return product.like(call.primal, tangents)


def _push_matmul(call: Application) -> Dual:
    left, right = call.args[0], call.argument(1, "other", "mat2", "vec")
    if not call.dual.batched:
        return _push_products(call)
    parts = []
    for this, other, is_left in ((left, right, True), (right, left, False)):
        if isinstance(this, Dual):
            parts.append(_matmul_part(this, primal_of(other), is_left))
    return call.dual.like(call.primal, total(parts))


def _matmul_part(dual: Dual, other: Tensor, is_left: bool) -> Tensor:
    other = other.to(dual.tangents.dtype)
    ndim = dual.primal.ndim
    if other.ndim <= 2:
        # Rows of a matrix on the left count latents; on the right they are summed over.
        dual.demand(other.ndim < ndim or (is_left and ndim == 2))
        return dual.tangents @ other if is_left else other @ dual.tangents
    dual.demand(other.ndim == ndim)
    # einsum joins the directions with the rows or columns instead of copying the other factor.
    if is_left:
        return torch.einsum("bd...nk,b...km->bd...nm", dual.tangents, other)
    return torch.einsum("b...nk,bd...km->bd...nm", other, dual.tangents)


def _push_products(call: Application) -> Dual:
    """Any function that is linear in each of its arguments with tangents."""
    call.dual.demand(False, call.name)
    primals = [dual.primal for dual in call.duals]
    parts = []
    for index, dual in enumerate(call.duals):

        def push(tangents: Tensor, index: int = index) -> Any:
            values = [primal.to(tangents.dtype) for primal in primals]
            values[index] = tangents
            return _with_constants(call, tangents.dtype).with_duals(values)

        parts.append(torch.vmap(push)(dual.tangents))
    return call.dual.like(call.primal, total(parts))


def _with_constants(call: Application, dtype: torch.dtype) -> Application:
    """Returns the call with its constants in the type of the tangents."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return call.cast(leaf, dtype)
        return leaf

    args, kwargs = map_values(convert, (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def _push_einsum(call: Application) -> Dual:
    if not call.dual.batched:
        return _push_products(call)
    equation, operands = call.args[0], call.args[1:]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    held = isinstance(equation, str) and "->" in equation and "." not in equation
    call.dual.demand(held, "einsum")
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    latent = output[:1]
    direction = next(letter for letter in string.ascii_letters if letter not in equation)
    parts = []
    for index, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        if not isinstance(operand, Dual):
            continue
        operand.demand(bool(latent) and term[:1] == latent and latent not in term[1:], "einsum")
        values = [primal_of(other) for other in operands]
        values = [value.to(operand.tangents.dtype) for value in values]
        values[index] = operand.tangents
        pushed = [*terms[:index], latent + direction + term[1:], *terms[index + 1 :]]
        formula = f"{','.join(pushed)}->{latent}{direction}{output[1:]}"
        parts.append(torch.einsum(formula, *values))
    return call.dual.like(call.primal, total(parts))


PRODUCTS: dict[str, Rule] = {
    **rule_for("linear", _push_linear),
    **rule_for("conv1d conv2d conv_transpose1d conv_transpose2d", _push_convolution),
    **rule_for("matmul mm bmm mv", _push_matmul),
    **rule_for("einsum", _push_einsum),
}
