"""Invertible residual networks for images, and the head that makes a partitioner of one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.errors import ParameterError

_SETTLING = 50
"""Power iterations by which a norm is known in the end."""
_TINY = 1e-30
_LEAST_SPREAD = 1e-2
"""Channels that vary less are not scaled up any further."""


class NormalisedConv(nn.Module):
    """A convolution whose spectral norm is kept at or below a coefficient, or near it.

    The norm is that of the whole convolution, with its zeros around the border, as a linear map of
    images. In training mode `forward` divides the weight by `max(1, σ/coefficient)`, where σ is the
    norm of what the convolution makes of `direction`, a unit image that power iteration turns
    towards the one that grows the most (Gouk et al. 2018; Behrmann et al., "Invertible Residual
    Networks", 2019, section 2.1). σ is at most the norm and comes closer with each iteration, so
    the norm may be a little above the coefficient. In evaluation mode the weight is taken as it is:
    `settle` has divided it.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        kernel: its side, odd; images keep their size.
        side: (H, W) of the images.
        coefficient: above 0.

    Attributes:
        direction: (1, inputs, H, W), of length 1; of one pixel for a kernel of one, which does the
            same at all places. None after training.
    """

    direction: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, side: tuple[int, int], coefficient: float
    ) -> None:
        super().__init__()
        drawn = nn.Conv2d(inputs, outputs, kernel)
        self.weight, self.bias = drawn.weight, drawn.bias
        self.padding = kernel // 2
        self.coefficient = coefficient
        start = torch.randn(1, inputs, *(side if kernel > 1 else (1, 1)))
        self.register_buffer(
            "direction", functional.normalize(start.flatten(), dim=0).view_as(start)
        )

    @torch.no_grad()
    def iterate(self, iterations: int) -> None:
        """Turns `direction` towards the one that grows the most."""
        assert self.direction is not None
        turned = self.direction
        with torch.autocast(self.weight.device.type, enabled=False):
            for _ in range(iterations):
                image = functional.conv2d(turned, self.weight, padding=self.padding)
                back = functional.conv_transpose2d(image, self.weight, padding=self.padding)
                turned = back / back.norm().clamp(min=_TINY)
        # What is recorded on CUDA looks at one place; elsewhere a backward pass may still come.
        self.direction = self.direction.copy_(turned) if turned.is_cuda else turned

    @torch.no_grad()
    def settle(self) -> None:
        """Divides the weight as `forward` does in training mode, and ends that for good."""
        self.iterate(_SETTLING)
        self.weight.div_(self._excess())
        self.direction = None

    def _excess(self) -> Tensor:
        """Returns how many times the coefficient the norm is, at least 1."""
        assert self.direction is not None
        with torch.autocast(self.weight.device.type, enabled=False):
            grown = functional.conv2d(self.direction, self.weight, padding=self.padding)
            excess: Tensor = grown.norm() / self.coefficient
            return excess.clamp(min=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the images x (B, inputs, H, W) convolved, (B, outputs, H, W)."""
        weight = self.weight
        if self.training:
            weight = weight / self._excess()
        y: Tensor = functional.conv2d(x, weight, self.bias, padding=self.padding)
        return y


class ActNorm(nn.Module):
    """A factor and a shift for each channel (Kingma and Dhariwal, "Glow", 2018, section 3.1).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Gives each channel of x (B, C, H, W) mean 0 and variance 1; returns what becomes of x.

        A channel that hardly varies is scaled by 100 at most.
        """
        spread, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.log_scale.copy_(-spread.clamp(min=_LEAST_SPREAD).log())
        self.shift.copy_(-mean)
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (x + shift)·exp(log_scale), of the shape of x, (B, C, H, W)."""
        return (x + _by_channel(self.shift)) * _by_channel(self.log_scale.exp())

    def inverse(self, y: Tensor) -> Tensor:
        """Returns what `forward` makes y of."""
        return y * _by_channel((-self.log_scale).exp()) - _by_channel(self.shift)


class Block(nn.Module):
    """ActNorm, and a bottleneck before its activations, which is added: n + F(n), n = ActNorm(x).

    F is ELU, 3×3, ELU, 1×1, ELU, 3×3. It multiplies distances by the cube of the coefficient at
    most, so that a coefficient below 1 makes the block invertible.

    Args:
        channels: C of the images.
        width: channels of the bottleneck.
        side: (H, W) of the images.
        coefficient: of each convolution; see `NormalisedConv`.
    """

    def __init__(
        self, channels: int, width: int, side: tuple[int, int], coefficient: float
    ) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.bottleneck = nn.Sequential(
            nn.ELU(),
            NormalisedConv(channels, width, 3, side, coefficient),
            nn.ELU(),
            NormalisedConv(width, width, 1, side, coefficient),
            nn.ELU(),
            NormalisedConv(width, channels, 3, side, coefficient),
        )

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Fits ActNorm to x (B, C, H, W); returns what becomes of x."""
        self.norm.initialise(x)
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns y, of the shape of x, (B, C, H, W)."""
        normal = self.norm(x)
        y: Tensor = normal + self.bottleneck(normal)
        return y

    def inverse(self, y: Tensor, max_iterations: int) -> Tensor:
        """Returns x of y by the fixed point of n = y − F(n); it stops where n no longer moves."""
        normal, still = y, 4 * torch.finfo(y.dtype).eps * float(y.abs().max())
        for _ in range(max_iterations):
            previous, normal = normal, y - self.bottleneck(normal)
            if float((normal - previous).abs().max()) <= still:
                break
        return self.norm.inverse(normal)


class Squeeze(nn.Module):
    """Makes one pixel of 2×2, with four times the channels."""

    def initialise(self, x: Tensor) -> Tensor:
        """Returns what becomes of x."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns y (B, 4·C, H/2, W/2) of x (B, C, H, W)."""
        count, channels, height, width = x.shape  # pixel_unshuffle leaves no images as they are
        blocks = x.reshape(count, channels, height // 2, 2, width // 2, 2)
        squeezed = blocks.permute(0, 1, 3, 5, 2, 4)
        return squeezed.reshape(count, 4 * channels, height // 2, width // 2)

    def inverse(self, y: Tensor, max_iterations: int) -> Tensor:
        """Returns x of y."""
        return functional.pixel_shuffle(y, 2)


class Trunk(nn.Module):
    """Stages of blocks, with a squeeze between them.

    Args:
        image: (C, H, W).
        blocks: how many there are in each stage; a stage may have none.
        width: channels of the bottlenecks.
        coefficient: of each convolution; see `NormalisedConv`.

    Attributes:
        output: (C', H', W') of what comes out, with as many numbers as the image has.

    Raises:
        ParameterError: a side of the images cannot be halved so often.
    """

    def __init__(
        self, image: tuple[int, int, int], blocks: Sequence[int], width: int, coefficient: float
    ) -> None:
        super().__init__()
        check_sides(image, blocks)
        channels, height, wide = image
        layers: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            if stage:
                layers.append(Squeeze())
                channels, height, wide = 4 * channels, height // 2, wide // 2
            side = height, wide
            layers += [Block(channels, width, side, coefficient) for _ in range(count)]
        self.layers = nn.ModuleList(layers)
        self.output = channels, height, wide

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Fits each ActNorm to what images x (B, C, H, W) are there; returns what becomes of x."""
        for layer in self._layers():
            x = layer.initialise(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Returns y (B, C', H', W') of images x (B, C, H, W)."""
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def inverse(self, y: Tensor, max_iterations: int = 100) -> tuple[Tensor, Tensor]:
        """Returns the images that y (B, C', H', W') is made of, and how well.

        Args:
            y: what `forward` returned.
            max_iterations: of the fixed point of each block, at least 1.

        Returns:
            x (B, C, H, W), and the largest difference of `forward(x)` from y in each, (B,).
        """
        x = y
        for layer in reversed(self._layers()):
            x = layer.inverse(x, max_iterations)
        return x, (self(x) - y).abs().flatten(1).amax(dim=1)

    def _layers(self) -> list[Block | Squeeze]:
        return [layer for layer in self.layers if isinstance(layer, Block | Squeeze)]


class SoftLeakyReLU(nn.Module):
    """A LeakyReLU without its kink: a·x + (1 − a)·log(1 + eˣ), whose slopes lie between a and 1.

    Args:
        negative_slope: a, in (0, 1).
    """

    def __init__(self, negative_slope: float) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Returns numbers of the shape of x."""
        return self.negative_slope * x + (1 - self.negative_slope) * functional.softplus(x)


class Representation(nn.Module):
    """An invertible trunk, ActNorm, LeakyReLU and the mean over all places: φ.

    Args:
        image: (C, H, W).
        blocks: how many there are in each stage of the trunk.
        width: channels of the bottlenecks.
        coefficient: of each convolution; see `NormalisedConv`.
        negative_slope: of the LeakyReLU.
        smooth: whether it has no kink; see `SoftLeakyReLU`.
        pooled: whether the mean over all places is taken; if not, φ is all numbers, and invertible.

    Attributes:
        trunk: invertible.
        num_features: d.

    Raises:
        ParameterError: a side of the images cannot be halved as often as there are stages.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        *,
        blocks: Sequence[int],
        width: int,
        coefficient: float,
        negative_slope: float,
        smooth: bool,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(image, blocks, width, coefficient)
        channels, height, wide = self.trunk.output
        self.norm = ActNorm(channels)
        leaky = SoftLeakyReLU if smooth else nn.LeakyReLU
        self.activation = leaky(negative_slope)
        self.pooled = pooled
        self.num_features = channels if pooled else channels * height * wide

    def initialise(self, x: Tensor) -> None:
        """Fits each ActNorm to images x (B, C, H, W)."""
        self.norm.initialise(self.trunk.initialise(x))

    def iterate(self, iterations: int) -> None:
        """Makes steps of power iteration in each convolution; see `NormalisedConv`."""
        for conv in self._convolutions():
            conv.iterate(iterations)

    def settle(self) -> None:
        """Ends training: each weight is divided by its norm, which is found anew, once."""
        for conv in self._convolutions():
            conv.settle()
        self.eval().requires_grad_(False)

    def forget_directions(self) -> None:
        """Makes room for the state of a representation that was settled, which has none."""
        for conv in self._convolutions():
            conv.direction = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns φ(x), (B, d), of images x (B, C, H, W)."""
        y: Tensor = self.activation(self.norm(self.trunk(x)))
        return y.mean(dim=(2, 3)) if self.pooled else y.flatten(1)

    def _convolutions(self) -> list[NormalisedConv]:
        return [module for module in self.modules() if isinstance(module, NormalisedConv)]


class Headed(nn.Module):
    """φ and what is behind it: a projection, or W.

    Args:
        representation: φ.
        head: takes points (B, d).
    """

    def __init__(self, representation: Representation, head: nn.Module) -> None:
        super().__init__()
        self.representation = representation
        self.head = head

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.representation.norm.shift.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the head makes of φ(x), of images x (B, C, H, W)."""
        y: Tensor = self.head(self.representation(x))
        return y


def check_sides(image: tuple[int, ...], blocks: Sequence[int]) -> None:
    """Raises ParameterError unless the sides of images (C, H, W) can be halved between stages."""
    factor = 2 ** (len(blocks) - 1)
    if any(side % factor for side in image[1:]):
        raise ParameterError(
            f"the network halves the sides of images {len(blocks) - 1} times, so both must be "
            f"multiples of {factor}, and these are {image[1]}×{image[2]}; give images of another "
            "size (--size), or fewer stages (network.blocks)"
        )


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]
