"""The residual networks of SN-GAN, for images of 32 and 48 pixels.

Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018, with the
partitions and sizes of Liu et al. (Partition-Guided GANs, 2021), tables 6 and 7. Generators have
conditional batch norm, with a gain and a bias for each partition; discriminators have spectral norm
in all layers, global sum pooling and a projection.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit_plugins.backbones.conditioning import (
    batch_norm,
    check_sizes,
    condition,
    initialised,
    normal,
)
from pgmkit_plugins.backbones.residual import DownBlock, ResidualDiscriminator, UpBlock


class SNGANGenerator(nn.Module):
    """Maps flat latents to images with a linear layer and residual blocks that double the side.

    Args:
        latent_dim: M, the number of latent dimensions.
        side: of the first maps.
        channels: of the first maps, and of those behind each block.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int,
        side: int,
        channels: Sequence[int],
        image_channels: int,
        num_partitions: int | None,
    ) -> None:
        super().__init__()
        check_sizes(
            num_partitions,
            latent_dim=latent_dim,
            width=channels[-1],
            image_channels=image_channels,
        )
        self.num_partitions = num_partitions
        self.side = side
        self.linear = nn.Linear(latent_dim, channels[0] * side**2)
        self.blocks = nn.ModuleList(
            UpBlock(inputs, outputs, lambda size: batch_norm(size, num_partitions))
            for inputs, outputs in pairwise(channels)
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.conv = nn.Conv2d(channels[-1], image_channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns images (B, C, H, W) in [-1, 1] for latents z (B, M), with partitions also y."""
        given = condition(y, self.num_partitions)
        h = self.linear(z).unflatten(1, (-1, self.side, self.side))
        for block in self.blocks:
            h = block(h, *given)
        return torch.tanh(self.conv(F.relu(self.norm(h))))


class SNGANDiscriminator(ResidualDiscriminator):
    """Maps images to one real-or-fake logit each with residual blocks.

    Args:
        channels: behind each block.
        downs: how many blocks, from the first, halve the side.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k of the projection; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        downs: int,
        image_channels: int,
        num_partitions: int | None,
    ) -> None:
        check_sizes(num_partitions, width=channels[0], image_channels=image_channels)
        blocks = (
            DownBlock(inputs, outputs, outputs, down=place < downs, first=place == 0)
            for place, (inputs, outputs) in enumerate(pairwise([image_channels, *channels]))
        )
        super().__init__(nn.Sequential(*blocks), channels[-1], num_partitions)


class SNGAN32Generator(SNGANGenerator):
    """The generator of 32×32 images (table 6a): 4×4 maps and three blocks, all of one width.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: channels of all maps.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 128,
        width: int = 256,
        image_channels: int = 3,
        num_partitions: int | None = None,
    ) -> None:
        super().__init__(latent_dim, 4, [width] * 4, image_channels, num_partitions)


class SNGAN32:
    """The backbone for 32×32 images (table 6).

    The discriminator has four blocks, two of which halve the side, of half the generator's width:
    the 128 of the table and of SN-GAN, where the code released with Partition-Guided GANs has 256.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: channels of all maps of the generator.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(self, latent_dim: int = 128, width: int = 256, image_channels: int = 3) -> None:
        self.latent_dim = latent_dim
        self.width = width
        self.image_channels = image_channels

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with weights drawn from N(0, 0.02²)."""
        network = SNGAN32Generator(self.latent_dim, self.width, self.image_channels, num_partitions)
        return initialised(network, normal)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with weights drawn from N(0, 0.02²)."""
        channels = [(self.width + 1) // 2] * 4
        network = SNGANDiscriminator(channels, 2, self.image_channels, num_partitions)
        return initialised(network, normal)


class SNGAN48Generator(SNGANGenerator):
    """The generator of 48×48 images (table 7a): 3×3 maps, whose channels halve in four blocks.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: channels of the last maps, a sixteenth of those of the first.
        image_channels: C, 1 for grey images and 3 for RGB.
        num_partitions: k; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 128,
        width: int = 64,
        image_channels: int = 3,
        num_partitions: int | None = None,
    ) -> None:
        channels = [factor * width for factor in (16, 8, 4, 2, 1)]
        super().__init__(latent_dim, 3, channels, image_channels, num_partitions)


class SNGAN48:
    """The backbone for 48×48 images (table 7); the discriminator mirrors the generator.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: channels of the generator's last maps and behind the discriminator's first block.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(self, latent_dim: int = 128, width: int = 64, image_channels: int = 3) -> None:
        self.latent_dim = latent_dim
        self.width = width
        self.image_channels = image_channels

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with weights drawn from N(0, 0.02²)."""
        network = SNGAN48Generator(self.latent_dim, self.width, self.image_channels, num_partitions)
        return initialised(network, normal)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with weights drawn from N(0, 0.02²)."""
        channels = [factor * self.width for factor in (1, 2, 4, 8, 16)]
        network = SNGANDiscriminator(channels, 4, self.image_channels, num_partitions)
        return initialised(network, normal)
