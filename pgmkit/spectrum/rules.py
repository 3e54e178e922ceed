"""The derivatives of torch functions: how each pushes tangents forward.

Most are one of a few kinds. A linear map sends tangents where it sends values; a function of single
values scales them by a slope that one reverse pass gives; a product follows the product rule; a
selection gathers what was selected. `RULES` says which function is of which kind.
"""

import math
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.spectrum.convolution import Convolution, convolve_tangents
from pgmkit.spectrum.dual import Application, Dual, primal_of
from pgmkit.spectrum.recording import UnsupportedModuleError, map_values

Rule = Callable[[Application], Any]


class NoRuleError(Exception):
    """A rule does not cover these arguments; the generic way may."""


def demand_rule(held: bool) -> None:
    """Raises NoRuleError unless a rule covers its arguments."""
    if not held:
        raise NoRuleError


def _push_elementwise(call: Application) -> Dual:
    """Any function of single values, with broadcasting: reverse mode gives all slopes at once."""
    primal: Tensor = call.primal
    call.dual.demand_latents_first(primal)
    wide = [dual.widen(primal.ndim) for dual in call.duals]
    with torch.enable_grad():
        leaves = [
            dual.primal.detach().expand(primal.shape).clone().requires_grad_()
            for dual in call.duals
        ]
        value = call.with_duals(leaves)
        slopes = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    if len(wide) == 1 and call.dual.primal.shape == primal.shape:
        return call.dual.scaled(primal, slopes[0])
    pairs = zip(call.duals, wide, slopes, strict=True)
    parts = [tangents * dual.lift(slope, primal.ndim) for dual, tangents, slope in pairs]
    return call.dual.like(primal, _sum(parts))


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _push_relu(call: Application) -> Dual:
    dual = call.dual
    return dual.scaled(call.primal, (dual.primal > 0).to(dual.tangents.dtype))


def _push_tanh(call: Application) -> Dual:
    return call.dual.scaled(call.primal, 1 - call.primal * call.primal)


def _push_sigmoid(call: Application) -> Dual:
    return call.dual.scaled(call.primal, call.primal * (1 - call.primal))


def _push_add(call: Application) -> Dual:
    return _add(call, 1)


def _push_sub(call: Application) -> Dual:
    return _add(call, -1)


def _add(call: Application, sign: int) -> Dual:
    left, right = call.args[0], call.argument(1, "other")
    factor = sign * call.kwargs.get("alpha", 1)
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    if isinstance(left, Dual) and isinstance(right, Dual):
        wide, other = left.widen(primal.ndim), right.widen(primal.ndim)
        if left.spare and torch.broadcast_shapes(wide.shape, other.shape) == wide.shape:
            return dual.like(primal, wide.add_(other, alpha=factor))
        return dual.like(primal, torch.add(wide, other, alpha=factor))
    tangents = dual.widen(primal.ndim)
    if isinstance(right, Dual) and factor != 1:
        tangents = tangents * factor
    return dual.like(primal, tangents.expand(dual.shape(primal.shape)))


def _push_mul(call: Application) -> Dual:
    left, right = call.args[0], call.argument(1, "other")
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    if isinstance(left, Dual) and isinstance(right, Dual):
        parts = [
            one.widen(primal.ndim) * one.lift(other.primal, primal.ndim)
            for one, other in ((left, right), (right, left))
        ]
        return dual.like(primal, _sum(parts))
    factor = right if isinstance(left, Dual) else left
    if isinstance(factor, Tensor):
        return dual.scaled(primal, factor)
    return dual.like(primal, dual.tangents * factor)


def _push_div(call: Application) -> Dual:
    left, right = call.args[0], call.argument(1, "other")
    if isinstance(right, Dual) or call.kwargs.get("rounding_mode"):
        return _push_elementwise(call)
    call.dual.demand_latents_first(call.primal)
    assert isinstance(left, Dual)
    if isinstance(right, Tensor):
        return left.scaled(call.primal, 1 / right)
    return left.like(call.primal, left.tangents / right)


def _push_neg(call: Application) -> Dual:
    return call.dual.like(call.primal, -call.dual.tangents)


def _push_where(call: Application) -> Dual:
    """Picks tangents rather than scaling them, so that none that is not finite spreads."""
    demand_rule(len(call.args) == 3)
    condition, left, right = call.args
    if call.function is Tensor.where:
        condition, left = left, condition
    return _pick(call, condition, left, right)


