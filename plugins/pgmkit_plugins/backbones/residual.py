"""Residual blocks and the non-local block of SN-GAN and BigGAN."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit_plugins.backbones.conditioning import Projection, condition
from pgmkit_plugins.backbones.spectral import (
    SpectralConv2d,
    SpectralEmbedding,
    SpectralLinear,
    SpectralNetwork,
)


class UpBlock(nn.Module):
    """Doubles the side: norm, ReLU, doubling, 3×3 convolution, norm, ReLU, 3×3 convolution.

    What is added to that is the input, doubled after a 1×1 convolution.

    Args:
        inputs: channels of what comes in.
        outputs: channels of what is made.
        norm: makes a batch norm of so many channels.
        convolution: `nn.Conv2d`, or one with spectral norm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: Callable[[int], nn.Module],
        convolution: Callable[..., nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = convolution(inputs, outputs, 3, padding=1)
        self.norm2 = norm(outputs)
        self.conv2 = convolution(outputs, outputs, 3, padding=1)
        self.shortcut = convolution(inputs, outputs, 1)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Returns maps (B, outputs, 2H, 2W) for x (B, inputs, H, W); norms get the condition."""
        h = F.interpolate(F.relu(self.norm1(x, *condition)), scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), *condition)))
        maps: Tensor = h + F.interpolate(self.shortcut(x), scale_factor=2)
        return maps


class DownBlock(nn.Module):
    """ReLU, 3×3 convolution, ReLU, 3×3 convolution with spectral norm; then maybe halves the side.

    What is added to that is the input, halved and with a 1×1 convolution where sizes change.

    Args:
        inputs: channels of what comes in.
        hidden: channels between the convolutions.
        outputs: channels of what is made.
        down: whether means of 2×2 values halve the side.
        first: whether x is the image, which has no ReLU before it.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, down: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.down = down
        self.first = first
        self.conv1 = SpectralConv2d(inputs, hidden, 3, padding=1)
        self.conv2 = SpectralConv2d(hidden, outputs, 3, padding=1)
        changes = down or inputs != outputs
        self.shortcut = SpectralConv2d(inputs, outputs, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns maps (B, outputs, H, W), or halves of the sides, for x (B, inputs, H, W)."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            h, x = _halved(h), _halved(x)
        maps: Tensor = h + self.shortcut(x)
        return maps


def _halved(x: Tensor) -> Tensor:
    """Returns means of 2×2 values, (B, C, H/2, W/2), of a map (B, C, H, W) with even sides."""
    return _mean_of_four(x) if x.is_cuda else F.avg_pool2d(x, 2)


def _mean_of_four(x: Tensor) -> Tensor:
    """Does that on CUDA, where the way back through avg_pool2d takes six times what memory does."""
    places = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    means: Tensor = places.mean(dim=(2, 4))
    return means.permute(0, 3, 1, 2)


class NonLocalBlock(nn.Module):
    """Self-attention between places of a map, with spectral norm; begins as the identity.

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks", 2019, with keys and
    values of half the side as in its code and in BigGAN.

    Args:
        channels: C, of the map; queries and keys have an eighth, values half of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query = SpectralConv2d(channels, narrow, 1, bias=False)
        self.key = SpectralConv2d(channels, narrow, 1, bias=False)
        self.value = SpectralConv2d(channels, half, 1, bias=False)
        self.output = SpectralConv2d(half, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map of the shape of x (B, C, H, W), with even sides."""
        queries = self.query(x).flatten(2)
        keys = F.max_pool2d(self.key(x), 2).flatten(2)
        values = F.max_pool2d(self.value(x), 2).flatten(2)
        weights = torch.bmm(queries.mT, keys).softmax(dim=-1)
        seen = torch.bmm(values, weights.mT).unflatten(2, x.shape[2:])
        maps: Tensor = x + self.gain * self.output(seen)
        return maps


class ResidualDiscriminator(SpectralNetwork):
    """Maps images to one real-or-fake logit each: blocks, ReLU, global sum pooling, projection.

    Args:
        blocks: map images to maps.
        channels: of these maps.
        num_partitions: k of the projection; None makes no difference between partitions.
    """

    def __init__(self, blocks: nn.Sequential, channels: int, num_partitions: int | None) -> None:
        super().__init__()
        self.num_partitions = num_partitions
        self.blocks = blocks
        embedding = SpectralEmbedding(num_partitions, channels) if num_partitions else None
        self.head = Projection(SpectralLinear(channels, 1), embedding)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns logits (B,) for images x (B, C, H, W) in [-1, 1], with partitions also y (B,)."""
        given = condition(y, self.num_partitions)
        with self.power_iteration():
            logits: Tensor = self.head(self._features(x), *given)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees of images x (B, C, H, W), (B, channels)."""
        with self.power_iteration():
            return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(self.blocks(x)).sum(dim=(2, 3))
