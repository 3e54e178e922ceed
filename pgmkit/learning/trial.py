"""How long loops would take: a few steps of each, and no more."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_STEPS = 3
_left_out: ContextVar[list[float] | None] = ContextVar("pgmkit_trial", default=None)


@contextlib.contextmanager
def trying() -> Iterator[list[float]]:
    """Lets every loop that runs in the block make but three steps.

    Yields:
        The seconds that each of these loops would have taken for its other steps.
    """
    left_out: list[float] = []
    token = _left_out.set(left_out)
    try:
        yield left_out
    finally:
        _left_out.reset(token)


def is_trial() -> bool:
    """Returns whether a loop is to make but a few steps."""
    return _left_out.get() is not None


def try_steps(step: Callable[[], object], steps: int) -> None:
    """Makes the first steps of a loop, and tells how long the others would take."""
    left_out = _left_out.get()
    assert left_out is not None
    count = min(_STEPS, steps)
    step()  # which does what is done once, too
    started = time.perf_counter()
    for _ in range(count - 1):
        step()
    each = (time.perf_counter() - started) / max(count - 1, 1)
    left_out.append(each * (steps - count))
