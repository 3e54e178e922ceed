"""The points that features make of all images of a source."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSource, batches


@torch.no_grad()
def gathered_points(features: contracts.Features, source: ImageSource) -> Tensor:
    """Returns the points (n, d), float64 on the CPU, of all images, made batch by batch."""
    found = [contracts.points_of(features, x).cpu().double() for x in batches(source)]
    return torch.cat(found)


def check_max_points(max_points: int, num_partitions: int) -> None:
    """Raises ParameterError unless `max_points` points are enough for the parts."""
    if not isinstance(max_points, int) or max_points < num_partitions:
        raise ParameterError(
            f"max_points must be a whole number from the number of parts, {num_partitions}, not "
            f"{max_points!r}"
        )


def some_of(count: int, at_most: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns the numbers of all `count` points, or of `at_most` random ones, in order."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))
