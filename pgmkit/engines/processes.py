"""Work in processes that may die: each death costs the one item that was under way."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

from pgmkit.plugins import installed

_FRESH = multiprocessing.get_context("spawn")

Item = TypeVar("Item")
Output = TypeVar("Output")


def in_processes(
    function: Callable[[Item], Output], items: Sequence[Item], jobs: int
) -> Generator[tuple[Item, Output | int], None, None]:
    """Yields `(item, function(item))` as items are done, each in one of several fresh processes.

    Where a process dies, its exit code stands for the result, negative for a signal, and another
    process takes its place. Ctrl-C and SIGTERM are the caller's business: when the iteration ends,
    for whatever reason, so do the processes.

    Args:
        function: that can be pickled; expected errors it returns.
        items: that can be pickled.
        jobs: number of processes, at least 1.
    """
    queue = deque(items)
    workers: dict[Connection, _Worker[Item]] = {}
    try:
        while queue or workers:
            while queue and len(workers) < jobs:
                worker = _Worker(function, queue.popleft())
                workers[worker.connection] = worker
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    output = connection.recv()
                except (EOFError, OSError):
                    del workers[connection]
                    yield worker.item, worker.end()
                    continue
                item = worker.item
                if queue:
                    worker.give(queue.popleft())
                else:
                    del workers[connection]
                    worker.end()
                yield item, output
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.end()


class _Worker(Generic[Item]):
    """A process, the pipe to it, and the item that it has."""

    def __init__(self, function: Callable[[Item], Any], item: Item) -> None:
        disabled = [record.name for record in installed().records if record.status == "disabled"]
        self.connection, theirs = _FRESH.Pipe()
        self.process: SpawnProcess = _FRESH.Process(
            target=_work, args=(theirs, function, ",".join(disabled)), daemon=True
        )
        # A Ctrl-C goes to all processes of a terminal. Inherited, the mask keeps it from this one,
        # which would print a traceback; here it is only put off. Starting the tracker ends a mask.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self.give(item)

    def give(self, item: Item) -> None:
        self.item = item
        with contextlib.suppress(OSError):  # it died; the next look at the pipe says so
            self.connection.send(item)

    def end(self) -> int:
        """Closes the pipe, which ends the process, and returns its exit code."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return 0 if code is None else code


def _work(connection: Connection, function: Callable[[Any], Any], disabled: str) -> None:
    os.environ["PGMKIT_DISABLE_PLUGINS"] = disabled
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(function(connection.recv()))


def _end_with_parent() -> None:
    """Ends this process if its parent was killed and could not do it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
