"""Rules of reductions, selections and norms."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgmkit.spectrum.dual import Application, Dual, Rule, demand_rule, rule_for
from pgmkit.spectrum.recording import UnsupportedModuleError
from pgmkit.spectrum.rules_elementwise import push_elementwise


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
        return push_elementwise(call)
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


_max_pool2d = torch._C._nn.max_pool2d_with_indices
_max_pool3d = torch._C._nn.max_pool3d_with_indices

REDUCTIONS: dict[str, Rule] = {
    **rule_for("amax amin var std logsumexp prod median", _reduction_rule(1)),
    **rule_for("norm linalg_vector_norm vector_norm", _reduction_rule(2)),
    **rule_for("max min", _push_extremum),
    **rule_for("topk kthvalue", _selection_rule(2)),
    **rule_for("sort cummax cummin mode", _selection_rule(1)),
    **rule_for("gather", _push_gather),
    **rule_for("softmax", _push_softmax),
    **rule_for("log_softmax", _push_log_softmax),
    **rule_for(
        "max_pool1d max_pool1d_with_indices", _max_pool_rule(1, torch.max_pool1d_with_indices)
    ),
    **rule_for("max_pool2d max_pool2d_with_indices", _max_pool_rule(2, _max_pool2d)),
    **rule_for("max_pool3d max_pool3d_with_indices", _max_pool_rule(3, _max_pool3d)),
    **rule_for("adaptive_max_pool1d", _max_pool_rule(1, torch.adaptive_max_pool1d)),
    **rule_for("adaptive_max_pool2d", _max_pool_rule(2, torch._C._nn.adaptive_max_pool2d)),
    **rule_for("adaptive_max_pool3d", _max_pool_rule(3, torch._C._nn.adaptive_max_pool3d)),
    **rule_for("batch_norm", _push_batch_norm),
    **rule_for("instance_norm", _push_instance_norm),
    **rule_for("group_norm", _push_group_norm),
    **rule_for("layer_norm", _push_layer_norm),
}
