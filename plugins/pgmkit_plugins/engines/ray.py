"""Blocks of work on a Ray cluster."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

from pgmkit.errors import EngineError, ParameterError, first_line

# Read by ray when it is imported: no usage reports, and no advice on variables of accelerators.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

Result = TypeVar("Result")


class RayEngine:
    """Runs each block as a task on a Ray cluster.

    A task whose worker or node dies runs again elsewhere. The function is sent to the cluster once;
    a few more blocks than there are workers are on their way at any time.

    Args:
        address: of a running cluster, such as "ray://head:10001" or "auto"; None takes the one
            that `RAY_ADDRESS` or this machine names, or else starts one on this machine.
        workers: blocks at the same time; None is as many as the cluster has room for.
        num_cpus: processors per task, above 0.
        num_gpus: accelerators per task; None is one if the function computes on CUDA, else none.
        retries: times that a block is tried again after its worker died, from 0; -1 is no end.

    Attributes:
        threads: for tensor operations, where the blocks of one process cannot run side by side.

    Raises:
        ParameterError: a value is outside its range.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        num_cpus: float = 1,
        num_gpus: float | None = None,
        retries: int = 3,
    ) -> None:
        if workers is not None and workers < 1:
            raise ParameterError(f"workers must be at least 1, not {workers}")
        if num_cpus <= 0:
            raise ParameterError(f"num_cpus must be above 0, not {num_cpus}")
        if num_gpus is not None and num_gpus < 0:
            raise ParameterError(f"num_gpus must be at least 0, not {num_gpus}")
        if retries < -1:
            raise ParameterError(f"retries must be at least 0, or -1 for no end, not {retries}")
        self.address = address
        self.workers = workers
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.retries = retries
        self.threads = max(1, int(num_cpus))

    def map(
        self, function: Callable[[int], Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, Result]]:
        """Yields `(block, function(block))` as blocks finish; an error ends the rest.

        A worker process runs one block at a time, whether or not threads could run several.

        Raises:
            EngineError: there is no such cluster, or a block's workers died too often.
        """
        queue = iter(blocks)
        first = list(islice(queue, 1))
        if not first:  # to start a cluster takes seconds
            return
        queue = chain(first, queue)
        ours = self._connect()
        running: dict[Any, int] = {}
        try:
            submit = self._submitter(function)
            while True:
                # Counted again each time, since nodes come and go.
                for block in islice(queue, max(0, self._places() - len(running))):
                    running[submit(block)] = block
                if not running:
                    return
                (done,), _ = ray.wait(list(running))
                yield running.pop(done), _result(done)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if ours:
                ray.shutdown()

    def _connect(self) -> bool:
        """Connects to the cluster; returns whether that was our doing."""
        if ray.is_initialized():
            return False
        try:
            ray.init(
                address=self.address,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except Exception as error:
            raise EngineError(
                f"cannot connect to a Ray cluster at {self.address or 'this machine'!r} "
                f"({first_line(error)}); start one with ray start --head, or correct the address"
            ) from error
        return True

    def _submitter(self, function: Callable[[int], Result]) -> Callable[[int], Any]:
        on_cuda = getattr(function, "device_type", "cpu") == "cuda"
        task = ray.remote(_run).options(
            num_cpus=self.num_cpus,
            num_gpus=float(on_cuda) if self.num_gpus is None else self.num_gpus,
            max_retries=self.retries,
        )
        stored = ray.put(function)
        # In a list the reference arrives as such, and a worker fetches what it names only once.
        return lambda block: task.remote([stored], block)

    def _places(self) -> int:
        """Returns how many blocks may be on their way."""
        if self.workers is not None:
            return self.workers
        room = ray.cluster_resources().get("CPU", 0) / self.num_cpus
        return int(room) + 2


@functools.lru_cache(maxsize=1)
def _fetched(reference: Any) -> Any:
    return ray.get(reference)


def _run(stored: list[Any], block: int) -> Any:
    return _fetched(stored[0])(block)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"a block was given up after its workers died ({first_line(error)}); finished blocks "
            "are kept: run the same command again to continue"
        ) from error
