"""Generators laid out as in much-used repositories: same names, orders and quirks, but small."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm


@dataclass(frozen=True)
class Wild:
    """One layout.

    Args:
        make: builds the network.
        latent_dim: of flat latents.
        image_shape: (C, H, W).
        prior: what it was trained on, "normal" or "uniform".
        generator: takes the generator out of the network, where that holds more.
        maps: whether latents are (B, M, 1, 1).
    """

    make: Callable[[], nn.Module]
    latent_dim: int
    image_shape: tuple[int, int, int]
    prior: str = "normal"
    generator: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda module: module
    maps: bool = False

    def latents(self, count: int) -> Tensor:
        """Draws latents from the prior that it was trained on."""
        if self.prior == "uniform":
            return 2 * torch.rand(count, self.latent_dim) - 1
        return torch.randn(count, self.latent_dim)

    def images(self, module: nn.Module, z: Tensor) -> Tensor:
        """Returns what the network makes of flat latents."""
        z = z[:, :, None, None] if self.maps else z
        return self.generator(module)(z).reshape(len(z), *self.image_shape)

    def trained(self) -> nn.Module:
        """Returns the network after passes that give its norms statistics of what they see."""
        module = self.make()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(norm.weight, 1.0, 0.2)
                nn.init.normal_(norm.bias, 0.0, 0.2)
                norm.momentum = None
        module.train()
        with torch.no_grad():
            for _ in range(10):
                self.images(module, self.latents(2))  # spectral norms converge
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                    norm.reset_running_stats()
            for _ in range(12):
                self.images(module, self.latents(32))
        return module.eval()


def _deconvolutions(
    widths: Sequence[int], final: Sequence[nn.Module], first: int = 4
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        moves = (first, 1, 0) if index == 0 else (4, 2, 1)
        layers += [
            nn.ConvTranspose2d(widths[index], widths[index + 1], *moves, bias=False),
            nn.BatchNorm2d(widths[index + 1]),
            nn.ReLU(True),
        ]
    return [*layers, *final]


class Main(nn.Module):
    """A sequence under one name, as in the DCGAN example of PyTorch."""

    def __init__(self, layers: Sequence[nn.Module], name: str = "main") -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*layers))
        self._name = name

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.get_submodule(self._name)(z)
        return images


def pytorch_example() -> nn.Module:
    final = [nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()]
    return Main(_deconvolutions([20, 64, 32, 16, 8], final))


def cropped_mnist() -> nn.Module:
    """The MNIST variant whose last kernel of 1 crops 32 pixels to 28."""
    final = [nn.ConvTranspose2d(8, 1, 1, 1, 2, bias=False), nn.Tanh()]
    return Main(_deconvolutions([20, 64, 32, 16, 8], final))


def seven_first() -> nn.Module:
    final = [nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()]
    return Main(_deconvolutions([16, 64, 16], final, first=7), "network")


class CourseMNIST(nn.Module):
    """Blocks in a sequence, kernels of 3 and 4, no padding: 1, 3, 6, 13, 28 pixels."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 2) -> nn.Module:
            conv = nn.ConvTranspose2d(inputs, outputs, kernel, stride)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        last = nn.Sequential(nn.ConvTranspose2d(16, 1, 4, 2), nn.Tanh())
        self.gen = nn.Sequential(block(16, 64), block(64, 32, 4, 1), block(32, 16), last)

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.gen(z.view(len(z), -1, 1, 1))
        return images


