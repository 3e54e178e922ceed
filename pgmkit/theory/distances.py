"""Masses of parts, and distances between them, as far as images show them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.images import ImageSource
from pgmkit.images.source import BATCH
from pgmkit.partition import FittedPartitioner
from pgmkit.progress import phase
from pgmkit.seeds import random_generator

IMAGES = 5_000
"""How many images are looked at, where nobody says otherwise."""

_KEPT = 2**28
_BLOCK = 2**25
_ROWS = 1024


@dataclass(frozen=True)
class MeasuredParts:
    """Masses and distances of parts, by a sample of images.

    Args:
        sizes: how many of the images lie in each part.
        distances: of the image of each part that is nearest to an image of another, in L2 over all
            pixels in [-1, 1]. The parts themselves are at most so far apart, and more images only
            lower it. Infinite for an empty part.
    """

    sizes: list[int]
    distances: list[float]

    @property
    def num_images(self) -> int:
        """How many images were looked at."""
        return sum(self.sizes)

    @property
    def masses(self) -> list[float]:
        """The share of the images in each part."""
        return [size / self.num_images for size in self.sizes]


def measure_parts(
    fitted: FittedPartitioner, source: ImageSource, *, images: int = IMAGES, seed: int = 0
) -> MeasuredParts:
    """Returns masses and distances of the parts of a random sample of images.

    Args:
        fitted: of at least two parts.
        source: images of the shape that it was fitted to.
        images: at most so many are looked at, at least 2; and no more than 256 MiB hold.
        seed: of the sample.

    Raises:
        ParameterError: a value is outside its range, the images have another shape, or they all lie
            in one part.
    """
    return measured(*sampled_parts(fitted, source, images, seed), fitted.num_partitions)


def sampled_parts(
    fitted: FittedPartitioner, source: ImageSource, images: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Returns a random sample of images, on the CPU, and their parts (n,); see `measure_parts`."""
    check_count("the number of images", images)
    fitted.check_images(source.image.shape, source.name)
    if fitted.num_partitions < 2:
        raise ParameterError("a single part is everything; the theorems are about at least two")
    count = min(images, len(source), max(2, _KEPT // (4 * math.prod(source.image.shape))))
    chosen = torch.randperm(len(source), generator=random_generator(seed, "audit"))[:count]
    found, labels = [], []
    with phase("parts of images", count, "image") as part, torch.no_grad():
        for index in chosen.split(BATCH):
            x = source.batch(index)
            found.append(x.cpu())
            labels.append(contracts.logits_of(fitted.partitioner, x).argmax(dim=1).cpu())
            part.advance(len(x))
    parts = torch.cat(labels)
    if len(parts.unique()) < 2:
        raise ParameterError(
            f"all {count:,} images of {source.name} lie in one part; give more images, or others"
        )
    return torch.cat(found), parts


def measured(x: Tensor, labels: Tensor, num_partitions: int) -> MeasuredParts:
    """Returns what images x (n, C, H, W) with their parts (n,), both on the CPU, show."""
    nearest = _nearest(x.flatten(1), labels)
    distances = torch.full((num_partitions,), math.inf, dtype=torch.float64)
    distances.scatter_reduce_(0, labels, nearest, "amin")
    return MeasuredParts(labels.bincount(minlength=num_partitions).tolist(), distances.tolist())


def _nearest(x: Tensor, labels: Tensor) -> Tensor:
    """Returns how far each of x (n, d) is from the nearest of another label, float64 (n,).

    Products of matrices find which is the nearest, and the distance to it is computed anew.
    """
    norms = x.double().square().sum(dim=1)
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    which = torch.zeros(len(x), dtype=torch.int64)
    blocks = torch.arange(len(x)).split(min(_ROWS, max(1, _BLOCK // (8 * x.shape[1]))))
    with phase("distances between parts", len(blocks), "block") as part:
        for rows in blocks:
            own = x[rows].double()
            for others in blocks:
                squares = norms[rows, None] + norms[others] - 2 * own @ x[others].double().T
                squares[labels[rows, None] == labels[others]] = math.inf
                least, place = squares.min(dim=1)
                closer = least < best[rows]
                best[rows[closer]] = least[closer]
                which[rows[closer]] = others[place[closer]]
            part.advance()
    return torch.cat([(x[i].double() - x[which[i]].double()).norm(dim=1) for i in blocks])
