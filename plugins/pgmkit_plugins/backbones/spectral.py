"""Layers with spectral norm, whose power iterations a network does all at once.

Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018, algorithm
1: a weight is divided by σ = uᵀWv, where u and v come from one step of power iteration in each
forward pass of training and count as constants.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit_plugins.backbones.conditioning import rows_of


class Spectral(nn.Module):
    """A layer that divides its weight by its largest singular value, as far as that is known.

    It is a base to be named before the layer of torch. Saved are the weight as it is and the
    estimate of its first left singular vector, `u` (rows,); a row is what makes one output.
    Outside of the forward pass of a `SpectralNetwork` in training mode nothing is iterated.
    """

    weight: Tensor
    u: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("u", torch.randn(len(self.weight)))
        self._scale: Tensor | None = None

    def normalised(self) -> Tensor:
        """Returns the weight divided by σ."""
        scale: Tensor | None = self._scale
        if scale is None:
            (scale,) = _scales([self], iterate=False)
        return self.weight * scale


class SpectralLinear(Spectral, nn.Linear):
    """`nn.Linear` with spectral norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs) for x (B, inputs)."""
        return F.linear(x, self.normalised(), self.bias)


class SpectralConv2d(Spectral, nn.Conv2d):
    """`nn.Conv2d` with spectral norm, of the weight as a matrix (outputs, inputs·height·width)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns maps (B, outputs, ...) for x (B, inputs, H, W)."""
        maps: Tensor = self._conv_forward(x, self.normalised(), self.bias)
        return maps


class SpectralEmbedding(Spectral, nn.Embedding):
    """A vector (d,) for each of k partitions, with spectral norm of all of them, (k, d)."""

    def forward(self, y: Tensor) -> Tensor:
        """Returns vectors (B, d) for partitions y (B,)."""
        return rows_of(self.normalised(), y)


class SpectralNetwork(nn.Module):
    """A network with spectral layers, whose forward pass happens within `power_iteration`."""

    @contextmanager
    def power_iteration(self) -> Iterator[None]:
        """Takes one step for all spectral layers, for as long as the forward pass lasts.

        Layers whose matrices have one shape take it together. In evaluation mode nothing happens:
        each layer then looks at its own `u`, so that several threads may run the network.
        """
        if not self.training:
            yield
            return
        groups: dict[torch.Size, list[Spectral]] = {}
        for module in self.modules():
            if isinstance(module, Spectral):
                groups.setdefault(module.weight.flatten(1).shape, []).append(module)
        try:
            for layers in groups.values():
                for layer, scale in zip(layers, _scales(layers, iterate=True), strict=True):
                    layer._scale = scale
            yield
        finally:
            for layers in groups.values():
                for layer in layers:
                    layer._scale = None


def _scales(layers: Sequence[Spectral], *, iterate: bool) -> Sequence[Tensor]:
    """Returns 1/σ, (), of layers whose matrices have one shape; `iterate` also moves their u."""
    with torch.autocast(layers[0].weight.device.type, enabled=False):
        each = [layer.weight.flatten(1) for layer in layers]
        matrices = torch.stack(each) if len(each) > 1 else each[0][None]
        with torch.no_grad():
            # Averages of weights hold averages of u, which are no unit vectors.
            u = F.normalize(torch.stack([layer.u for layer in layers]), dim=1)
            v = F.normalize(torch.bmm(u[:, None], matrices).squeeze(1), dim=1)
        products = torch.bmm(matrices, v[:, :, None]).squeeze(2)
        if iterate:
            u = F.normalize(products.detach(), dim=1)
            for layer, moved in zip(layers, u, strict=True):
                layer.u.copy_(moved)
        return (u * products).sum(dim=1).reciprocal().unbind()
