"""Where numbered blocks of work run."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

_Result = TypeVar("_Result")


class Engine(Protocol):
    """Where blocks run; `pgmkit.hookspecs.pgmkit_engines` tells of optional parts."""

    def map(
        self, function: Callable[[int], _Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, _Result]]:
        """Yields `(block, function(block))` in any order."""


def is_coordinator(engine: Engine) -> bool:
    """Returns whether this process writes, reports and prints; others only lend a hand."""
    return bool(getattr(engine, "coordinator", True))


def decide(engine: Engine, function: Callable[[], _Result]) -> _Result:
    """Returns what `function()` is for the coordinator, in all processes of an engine.

    An error of the coordinator is raised in all of them.
    """
    agree: Callable[[Callable[[], _Result]], _Result] | None = getattr(engine, "decide", None)
    return function() if agree is None else agree(function)
