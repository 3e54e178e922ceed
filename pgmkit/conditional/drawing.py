"""What is drawn from a conditional generator: latents, partitions and their images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.config import fits
from pgmkit.errors import ParameterError
from pgmkit.generator import LATENT_CHUNK, latent_chunk
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed, random_generator

_LEAST_TRUNCATION = 1e-5


@dataclass(frozen=True)
class Drawn:
    """What was drawn from a conditional generator, on the CPU.

    Args:
        images: (n, C, H, W), in the generator's range.
        latents: z (n, M), float32.
        partitions: y (n,), int64.
        inside: whether the partitioner finds each image in its partition, bool (n,); None where it
            was not asked.
        tries: how many images of each partition it was shown, int64 (k,); None likewise.
    """

    images: Tensor
    latents: Tensor
    partitions: Tensor
    inside: Tensor | None = None
    tries: Tensor | None = None

    @property
    def acceptance(self) -> Tensor | None:
        """The share of tries that the partitioner found in their partition, float64 (k,).

        It is NaN for partitions that were not drawn, and None where the partitioner was not asked.
        """
        if self.inside is None or self.tries is None:
            return None
        return (
            self.partitions[self.inside].bincount(minlength=len(self.tries)) / self.tries.double()
        )


class Drawing:
    """Draws latents and partitions, of which each 256 have a seed of their own.

    Args:
        make: gives images, on the CPU, for latents z (B, M) and partitions y (B,).
        find: gives the partitions (B,) in which images lie; None where nobody looks.
        latent: what z is drawn from.
        masses: of all partitions, which sum to 1.
        partition: that of all; None mixes them by their masses.
        seed: of everything random.
        redraws: how often, at most, what lies in another partition is drawn again.
    """

    def __init__(
        self,
        make: Callable[[Tensor, Tensor], Tensor],
        find: Callable[[Tensor], Tensor] | None,
        latent: LatentSpec,
        masses: Sequence[float],
        *,
        partition: int | None,
        seed: int,
        redraws: int,
    ) -> None:
        self._make, self._find, self._latent = make, find, latent
        self._masses = torch.tensor(masses, dtype=torch.float64)
        self._partition, self._seed, self._redraws = partition, seed, redraws
        self._tries = torch.zeros(len(masses), dtype=torch.int64)

    def drawn(self, n: int) -> Drawn:
        """Draws n of them."""
        y, places = self._partitions(n), torch.arange(n)
        z = self._latents(places, self._seed)
        images, inside = self._tried(z, y)
        for again in range(1, self._redraws + 1):
            outside = places[~inside]
            if not len(outside):
                break
            z[outside] = self._latents(outside, derive_seed(self._seed, "redraw", again))
            images[outside], inside[outside] = self._tried(z[outside], y[outside])
        if self._find is None:
            return Drawn(images, z, y)
        return Drawn(images, z, y, inside, self._tries)

    def _latents(self, places: Tensor, seed: int) -> Tensor:
        """Returns the latents (p, M) at increasing places (p,) among all of a seed."""
        chunks, sizes = (places // LATENT_CHUNK).unique_consecutive(return_counts=True)
        found = []
        for chunk, those in zip(chunks.tolist(), places.split(sizes.tolist()), strict=True):
            start = chunk * LATENT_CHUNK
            count = int(those[-1]) - start + 1
            found.append(latent_chunk(self._latent, count, seed, start)[those - start])
        return torch.cat(found)

    def _partitions(self, n: int) -> Tensor:
        if self._partition is not None:
            return torch.full((n,), self._partition)
        drawn = []
        for start in range(0, n, LATENT_CHUNK):
            random = random_generator(self._seed, "partitions", start)
            # All of a chunk, so that fewer are the first of them.
            drawn.append(torch.multinomial(self._masses, LATENT_CHUNK, True, generator=random))
        return torch.cat(drawn)[:n]

    def _tried(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and which lie in their partitions: all where nobody looks."""
        images, inside = [], []
        for some, parts in zip(z.split(LATENT_CHUNK), y.split(LATENT_CHUNK), strict=True):
            images.append(self._make(some, parts))
            inside.append(self._inside(images[-1], parts))
        return torch.cat(images), torch.cat(inside)

    def _inside(self, images: Tensor, y: Tensor) -> Tensor:
        """Returns which images lie in their partitions y (B,), and counts them."""
        if self._find is None:
            return torch.ones(len(y), dtype=torch.bool)
        self._tries += y.bincount(minlength=len(self._tries))
        return self._find(images) == y


def truncated(latent: LatentSpec, truncation: float, name: str) -> LatentSpec:
    """Returns a normal prior within so many standard deviations of its mean.

    Args:
        latent: one N(mean, std²) for each coordinate.
        truncation: at least 1e-5.
        name: of the generator, for messages.

    Raises:
        ParameterError: the prior is not normal, or the truncation is no such number.
    """
    if not fits(truncation, float) or not _LEAST_TRUNCATION <= truncation < math.inf:
        raise ParameterError(
            f"truncation must be a number of standard deviations from {_LEAST_TRUNCATION:g}, not "
            f"{truncation!r:.60}"
        )
    if latent.parts or latent.distribution != "normal":
        raise ParameterError(
            f"truncation is for normal priors, and that of {name!r} is {latent}; leave it out"
        )
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in (latent.mean, latent.std))
    low, high = mean - truncation * std, mean + truncation * std
    bounds: dict[str, Any] = {"low": low.tolist(), "high": high.tolist()}
    return replace(latent, distribution="truncated-normal", **bounds)
