"""Rewrites a tape so that it does the same with less arithmetic.

* A batch norm that follows a convolution becomes part of its weights.
* Doubling by nearest neighbours and then a 3×3 convolution is a transposed 4×4 convolution of
  stride 2: each pixel that was doubled meets the sum of the taps that fall on it, 16 products
  where there were 36.
* A 1×1 convolution behind an upsampling comes before it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.tangents.tape import Call, Slot, Tape, note_last_uses, values_of

_DOUBLED_3X3 = ((2,), (1, 2), (0, 1), (0,))
"""Which taps of a 3×3 kernel each tap of the 4×4 kernel adds up, along one dimension."""


def simplified(tape: Tape) -> Tape:
    """Returns a tape of the same values; those that nothing else uses may be missing."""
    calls = list(tape.calls)
    for rewrite in (_fold_norm, _merge_doubling, _convolve_before_upsampling):
        calls = _rewritten(calls, tape.output, rewrite)
    note_last_uses(calls, tape.output)
    return replace(tape, calls=calls)


_Rewrite = Callable[[Call, Call], tuple[Call, ...] | None]


def _rewritten(calls: list[Call], output: Slot, rewrite: _Rewrite) -> list[Call]:
    """Applies a rewrite to all pairs of a call and the one call that uses its result."""
    users: dict[Slot, list[Call]] = {}
    for call in calls:
        for slot in values_of(Slot, (call.args, call.kwargs)):
            users.setdefault(slot, []).append(call)
    makers = {call.result: call for call in calls if isinstance(call.result, Slot)}
    replaced: dict[int, tuple[Call, ...]] = {}
    for second in calls:
        source = second.args[0] if second.args else None
        if not isinstance(source, Slot) or source == output or len(users[source]) > 1:
            continue
        first = makers.get(source)
        if first is None or id(first) in replaced:
            continue
        if not (first.differentiable and second.differentiable):
            continue
        pair = rewrite(first, second)
        if pair is not None:
            replaced[id(first)], replaced[id(second)] = (), pair
    return [new for call in calls for new in replaced.get(id(call), (call,))]


def _fold_norm(first: Call, second: Call) -> tuple[Call, ...] | None:
    if not (first.name.startswith("conv") and second.name == "batch_norm" and not second.kwargs):
        return None
    _, scale, shift, mean, variance, training, _, epsilon = second.args[:8]
    x, weight, bias, *options = (*first.args, None)[: max(3, len(first.args))]
    held = not training and isinstance(variance, Tensor) and not first.kwargs
    if not (held and isinstance(weight, Tensor) and not isinstance(bias, Slot)):
        return None
    factor = (variance + epsilon) ** -0.5
    factor = factor if scale is None else factor * scale
    bias = -mean if bias is None else bias - mean
    bias = bias * factor if shift is None else bias * factor + shift
    groups = options[3] if "transpose" in first.name and len(options) > 3 else 1
    folded = _scaled(weight, factor, groups, transposed="transpose" in first.name)
    return (replace(first, args=(x, folded, bias, *options), result=second.result),)


def _scaled(weight: Tensor, factor: Tensor, groups: int, *, transposed: bool) -> Tensor:
    """Scales each output channel of a weight, and keeps its layout in memory."""
    ones = [1] * (weight.ndim - 2)
    if not transposed:
        return weight * factor.reshape(-1, 1, *ones)
    blocks = weight.unflatten(0, (groups, -1)) * factor.reshape(groups, 1, -1, *ones)
    return torch.empty_like(weight).copy_(blocks.flatten(0, 1))


def _merge_doubling(first: Call, second: Call) -> tuple[Call, ...] | None:
    if not (_doubles(first) and second.name == "conv2d" and not second.kwargs):
        return None
    weight, bias, *options, groups = _arguments(second)
    same = [_pair(option) for option in options] == [(1, 1), (1, 1), (1, 1)]
    if not (isinstance(weight, Tensor) and weight.shape[2:] == (3, 3) and same):
        return None
    rows = torch.stack([weight[:, :, list(taps)].sum(2) for taps in _DOUBLED_3X3], 2)
    merged = torch.stack([rows[..., list(taps)].sum(3) for taps in _DOUBLED_3X3], 3)
    # (O, I / groups) becomes (I, O / groups).
    merged = merged.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    arguments = (merged, bias, (2, 2), (1, 1), (0, 0), groups, (1, 1))
    call = replace(
        second,
        name="conv_transpose2d",
        function=torch.conv_transpose2d,
        args=(first.args[0], *arguments),
    )
    return (call,)


def _convolve_before_upsampling(first: Call, second: Call) -> tuple[Call, ...] | None:
    if not (first.name == "interpolate" and second.name == "conv2d" and not second.kwargs):
        return None
    weight, _, stride, padding, *_ = _arguments(second)
    pointwise = isinstance(weight, Tensor) and weight.shape[2:] == (1, 1)
    if not (pointwise and _pair(stride) == (1, 1) and _pair(padding) == (0, 0)):
        return None
    # Nearest and linear interpolation have weights that add up to one, so the bias may pass.
    if first.kwargs.get("mode") not in ("nearest", "nearest-exact", "bilinear"):
        return None
    return (
        replace(second, args=(first.args[0], *second.args[1:]), result=first.result),
        replace(first, args=(first.result, *first.args[1:]), result=second.result),
    )


def _arguments(convolution: Call) -> list[Any]:
    """Returns weight, bias, stride, padding, dilation and groups."""
    given = list(convolution.args[1:])
    return given + [None, None, 1, 0, 1, 1][len(given) :]


def _pair(option: Any) -> Any:
    return (option, option) if isinstance(option, int) else tuple(option)


def _doubles(call: Call) -> bool:
    scale: Any = call.kwargs.get("scale_factor")
    scale = scale if isinstance(scale, tuple | list) else (scale, scale)
    nearest = call.kwargs.get("mode", "nearest") == "nearest"
    alone = len(call.args) == 1 and call.kwargs.get("size") is None
    return call.name == "interpolate" and nearest and alone and tuple(scale) == (2, 2)
