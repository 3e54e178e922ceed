"""Where numbered blocks of work run."""

from collections.abc import Callable
from typing import TypeVar

from pgmkit.contracts import Engine

_Result = TypeVar("_Result")


def is_coordinator(engine: Engine) -> bool:
    """Returns whether this process writes, reports and prints; others only lend a hand."""
    return bool(getattr(engine, "coordinator", True))


def decide(engine: Engine, function: Callable[[], _Result]) -> _Result:
    """Returns what `function()` is for the coordinator, in all processes of an engine.

    An error of the coordinator is raised in all of them.
    """
    agree: Callable[[Callable[[], _Result]], _Result] | None = getattr(engine, "decide", None)
    return function() if agree is None else agree(function)
