"""Blocks of work in this process."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from pgmkit.errors import ParameterError
from pgmkit.machine import available_cores

Result = TypeVar("Result")

_AT_ACCELERATOR = 3
"""Blocks under way: one that it computes, one whose latents are done again, one being written."""


class LocalEngine:
    """Runs blocks on threads of this process.

    Each worker has one thread for tensor operations, so that results do not depend on their
    number. Blocks that cannot run side by side get one worker with all threads, or a few where an
    accelerator computes: it has one block at a time, while others are finished and written.

    Args:
        workers: blocks at the same time; None is one per available core.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ParameterError(f"workers must be at least 1, not {workers}")
        self.workers = workers or available_cores()

    def map(
        self, function: Callable[[int], Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, Result]]:
        """Yields `(block, function(block))` as blocks finish; an error ends the rest."""
        threads = torch.get_num_threads()
        on_cpu = getattr(function, "device_type", "cpu") == "cpu"
        alone = 1 if on_cpu else min(self.workers, _AT_ACCELERATOR)
        workers, per_worker = (self.workers, 1) if parallel else (alone, threads)
        queue = iter(blocks)
        pool = ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(per_worker,)
        )
        running: dict[Future[Result], int] = {}
        try:
            while True:
                while len(running) < workers + 1:
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
