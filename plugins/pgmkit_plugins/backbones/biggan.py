"""BigGAN for images of 128 pixels, with partitions in the place of classes.

Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", 2019,
as table 8 of "Partition-Guided GANs" (2021) has it. Where BigGAN's own code differs from the table
(its discriminator has one block of 16·width less, and its first linear layer takes no embedding),
the table counts.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit.errors import ParameterError
from pgmkit_plugins.backbones.conditioning import (
    ConditionalBatchNorm,
    PartitionEmbedding,
    check_sizes,
    condition,
    initialised,
    orthogonal,
)
from pgmkit_plugins.backbones.residual import (
    DownBlock,
    NonLocalBlock,
    ResidualDiscriminator,
    UpBlock,
)
from pgmkit_plugins.backbones.spectral import (
    SpectralConv2d,
    SpectralLinear,
    SpectralNetwork,
)

_UP = (16, 16, 8, 4, 2, 1)
_DOWN = (1, 2, 4, 8, 16, 16, 16)
_ATTENDED_SIDE, _ATTENDED = 64, 2
"""The side of the maps with self-attention, and their channels in multiples of the width."""


class BigGANGenerator(SpectralNetwork):
    """Maps flat latents to 128×128 images with five blocks, self-attention behind the fourth.

    The latent falls into six chunks: one for the linear layer and one for the gains and biases of
    each block's norms. With partitions an embedding, which all share, stands beside each chunk.
    All layers but the embedding have spectral norm.

    Args:
        latent_dim: M, the number of latent dimensions, a multiple of 6.
        width: "ch", channels of the last maps, a sixteenth of those of the first.
        embedding_dim: of the partitions; means nothing without them.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1, or latents cannot be divided into six chunks.
    """

    def __init__(
        self,
        latent_dim: int = 120,
        width: int = 96,
        embedding_dim: int = 128,
        image_channels: int = 3,
        num_partitions: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            num_partitions,
            latent_dim=latent_dim,
            width=width,
            embedding_dim=embedding_dim,
            image_channels=image_channels,
        )
        if latent_dim % len(_UP):
            raise ParameterError(
                f"latent_dim must be a multiple of {len(_UP)}, one chunk for the first layer and "
                f"one for each block, not {latent_dim}"
            )
        self.num_partitions = num_partitions
        self.chunk = latent_dim // len(_UP)
        given = self.chunk
        if num_partitions is not None:
            self.embedding = PartitionEmbedding(num_partitions, embedding_dim)
            given += embedding_dim
        channels = [factor * width for factor in _UP]
        self.linear = SpectralLinear(given, channels[0] * 4 * 4)
        self.blocks = nn.ModuleList(
            UpBlock(inputs, outputs, lambda size: _norm(size, given), SpectralConv2d)
            for inputs, outputs in pairwise(channels)
        )
        self.attention = NonLocalBlock(_ATTENDED * width)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.conv = SpectralConv2d(channels[-1], image_channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns images (B, C, 128, 128) in [-1, 1] for latents z (B, M), maybe y (B,)."""
        given = [self.embedding(part) for part in condition(y, self.num_partitions)]
        first, *others = (torch.cat([part, *given], 1) for part in z.split(self.chunk, dim=1))
        with self.power_iteration():
            h = self.linear(first).unflatten(1, (-1, 4, 4))
            for block, other in zip(self.blocks, others, strict=True):
                h = block(h, other)
                if h.shape[-1] == _ATTENDED_SIDE:
                    h = self.attention(h)
            return torch.tanh(self.conv(F.relu(self.norm(h))))


class BigGANDiscriminator(ResidualDiscriminator):
    """Maps 128×128 images to one logit each with six blocks, self-attention behind the first.

    All layers have spectral norm.

    Args:
        width: "ch", half the channels behind the first block.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k of the projection; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self, width: int = 96, image_channels: int = 3, num_partitions: int | None = None
    ) -> None:
        check_sizes(num_partitions, width=width, image_channels=image_channels)
        channels = [factor * width for factor in _DOWN]
        first = DownBlock(image_channels, channels[0], channels[1], down=True, first=True)
        others = [
            DownBlock(inputs, outputs, outputs, down=place < 4)
            for place, (inputs, outputs) in enumerate(pairwise(channels[1:]))
        ]
        blocks = nn.Sequential(first, NonLocalBlock(_ATTENDED * width), *others)
        super().__init__(blocks, channels[-1], num_partitions)


class BigGAN128:
    """The backbone for 128×128 images (table 8).

    Args:
        latent_dim: M, the number of latent dimensions, a multiple of 6.
        width: "ch", which all channels are multiples of.
        embedding_dim: of the partitions, in the generator.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(
        self,
        latent_dim: int = 120,
        width: int = 96,
        embedding_dim: int = 128,
        image_channels: int = 3,
    ) -> None:
        self.latent_dim = latent_dim
        self.width = width
        self.embedding_dim = embedding_dim
        self.image_channels = image_channels

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with orthogonal weights."""
        network = BigGANGenerator(
            self.latent_dim, self.width, self.embedding_dim, self.image_channels, num_partitions
        )
        return initialised(network, orthogonal)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with orthogonal weights."""
        network = BigGANDiscriminator(self.width, self.image_channels, num_partitions)
        return initialised(network, orthogonal)


def _norm(channels: int, given: int) -> nn.Module:
    return ConditionalBatchNorm(
        nn.BatchNorm2d(channels, affine=False),
        SpectralLinear(given, channels, bias=False),
        SpectralLinear(given, channels, bias=False),
    )
