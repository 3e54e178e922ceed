"""Generators that the benchmarks of Jacobian spectra run on.

The MLP GANs and the flow are trained here for some seconds on what the shipped generator draws,
since their conditioning comes from that; the others have random weights.
"""

from collections.abc import Callable
from itertools import pairwise

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
    for inputs, outputs in pairwise(sizes):
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


def leaky(module: nn.Sequential) -> nn.Module:
    """Leaky ReLUs in the place of ReLUs: every unit is alive."""
    return nn.Sequential(
        *(nn.LeakyReLU(0.2) if isinstance(part, nn.ReLU) else part for part in module)
    )


def six_doublings(latents: int = 100) -> nn.Module:
    """Six transposed convolutions, 1×1 to 64×64, RGB."""
    widths = (latents, 512, 256, 128, 64, 32)
    layers: list[nn.Module] = [nn.Unflatten(1, (latents, 1, 1))]
    for inputs, outputs in pairwise(widths):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh())


def gan_mlp(activation: nn.Module) -> nn.Module:
    """100 latents; with ReLUs, fewer units of the first layer are on than there are latents."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((100, 128, 256, 512, 1024)):
        layers += [nn.Linear(inputs, outputs), activation]
    return nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


class Coupling(nn.Module):
    """An affine coupling (Dinh et al. 2017): every other dimension moves, by the ones between."""

    def __init__(self, dim: int, hidden: int, odd: bool) -> None:
        super().__init__()
        self.register_buffer("kept", ((torch.arange(dim) % 2 == 0) != odd).float())
        self.network = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * dim),
        )
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.network(x * self.kept).chunk(2, dim=1)
        return scale.tanh() * (1 - self.kept), shift * (1 - self.kept)

    def forward(self, z: Tensor) -> Tensor:
        scale, shift = self.terms(z)
        return z * scale.exp() + shift

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.terms(x)
        return (x - shift) * (-scale).exp(), -scale.sum(dim=1)


class Flow(nn.Module):
    """Eight couplings of 784 dimensions to 28×28."""

    def __init__(self, dim: int = 784) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(dim, 256, bool(n % 2)) for n in range(8))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, z: Tensor) -> Tensor:
        for coupling in self.couplings:
            z = coupling(z)
        return (z * self.log_scale.exp() + self.shift).unflatten(1, (1, 28, 28))

    def loss(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of points (B, 784), up to a constant."""
        z = (x - self.shift) * (-self.log_scale).exp()
        volume = -self.log_scale.sum()
        for coupling in reversed(self.couplings):
            z, change = coupling.inverse(z)
            volume = volume + change
        return (z.square().sum(dim=1) / 2 - volume).mean()


@torch.no_grad()
def digits() -> Tensor:
    """Returns 2,048 images of the shipped generator without their margin, (n, 784)."""
    generator = pgmkit.load_generator("mnist-dcgan", device="cpu")
    return generator(generator.sample_latents(2048, 0))[:, :, 2:-2, 2:-2].flatten(1)


def trained_flow(steps: int = 150) -> nn.Module:
    x, module = digits(), Flow()
    with torch.no_grad():
        module.shift.copy_(x.mean(dim=0))
        module.log_scale.copy_((x.std(dim=0) + 1 / 128).log())
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (64,))]
        loss = module.loss(batch + torch.rand_like(batch) / 128)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
    return module


def trained_gan(module: nn.Module, *, wasserstein: bool = False, steps: int = 300) -> nn.Module:
    """Trains an MLP against another, by the logistic loss or as a WGAN with clipped weights."""
    x = digits()
    critic = nn.Sequential(
        nn.Linear(784, 512), nn.LeakyReLU(0.2), nn.Linear(512, 256), nn.LeakyReLU(0.2),
        nn.Linear(256, 1),
    )  # fmt: skip
    optimizers = [
        torch.optim.Adam(part.parameters(), 2e-4, (0.5, 0.9)) for part in (module, critic)
    ]

    def step(part: int, loss: Tensor) -> None:
        optimizers[part].zero_grad()
        loss.backward()
        optimizers[part].step()

    cost = nn.Identity() if wasserstein else nn.Softplus()
    for _ in range(steps):
        fake = module(torch.randn(64, 100)).flatten(1)
        real = x[torch.randint(len(x), (64,))]
        step(1, cost(critic(fake.detach())).mean() + cost(-critic(real)).mean())
        if wasserstein:
            with torch.no_grad():
                for weight in critic.parameters():
                    weight.clamp_(-0.01, 0.01)
        step(0, cost(-critic(fake)).mean())
    return module


def wrapped(module: nn.Module, latents: int, shape: tuple[int, int, int], name: str):
    """Returns a Generator; batch norms take the statistics of one batch."""
    module.requires_grad_(False)
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
    "mlp-gan": lambda: wrapped(trained_gan(gan_mlp(nn.ReLU())), 100, (1, 28, 28), "mlp-gan"),
    "wgan": lambda: wrapped(
        trained_gan(gan_mlp(nn.LeakyReLU(0.2)), wasserstein=True), 100, (1, 28, 28), "wgan"
    ),
    "leaky-dcgan": lambda: wrapped(leaky(dcgan(100, 32)), 100, (3, 32, 32), "leaky-dcgan"),
    "six-doublings": lambda: wrapped(six_doublings(), 100, (3, 64, 64), "six-doublings"),
    "flow": lambda: wrapped(trained_flow(), 784, (1, 28, 28), "flow"),
}
