"""The DCGAN of the LASH paper (appendix A.2), for images of 16, 32, 64, ... pixels.

Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", 2016, with the layer tables of the LASH paper.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pgmkit.errors import ParameterError


class DCGANGenerator(nn.Module):
    """Maps flat latents to images with a stack of transposed convolutions.

    The first layer expands the latent to `channels[0]` maps of 4×4; each further layer doubles the
    side. Kernel 4, no bias, batch norm and ReLU between layers, tanh at the end: image values lie
    in [-1, 1]. Three entries in `channels` make 32×32 images, four make 64×64.

    Args:
        latent_dim: M, the number of latent dimensions, at least 1.
        channels: feature maps after each hidden layer, from 4×4 upwards.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: Sequence[int] = (256, 128, 64),
        image_channels: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(latent_dim=latent_dim, channels=channels, image_channels=image_channels)
        widths = [latent_dim, *channels]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            stride, padding = (1, 0) if index == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], image_channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W) in [-1, 1] for latents z (B, M)."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """Maps images to one real-or-fake logit each; the mirror image of `DCGANGenerator`.

    The paper's table ends in a sigmoid; it belongs to the loss here, so that every adversarial
    loss can use the same network.

    Args:
        channels: feature maps after each hidden layer, from the largest side down to 4×4.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256), image_channels: int = 1) -> None:
        super().__init__()
        _check_sizes(latent_dim=1, channels=channels, image_channels=image_channels)
        widths = [image_channels, *channels]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
            if index > 0:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B,) for images x (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.layers(x)
        return logits.flatten()

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees of images x (B, C, H, W), (B, channels[-1], 4, 4)."""
        maps: Tensor = self.layers[:-1](x)
        return maps


class DCGAN:
    """The backbone: a matching generator and discriminator for one image size.

    Args:
        latent_dim: M, the number of latent dimensions.
        channels: the generator's feature maps from 4×4 upwards; the discriminator mirrors them.
        image_channels: C, 1 for grey images and 3 for RGB.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: Sequence[int] = (256, 128, 64),
        image_channels: int = 1,
    ) -> None:
        self.latent_dim = latent_dim
        self.channels = tuple(channels)
        self.image_channels = image_channels

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with weights drawn from N(0, 0.02²)."""
        _check_unconditional(num_partitions)
        network = DCGANGenerator(self.latent_dim, self.channels, self.image_channels)
        return network.apply(_initialise)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with weights drawn from N(0, 0.02²)."""
        _check_unconditional(num_partitions)
        network = DCGANDiscriminator(self.channels[::-1], self.image_channels)
        return network.apply(_initialise)


def _check_sizes(latent_dim: int, channels: Sequence[int], image_channels: int) -> None:
    sizes = [latent_dim, image_channels, *channels]
    if not channels or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ParameterError(
            f"a DCGAN needs sizes of at least 1, not latent_dim={latent_dim!r}, "
            f"channels={list(channels)!r}, image_channels={image_channels!r}"
        )


def _check_unconditional(num_partitions: int | None) -> None:
    if num_partitions is not None:
        raise ParameterError(
            f"the backbone 'dcgan' is unconditional, so num_partitions={num_partitions} cannot be "
            "used; leave it out"
        )


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
