"""What every result that can be explored has: clusters or parts, with samples of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pgmkit import pictures
from pgmkit.images.source import ImageSpec

LARGEST_TILE = 96
"""Pixels of a side of an image that is shown small, beside many others."""


@dataclass(frozen=True)
class Samples:
    """Samples of one cluster, those first that belong to it the most clearly.

    Args:
        images: bytes (n, C, H, W), C from 1 to 4; or points (n, d) as floats.
        margins: by how much each belongs to its cluster rather than to another, (n,), descending;
            None where nobody can tell.
        latents: z (n, M), or None.
    """

    images: Tensor
    margins: Tensor | None
    latents: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def part(self, index: Sequence[int]) -> "Samples":
        """Returns some of them."""
        chosen = torch.tensor(list(index), dtype=torch.int64)
        return Samples(
            self.images[chosen],
            None if self.margins is None else self.margins[chosen],
            None if self.latents is None else self.latents[chosen],
        )


class Exhibit(Protocol):
    """A result to explore."""

    @property
    def title(self) -> str:
        """What it is."""

    @property
    def lead(self) -> str:
        """What was found, in a sentence."""

    @property
    def image(self) -> ImageSpec:
        """What its images are like."""

    @property
    def notes(self) -> Sequence[str]:
        """What cannot be shown, and why; each a sentence."""

    @property
    def called(self) -> list[str]:
        """Returns what the clusters or parts are called, in the order of their numbers."""

    @property
    def shares(self) -> list[float]:
        """Returns how much of all is in each."""

    def samples(self, cluster: int, n: int, *, fresh: bool = False, seed: int = 0) -> Samples:
        """Returns at most n samples of a cluster; `fresh` ones are drawn anew where they can be."""


def to_show(images: Tensor, image: ImageSpec) -> Tensor:
    """Returns images (n, C, H, W) in the range of `image` as bytes; points stay as they are."""
    return images if image.is_points else pictures.to_uint8(images, image.range)


def sorted_samples(shown: Tensor, margins: Tensor | None, latents: Tensor | None) -> Samples:
    """Returns samples in the order of their margins.

    Args:
        shown: bytes (n, C, H, W), or points (n, d).
        margins: (n,), or None.
        latents: (n, M), or None.
    """
    if margins is None:
        return Samples(shown, None, latents)
    order = margins.argsort(descending=True, stable=True)
    return Samples(shown[order], margins[order], None if latents is None else latents[order])
