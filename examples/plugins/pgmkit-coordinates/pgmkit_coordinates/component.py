"""A generator that paints each pixel from its place alone, and a small discriminator."""

import itertools
import math

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pgmkit.errors import ParameterError

_WAVES = 16
_TURNS = 2.0
"""How often a wave goes up and down across an image, as a standard deviation."""


class Generator(nn.Module):
    """Maps latents z (B, M), with partitions also y (B,), to images (B, C, side, side).

    A place in the image is told by waves of several lengths (Tancik et al. 2020). The latent scales
    and shifts each layer that turns them into a colour. So the same weights paint images of any
    side.

    Args:
        latent_dim: M, the number of latent dimensions.
        side: of the images.
        width: of each layer.
        image_channels: C.
        num_partitions: k; None makes no difference between partitions.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        side: int = 32,
        width: int = 64,
        image_channels: int = 3,
        num_partitions: int | None = None,
    ):
        super().__init__()
        _check(num_partitions, latent_dim, side, width, image_channels)
        self.embedding = None if num_partitions is None else nn.Embedding(num_partitions, width)
        self.style = nn.Sequential(nn.Linear(latent_dim, width), nn.ReLU())
        sizes = [2 * _WAVES, width, width]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.styles = nn.ModuleList(nn.Linear(width, 2 * width) for _ in sizes)
        self.colour = nn.Linear(width, image_channels)
        self.register_buffer("waves", _waves(side), persistent=False)

    def forward(self, z, y=None):
        """Returns images in [-1, 1]."""
        style = self.style(z)
        if self.embedding is not None:
            style = style + self.embedding(y)
        h = self.waves.expand(len(z), -1, -1, -1)  # (B, side, side, waves)
        for layer, of_style in zip(self.layers, self.styles, strict=True):
            scale, shift = of_style(style)[:, None, None].chunk(2, dim=-1)
            h = nn.functional.leaky_relu(layer(h) * (1 + scale) + shift, 0.2)
        return self.colour(h).tanh().permute(0, 3, 1, 2)


class Discriminator(nn.Module):
    """Maps images, with partitions also y (B,), to logits (B,)."""

    def __init__(self, width: int, image_channels: int, num_partitions: int | None):
        super().__init__()
        _check(num_partitions, width, image_channels)
        sizes = [image_channels, width, 2 * width, 2 * width]
        self.layers = nn.Sequential()
        for inputs, outputs in itertools.pairwise(sizes):
            self.layers.append(spectral_norm(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)))
            self.layers.append(nn.LeakyReLU(0.2))
        self.last = nn.Linear(2 * width, 1)
        self.embedding = None if num_partitions is None else nn.Embedding(num_partitions, 2 * width)

    def features(self, x):
        """Returns what the last layer sees, (B, d)."""
        return self.layers(x).mean(dim=(2, 3))

    def forward(self, x, y=None):
        """Returns logits; with partitions by projection (Miyato and Koyama 2018)."""
        seen = self.features(x)
        logits = self.last(seen).flatten()
        return logits if self.embedding is None else logits + (self.embedding(y) * seen).sum(dim=1)


class Coordinates:
    """Builds both networks.

    Args:
        latent_dim: M, the number of latent dimensions.
        side: of the images.
        width: of each layer of the generator, and of the first one of the discriminator.
        image_channels: C.
    """

    def __init__(
        self, latent_dim: int = 64, side: int = 32, width: int = 64, image_channels: int = 3
    ):
        _check(None, latent_dim, side, width, image_channels)
        self.latent_dim, self.side = latent_dim, side
        self.width, self.image_channels = width, image_channels

    def generator(self, num_partitions=None):
        """Returns an untrained generator."""
        return Generator(
            self.latent_dim, self.side, self.width, self.image_channels, num_partitions
        )

    def discriminator(self, num_partitions=None):
        """Returns an untrained discriminator."""
        return Discriminator(self.width, self.image_channels, num_partitions)


def _check(num_partitions, *sizes):
    if min(sizes) < 1 or (num_partitions is not None and num_partitions < 1):
        raise ParameterError(
            f"sizes and num_partitions must be at least 1, not {sizes} and {num_partitions}"
        )


def _waves(side):
    """Returns sines and cosines of all places, (side, side, 2 · waves), the same for each image."""
    at = (torch.arange(side) + 0.5) / side
    places = torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1)
    random = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * _TURNS * (places @ torch.randn(2, _WAVES, generator=random))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
