"""Numbers that change in the course of a run, as functions of its clock.

They need no counters, so no checkpoint holds them.
"""

import math

import torch

from pgmkit.learning.clock import Clock


def linear(clock: Clock, start: float, end: float, over: float = 1.0) -> float:
    """Returns a number that goes from `start` to `end` on a straight line.

    Args:
        clock: of the step.
        start: in the first step.
        end: in the last step, or from the share `over` of the run on.
        over: in (0, 1].

    Example:
        >>> from pgmkit.learning.clock import clock_at
        >>> [linear(clock_at(0, step, 5), 6.0, 2.0) for step in range(5)]
        [6.0, 5.0, 4.0, 3.0, 2.0]
    """
    share = min(clock.fraction / over, 1.0)
    return start * (1 - share) + end * share


def cosine(clock: Clock, start: float, end: float, over: float = 1.0) -> float:
    """Returns a number that goes from `start` to `end` on half a cosine; see `linear`."""
    return _cosine(start, end, min(clock.fraction / over, 1.0))


def warm_up(clock: Clock, steps: int) -> float:
    """Returns a factor that grows from 1/steps in the first step to 1, where it stays."""
    return min((clock.step + 1) / steps, 1.0)


def one_cycle(
    clock: Clock, highest: float, first: float | None = None, last: float | None = None
) -> float:
    """Returns a number that rises for 0.3 of the run and falls to the end, on half cosines.

    It is the curve of `torch.optim.lr_scheduler.OneCycleLR` with its own defaults.

    Args:
        clock: of the step.
        highest: after 0.3 of the run.
        first: in the first step; `highest` / 25 if left out.
        last: in the last step; `first` / 10,000 if left out.
    """
    first = highest / 25 if first is None else first
    last = first / 1e4 if last is None else last
    top, end = 0.3 * max(clock.steps, 2) - 1, max(clock.steps, 2) - 1
    if clock.step <= top:
        return _cosine(first, highest, clock.step / top)
    return _cosine(highest, last, min((clock.step - top) / (end - top), 1.0))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives all parameters of an optimizer this learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