class InfoGAN(nn.Module):
    """Layers called tconv and bn, activations in the code, a kernel of 1 first."""

    def __init__(self) -> None:
        super().__init__()
        self.tconv1 = nn.ConvTranspose2d(24, 64, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.tconv2 = nn.ConvTranspose2d(64, 32, 7, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.tconv3 = nn.ConvTranspose2d(32, 16, 4, 2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.tconv4 = nn.ConvTranspose2d(16, 1, 4, 2, padding=1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.tconv1(z)))
        x = torch.relu(self.bn2(self.tconv2(x)))
        return torch.tanh(self.tconv4(torch.relu(self.bn3(self.tconv3(x)))))


class NormsApart(nn.Module):
    """All convolutions are made before all norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(16, 48, 4)
        self.conv2 = nn.ConvTranspose2d(48, 24, 4, 2, 1)
        self.conv3 = nn.ConvTranspose2d(24, 12, 4, 2, 1)
        self.conv4 = nn.ConvTranspose2d(12, 3, 4, 2, 1)
        self.bn1 = nn.BatchNorm2d(48)
        self.bn2 = nn.BatchNorm2d(24)
        self.bn3 = nn.BatchNorm2d(12)

    def forward(self, z: Tensor) -> Tensor:
        x = functional.leaky_relu(self.bn1(self.conv1(z)), 0.2)
        x = functional.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        return torch.tanh(self.conv4(functional.leaky_relu(self.bn3(self.conv3(x)), 0.2)))


class UpsampledGAN(nn.Module):
    """The DCGAN of a collection in which a 0.8 meant for momentum stands where eps does."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(20, 32 * 8 * 8))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(32),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 32, 3, stride=1, padding=1),
            nn.BatchNorm2d(32, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, stride=1, padding=1),
            nn.BatchNorm2d(16, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(16, 1, 3, stride=1, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.conv_blocks(self.l1(z).view(len(z), 32, 8, 8))
        return images


def flat_gan() -> nn.Module:
    """The fully connected GAN of the same collection, and of the examples of Lightning."""

    def block(inputs: int, outputs: int, normalise: bool = True) -> list[nn.Module]:
        norm = [nn.BatchNorm1d(outputs, 0.8)] if normalise else []
        return [nn.Linear(inputs, outputs), *norm, nn.LeakyReLU(0.2, inplace=True)]

    layers = [*block(20, 32, False), *block(32, 64), *block(64, 96), *block(96, 128)]
    return Main([*layers, nn.Linear(128, 784), nn.Tanh()], "model")


def flat_colours() -> nn.Module:
    layers = [nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 96)]
    return Main([*layers, nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 3072), nn.Tanh()], "layers")


class NormedBlock(nn.Module):
    """A block that registers convolutions before norms and up-samples bilinearly."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, 1, padding=1)
        self.c2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1)
        self.b1 = nn.BatchNorm2d(inputs)
        self.b2 = nn.BatchNorm2d(outputs)
        self.c_sc = nn.Conv2d(inputs, outputs, 1, 1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        def larger(maps: Tensor, conv: nn.Module) -> Tensor:
            size = functional.interpolate(
                maps, scale_factor=2, mode="bilinear", align_corners=False
            )
            grown: Tensor = conv(size)
            return grown

        body = larger(torch.relu(self.b1(x)), self.c1)
        total: Tensor = self.c2(torch.relu(self.b2(body))) + larger(x, self.c_sc)
        return total


class MimicrySNGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Linear(20, 8 * 8 * 16)
        self.block2 = NormedBlock(16, 16)
        self.block3 = NormedBlock(16, 16)
        self.b4 = nn.BatchNorm2d(16)
        self.c4 = nn.Conv2d(16, 3, 3, 1, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.block3(self.block2(self.l1(z).view(len(z), 16, 8, 8)))
        return torch.tanh(self.c4(torch.relu(self.b4(x))))


class TwiceNamedBlock(nn.Module):
    """Convolutions under a name of their own and in a sequence; the shortcut has no weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, padding=1)
        self.model = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            self.conv1,
            nn.BatchNorm2d(width),
            nn.ReLU(),
            self.conv2,
        )
        self.bypass = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.model(x) + self.bypass(x)
        return total


class TwiceNamedSNGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(20, 8 * 8 * 16)
        self.final = nn.Conv2d(16, 3, 3, stride=1, padding=1)
        blocks = [TwiceNamedBlock(16) for _ in range(2)]
        self.model = nn.Sequential(*blocks, nn.BatchNorm2d(16), nn.ReLU(), self.final, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.model(self.dense(z).view(-1, 16, 8, 8))
        return images


class ConvolutionalVAE(nn.Module):
    """A collection's VAE: encoder, two heads, an input layer of the decoder, a final layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 32, 64, 64]
        encoder = [
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.LeakyReLU())
            for i, o in pairwise(widths)
        ]
        self.encoder = nn.Sequential(*encoder)
        self.fc_mu = nn.Linear(256, 20)
        self.fc_var = nn.Linear(256, 20)
        self.decoder_input = nn.Linear(20, 256)
        widths = [64, 64, 32, 16, 8]
        decoder = [
            nn.Sequential(nn.ConvTranspose2d(i, o, 3, 2, 1, 1), nn.BatchNorm2d(o), nn.LeakyReLU())
            for i, o in pairwise(widths)
        ]
        self.decoder = nn.Sequential(*decoder)
        self.final_layer = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 3, 2, 1, 1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
            nn.Sigmoid(),
        )

    def decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.final_layer(self.decoder(self.decoder_input(z).view(-1, 64, 2, 2)))
        return images


class View(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), *self.shape)


class BetaVAE(nn.Module):
    """No norms at all; views stand in the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), View(16 * 32 * 32), nn.Linear(16 * 32 * 32, 20)
        )
        self.decoder = nn.Sequential(
            nn.Linear(10, 64),
            View(64, 1, 1),
            nn.ReLU(True),
            nn.ConvTranspose2d(64, 32, 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(32, 32, 4, 2, 1),
            nn.ReLU(True),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 16, 4, 2, 1),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
        )

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.decoder(z))


class FlatVAE(nn.Module):
    """Nothing but numbered layers, the encoder's first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 60)
        self.fc21 = nn.Linear(60, 12)
        self.fc22 = nn.Linear(60, 12)
        self.fc3 = nn.Linear(12, 60)
        self.fc4 = nn.Linear(60, 784)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))


class LargeKernels(nn.Module):
    """The first DCGANs: a projection, kernels of 5, uniform latents."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 64 * 4 * 4)
        self.bn0 = nn.BatchNorm1d(64 * 4 * 4)
        self.deconv1 = nn.ConvTranspose2d(64, 32, 5, 2, 2, 1)
        self.bn1 = nn.BatchNorm2d(32)
        self.deconv2 = nn.ConvTranspose2d(32, 16, 5, 2, 2, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.deconv3 = nn.ConvTranspose2d(16, 3, 5, 2, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.fc(z))).view(-1, 64, 4, 4)
        x = torch.relu(self.bn1(self.deconv1(x)))
        return torch.tanh(self.deconv3(torch.relu(self.bn2(self.deconv2(x)))))


class PairsOfNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deconv1 = nn.ConvTranspose2d(20, 64, 4, 1, 0)
        self.deconv1_bn = nn.BatchNorm2d(64)
        self.deconv2 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.deconv2_bn = nn.BatchNorm2d(32)
        self.deconv3 = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.deconv3_bn = nn.BatchNorm2d(16)
        self.deconv4 = nn.ConvTranspose2d(16, 1, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.deconv1_bn(self.deconv1(z)))
        x = torch.relu(self.deconv2_bn(self.deconv2(x)))
        return torch.tanh(self.deconv4(torch.relu(self.deconv3_bn(self.deconv3(x)))))


def spectral() -> nn.Module:
    layers = _deconvolutions([16, 48, 24, 12], [nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh()])
    return Main([spectral_norm(x) if isinstance(x, nn.ConvTranspose2d) else x for x in layers])


def spectral_parametrized() -> nn.Module:
    layers = _deconvolutions([16, 48, 24, 12], [nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh()])
    made = [
        parametrizations.spectral_norm(x) if isinstance(x, nn.ConvTranspose2d) else x
        for x in layers
    ]
    return Main(made, "gen")


