"""Rules of reductions, selections and norms."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pgmkit.tangents.dual import Application, Dual, Rule, demand_rule, rule_for
from pgmkit.tangents.rules_elementwise import push_elementwise
from pgmkit.tangents.tape import UnsupportedModuleError


def _reduction_rule(position: int) -> Rule:
    """Functions of groups of values along the dimensions at `position`, one result for each.

    As each value counts for one result only, one reverse pass gives all slopes.
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
    # For as many latents as the tangents have.
    shape = (len(pushed), *dual.shape(call.primal.shape)[1:])
    return dual.like(call.primal, pushed.reshape(shape))


def _push_extremum(call: Application) -> Any:
    """`max` and `min`: of all values, along a dimension, or of two tensors."""
    other = call.argument(1, "other")
    if isinstance(other, Tensor | Dual):
        return push_elementwise(call)
    if isinstance(call.primal, Tensor):
        return _reduced(call, None)
    demand_rule(call.only_dual(call.args[0]))
    dual = call.dual
    axis = dual.axis(call.argument(1, "dim", "axis"))
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


def _push_max_pool(call: Application) -> Dual:
    dual, (dims, pooled) = call.dual, _MAX_POOLS[call.name]
    enough = dual.primal.ndim == dims + 2
    dual.demand(enough, call.name)
    demand_rule(enough)
    _, where = pooled(dual.primal, *call.args[1:], **call.kwargs)
    flat = dual.like(dual.primal.flatten(-dims), dual.tangents.flatten(-dims))
    pushed = _gathered(flat, -1, where.flatten(-dims))
    return dual.like(call.primal, pushed.unflatten(-1, where.shape[-dims:]))


_MAX_POOLS: dict[str, tuple[int, Callable[..., tuple[Tensor, Tensor]]]] = {
    "max_pool1d": (1, functional.max_pool1d_with_indices),
    "max_pool2d": (2, functional.max_pool2d_with_indices),
    "max_pool3d": (3, functional.max_pool3d_with_indices),
}
"""How many dimensions each looks at, and what also tells where the largest values were."""


def _push_softmax(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    axis = dual.axis(call.argument(1, "dim"))
    weights = dual.lift(primal)
    product = weights * dual.tangents
    return dual.like(primal, product.sub_(weights * product.sum(axis, keepdim=True)))


def _push_log_softmax(call: Application) -> Dual:
    dual, primal = call.dual, call.primal
    axis = dual.axis(call.argument(1, "dim"))
    mean = (dual.lift(primal.exp()) * dual.tangents).sum(axis, keepdim=True)
    return dual.like(primal, dual.tangents - mean)


def _push_batch_norm(call: Application) -> Dual:
    weight, _, _, variance, training = call.args[1:6]
    if training or variance is None:
        raise UnsupportedModuleError("batch norm mixes latents: it uses the statistics of a batch")
    demand_rule(call.only_dual(call.args[0]) and call.dual.primal.ndim > 1)
    scale = (variance + call.args[7]) ** -0.5
    scale = scale if weight is None else scale * weight
    return call.dual.scaled(call.primal, _per_channel(scale, call.dual))


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


REDUCTIONS: dict[str, Rule] = {
    **rule_for("amax amin var std logsumexp", _reduction_rule(1)),
    **rule_for("norm linalg_vector_norm vector_norm", _reduction_rule(2)),
    **rule_for("max min", _push_extremum),
    **rule_for("gather", _push_gather),
    **rule_for("max_pool1d max_pool2d max_pool3d", _push_max_pool),
    **rule_for("softmax", _push_softmax),
    **rule_for("log_softmax", _push_log_softmax),
    **rule_for("batch_norm", _push_batch_norm),
    **rule_for("instance_norm", _push_instance_norm),
    **rule_for("group_norm", _push_group_norm),
    **rule_for("layer_norm", _push_layer_norm),
}
