"""The work on one block, as an object that can be sent to another process."""

import contextlib
import copy
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgmkit.generator import Generator
from pgmkit.spectrum.differentiation import JacobianPlan
from pgmkit.spectrum.jacobian import JacobianSpectra, Method
from pgmkit.spectrum.store import Shards


class BlockRecord(NamedTuple):
    """What became of a block.

    Args:
        tensors: all tensors of its latents, each (b, ...).
        checksum: SHA-256 of the shard that was written; None without a folder.
    """

    tensors: dict[str, Tensor]
    checksum: str | None


class BlockTask:
    """Computes blocks of one spectrum and writes their shards.

    Can be pickled; a generator on an accelerator is taken up on the worker's own.

    Args:
        generator: G.
        method: what is computed of each Jacobian.
        plan: how the Jacobians are computed: the same for all workers.
        latents: z (n, M).
        log_prior: log p(z) (n,).
        block_size: latents per block.
        threads: for tensor operations.
        shards: where the worker writes what it has finished; None is nowhere.
        jacobians: what computes them, if there is one already.
    """

    def __init__(
        self,
        generator: Generator,
        method: Method,
        plan: JacobianPlan,
        latents: Tensor,
        log_prior: Tensor,
        *,
        block_size: int,
        threads: int,
        shards: Shards | None = None,
        jacobians: JacobianSpectra | None = None,
    ) -> None:
        self.generator = generator
        self.method = method
        self.plan = plan
        self.latents = latents
        self.log_prior = log_prior
        self.block_size = block_size
        self.threads = threads
        self.shards = shards
        self.device_type = generator.device.type
        self._jacobians = jacobians
        self._building = threading.Lock()

    def __call__(self, block: int) -> BlockRecord:
        """Computes one block and, if there is a folder, writes its shard.

        Raises:
            OutputError: the shard cannot be written.
        """
        rows = slice(block * self.block_size, (block + 1) * self.block_size)
        # Not a view: forward mode gives the whole that a view belongs to a tangent, too.
        latents = self.latents[rows].clone()
        jacobians = self.jacobians()
        with _threads(self.threads):
            tensors = jacobians.compute(latents)
        tensors |= {"latents": latents, "log_prior": self.log_prior[rows]}
        checksum = None if self.shards is None else self.shards.write(block, tensors)
        return BlockRecord(tensors, checksum)

    def jacobians(self) -> JacobianSpectra:
        """Returns what computes the Jacobians, built once in each process."""
        with self._building:
            if self._jacobians is None:
                self._jacobians = JacobianSpectra(self.generator, self.method, self.plan)
        return self._jacobians

    def __getstate__(self) -> dict[str, Any]:
        generator = self.generator
        if self.device_type != "cpu":
            generator = copy.deepcopy(generator).to("cpu")
        return {**self.__dict__, "generator": generator, "_jacobians": None, "_building": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _building=threading.Lock())
        self.generator.to(self.device_type)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Gives tensor operations this many threads, as they are on record."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
