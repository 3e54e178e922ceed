"""What a generator does to two fixed latents, in a few numbers that are kept with its spectra.

The fingerprint tells generators apart by their parts and cannot see everything that they compute
with. So the images count, too: by value and within a tolerance, since no two machines agree on the
last bits of a sum.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from pgmkit.generator import Generator
from pgmkit.machine import full_float32
from pgmkit.seeds import random_generator

_PROJECTIONS = 8
_TOLERANCE = 2e-3
_ROUNDINGS = 16
"""How many roundings of weights in few bits may add up to a difference."""


def landmarks(generator: Generator) -> list[float]:
    """Returns 16 numbers: the images of two fixed latents, each along 8 fixed random directions.

    Each is `Σ ±x_i / √D` over the D values of an image, so that two images that differ by d in
    root mean square differ by about d in each.

    Args:
        generator: stays as it is.
    """
    with full_float32():
        images = generator.images(generator.sample_latents(2, seed=0)).flatten(1).double()
    random = random_generator(0, "landmarks")
    size = images.shape[1]
    found = torch.stack(
        [images @ _signs(size, random) / math.sqrt(size) for _ in range(_PROJECTIONS)], dim=1
    ).flatten()
    scale = float(found.abs().max())
    # Rounded, so that they can be read; four digits less than what a machine changes.
    digits = 5 - math.floor(math.log10(scale)) if 0 < scale < math.inf else 5
    return [round(value, digits) for value in found.tolist()]


def agree(recorded: Any, generator: Generator, own: Sequence[float]) -> bool:
    """Returns whether recorded landmarks are those of a generator, up to rounding.

    Args:
        recorded: as they come from a file.
        generator: G.
        own: its `landmarks`.
    """
    try:
        other = torch.tensor(recorded, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    mine = torch.tensor(own, dtype=torch.float64)
    if other.shape != mine.shape:
        return False
    tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(generator.dtype).eps)
    scale = float(mine.square().mean().sqrt())
    return bool(((other - mine).abs() <= tolerance * scale).all())


def _signs(size: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (size,), generator=random).double() * 2 - 1
