"""A small convolutional network that looks at images, for features and for parts."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.images import Deformations, ImageSource, ImageSpec, deformed, resized
from pgmkit.images.source import batches
from pgmkit.seeds import derive_seed

SIDE = 32
"""Images are looked at in so many pixels squared."""

_SHALLOW = ((1, 2), (2, 1), (4, 2), (4, 1), (8, 2))
_DEEP = ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))
"""Of each residual block: its channels, in multiples of the width, and its stride."""


class Encoder(nn.Module):
    """Four convolutions and a linear layer, each with batch norm; or residual blocks instead.

    Plain, it sees what is drawn in lines within seconds. With residual blocks (He et al. 2016) it
    takes twenty times as long for an image, and sees what photographs show.

    Args:
        image_channels: C.
        width: channels of the first layer.
        residual: whether it has five residual blocks.
        deep: whether these are eight, the first two of them in full resolution.
    """

    features = 128

    def __init__(
        self, image_channels: int, width: int, residual: bool = False, deep: bool = False
    ) -> None:
        super().__init__()
        if residual:
            layers = _residual(image_channels, width, _DEEP if deep else _SHALLOW)
        else:
            layers = _plain(image_channels, width)
        self.body = nn.Sequential(*layers, nn.BatchNorm1d(self.features))

    def forward(self, images: Tensor) -> Tensor:
        """Returns features (B, 128) for images (B, C, 32, 32) in [-1, 1]."""
        features: Tensor = self.body(images)
        return features


class _Block(nn.Module):
    """Two convolutions, whose result is added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, outputs, stride), *_convolution(outputs, outputs, 1)[:-1]
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total.relu_()


def _plain(image_channels: int, width: int) -> list[nn.Module]:
    return [
        *_convolution(image_channels, width, 2),
        *_convolution(width, 2 * width, 2),
        *_convolution(2 * width, 2 * width, 1),
        *_convolution(2 * width, 4 * width, 2),
        nn.Flatten(),
        nn.Linear(4 * width * (SIDE // 8) ** 2, Encoder.features, bias=False),
    ]


def _residual(
    image_channels: int, width: int, blocks: Sequence[tuple[int, int]]
) -> list[nn.Module]:
    layers, inputs = _convolution(image_channels, width, 1), width
    for factor, stride in blocks:
        layers.append(_Block(inputs, factor * width, stride))
        inputs = factor * width
    return [
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, Encoder.features, bias=False),
    ]


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def encoder_of(state: dict[str, Tensor]) -> Encoder:
    """Returns the network that these weights belong to, in eval mode."""
    first = state["body.0.weight"]
    blocks = sum(name.endswith(".shortcut.0.weight") for name in state)
    encoder = Encoder(first.shape[1], first.shape[0], blocks > 0, blocks > len(_SHALLOW))
    encoder.load_state_dict(state)
    return encoder.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def looked_at(x: Tensor) -> Tensor:
    """Returns images x (B, C, H, W) in [-1, 1] as networks look at them, (B, C, 32, 32)."""
    return resized(x.float(), SIDE).clamp(-1, 1)


def image_bytes(source: ImageSource) -> Tensor:
    """Returns all images of a source as they are looked at, in bytes (n, C, 32, 32) on the CPU."""
    parts = [looked_at(x) for x in batches(source)]
    return torch.cat([part.add(1).mul_(127.5).round_().byte().cpu() for part in parts])


def another_version(pixels: Tensor, deformations: Deformations, random: torch.Generator) -> Tensor:
    """Returns deformed images in [-1, 1] of bytes (B, C, H, W)."""
    return deformed(pixels.float().div_(127.5).sub_(1), deformations, random)


def seeded(build: Any, seed: int, *parts: int | str) -> Any:
    """Returns what `build` makes with a random state of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *parts))
        return build()


def check_images(image: ImageSpec, who: str) -> None:
    """Raises ParameterError if a source holds points, where networks look at images."""
    if image.is_points:
        raise ParameterError(f"{who} looks at images, and these are points; choose another")


def check_training(
    steps: Any,
    batch_size: Any,
    width: Any,
    learning_rate: Any,
    residual: bool = False,
    deep: bool = False,
) -> None:
    """Raises ParameterError for parameters that networks are not trained with."""
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_count("width", width)
    if not isinstance(learning_rate, int | float) or not 0 < learning_rate < math.inf:
        raise ParameterError(f"learning_rate must be above 0, not {learning_rate!r}")
    if deep and not residual:
        raise ParameterError("deep is for residual blocks; set residual = true, too")
