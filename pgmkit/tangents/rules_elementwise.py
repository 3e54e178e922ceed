"""Rules of functions of single values, and of what leaves values as they are."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgmkit.tangents.dual import Application, Dual, Rule, demand_rule, of_first, rule_for, total
from pgmkit.tangents.tape import UnsupportedModuleError


def push_elementwise(call: Application) -> Dual:
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
    return call.dual.like(primal, total(parts))


def _push_relu(call: Application) -> Dual:
    dual = call.dual
    if not dual.batched or dual.primal.ndim < 2:
        return dual.scaled(call.primal, dual.primal > 0)
    tangents = dual.tangents
    return Dual(call.primal, tangents, live=dual.primal > 0)


def _push_leaky_relu(call: Application) -> Dual:
    x = call.dual.primal
    slope = x.new_full((), call.argument(1, "negative_slope", default=0.01))
    return call.dual.scaled(call.primal, torch.where(x > 0, x.new_ones(()), slope))


def _push_tanh(call: Application) -> Dual:
    return call.dual.scaled(call.primal, 1 - call.primal * call.primal)


def _push_sigmoid(call: Application) -> Dual:
    return call.dual.scaled(call.primal, call.primal * (1 - call.primal))


def _push_sum(call: Application, sign: int) -> Dual:
    left, right = call.args[0], call.argument(1, "other")
    factor = sign * call.kwargs.get("alpha", 1)
    dual, primal = call.dual, call.primal
    dual.demand_latents_first(primal)
    if isinstance(left, Dual) and isinstance(right, Dual):
        wide, other = left.widen(primal.ndim), right.widen(primal.ndim)
        if left.spare and np.broadcast_shapes(wide.shape, other.shape) == wide.shape:
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
        return dual.like(primal, total(parts))
    factor = right if isinstance(left, Dual) else left
    if isinstance(factor, Tensor):
        return dual.scaled(primal, factor)
    tangents = dual.tangents.mul_(factor) if dual.spare else dual.tangents * factor
    return dual.like(primal, tangents)


def _push_div(call: Application) -> Dual:
    left, right = call.args[0], call.argument(1, "other")
    if isinstance(right, Dual) or call.kwargs.get("rounding_mode"):
        return push_elementwise(call)
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
    yes, no = (
        part.widen(primal.ndim) if isinstance(part, Dual) else zero for part in (left, right)
    )
    return dual.like(primal, torch.where(dual.lift(condition, primal.ndim), yes, no))


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


ELEMENTWISE: dict[str, Rule] = {
    **rule_for(
        "prelu rrelu relu6 hardtanh hardswish hardsigmoid hardshrink softshrink "
        "threshold elu selu celu silu gelu mish softplus logsigmoid log_sigmoid softsign "
        "tanhshrink pow rpow sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p "
        "sin cos tan asin acos atan "
        "arcsin arccos arctan sinh cosh asinh acosh atanh sinc erf erfc erfinv abs absolute "
        "reciprocal rsub rdiv rtruediv sign sgn logit clamp clamp_min clamp_max clip maximum "
        "minimum fmax fmin atan2 hypot lerp addcmul addcdiv logaddexp xlogy float_power frac "
        "floor_divide remainder fmod nan_to_num deg2rad rad2deg special_expit expit i0",
        push_elementwise,
    ),
    **rule_for("relu", _push_relu),
    **rule_for("leaky_relu", _push_leaky_relu),
    **rule_for("tanh", _push_tanh),
    **rule_for("sigmoid", _push_sigmoid),
    **rule_for("add", partial(_push_sum, sign=1)),
    **rule_for("sub", partial(_push_sum, sign=-1)),
    **rule_for("mul", _push_mul),
    **rule_for("div", _push_div),
    **rule_for("neg", _push_neg),
    **rule_for("where", _push_where),
    **rule_for("masked_fill", _push_masked_fill),
    **rule_for(
        "to float double half bfloat16 type type_as clone contiguous positive pos alias identity "
        "cpu cuda requires_grad conj resolve_conj resolve_neg",
        of_first(_push_identity),
    ),
    **rule_for("dropout feature_dropout alpha_dropout feature_alpha_dropout", _push_dropout),
    **rule_for("copied", _push_copied),
}
