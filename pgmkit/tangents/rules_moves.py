"""Rules of linear maps without weights: what reshapes, moves, joins, resamples and adds values."""

from typing import Any

import torch
from torch import Tensor

from pgmkit.tangents.dual import (
    Application,
    Dual,
    Rule,
    demand_rule,
    of_first,
    primal_of,
    rule_for,
)


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
    demand_rule(call.only_dual(call.args[0]))
    dual = call.dual
    index = _tangent_index(dual, call.args[1])
    arrays = [place for place, part in enumerate(index) if isinstance(part, Tensor | list)]
    # Arrays apart from each other, or an array and a number, put their dimension first.
    numbers = [place for place, part in enumerate(index) if isinstance(part, int)]
    apart = arrays and max(arrays + numbers) - min(arrays + numbers) >= len(arrays + numbers)
    demand_rule(not apart)
    return dual.like(call.primal, dual.tangents[index])


def _tangent_index(value: Dual, index: Any) -> tuple[Any, ...]:
    """Returns the index for tangents; if they are batched, it must leave the latents alone."""
    index = tuple(index) if isinstance(index, tuple) else (index,)
    if not value.batched:
        return (slice(None), *index)
    used = sum(part is not None and part is not Ellipsis for part in index)
    latents = len(value.primal)
    if index and index[0] is Ellipsis:
        value.demand(used < value.primal.ndim, "an index")
        return tuple(index)
    whole = bool(index) and isinstance(index[0], slice)
    value.demand(whole and index[0].indices(latents) == (0, latents, 1), "an index")
    return (slice(None), slice(None), *index[1:])


def _push_with_item(call: Application) -> Dual:
    target, index, value = call.args
    dual, primal = call.dual, call.primal
    index = _tangent_index(dual.like(primal, primal), index)
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


def _push_joined(call: Application) -> Dual:
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


MOVES: dict[str, Rule] = {
    **rule_for(
        "reshape view flatten unflatten squeeze unsqueeze view_as reshape_as ravel _unsafe_view",
        of_first(_push_reshape),
    ),
    **rule_for(
        "permute transpose t T mT swapaxes swapdims movedim moveaxis H adjoint", _push_permute
    ),
    **rule_for("expand expand_as broadcast_to", of_first(_push_expand)),
    **rule_for("repeat tile", _push_repeat),
    **rule_for(
        "interpolate avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
        _rows_rule(3),
    ),
    **rule_for("pixel_shuffle pixel_unshuffle channel_shuffle im2col", _rows_rule(4)),
    **rule_for("col2im", _rows_rule(3)),
    **rule_for("pad", _push_pad),
    **rule_for("sum mean nansum index_select select narrow cumsum", _along_rule(1)),
    **rule_for("flip", _push_flip),
    **rule_for("unbind", _along_rule(1, 0)),
    **rule_for("split split_with_sizes chunk tensor_split", _along_rule(2, 0)),
    **rule_for("roll repeat_interleave", _along_rule(2)),
    **rule_for("getitem", _push_index),
    **rule_for("with_item", _push_with_item),
    **rule_for("cat stack", _push_joined),
}
