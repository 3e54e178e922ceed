"""What a run tells of itself while it works, without being handed a callback.

Silent unless `shown` is on, as it is on the command line. A phase that takes longer than two
seconds then has a bar with the time left on a terminal, or the time spent if nobody knows how many
steps there are, and one line where stderr is piped. With `verbose` each phase also tells, at its
end, how long it took.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

from pgmkit.errors import printable

Item = TypeVar("Item")

_SECONDS, _TICK = 2.0, 1.0
_is_shown: ContextVar[bool] = ContextVar("pgmkit_progress", default=False)
_follower: ContextVar[Callable[[str, int, int | None], None] | None] = ContextVar(
    "pgmkit_follower", default=None
)
_is_verbose: ContextVar[bool] = ContextVar("pgmkit_verbose", default=False)


@contextlib.contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Shows progress on stderr, or hides it, until the block ends.

    Example:
        >>> with shown(), phase("counting", total=3) as count:
        ...     count.advance(3)
    """
    token = _is_shown.set(on)
    try:
        yield
    finally:
        _is_shown.reset(token)


@contextlib.contextmanager
def verbose() -> Iterator[None]:
    """Tells how long each phase took, where progress is shown, until the block ends."""
    token = _is_verbose.set(True)
    try:
        yield
    finally:
        _is_verbose.reset(token)


def is_verbose() -> bool:
    """Returns whether all is told."""
    return _is_verbose.get()


def is_shown() -> bool:
    """Returns whether progress is shown."""
    return _is_shown.get()


@contextlib.contextmanager
def followed(by: Callable[[str, int, int | None], None]) -> Iterator[None]:
    """Tells a function of each phase that begins or goes on, until the block ends.

    Whether progress is shown on stderr, too, is another matter.

    Args:
        by: takes the name of the phase, the steps that are done, and how many there are, None where
            nobody knows. It is called for each step, from any thread, and is to be quick.

    Example:
        >>> with followed(lambda name, done, total: print(name, done, total)):
        ...     with phase("counting", total=3) as count:
        ...         count.advance(2)
        counting 0 3
        counting 2 3
    """
    token = _follower.set(by)
    try:
        yield
    finally:
        _follower.reset(token)


def tell(line: str) -> None:
    """Prints a line on stderr, above any bar, if progress is shown."""
    if _is_shown.get():
        _print(line)


class Phase:
    """A part of a run that goes on; see `phase`."""

    def __init__(self, name: str, total: int | None, unit: str, initial: int) -> None:
        self.name = name
        self._bar: Any = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._show = (name, total, unit, initial)
        self._done = 0
        self._follower = _follower.get()
        self._tell()

    def advance(self, count: int = 1) -> None:
        """Counts what was done."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
        self._tell()

    def _tell(self) -> None:
        if self._follower is not None:
            name, total, _, initial = self._show
            self._follower(name, initial + self._done, total)

    def _start(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def _appear(self) -> None:
        name, total, unit, initial = self._show
        with self._lock:
            if self._timer is None:
                return
            if not sys.stderr.isatty():
                _print(f"{name}: {total:,} {unit}{'s' * (total > 1)}" if total else name)
                return
            if self._bar is not None:
                self._bar.refresh()
            else:
                shape = None if total else "{desc}: {elapsed}"
                self._bar = tqdm(
                    total=total,
                    initial=initial,
                    unit=f" {unit}",
                    desc=name,
                    leave=False,
                    bar_format=shape,
                )
                self._bar.start_t -= _SECONDS  # it began when nobody knew it would take long
                self._bar.update(self._done)
            if not total:  # nothing else moves the clock
                self._start(_TICK)

    def _end(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            if self._bar is not None:
                self._bar.close()


@contextlib.contextmanager
def phase(
    name: str, total: int | None = None, unit: str = "step", initial: int = 0
) -> Iterator[Phase]:
    """Marks a part of a run that may take long.

    Args:
        name: what is done, such as "learning features".
        total: how many steps there are, if that is known.
        unit: what is counted, in the singular.
        initial: how many of them were done before.

    Yields:
        What to tell of each step that is done.
    """
    part = Phase(name, total, unit, initial)
    started = time.perf_counter()
    if _is_shown.get():
        part._start(_SECONDS)
    try:
        yield part
    finally:
        part._end()
    if _is_verbose.get():
        tell(f"{name}: {time.perf_counter() - started:.2f} s")


def track(
    items: Iterable[Item],
    name: str,
    total: int,
    unit: str = "step",
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Yields the items and counts each, for its size, as done when the next is asked for."""
    with phase(name, total, unit) as part:
        for item in items:
            yield item
            part.advance(size(item))


def _print(line: str) -> None:
    with tqdm.external_write_mode(file=sys.stderr):
        print(printable(line), file=sys.stderr, flush=True)
