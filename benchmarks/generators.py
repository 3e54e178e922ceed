"""Generators that the benchmarks of Jacobian spectra run on; all but the shipped one untrained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import pgmkit


class ResidualBlock(nn.Module):
    """Pre-activation, upsampling: BN, ReLU, nearest, 3×3, BN, ReLU, 3×3, added to its input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.up(self.norm1(x).relu()))
        return self.conv2(self.norm2(h).relu()) + self.shortcut(self.up(x))


def sngan() -> nn.Module:
    """The residual generator of Miyato et al. 2018 for 32×32, half as wide."""
    return nn.Sequential(
        nn.Linear(128, 128 * 16),
        nn.Unflatten(1, (128, 4, 4)),
        ResidualBlock(128, 128),
        ResidualBlock(128, 128),
        ResidualBlock(128, 128),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 3, 3, padding=1),
        nn.Tanh(),
    )


def dcgan(latents: int, size: int, width: int = 64) -> nn.Module:
    """Radford et al. 2016: 4×4 to size×size, RGB."""
    layers: list[nn.Module] = [nn.Unflatten(1, (latents, 1, 1))]
    doublings = size.bit_length() - 3
    channels, kernel = latents, (4, 1, 0)
    for step in range(doublings, 0, -1):
        wide = min(width * 2 ** (step - 1), 512)
        layers += [nn.ConvTranspose2d(channels, wide, *kernel, bias=False), nn.BatchNorm2d(wide)]
        layers.append(nn.ReLU())
        channels, kernel = wide, (4, 2, 1)
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, *kernel, bias=False), nn.Tanh())


def mlp() -> nn.Module:
    """The multilayer perceptron of many MNIST GAN tutorials."""
    sizes = (64, 256, 512, 1024)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def vae() -> nn.Module:
    """A convolutional VAE decoder, 20 latents to 32×32."""
    return nn.Sequential(
        nn.Linear(20, 256 * 16),
        nn.SiLU(),
        nn.Unflatten(1, (256, 4, 4)),
        nn.ConvTranspose2d(256, 128, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(64, 1, 4, 2, 1),
        nn.Sigmoid(),
    )


def wrapped(module: nn.Module, latents: int, shape: tuple[int, int, int], name: str):
    """Returns a Generator; batch norms take the statistics of one batch."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        module.train()(torch.randn(64, latents))
    return pgmkit.Generator(
        module.eval(), pgmkit.LatentSpec(latents), pgmkit.ImageSpec(shape), name=name
    )


GENERATORS: dict[str, Callable[[], pgmkit.Generator]] = {
    "mnist-dcgan": lambda: pgmkit.load_generator("mnist-dcgan"),
    "sngan": lambda: wrapped(sngan(), 128, (3, 32, 32), "sngan"),
    "dcgan-64": lambda: wrapped(dcgan(100, 64), 100, (3, 64, 64), "dcgan-64"),
    "mlp": lambda: wrapped(mlp(), 64, (1, 28, 28), "mlp"),
    "vae": lambda: wrapped(vae(), 20, (1, 32, 32), "vae"),
}
