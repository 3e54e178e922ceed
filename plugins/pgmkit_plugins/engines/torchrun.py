"""Blocks of work in the processes that torchrun starts, on one machine or on many."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, cast

import torch.distributed as dist

from pgmkit.errors import EngineError
from pgmkit.learning import ranks

Result = TypeVar("Result")
_Outcome = tuple[int, object, Exception | None]


class TorchrunEngine:
    """Shares blocks out among the processes of `torchrun`, which all run the same command.

    In every process `map` yields all blocks. Where there are CUDA devices each process takes its
    own, so that a generator on "cuda" is on that one.

    Attributes:
        coordinator: whether this is the process of rank 0.

    Raises:
        EngineError: torchrun did not start this process.
    """

    def __init__(self) -> None:
        if not ranks.is_launched():
            raise EngineError(
                "the engine 'torchrun' runs under torchrun; start the same command as "
                "torchrun --nproc-per-node 2 -m pgmkit ..."
            )
        ranks.join()
        self.rank = ranks.rank()
        self.world_size = ranks.world_size()

    @property
    def coordinator(self) -> bool:
        """Whether this process writes manifests, reports and prints."""
        return self.rank == 0

    def decide(self, function: Callable[[], Result]) -> Result:
        """Returns `function()` of rank 0 in all processes; its error is raised in all."""
        return ranks.decide(function)

    def map(
        self, function: Callable[[int], Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, Result]]:
        """Yields `(block, function(block))` round by round; an error ends all processes.

        A process runs one block at a time, whether or not threads could run several.
        """
        numbers = list(blocks)
        for start in range(0, len(numbers), self.world_size):
            own = numbers[start + self.rank : start + self.rank + 1]
            yield from self._gathered([_attempt(function, block) for block in own])

    def _gathered(self, own: list[_Outcome]) -> Iterator[tuple[int, Result]]:
        """Yields what all processes did in one round."""
        everyone = [own]
        if self.world_size > 1:
            everyone = [[] for _ in range(self.world_size)]
            dist.all_gather_object(everyone, own)
        outcomes = [outcome for outcomes in everyone for outcome in outcomes]
        for _, _, error in outcomes:
            if error is not None:
                raise error
        yield from ((block, cast(Result, result)) for block, result, _ in outcomes)


def _attempt(function: Callable[[int], object], block: int) -> _Outcome:
    """Runs one block; its error is kept, since the other processes wait for an answer."""
    try:
        return block, function(block), None
    except Exception as error:
        return block, None, error