def _push_masked_fill(call: Application) -> Dual:
    value, mask, filling = call.args[0], call.argument(1, "mask"), call.argument(2, "value")
    return _pick(call, mask, filling, value)


def _pick(call: Application, condition: Tensor, left: Any, right: Any) -> Dual:
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    zero = torch.zeros((), dtype=dual.tangents.dtype, device=dual.tangents.device)
    parts = [part.widen(primal.ndim) if isinstance(part, Dual) else zero for part in (left, right)]
    return dual.like(primal, torch.where(dual.lift(condition, primal.ndim), *parts))


def _push_identity(call: Application) -> Dual:
    """Copies, changes of type or device, and what is the identity in eval mode."""
    demand_rule(isinstance(call.primal, Tensor) and call.primal.is_floating_point())
    return call.dual.like(call.primal, call.dual.tangents.to(call.primal.device))


def _push_dropout(call: Application) -> Dual:
    if call.argument(2, "train", "training"):
        raise UnsupportedModuleError("dropout is in training mode")
    return _push_identity(call)


def _push_copied(call: Application) -> Dual:
    source = call.args[1]
    if not isinstance(source, Dual):
        return call.primal  # type: ignore[no-any-return]
    source.demand_latents_first(call.primal)
    tangents = source.widen(call.primal.ndim)
    return source.like(call.primal, tangents.expand(source.shape(call.primal.shape)))


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
    if "convolution" not in call.state:
        call.state["convolution"] = _convolution(call, call.cast(weight, dual.tangents.dtype))
    return dual.like(call.primal, convolve_tangents(call.state["convolution"], dual.tangents))


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
    return call.dual.like(call.primal, _sum(parts))


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
    return call.dual.like(call.primal, _sum(parts))


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
    return call.dual.like(call.primal, _sum(parts))


def _push_reshape(call: Application) -> Dual:
    """Whatever keeps the order of the elements."""
    dual, primal = call.dual, call.primal
    demand_rule(isinstance(primal, Tensor) and primal.numel() == dual.primal.numel())
    demand_rule(primal.dtype == dual.primal.dtype)
    dual.demand_latents_first(primal)
    return dual.like(primal, dual.tangents.reshape(dual.shape(primal.shape)))


def _push_permute(call: Application) -> Dual:
    dual = call.dual
    # Sizes that are all different show where each dimension goes.
    sizes = torch.empty(tuple(range(2, 2 + dual.primal.ndim)), device="meta")
    order = [size - 2 for size in call.with_duals([sizes]).shape]
    dual.demand(order[0] == 0 if order else False)
    if dual.batched:
        order = [0, *order[1:]]
    return dual.like(call.primal, dual.tangents.permute(0, *[axis + 1 for axis in order]))


