"""The DCGAN of the LASH paper (appendix A.2), for images of 28, 32, 64, ... pixels.

Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks", 2016, with the layer tables of the LASH paper. With partitions the
generator has conditional batch norm and the discriminator a projection (Miyato and Koyama 2018).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pgmkit.errors import ParameterError
from pgmkit_plugins.backbones.conditioning import (
    ConditionalBatchNorm,
    PartitionEmbedding,
    batch_norm,
    check_sizes,
    condition,
    initialise,
    normal,
)


class DCGANGenerator(nn.Module):
    """Maps flat latents to images with a stack of transposed convolutions.

    The first layer expands the latent to `channels[0]` maps of 4×4; each further layer doubles the
    side. Kernel 4, no bias, batch norm and ReLU between layers, tanh at the end: image values lie
    in [-1, 1]. Three entries in `channels` make 32×32 images, four make 64×64; two that begin with
    7×7 make 28×28.

    Args:
        latent_dim: M, the number of latent dimensions, at least 1.
        channels: feature maps after each hidden layer, from the smallest side upwards.
        image_channels: C, 1 for grey images and 3 for RGB.
        first_side: of the first maps, which the first layer's kernel is as large as.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: Sequence[int] = (256, 128, 64),
        image_channels: int = 1,
        first_side: int = 4,
    ) -> None:
        super().__init__()
        self.layers = _generator_layers(latent_dim, channels, image_channels, first_side)

    def forward(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W) in [-1, 1] for latents z (B, M)."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class ConditionalDCGANGenerator(nn.Module):
    """A `DCGANGenerator` whose batch norms have a gain and a bias for each partition.

    Args:
        latent_dim: M, the number of latent dimensions, at least 1.
        channels: feature maps after each hidden layer, from the smallest side upwards.
        image_channels: C, 1 for grey images and 3 for RGB.
        first_side: of the first maps.
        num_partitions: k, at least 1.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int],
        image_channels: int,
        first_side: int,
        num_partitions: int,
    ) -> None:
        super().__init__()
        self.num_partitions = num_partitions
        self.layers = _generator_layers(
            latent_dim, channels, image_channels, first_side, num_partitions
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns images (B, C, H, W) in [-1, 1] for latents z (B, M) and partitions y (B,)."""
        given = condition(y, self.num_partitions)
        maps = z[:, :, None, None]
        for layer in self.layers:
            maps = layer(maps, *given) if isinstance(layer, ConditionalBatchNorm) else layer(maps)
        return maps


def dcgan_generator(
    latent_dim: int = 64,
    channels: Sequence[int] = (256, 128, 64),
    image_channels: int = 1,
    first_side: int = 4,
    num_partitions: int | None = None,
) -> nn.Module:
    """Returns a `DCGANGenerator`, or with partitions a `ConditionalDCGANGenerator`.

    Args:
        latent_dim: M, the number of latent dimensions.
        channels: of the layers before the last, from the smallest images to the largest.
        image_channels: C of the images.
        first_side: of the smallest images, which are doubled with each further layer.
        num_partitions: k; None makes no difference between partitions.
    """
    sizes = (latent_dim, channels, image_channels, first_side)
    if num_partitions is None:
        return DCGANGenerator(*sizes)
    return ConditionalDCGANGenerator(*sizes, num_partitions)


def _generator_layers(
    latent_dim: int,
    channels: Sequence[int],
    image_channels: int,
    first_side: int,
    num_partitions: int | None = None,
) -> nn.Sequential:
    _check(channels, image_channels, first_side, num_partitions, latent_dim=latent_dim)
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise([latent_dim, *channels])):
        kernel, stride, padding = (first_side, 1, 0) if index == 0 else (4, 2, 1)
        layers += [
            nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False),
            batch_norm(outputs, num_partitions),
            nn.ReLU(inplace=True),
        ]
    layers += [nn.ConvTranspose2d(channels[-1], image_channels, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


class DCGANDiscriminator(nn.Module):
    """Maps images to one real-or-fake logit each; the mirror image of `DCGANGenerator`.

    The paper's table ends in a sigmoid; it belongs to the loss here, so that every adversarial
    loss can use the same network.

    Args:
        channels: feature maps after each hidden layer, from the largest side downwards.
        image_channels: C, 1 for grey images and 3 for RGB.
        last_side: of the last maps, all of which the last layer sees at once.
        num_partitions: k of the projection of these maps; None makes no difference between
            partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256),
        image_channels: int = 1,
        last_side: int = 4,
        num_partitions: int | None = None,
    ) -> None:
        super().__init__()
        _check(channels, image_channels, last_side, num_partitions)
        self.num_partitions = num_partitions
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise([image_channels, *channels])):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
            if index > 0:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(nn.Conv2d(channels[-1], 1, last_side, 1, 0, bias=False))
        self.layers = nn.Sequential(*layers)
        if num_partitions is not None:
            self.embedding = PartitionEmbedding(num_partitions, channels[-1] * last_side**2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns logits (B,) for images x (B, C, H, W) in [-1, 1], with partitions also y (B,)."""
        given = condition(y, self.num_partitions)
        maps = self.features(x)
        logits: Tensor = self.layers[-1](maps).flatten()
        for part in given:
            logits = logits + (self.embedding(part) * maps.flatten(1)).sum(dim=1)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees of images x (B, C, H, W), (B, channels[-1], s, s)."""
        maps: Tensor = self.layers[:-1](x)
        return maps


class DCGAN:
    """The backbone: a matching generator and discriminator for one image size.

    Args:
        latent_dim: M, the number of latent dimensions.
        channels: the generator's feature maps from the smallest side upwards; the discriminator
            mirrors them.
        image_channels: C, 1 for grey images and 3 for RGB.
        first_side: of the generator's first maps; images are 2^len(channels) times as large.
    """

    def __init__(
        self,
        latent_dim: int = 64,
        channels: Sequence[int] = (256, 128, 64),
        image_channels: int = 1,
        first_side: int = 4,
    ) -> None:
        self.latent_dim = latent_dim
        self.channels = tuple(channels)
        self.image_channels = image_channels
        self.first_side = first_side

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with weights drawn from N(0, 0.02²)."""
        network = dcgan_generator(
            self.latent_dim, self.channels, self.image_channels, self.first_side, num_partitions
        )
        return network.apply(_initialise)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with weights drawn from N(0, 0.02²)."""
        network = DCGANDiscriminator(
            self.channels[::-1], self.image_channels, self.first_side, num_partitions
        )
        return network.apply(_initialise)


def _check(
    channels: Sequence[int],
    image_channels: int,
    side: int,
    num_partitions: int | None,
    **sizes: int,
) -> None:
    each = {f"channels[{index}]": size for index, size in enumerate(channels)}
    check_sizes(num_partitions, **sizes, image_channels=image_channels, first_side=side, **each)
    if not each:
        raise ParameterError("channels is empty; it needs one number for each hidden layer")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    else:
        initialise(module, normal)
