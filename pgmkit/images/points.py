"""Points in the plane with known modes, for generators that can be looked at whole."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from pgmkit.errors import DataError, nearest_names
from pgmkit.images.arrays import ArrayImages
from pgmkit.images.rows import Images
from pgmkit.seeds import random_generator

_COUNTS = {"train": 100_000, "test": 50_000}
_MOST = 100_000_000


@dataclass(frozen=True)
class Modes:
    """An even mixture of round normal distributions in the plane.

    Args:
        centres: (K, 2).
        std: standard deviation along each axis.
        shown: part of both axes that pictures show.
    """

    centres: Tensor
    std: float
    shown: tuple[float, float]

    def sample(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws points, float32 (n, 2), and the modes that they are of, (n,)."""
        modes = torch.randint(len(self.centres), (count,), generator=random)
        noise = torch.randn(count, 2, generator=random).mul_(self.std)
        return noise.add_(self.centres[modes]), modes


def _ring() -> Modes:
    angles = torch.arange(8) * (2 * math.pi / 8)
    return Modes(2 * torch.stack([angles.cos(), angles.sin()], dim=1), 1e-2, (-3.0, 3.0))


def _grid() -> Modes:
    side = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    return Modes(torch.cartesian_prod(side, side), 5e-2, (-6.0, 6.0))


PLANES: Mapping[str, Modes] = MappingProxyType({"ring": _ring(), "grid": _grid()})
"""The toys of "Partition-Guided GANs" (2021) and those before it: 8 modes on a circle of radius 2
with variance 1e-4, and 25 on {-4, -2, 0, 2, 4}² with variance 2.5e-3."""


def load_points(reference: str, split: str) -> Images:
    """Draws what "points:ring:n=100000:seed=0" names, with the modes as labels.

    Without n there are 100,000 points to train on and 50,000 to test with; both splits of a seed
    are independent of each other.

    Raises:
        DataError: there are no such points.
    """
    name, values = find_points(reference)
    count, seed = values.get("n", _COUNTS.get(split, _COUNTS["test"])), values.get("seed", 0)
    points, modes = PLANES[name].sample(count, random_generator(seed, "points", name, split))
    return ArrayImages(points, modes, name=f"points:{name}", value_range=PLANES[name].shown)


def find_points(reference: str) -> tuple[str, dict[str, int]]:
    """Returns what a reference names, and the values that it sets, without drawing anything.

    Raises:
        DataError: there are no such points.
    """
    _, name, *rest = reference.split(":")
    if name not in PLANES:
        raise DataError(f"there are no points called {name!r}; {nearest_names(name, PLANES)}")
    values = {}
    for part in rest:
        match = re.fullmatch(r"(n|seed)=([0-9]{1,9})", part)
        if match is None or not 1 <= int(match[2]) + (match[1] == "seed") <= _MOST:
            raise DataError(
                f"{reference!r} says {part!r}; points take n=NUMBER and seed=NUMBER, such as "
                f"points:{name}:n=50000:seed=1"
            )
        values[match[1]] = int(match[2])
    return name, values