def weight_normed() -> nn.Module:
    def wrapped(layer: nn.Module) -> nn.Module:
        normed: nn.Module = parametrizations.weight_norm(layer)
        return normed

    return Main(
        [
            wrapped(nn.ConvTranspose2d(16, 48, 4)),
            nn.ReLU(),
            wrapped(nn.ConvTranspose2d(48, 24, 4, 2, 1)),
            nn.ReLU(),
            wrapped(nn.ConvTranspose2d(24, 12, 4, 2, 1)),
            nn.ReLU(),
            wrapped(nn.ConvTranspose2d(12, 3, 4, 2, 1)),
            nn.Tanh(),
        ]
    )


def instance_normed() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(16, 48 * 8 * 8), View(48, 8, 8)]
    for inputs, outputs in ((48, 24), (24, 12)):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.ReLU(),
        ]
    return Main([*layers, nn.Conv2d(12, 3, 5, padding=2), nn.Tanh()])


def norm_last() -> nn.Module:
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(((16, 48), (48, 24), (24, 12))):
        moves = (4, 1, 0) if index == 0 else (4, 2, 1)
        layers += [nn.ConvTranspose2d(inputs, outputs, *moves), nn.ELU(), nn.BatchNorm2d(outputs)]
    return Main([*layers, nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh()])


class PostNormBlock(nn.Module):
    """A block with norms after convolutions, one of them on the shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2)
        body = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(body + self.shortcut(x))


class PostNormResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(20, 32 * 8 * 8)
        self.blocks = nn.Sequential(PostNormBlock(32, 24), PostNormBlock(24, 16))
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.out(self.blocks(self.fc(z).view(-1, 32, 8, 8))))


def _decode(module: nn.Module) -> Callable[[Tensor], Tensor]:
    decode: Callable[[Tensor], Tensor] = module.decode
    return decode


LAYOUTS = {
    "the DCGAN example of PyTorch": Wild(pytorch_example, 20, (3, 64, 64), maps=True),
    "a DCGAN cropped to 28 pixels": Wild(cropped_mnist, 20, (1, 28, 28), maps=True),
    "a DCGAN that begins with 7×7": Wild(seven_first, 16, (1, 28, 28), maps=True),
    "a course's DCGAN without padding": Wild(CourseMNIST, 16, (1, 28, 28)),
    "an InfoGAN": Wild(InfoGAN, 24, (1, 28, 28), maps=True),
    "norms registered apart": Wild(NormsApart, 16, (3, 32, 32), maps=True),
    "up-sampling with eps 0.8": Wild(UpsampledGAN, 20, (1, 32, 32)),
    "an MLP with eps 0.8": Wild(flat_gan, 20, (1, 28, 28)),
    "an MLP for colours": Wild(flat_colours, 24, (3, 32, 32), prior="uniform"),
    "the SNGAN of torch-mimicry": Wild(MimicrySNGAN, 20, (3, 32, 32)),
    "an SNGAN whose weights stand twice": Wild(TwiceNamedSNGAN, 20, (3, 32, 32)),
    "a ResNet with norms last": Wild(PostNormResNet, 20, (3, 32, 32)),
    "a convolutional VAE": Wild(ConvolutionalVAE, 20, (3, 64, 64), generator=_decode),
    "a β-VAE without norms": Wild(BetaVAE, 10, (3, 64, 64), generator=_decode),
    "a flat VAE": Wild(FlatVAE, 12, (1, 28, 28), generator=_decode),
    "a projection and kernels of 5": Wild(LargeKernels, 20, (3, 32, 32), prior="uniform"),
    "names in pairs": Wild(PairsOfNames, 20, (1, 32, 32), maps=True),
    "spectral norm": Wild(spectral, 16, (3, 32, 32), maps=True),
    "spectral norm by parametrization": Wild(spectral_parametrized, 16, (3, 32, 32), maps=True),
    "weight norm": Wild(weight_normed, 16, (3, 32, 32), maps=True),
    "instance norm": Wild(instance_normed, 16, (3, 32, 32)),
    "activation before norm": Wild(norm_last, 16, (3, 32, 32), maps=True),
}
