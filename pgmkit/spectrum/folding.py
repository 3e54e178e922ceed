"""Folds batch norms into the convolutions that they follow."""

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pgmkit.spectrum.recording import Call, Slot, Tape, values_of


def fold_batch_norms(tape: Tape) -> Tape:
    """Returns the tape with one call for each convolution whose result only a batch norm uses."""
    uses = Counter(
        slot for call in tape.calls for slot in values_of(Slot, (call.args, call.kwargs))
    )
    uses[tape.output] += 1
    convolutions: dict[Slot, int] = {}
    calls: list[Call] = []
    for call in tape.calls:
        place = convolutions.pop(call.args[0], None) if _is_foldable_norm(call) else None
        if place is None:
            if _is_constant_convolution(call) and uses[call.result] == 1:
                convolutions[call.result] = len(calls)
            calls.append(call)
        else:
            calls[place] = _folded(calls[place], call)
    return replace(tape, calls=calls)


def _is_constant_convolution(call: Call) -> bool:
    return (
        call.name.startswith("conv")
        and not call.kwargs
        and isinstance(call.args[0], Slot)
        and len(values_of(Slot, call.args)) == 1
    )


def _is_foldable_norm(call: Call) -> bool:
    """Whether a call is a batch norm by constants."""
    if call.name != "batch_norm" or not isinstance(call.args[0], Slot):
        return False
    return not values_of(Slot, call.args[1:]) and not call.args[5] and call.args[4] is not None


def _folded(convolution: Call, norm: Call) -> Call:
    weight, bias = (*convolution.args[1:3], None)[:2]
    gamma, beta, mean, variance = norm.args[1:5]
    scale = (variance + norm.args[7]).rsqrt()
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if bias is None else (bias - mean) * scale
    shift = shift if beta is None else shift + beta
    options = convolution.args[3:]
    groups = 1
    if "transpose" in convolution.name and len(options) > 3:
        groups = options[3]
    args = (convolution.args[0], _scaled(weight, scale, groups, convolution.name), shift, *options)
    dropped = {convolution.result}
    last_uses = [slot for slot in (*convolution.last_uses, *norm.last_uses) if slot not in dropped]
    return replace(convolution, args=args, result=norm.result, last_uses=last_uses)


def _scaled(weight: Tensor, scale: Tensor, groups: int, name: str) -> Tensor:
    """Scales each output channel of a weight."""
    ones = [1] * (weight.ndim - 2)
    if "transpose" not in name:
        return weight * scale.reshape(-1, 1, *ones)
    blocks = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *ones)
    folded = torch.empty_like(weight)  # keeps channels last
    return folded.copy_(blocks.flatten(0, 1))
