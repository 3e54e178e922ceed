"""What a generator does to fixed latents, in one number each that is kept with its spectra.

The fingerprint tells generators apart by their parts and cannot see everything that they compute
with. So the images count, too: by value and within a tolerance, since no two machines agree on the
last bits of a sum.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pgmkit.generator import Generator
from pgmkit.machine import full_float32
from pgmkit.seeds import random_generator
from pgmkit.spectrum.jacobian import in_precision

_TOLERANCE = 2e-4
"""Relative to the values of the images.

Sums in another order change 1e-6 of those of a DCGAN, and 1e-4 after 20 normalised convolutions.
"""


def landmarks(generator: Generator) -> list[float]:
    """Returns one number for each of up to 64 images: how far it goes in a random direction.

    It is `Σ ±x_i / √D` over the D values of an image, so that two images that differ by d in
    root mean square differ by about d in it; 0 for an image that is not finite. Weights of 16 bits
    are taken in float32, as they are for Jacobians.
    """
    with full_float32():
        images = _images(generator, generator.fixed_latents()).flatten(1).double()
    random = random_generator(0, "landmarks")
    signs = torch.randint(0, 2, images.shape, generator=random).double() * 2 - 1
    found = ((images * signs).sum(dim=1) / math.sqrt(images.shape[1])).nan_to_num(0.0, 0.0, 0.0)
    scale = float(found.abs().max())
    # Rounded, so that they can be read; two digits more than what counts.
    digits = 6 - math.floor(math.log10(scale)) if scale > 0 else 0
    return [round(value, digits) for value in found.tolist()]


def agree(recorded: Any, own: Sequence[float]) -> bool:
    """Returns whether recorded landmarks are those of a generator, up to rounding."""
    try:
        other = torch.tensor(recorded, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    mine = torch.tensor(own, dtype=torch.float64)
    if other.shape != mine.shape:
        return False
    scale = float(mine.square().mean().sqrt())
    return bool(((other - mine).abs() <= _TOLERANCE * scale).all())


def _images(generator: Generator, z: Tensor) -> Tensor:
    with contextlib.suppress(RuntimeError):  # code that says half itself has no derivative here
        return in_precision(generator, "auto").images(z)
    return generator.images(z)
