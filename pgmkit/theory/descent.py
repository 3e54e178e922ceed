"""Where the guide leads: descents on R_i, and paths within a part."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import called
from pgmkit.errors import ParameterError, PluginError
from pgmkit.images.source import BATCH
from pgmkit.partition import guide
from pgmkit.progress import phase

_LONGEST = 0.05
_DETOUR = 10
_INSIDE = 15
_HALVINGS = 6


@dataclass(frozen=True)
class Descents:
    """Where descents on R_i ended.

    Args:
        ends: (n, C, H, W).
        reached: which of them lie in their part, bool (n,).
        first: ‖∇R_i‖ where they started, float64 (n,); NaN for one that started in its part.
        smallest: the smallest ‖∇R_i‖ outside the part on the way, float64 (n,); NaN likewise.
    """

    ends: Tensor
    reached: Tensor
    first: Tensor
    smallest: Tensor


def pull(
    partitioner: contracts.Partitioner, x: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns R_i(x) (n,), ∇R_i(x) like x, and its norm (n,), for images x and parts i (n,).

    Numbers are float64 on the CPU, and the gradient lies where x is.

    Raises:
        ParameterError: the logits have no gradient by the images.
        PluginError: the gradient is not finite.
    """
    values, gradients = [], []
    for images, part in zip(x.split(BATCH), parts.split(BATCH), strict=True):
        with torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            value = guide(partitioner, images, part)
            (gradient,) = torch.autograd.grad(value.sum(), images, allow_unused=True)
        if gradient is None:
            raise ParameterError(
                f"the logits of the {called('partitioners', partitioner)} have a gradient, but "
                "not by the images; remove detach, .data, numpy and no_grad from `logits`"
            )
        gradients.append(gradient)
        values.append(value.detach().cpu().double())
    gradient = torch.cat(gradients)
    norm = gradient.flatten(1).norm(dim=1).cpu().double()
    if not norm.isfinite().all():
        raise PluginError(
            f"the {called('partitioners', partitioner)} has logits whose gradient is not finite"
        )
    return torch.cat(values), gradient, norm


def descend(
    partitioner: contracts.Partitioner,
    x: Tensor,
    parts: Tensor,
    reach: Tensor,
    steps: int,
    name: str = "descents into parts",
) -> Descents:
    """Goes down R_i from images until they lie in part i, or so many steps are made.

    All steps go against the gradient, and their lengths are set: a twentieth of `reach` at most, so
    that none leaps over what lies between, and then ever shorter down to 0, so that a descent
    settles where no step leads on (Shor 1985), kinks or none. With 400 steps or more they cover ten
    times `reach`, with fewer a part of that.

    Args:
        partitioner: with a gradient.
        x: images (n, C, H, W).
        parts: i of each, int64 (n,).
        reach: of each, a distance to be covered, float64 (n,).
        steps: at most.
        name: of the phase.
    """
    ends = x.detach().clone()
    reached = torch.zeros(len(x), dtype=torch.bool)
    first = torch.full((len(x),), math.nan, dtype=torch.float64)
    smallest = first.clone()
    outside = torch.arange(len(x))
    with phase(name, steps + 1) as progress:
        for step in range(steps + 1):
            value, gradient, norm = pull(partitioner, ends[outside], parts[outside])
            inside = value == 0
            reached[outside[inside]] = True
            outside = outside[~inside]
            if not len(outside):
                break
            gradient, norm = gradient[~inside], norm[~inside]
            if step == 0:
                first[outside] = norm
            smallest[outside] = torch.fmin(smallest[outside], norm)
            length = reach[outside] * min(_LONGEST, 2 * _DETOUR / steps * (1 - step / steps))
            factor = (length / norm).nan_to_num(0.0, 0.0, 0.0).to(x)  # it stays where ∇R is 0
            ends[outside] -= factor.reshape(-1, *[1] * (x.ndim - 1)) * gradient
            progress.advance()
    return Descents(ends, reached, first, smallest)


@torch.no_grad()
def lies_inside(partitioner: contracts.Partitioner, x: Tensor, parts: Tensor) -> Tensor:
    """Returns which of the images x lie in their part of (n,), bool (n,)."""
    pairs = zip(x.split(BATCH), parts.split(BATCH), strict=True)
    return torch.cat([guide(partitioner, images, part).cpu() == 0 for images, part in pairs])


def joined(
    partitioner: contracts.Partitioner, first: Tensor, second: Tensor, parts: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Returns which pairs of images of one part a path within it joins, and which a straight one.

    A segment lies in the part if 15 points on it do. Otherwise its middle is led into the part by a
    descent, if it is not there, and both halves are looked at in the same way, six times at most.
    What is not joined then may still be, by a path that was not found.

    Args:
        partitioner: with a gradient.
        first: images (n, C, H, W).
        second: others of the same parts.
        parts: of both, int64 (n,).
        steps: of each descent, at most.

    Returns:
        Two tensors, bool (n,).
    """
    lost = torch.zeros(len(first), dtype=torch.bool)
    straight = lost
    pair = torch.arange(len(first))
    ends = first, second
    with phase("paths within parts", _HALVINGS + 1) as progress:
        for halving in range(_HALVINGS + 1):
            open_ = ~_straight(partitioner, *ends, parts[pair])
            pair, ends = pair[open_], (ends[0][open_], ends[1][open_])
            progress.advance()
            if halving == 0:
                straight = ~torch.isin(torch.arange(len(first)), pair)
            if not len(pair) or halving == _HALVINGS:
                break
            middle = (ends[0] + ends[1]) / 2
            reach = (ends[0] - ends[1]).flatten(1).norm(dim=1).cpu().double()
            led = descend(partitioner, middle, parts[pair], reach, steps, "descents from paths")
            lost[pair[~led.reached]] = True
            kept = ~lost[pair]
            pair = pair[kept].repeat(2)
            a, b, middle = ends[0][kept], ends[1][kept], led.ends[kept]
            ends = torch.cat([a, middle]), torch.cat([middle, b])
    lost[pair] = True
    return ~lost, straight


def _straight(
    partitioner: contracts.Partitioner, first: Tensor, second: Tensor, parts: Tensor
) -> Tensor:
    """Returns which segments lie in their part at 15 points between their ends, bool (n,)."""
    share = torch.arange(1, _INSIDE + 1, device=first.device, dtype=first.dtype) / (_INSIDE + 1)
    share = share.reshape(1, -1, *[1] * (first.ndim - 1))
    found = []
    some = BATCH // _INSIDE
    for a, b, part in zip(first.split(some), second.split(some), parts.split(some), strict=True):
        points = (a[:, None] + share * (b - a)[:, None]).flatten(0, 1)
        there = lies_inside(partitioner, points, part.repeat_interleave(_INSIDE))
        found.append(there.reshape(len(a), _INSIDE).all(dim=1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
