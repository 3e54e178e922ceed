"""Images that a generator makes of latents, and latents that stand for themselves."""

import math
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from pgmkit.images.arrays import PointRows
from pgmkit.images.rows import Images, kept, sha256
from pgmkit.images.source import ImageSpec

if TYPE_CHECKING:
    from pgmkit.generator import Generator
    from pgmkit.priors import LatentSpec

_SHOWN = (-3.0, 3.0)


class GeneratedImages(Images):
    """G(z), made batch by batch on the generator's device, scaled to [-1, 1] and clamped.

    Points of a generator of points stay as they are. What was made is kept, in float32 on the CPU,
    if all of it fits into 256 MiB; then G runs once for each image.

    Args:
        generator: G.
        latents: z (n, M).
        name: "images of NAME" by default.

    Raises:
        GeneratorError: the latents have another shape.
    """

    def __init__(self, generator: "Generator", latents: Tensor, *, name: str | None = None) -> None:
        generator.check_latents(latents)
        self._generator = generator
        self._latents = latents.cpu()
        rows = kept(_Generated(generator, self._latents), bytes_per_value=4)
        super().__init__(rows, name=name or f"images of {generator.name or 'a generator'}")

    @property
    def latents(self) -> Tensor:
        """What the images are made of, (n, M), on the CPU."""
        return self._latents if self._index is None else self._latents[self._index]

    def subset(self, index: Tensor) -> Self:
        """Returns the source of these images (m,) alone, in this order."""
        chosen = super().subset(index)
        if not isinstance(self._rows, _Generated):
            return chosen
        latents = chosen.latents  # which may be few enough for their images to be kept
        rows = kept(_Generated(self._generator, latents), bytes_per_value=4)
        return chosen._with(_latents=latents, _rows=rows, _index=None)

    def moved(self, step: float, random: torch.Generator) -> Self:
        """Returns images of latents that moved; see `moved_latents`."""
        there = moved_latents(self.latents, self._generator.latent, step, random)
        changed = type(self)(self._generator, there, name=f"{self.name}, moved by {step:g}")
        return changed._with(labels=self.labels, classes=self.classes, device=self.device)


class LatentPoints(Images):
    """Latents as points, for what looks at latents and not at images.

    Args:
        prior: that they come from.
        latents: z (n, M).
        name: where they came from.
    """

    def __init__(self, prior: "LatentSpec", latents: Tensor, *, name: str = "latents") -> None:
        self._prior = prior
        super().__init__(PointRows(latents, _SHOWN), name=name)

    @property
    def latents(self) -> Tensor:
        """The latents (n, M), on the CPU."""
        return self.batch(torch.arange(len(self))).cpu()

    def moved(self, step: float, random: torch.Generator) -> Self:
        """Returns latents that moved; see `moved_latents`."""
        there = moved_latents(self.latents, self._prior, step, random)
        return self._with(_rows=PointRows(there, _SHOWN), _index=None)


def moved_latents(
    latents: Tensor, prior: "LatentSpec", step: float, random: torch.Generator
) -> Tensor:
    """Returns latents (n, M) moved by a step s in [0, 1] that leaves their prior as it is.

    For a normal prior that is `z' = √(1 - s²)·z + s·ε`; others are moved as `LatentSpec.to_normal`
    shows them. At s = 1 they are drawn anew. Categories stay.
    """
    normal = prior.to_normal(latents)
    fresh = torch.randn(normal.shape, generator=random, dtype=normal.dtype)
    stepped = math.sqrt(1 - step**2) * normal + step * fresh
    return prior.from_normal(torch.where(prior.continuous.to(normal.device), stepped, normal))


def as_source(made: Tensor, image: ImageSpec) -> Tensor:
    """Returns what a generator made as sources give it, float32: images in [-1, 1], or points.

    Args:
        made: images (B, C, H, W), or points (B, d).
        image: what the generator says of them.
    """
    if image.is_points:
        return made.float()
    low, high = image.range
    return (made.float() - low).mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)


class _Generated:
    """G(z) by number."""

    def __init__(self, generator: "Generator", latents: Tensor) -> None:
        self._generator = generator
        self._latents = latents
        made = generator.image
        self.image = made if made.is_points else ImageSpec(made.shape)
        self.device = generator.device

    def __len__(self) -> int:
        return len(self._latents)

    @torch.no_grad()
    def read(self, index: Tensor) -> Tensor:
        made = torch.cat(list(self._generator.image_batches(self._latents[index])))
        return as_source(made, self._generator.image)

    def digest(self) -> str:
        content = self._latents.contiguous().numpy().tobytes()
        return sha256([self._generator.fingerprint().encode(), content])
