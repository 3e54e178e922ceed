"""What a conditional generator is conditioned on: parts of the images, and the guide to them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.components import called
from pgmkit.config import check_count
from pgmkit.errors import DataError, ParameterError
from pgmkit.images.source import ImageSource
from pgmkit.learning import Clock
from pgmkit.learning.schedules import linear
from pgmkit.partition import FittedPartitioner, gathered_logits
from pgmkit.partition.parts import pull_of


@dataclass(frozen=True)
class Guide:
    """How much the guide counts beside the loss: λ, which falls on a straight line.

    The guide is the sum of Eq. 6. The authors' code takes the mean over the k parts instead, so
    that its λ is k times this one.

    Args:
        start: λ in the first step, at least 0.
        end: λ at the end, at least 0.
        steps: of the generator, after which λ stays at `end`; None is all of them.

    Raises:
        ParameterError: a number is outside its range.
    """

    start: float = 6.0
    end: float = 1e-4
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParameterError(
                    f"guide.{name} must be at least 0, not {getattr(self, name)!r}"
                )
        if self.steps is not None:
            check_count("guide.steps", self.steps)

    @property
    def is_off(self) -> bool:
        """Whether it never counts."""
        return self.start == self.end == 0

    def weight(self, clock: Clock) -> float:
        """Returns λ in a step."""
        over = 1.0 if self.steps is None else min(self.steps / clock.steps, 1.0)
        return linear(clock, self.start, self.end, over)


class Conditions:
    """The parts of the images that a generator is trained on.

    Args:
        fitted: the partitioner.
        source: the images, all of which it looks at once.
        guided: whether the generator is to follow the guide.

    Attributes:
        fitted: the partitioner.
        labels: part of each image, int64 (n,).
        masses: share of the images in each part, float64 (k,).

    Raises:
        ParameterError: the guide is wanted, and the partitioner has no gradient; or it was fitted
            to images of another size.
        DataError: all images are in one of several parts.
    """

    def __init__(self, fitted: FittedPartitioner, source: ImageSource, guided: bool) -> None:
        fitted.check_images(source.image.shape)
        self.fitted = fitted
        if guided:
            two = source.batch(torch.arange(min(2, len(source)))).requires_grad_(True)
            fitted.guide(two, 0)  # which says if it cannot
        self.labels = gathered_logits(fitted.partitioner, source, "parts of images").argmax(dim=1)
        sizes = self.labels.bincount(minlength=fitted.num_partitions).double()
        if len(sizes) > 1 and int((sizes > 0).sum()) == 1:
            raise DataError(
                f"all {len(source):,} images lie in part {int(sizes.argmax())} of the "
                f"{called('partitioners', fitted.partitioner)}, so there is nothing to condition "
                "on; fit it to these images"
            )
        self.masses = sizes / len(source)

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Draws parts (count,), int64, as often as images lie in them."""
        return torch.multinomial(self.masses, count, replacement=True, generator=random)

    def pull(self, x: Tensor, parts: Tensor) -> Tensor:
        """Returns the guide of each image to its part, (B,); `FittedPartitioner.guide` unchecked.

        It asks nothing of the device that it would have to wait for.
        """
        return pull_of(self.fitted.partitioner.logits(x), parts)