def _push_expand(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    wide = dual.widen(primal.ndim)
    return dual.like(primal, wide.expand(dual.shape(primal.shape)))


def _push_repeat(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    wide = dual.widen(primal.ndim)
    counts = [new // old for new, old in zip(dual.shape(primal.shape), wide.shape, strict=True)]
    return dual.like(primal, wide.repeat(counts))


def _rows_rule(min_ndim: int) -> Rule:
    """Linear maps that treat every entry of the first dimension alike.

    Args:
        min_ndim: with fewer dimensions, the first one counts something else than a batch.
    """

    def push(call: Application) -> Dual:
        dual = call.dual
        enough = dual.primal.ndim >= min_ndim
        dual.demand(enough, call.name)
        demand_rule(enough and call.only_dual(call.args[0]))
        return dual.rows(call.primal, lambda rows: call.with_duals([rows]))

    return push


def _push_pad(call: Application) -> Dual:
    dual, widths = call.dual, call.argument(1, "pad")
    enough = len(widths) < 2 * dual.primal.ndim
    dual.demand(enough, "padding")
    demand_rule(enough)
    mode = call.argument(2, "mode", default="constant")
    return dual.rows(call.primal, lambda rows: torch.nn.functional.pad(rows, widths, mode))


def _along_rule(position: int, default: int | None = None) -> Rule:
    """Linear maps along given dimensions, which may have several results.

    Args:
        position: where the dimensions stand among the arguments.
        default: the dimensions when none are given; None means all.
    """

    def push(call: Application) -> Any:
        dual = call.dual
        demand_rule(call.only_dual(call.args[0]))
        key = next((name for name in ("dim", "dims", "axis") if name in call.kwargs), "")
        dims = call.kwargs[key] if key else call.argument(position, default=default)
        demand_rule(dims is not None or call.name in ("sum", "mean", "nansum"))
        axes = dual.axes(dims)
        where = axes[0] if isinstance(dims, int) else axes
        named = {name: part for name, part in call.kwargs.items() if name != "dtype"}
        given = list(call.args[1:])
        if key or len(call.args) <= position:
            named[key or "dim"] = where
        else:
            given[position - 1] = where
        pushed = call.function(dual.tangents, *given, **named)
        return _paired(dual, call.primal, pushed)

    return push


def _push_flip(call: Application) -> Dual:
    dims = call.kwargs.get("dims", call.args[1:])
    if len(dims) == 1 and not isinstance(dims[0], int):
        dims = dims[0]
    return call.dual.like(call.primal, call.dual.tangents.flip(call.dual.axes(tuple(dims))))


def _paired(dual: Dual, primal: Any, tangents: Any) -> Any:
    if isinstance(primal, Tensor):
        return dual.like(primal, tangents)
    return tuple(dual.like(*pair) for pair in zip(primal, tangents, strict=True))


def _push_index(call: Application) -> Dual:
    value, index = call.args
    demand_rule(call.only_dual(value))
    if not value.batched:
        index = index if isinstance(index, tuple) else (index,)
        return value.like(call.primal, _indexed(value.tangents, (slice(None), *index), 1, value))
    return value.like(call.primal, _indexed(value.tangents, _latent_index(value, index), 2, value))


def _indexed(tangents: Tensor, index: tuple[Any, ...], leading: int, value: Dual) -> Tensor:
    arrays = [place for place, part in enumerate(index) if isinstance(part, Tensor | list)]
    # Arrays apart from each other, or an array and a number, put their dimension first.
    numbers = [place for place, part in enumerate(index) if isinstance(part, int)]
    apart = arrays and max(arrays + numbers) - min(arrays + numbers) >= len(arrays + numbers)
    demand_rule(not apart)
    return tangents[index]


def _latent_index(value: Dual, index: Any) -> tuple[Any, ...]:
    """Returns the index for batched tangents; it must leave the latents alone."""
    index = index if isinstance(index, tuple) else (index,)
    used = sum(part is not None and part is not Ellipsis for part in index)
    latents = len(value.primal)
    if index and index[0] is Ellipsis:
        value.demand(used < value.primal.ndim, "an index")
        return index
    whole = bool(index) and isinstance(index[0], slice)
    value.demand(whole and index[0].indices(latents) == (0, latents, 1), "an index")
    return (slice(None), slice(None), *index[1:])


def _push_with_item(call: Application) -> Dual:
    target, index, value = call.args
    dual, primal = call.dual, call.primal
    if dual.batched:
        index = _latent_index(Dual(primal, primal), index)
    else:
        index = (slice(None), *(index if isinstance(index, tuple) else (index,)))
    count = max(len(part.tangents) for part in call.duals)
    shape = (count, *dual.shape(primal.shape)[1:])
    if isinstance(target, Dual):
        tangents = target.tangents.expand(shape).clone()
    else:
        tangents = dual.tangents.new_zeros(shape)
    if isinstance(value, Dual):
        tangents[index] = value.widen(tangents[index].ndim - 1)
    else:
        tangents[index] = 0
    return dual.like(primal, tangents)


def _push_cat(call: Application) -> Dual:
    return _join(call, 0)


def _push_stack(call: Application) -> Dual:
    return _join(call, 1)


def _join(call: Application, new_axes: int) -> Dual:
    parts = call.argument(0, "tensors")
    dim = call.argument(1, "dim", "axis", default=0)
    dual, primal = call.dual, call.primal
    dim = dim % primal.ndim
    dual.demand(dim != 0, call.name)
    count = max(len(part.tangents) for part in call.duals)
    tangents = []
    for part in parts:
        shape = (count, *dual.shape(primal_of(part).shape)[1:])
        if isinstance(part, Dual):
            tangents.append(part.tangents.expand(shape))
        else:
            tangents.append(dual.tangents.new_zeros(()).expand(shape))
    return dual.like(primal, call.function(tangents, dim=dim - primal.ndim))


def _reduction_rule(position: int) -> Rule:
    """Functions of groups of values along dimensions, one result for each group.

    As each value counts for one result only, one reverse pass gives all slopes.

    Args:
        position: where the dimensions stand among the arguments.
    """

    def push(call: Application) -> Dual:
        demand_rule(call.only_dual(call.args[0]) and isinstance(call.primal, Tensor))
        return _reduced(call, call.argument(position, "dim", "axis"))

    return push


def _reduced(call: Application, dims: Any) -> Dual:
    dual = call.dual
    axes = dual.axes(None if isinstance(dims, bool) else dims)
    with torch.enable_grad():
        leaf = dual.primal.detach().clone().requires_grad_()
        value = call.with_duals([leaf])
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    pushed = (dual.tangents * dual.lift(slope)).sum(axes)
    return dual.like(call.primal, pushed.reshape(_row_shape(dual, pushed, call.primal)))


def _row_shape(dual: Dual, tangents: Tensor, primal: Tensor) -> tuple[int, ...]:
    """Returns the shape of tangents for a primal, for as many latents as the tangents have."""
    return (len(tangents), *dual.shape(primal.shape)[1:])


def _push_extremum(call: Application) -> Any:
    """`max` and `min`: of all values, along a dimension, or of two tensors."""
    other = call.argument(1, "other")
    if isinstance(other, Tensor | Dual):
        return _push_elementwise(call)
    if isinstance(call.primal, Tensor):
        return _reduced(call, None)
    return _selected(call, 1, None)


def _selection_rule(position: int, default: int | None = -1) -> Rule:
    """Functions that return values along a dimension and where they stood."""
    return lambda call: _selected(call, position, default)


def _selected(call: Application, position: int, default: int | None) -> Any:
    demand_rule(call.only_dual(call.args[0]) and not isinstance(call.primal, Tensor))
    dual = call.dual
    dim = call.argument(position, "dim", "axis", default=default)
    demand_rule(isinstance(dim, int) and not isinstance(dim, bool))
    axis = dual.axis(dim)
    values, indices = call.primal
    dropped = values.ndim < dual.primal.ndim
    where = indices.unsqueeze(axis) if dropped else indices
    pushed = _gathered(dual, axis, where)
    return dual.like(values, pushed.squeeze(axis) if dropped else pushed), indices


def _gathered(dual: Dual, axis: int, indices: Tensor) -> Tensor:
    """Gathers tangents along an axis by indices of the shape of a primal."""
    shape = dual.shape(indices.shape)
    if dual.batched:
        shape = (len(indices), *shape[1:])
        indices = indices.unsqueeze(1)
        tangents = dual.tangents.expand(len(dual.primal), *dual.tangents.shape[1:])
    else:
        tangents = dual.tangents
    return tangents.gather(axis, indices.expand(shape))


def _push_gather(call: Application) -> Dual:
    demand_rule(call.only_dual(call.args[0]))
    dual, indices = call.dual, call.argument(2, "index")
    dual.demand_latents_first(indices)
    axis = dual.axis(call.argument(1, "dim"))
    return dual.like(call.primal, _gathered(dual, axis, indices))


def _max_pool_rule(spatial: int, with_indices: Callable[..., tuple[Tensor, Tensor]]) -> Rule:
    """Max pooling picks one value for each window.

    Args:
        spatial: the number of dimensions that are pooled.
        with_indices: the function that also says which.
    """

    def push(call: Application) -> Any:
        dual = call.dual
        demand_rule(call.only_dual(call.args[0]) and dual.primal.ndim > spatial)
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "output_size")
        named = {key: value for key, value in call.kwargs.items() if key in names}
        values, indices = with_indices(dual.primal, *call.args[1:], **named)
        flat = dual.like(dual.primal.flatten(-spatial), dual.tangents.flatten(-spatial))
        picked = _gathered(flat, -1, indices.flatten(-spatial))
        result = dual.like(values, picked.unflatten(-1, values.shape[-spatial:]))
        return result if isinstance(call.primal, Tensor) else (result, indices)

    return push


def _push_softmax(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    axis = dual.axis(call.argument(1, "dim"))
    weights = dual.lift(primal)
    product = weights * dual.tangents
    return dual.like(primal, product - weights * product.sum(axis, keepdim=True))


def _push_log_softmax(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    axis = dual.axis(call.argument(1, "dim"))
    mean = (dual.lift(primal.exp()) * dual.tangents).sum(axis, keepdim=True)
    return dual.like(primal, dual.tangents - mean)


def _push_batch_norm(call: Application) -> Dual:
    value, weight, _, _, variance, training = call.args[:6]
    if training or variance is None:
        raise UnsupportedModuleError("batch norm mixes latents: it uses the statistics of a batch")
    demand_rule(call.only_dual(value) and value.primal.ndim > 1)
    scale = (variance + call.args[7]) ** -0.5
    return value.scaled(
        call.primal, _per_channel(scale if weight is None else scale * weight, value)
    )


def _per_channel(scale: Tensor, value: Dual) -> Tensor:
    return scale.reshape(-1, *[1] * (value.primal.ndim - 2))


def _push_instance_norm(call: Application) -> Dual:
    value, weight, _, _, variance, use_input, _, epsilon = call.args[:8]
    demand_rule(call.only_dual(value) and value.primal.ndim > 2)
    if use_input or variance is None:
        result = _standardised(
            value, epsilon, value.primal.shape, tuple(range(2 - value.primal.ndim, 0))
        )
        scale = weight
    else:
        scale = (variance + epsilon) ** -0.5
        scale = scale if weight is None else scale * weight
        result = value
    if scale is not None:
        result = result.scaled(result.primal, _per_channel(scale, value))
    return result.like(call.primal, result.tangents)


def _push_group_norm(call: Application) -> Dual:
    value, groups = call.args[:2]
    demand_rule(call.only_dual(value))
    weight, epsilon = call.argument(2, "weight"), call.argument(4, "eps", default=1e-5)
    shape = (len(value.primal), groups, value.primal[0].numel() // groups)
    result = _standardised(value, epsilon, shape, (-1,))
    if weight is not None:
        result = result.scaled(result.primal, _per_channel(weight, value))
    return result.like(call.primal, result.tangents)


def _push_layer_norm(call: Application) -> Dual:
    value, shape = call.args[:2]
    demand_rule(call.only_dual(value))
    value.demand(len(shape) < value.primal.ndim, "layer norm")
    weight, epsilon = call.argument(2, "weight"), call.argument(4, "eps", default=1e-5)
    result = _standardised(value, epsilon, value.primal.shape, tuple(range(-len(shape), 0)))
    if weight is not None:
        result = result.scaled(result.primal, weight)
    return result.like(call.primal, result.tangents)


def _standardised(value: Dual, epsilon: float, shape: Any, axes: tuple[int, ...]) -> Dual:
    """Subtracts the mean and divides by the standard deviation over axes of a reshaped value."""
    x = value.primal.reshape(shape)
    tangents = value.tangents.reshape(value.shape(shape))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    scale = (variance + epsilon).rsqrt()
    y = (x - mean) * scale
    lifted = value.lift(y, x.ndim)
    along = (lifted * tangents).mean(axes, keepdim=True)
    pushed = tangents - tangents.mean(axes, keepdim=True) - lifted * along
    pushed = pushed * value.lift(scale, x.ndim)
    final = (len(pushed), *value.shape(value.primal.shape)[1:])
    result = value.like(y.reshape(value.primal.shape), pushed.reshape(final))
    result.spare = True
    return result


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in simple steps."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    weights = (query @ key.mT) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        size = (query.size(-2), key.size(-2))
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return torch.dropout(weights.softmax(-1), dropout_p, False) @ value


def rms_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Division by the root mean square."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps)
    return y if weight is None else y * weight


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """One half of the channels times the sigmoid of the other."""
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def add_product(
    x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`addmm` and `baddbmm`."""
    return beta * x + alpha * (left @ right)


def variance_and_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`var_mean`."""
    return torch.var(x, *args, **kwargs), _mean_like_variance(x, *args, **kwargs)


def deviation_and_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`std_mean`."""
    return torch.std(x, *args, **kwargs), _mean_like_variance(x, *args, **kwargs)


def _mean_like_variance(x: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> Tensor:
    dim = None if isinstance(dim, bool) else dim
    return x.mean(kwargs.get("dim", dim), keepdim=kwargs.get("keepdim", False))


COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention,
    "rms_norm": rms_norm,
    "glu": glu,
    "addmm": add_product,
    "baddbmm": add_product,
    "addmv": add_product,
    "var_mean": variance_and_mean,
    "std_mean": deviation_and_mean,
}


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_max_pool2d = torch._C._nn.max_pool2d_with_indices
_max_pool3d = torch._C._nn.max_pool3d_with_indices

RULES: dict[str, Rule] = {
    **_table(
        "leaky_relu prelu rrelu relu6 hardtanh hardswish hardsigmoid hardshrink softshrink "
        "threshold elu selu celu silu gelu mish softplus logsigmoid log_sigmoid softsign tanhshrink "
        "pow rpow sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan "
        "arcsin arccos arctan sinh cosh asinh acosh atanh sinc erf erfc erfinv abs absolute "
        "reciprocal rsub rdiv rtruediv sign sgn logit clamp clamp_min clamp_max clip maximum "
        "minimum fmax fmin atan2 hypot lerp addcmul addcdiv logaddexp xlogy float_power frac "
        "floor_divide remainder fmod nan_to_num deg2rad rad2deg special_expit expit i0",
        _push_elementwise,
    ),
    **_table("relu", _push_relu),
    **_table("tanh", _push_tanh),
    **_table("sigmoid", _push_sigmoid),
    **_table("add", _push_add),
    **_table("sub", _push_sub),
    **_table("mul", _push_mul),
    **_table("div", _push_div),
    **_table("neg", _push_neg),
    **_table("where", _push_where),
    **_table("masked_fill", _push_masked_fill),
    **_table(
        "to float double half bfloat16 type type_as clone contiguous positive pos alias identity "
        "cpu cuda requires_grad conj resolve_conj resolve_neg",
        _push_identity,
    ),
    **_table("dropout feature_dropout alpha_dropout feature_alpha_dropout", _push_dropout),
    **_table("copied", _push_copied),
    **_table("linear", _push_linear),
    **_table(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        _push_convolution,
    ),
    **_table("matmul mm bmm mv", _push_matmul),
    **_table("dot outer ger inner vdot kron", _push_products),
    **_table("einsum", _push_einsum),
    **_table(
        "reshape view flatten unflatten squeeze unsqueeze view_as reshape_as ravel _unsafe_view",
        _push_reshape,
    ),
    **_table(
        "permute transpose t T mT swapaxes swapdims movedim moveaxis H adjoint", _push_permute
    ),
    **_table("expand expand_as broadcast_to", _push_expand),
    **_table("repeat tile", _push_repeat),
    **_table(
        "interpolate avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
        _rows_rule(3),
    ),
    **_table("pixel_shuffle pixel_unshuffle channel_shuffle im2col", _rows_rule(4)),
    **_table("col2im", _rows_rule(3)),
    **_table("pad", _push_pad),
    **_table("sum mean nansum index_select select narrow cumsum", _along_rule(1)),
    **_table("flip", _push_flip),
    **_table("unbind", _along_rule(1, 0)),
    **_table("split split_with_sizes chunk tensor_split", _along_rule(2, 0)),
    **_table("roll repeat_interleave", _along_rule(2)),
    **_table("getitem", _push_index),
    **_table("with_item", _push_with_item),
    **_table("cat", _push_cat),
    **_table("stack", _push_stack),
    **_table("amax amin var std logsumexp prod median", _reduction_rule(1)),
    **_table("norm linalg_vector_norm vector_norm", _reduction_rule(2)),
    **_table("max min", _push_extremum),
    **_table("topk kthvalue", _selection_rule(2)),
    **_table("sort cummax cummin mode", _selection_rule(1)),
    **_table("gather", _push_gather),
    **_table("softmax", _push_softmax),
    **_table("log_softmax", _push_log_softmax),
    **_table(
        "max_pool1d max_pool1d_with_indices", _max_pool_rule(1, torch.max_pool1d_with_indices)
    ),
    **_table("max_pool2d max_pool2d_with_indices", _max_pool_rule(2, _max_pool2d)),
    **_table("max_pool3d max_pool3d_with_indices", _max_pool_rule(3, _max_pool3d)),
    **_table("adaptive_max_pool1d", _max_pool_rule(1, torch.adaptive_max_pool1d)),
    **_table("adaptive_max_pool2d", _max_pool_rule(2, torch._C._nn.adaptive_max_pool2d)),
    **_table("adaptive_max_pool3d", _max_pool_rule(3, torch._C._nn.adaptive_max_pool3d)),
    **_table("batch_norm", _push_batch_norm),
    **_table("instance_norm", _push_instance_norm),
    **_table("group_norm", _push_group_norm),
    **_table("layer_norm", _push_layer_norm),
}
"""How each function pushes tangents, by its bare name."""

CONSTANTS = set(
    [
        "detach",
        "data",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "bernoulli",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "round",
        "floor",
        "ceil",
        "trunc",
        "sign",
        "argmax",
        "argmin",
        "argsort",
    ]
)
"""Functions through which no derivative goes."""

PRIMITIVES = frozenset({"interpolate", "einsum", "norm", "split"})
"""Functions written in Python that have a rule of their own."""
