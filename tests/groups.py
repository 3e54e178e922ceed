"""Images in groups that are known, and sources of them, for tests of what finds parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor, nn

import pgmkit
from pgmkit.images.generated import GeneratedImages
from pgmkit.images.source import ImageSpec

DIM = 6


@dataclass(frozen=True)
class Pictures:
    """Images (n, C, H, W) in [-1, 1] or points (n, d) in memory, as a source of a user's own."""

    values: Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    labels: Tensor | None = None
    classes: Mapping[int, str] | None = None
    name: str = "pictures"

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(tuple(self.values.shape[1:]))

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, index: Tensor) -> Tensor:
        return self.values[index].to(self.device)

    def subset(self, index: Tensor) -> "Pictures":
        labels = None if self.labels is None else self.labels[index]
        return replace(self, values=self.values[index], labels=labels)

    def summary(self) -> dict[str, Any]:
        return {"source": "pictures", "shape": list(self.values.shape), "sha256": "0"}


class Gated(nn.Module):
    """Four templates, chosen by the signs of z₀·z₁ and z₂·z₃, which no plane in latents shows."""

    def __init__(self, channels: int = 3, size: int = 8, sharpness: float = 500.0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        coarse = torch.randn(2, channels, 2, 2, generator=random)
        side = size // 2
        self.register_buffer(
            "templates", coarse.repeat_interleave(side, 2).repeat_interleave(side, 3)
        )
        self.register_buffer("detail", torch.randn(DIM, channels, size, size, generator=random))
        self.sharpness = sharpness
        self.largest_batch = 0
        self.images_made = 0

    def forward(self, z: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(z))
        self.images_made += len(z)
        gates = torch.tanh(self.sharpness * torch.stack([z[:, 0] * z[:, 1], z[:, 2] * z[:, 3]], 1))
        image = torch.einsum("bg,gchw->bchw", gates, self.templates)
        return 0.3 * image + 0.005 * torch.einsum("bd,dchw->bchw", z, self.detail)


class Bars(nn.Module):
    """One bar, upright or level by the sign of z₀·z₁, its brightness and place by the others."""

    size = 16

    def forward(self, z: Tensor) -> Tensor:
        places = torch.arange(self.size) - self.size / 2
        bar = (1.5 - (places + 2 * torch.tanh(z[:, 2:3])).abs()).clamp(0, 1)
        long = (self.size / 3 - places.abs()).clamp(0, 1).expand_as(bar)
        upright = bar[:, None, :] * long[:, :, None]
        level = bar[:, :, None] * long[:, None, :]
        image = torch.where((z[:, 0] * z[:, 1] > 0)[:, None, None], upright, level)
        return (image * (0.6 + 0.4 * torch.sigmoid(z[:, 3]))[:, None, None])[:, None] * 510


class Spread(nn.Module):
    """Images around one template, near where z₀ is negative and far where it is positive."""

    def forward(self, z: Tensor) -> Tensor:
        size = torch.where(z[:, :1] > 0, 1.0, 0.05)
        return (size * z[:, 1:].repeat(1, 13)[:, :64]).reshape(-1, 1, 8, 8) / 4


def gated(sharpness: float = 500.0, **latent: Any) -> pgmkit.Generator:
    return pgmkit.Generator(
        Gated(sharpness=sharpness),
        latent=pgmkit.LatentSpec(DIM, **latent),
        image=pgmkit.ImageSpec((3, 8, 8)),
        name="gated",
    )


def bars() -> pgmkit.Generator:
    return pgmkit.Generator(
        Bars(), pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, 16, 16), (0.0, 510.0)), name="bars"
    )


def spread() -> pgmkit.Generator:
    return pgmkit.Generator(
        Spread(), pgmkit.LatentSpec(DIM), pgmkit.ImageSpec((1, 8, 8)), name="spread"
    )


def made(
    count: int, seed: int = 0, generator: Callable[[], pgmkit.Generator] = gated
) -> tuple[GeneratedImages, Tensor]:
    """Returns images as a source, and the latents that they are made of."""
    build = generator()
    latents = build.sample_latents(count, seed=seed)
    return GeneratedImages(build, latents), latents


def every(source: Any) -> Tensor:
    """Returns all images of a source."""
    images: Tensor = source.batch(torch.arange(len(source)))
    return images


def pictures(count: int, seed: int = 0) -> tuple[Pictures, Tensor]:
    """Returns the same images as those of a data set, labelled, with the group of each."""
    source, latents = made(count, seed)
    return Pictures(every(source), labels=truth(latents)), truth(latents)


def points(count: int = 60) -> Pictures:
    """Returns points of the plane around two places."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) * 0.05
    return Pictures(noise + 0.5 * (torch.arange(count) % 2)[:, None])


def truth(latents: Tensor) -> Tensor:
    """Returns the group of each image of `gated`."""
    return (latents[:, 0] * latents[:, 1] > 0) * 2 + (latents[:, 2] * latents[:, 3] > 0).long()


def agreement(left: Tensor, right: Tensor) -> float:
    return float(adjusted_mutual_info_score(left.numpy(), right.numpy()))
