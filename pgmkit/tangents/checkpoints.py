"""Gradient checkpoints, run as the functions that they wrap."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.checkpoint import CheckpointFunction

_lock = threading.Lock()
_inside: set[int] = set()
"""The threads in which checkpoints are run through."""


@contextmanager
def checkpoints_run_through() -> Iterator[None]:
    """Makes reentrant checkpoints of this thread mere calls.

    They save memory and change no value, but neither `torch.autograd.grad` nor forward mode passes
    through them.
    """
    thread = threading.get_ident()
    if thread in _inside:
        yield
        return
    with _lock:
        if not _inside:
            CheckpointFunction.apply = _applied(CheckpointFunction.apply)
        _inside.add(thread)
    try:
        yield
    finally:
        with _lock:
            _inside.discard(thread)
            if not _inside:
                del CheckpointFunction.apply  # what it inherits shows again


def _applied(apply: Callable[..., Any]) -> Callable[..., Any]:
    def call(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() in _inside:
            return function(*args)
        return apply(function, preserve, *args)

    return call
