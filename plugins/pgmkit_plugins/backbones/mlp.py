"""Fully connected networks for points in the plane, the ring and the grid.

Source: the experiments on ring and grid in Lin et al., "PacGAN", 2018: four layers of 400 with
batch norm and ReLU in the generator, three maxout layers of 200 with five pieces in the
discriminator.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit_plugins.backbones.conditioning import (
    PartitionEmbedding,
    Projection,
    batch_norm,
    check_sizes,
    condition,
    initialised,
    normal,
)

_PIECES = 5


class MLPGenerator(nn.Module):
    """Maps flat latents to points: linear layers with batch norm and ReLU, then one without.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: of each hidden layer.
        depth: number of hidden layers, at least 1.
        num_partitions: k, which each norm has gains and biases for; None makes no difference
            between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        width: int = 400,
        depth: int = 4,
        num_partitions: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_partitions, latent_dim=latent_dim, width=width, depth=depth)
        self.num_partitions = num_partitions
        inputs = [latent_dim, *[width] * (depth - 1)]
        self.hidden = nn.ModuleList(nn.Linear(size, width, bias=False) for size in inputs)
        self.norms = nn.ModuleList(
            batch_norm(width, num_partitions, nn.BatchNorm1d) for _ in inputs
        )
        self.last = nn.Linear(width, 2)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns points (B, 2) for latents z (B, M) and, with partitions, y (B,)."""
        given = condition(y, self.num_partitions)
        h = z
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            h = F.relu(norm(layer(h), *given))
        points: Tensor = self.last(h)
        return points


class Maxout(nn.Module):
    """The largest of several linear maps, for each output (Goodfellow et al. 2013).

    Args:
        inputs: how many values come in.
        outputs: how many come out.
        pieces: how many maps each is the largest of.
    """

    def __init__(self, inputs: int, outputs: int, pieces: int = _PIECES) -> None:
        super().__init__()
        self.pieces = pieces
        self.maps = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs) for x (B, inputs)."""
        pieces: Tensor = self.maps(x).unflatten(1, (-1, self.pieces))
        return pieces.max(dim=2).values


class MLPDiscriminator(nn.Module):
    """Maps points to one real-or-fake logit each, with maxout layers of five pieces.

    Args:
        width: of each hidden layer.
        depth: number of hidden layers, at least 1.
        num_partitions: k of the projection; None makes no difference between partitions.

    Raises:
        ParameterError: a size is below 1.
    """

    def __init__(self, width: int = 200, depth: int = 3, num_partitions: int | None = None) -> None:
        super().__init__()
        check_sizes(num_partitions, width=width, depth=depth)
        self.num_partitions = num_partitions
        sizes = [2, *[width] * (depth - 1)]
        self.hidden = nn.Sequential(*(Maxout(size, width) for size in sizes))
        embedding = PartitionEmbedding(num_partitions, width) if num_partitions else None
        self.head = Projection(nn.Linear(width, 1), embedding)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Returns logits (B,) for points x (B, 2) and, with partitions, y (B,)."""
        logits: Tensor = self.head(self.features(x), *condition(y, self.num_partitions))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees of points x (B, 2), (B, width)."""
        h: Tensor = self.hidden(x)
        return h


class MLP2D:
    """The backbone: the discriminator has half the width and one hidden layer less.

    Args:
        latent_dim: M, the number of latent dimensions.
        width: of the generator's hidden layers.
        depth: number of the generator's hidden layers.
    """

    def __init__(self, latent_dim: int = 2, width: int = 400, depth: int = 4) -> None:
        self.latent_dim = latent_dim
        self.width = width
        self.depth = depth

    def generator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained generator with weights drawn from N(0, 0.02²)."""
        network = MLPGenerator(self.latent_dim, self.width, self.depth, num_partitions)
        return initialised(network, normal)

    def discriminator(self, num_partitions: int | None = None) -> nn.Module:
        """Returns an untrained discriminator with weights drawn from N(0, 0.02²)."""
        width, depth = (self.width + 1) // 2, max(1, self.depth - 1)
        return initialised(MLPDiscriminator(width, depth, num_partitions), normal)
