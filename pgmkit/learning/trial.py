"""How long work would take, told from a little of it."""

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from pgmkit.learning import ranks
from pgmkit.learning.checkpoints import Part

_STEPS = 2
_STEPS_ON_CUDA = 4
"""The first three do what is done once: kernels are fetched, and steps recorded."""
_VALUES, _VALUES_ON_CUDA = 2**16, 2**20
"""Values that the images of a batch may have in a trial; larger batches are made smaller."""
_loops: ContextVar["Loops | None"] = ContextVar("pgmkit_trial", default=None)


class Loops:
    """The loops of a trial, of which but two steps were made.

    Attributes:
        spent: seconds that those steps took.
        whole: seconds that all steps would take.
        lengths: how many steps each loop has, and the seconds of one.
    """

    def __init__(self) -> None:
        self.spent = self.whole = 0.0
        self.lengths: list[tuple[int, float]] = []


@contextlib.contextmanager
def trying() -> Iterator[Loops]:
    """Lets every loop that runs in the block make but two steps, and keep nothing."""
    loops = Loops()
    token = _loops.set(loops)
    try:
        yield loops
    finally:
        _loops.reset(token)


def is_trial() -> bool:
    """Returns whether a loop is to make but a few steps."""
    return _loops.get() is not None


def batch_of_trial(batch_size: int, shape: Sequence[int]) -> int:
    """Returns how many images a batch has in a trial: all of them, or as many as are small enough.

    Args:
        batch_size: of the loop, over all processes.
        shape: of an image.
    """
    least = 2 * ranks.world_size()
    values = _VALUES_ON_CUDA if torch.cuda.is_initialized() else _VALUES
    return min(batch_size, max(values // math.prod(shape) // least, 1) * least)


def try_steps(step: Callable[[], object], steps: int, times: float = 1.0) -> None:
    """Makes the first steps of a loop, and tells how long all would take.

    Args:
        step: makes one.
        steps: how many there are.
        times: how many times longer they would take than in the trial.
    """
    loops = _loops.get()
    assert loops is not None
    count = min(_STEPS_ON_CUDA if torch.cuda.is_initialized() else _STEPS, steps)
    started = time.perf_counter()
    for _ in range(max(count - 1, 1)):
        step()  # which does what is done once, too
    first = _now()
    if count > 1:
        step()
    ended = _now()
    loops.spent += ended - started
    each = times * ((ended - first) if count > 1 else (first - started))
    loops.whole += (steps - 1) * each + ((first - started) if count > 1 else each)
    loops.lengths.append((steps, each))


@contextlib.contextmanager
def unlearned(parts: Mapping[str, Part]) -> Iterator[None]:
    """Gives modules and tensors back what they held before the block.

    A few steps on few images, at a rate that is for many, may end in numbers that are not finite.
    """
    modules = {n: part for n, part in parts.items() if isinstance(part, nn.Module)}
    states = {n: copy.deepcopy(module.state_dict()) for n, module in modules.items()}
    tensors = [part for part in parts.values() if isinstance(part, Tensor)]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for name, module in modules.items():
            module.load_state_dict(states[name])
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)


def _now() -> float:
    """Returns the time when all that was asked of a device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[int], object], count: int, few: int) -> float:
    """Returns about how many seconds `work(count)` takes, by doing `few` and three times as many.

    The steps of loops are counted. Their numbers, which grow where they are passes over the images,
    and the seconds of all else are taken to grow in a straight line.
    """
    few, more = min(few, count), min(3 * few, count)

    def tried(number: int) -> tuple[float, Loops]:
        started = time.perf_counter()
        with trying() as loops:
            work(number)
        return time.perf_counter() - started - loops.spent, loops

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried(few)  # what is done once
        first, shorter = tried(few)
        second, loops = tried(more)
    each = max(second - first, 0.0) / max(more - few, 1)
    further = (count - more) / max(more - few, 1)
    longer = sum(
        max(steps - before, 0) * further * seconds
        for (before, _), (steps, seconds) in zip(shorter.lengths, loops.lengths, strict=False)
    )
    return loops.whole + longer + second + each * (count - more)
