"""Batches of images without end, in an order that comes from the seed and a counter alone."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.errors import DataError, ParameterError
from pgmkit.images.source import ImageSource
from pgmkit.learning import ranks
from pgmkit.seeds import random_generator


@dataclass(frozen=True)
class Batch:
    """Images that a step learns from.

    Args:
        images: (B, C, H, W), as the source has them.
        labels: class numbers (B,), or None.
        index: their numbers in the source (B,).
        size: B over all processes; what is drawn for a batch is drawn for so many, and
            `ranks.share` of it is this process's.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    size: int


class Batches:
    """Goes through a source again and again, each time in another order.

    The order comes from (seed, "epoch", epoch). The last images of an epoch that fill no batch are
    left out of it.

    Args:
        source: where images come from.
        size: images of a batch, over all processes.
        seed: of the run.

    Attributes:
        taken: how many batches were taken; whoever sets it goes on from there.

    Raises:
        ParameterError: the size is no whole number from 1, or not all processes get as many.
        DataError: there are fewer images than one batch has.
    """

    def __init__(self, source: ImageSource, size: int, seed: int) -> None:
        check_count("batch_size", size)
        if size % ranks.world_size():
            raise ParameterError(
                f"batch_size is shared among {ranks.world_size()} processes, so it must be a "
                f"multiple of that, not {size}"
            )
        if len(source) < size:
            raise DataError(
                f"there are {len(source)} images, fewer than one batch of {size}; lower batch_size"
            )
        self.source = source
        self.size = size
        self.seed = seed
        self.taken = 0
        self._order = (-1, torch.empty(0))

    @property
    def per_epoch(self) -> int:
        """How many batches one pass over the source has."""
        return len(self.source) // self.size

    @property
    def epoch(self) -> int:
        """How many passes are complete."""
        return self.taken // self.per_epoch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        epoch, place = divmod(self.taken, self.per_epoch)
        if self._order[0] != epoch:
            random = random_generator(self.seed, "epoch", epoch)
            self._order = epoch, torch.randperm(len(self.source), generator=random)
        joint = self._order[1][place * self.size : (place + 1) * self.size]
        index = ranks.share(joint)
        labels = None if self.source.labels is None else self.source.labels[index]
        self.taken += 1
        return Batch(self.source.batch(index), labels, index, self.size)
