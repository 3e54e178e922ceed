"""Blocks of work in this process."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from pgmkit.errors import ParameterError

Result = TypeVar("Result")


class LocalEngine:
    """Runs blocks on threads of this process.

    Several workers have one thread each for tensor operations; a single worker has all of them.

    Args:
        workers: blocks at the same time; None is one per available core.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ParameterError(f"workers must be at least 1, not {workers}")
        self.workers = workers or len(os.sched_getaffinity(0))

    def map(
        self, function: Callable[[int], Result], blocks: Iterable[int]
    ) -> Iterator[tuple[int, Result]]:
        """Yields `(block, function(block))` as blocks finish; an error ends the rest."""
        threads = torch.get_num_threads()
        per_worker = 1 if self.workers > 1 else threads
        queue = iter(blocks)
        pool = ThreadPoolExecutor(
            self.workers, initializer=torch.set_num_threads, initargs=(per_worker,)
        )
        running: dict[Future[Result], int] = {}
        try:
            while True:
                while len(running) < self.workers + 1:
                    block = next(queue, None)
                    if block is None:
                        break
                    running[pool.submit(function, block)] = block
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
