"""How networks are told the partition: conditional batch norm, projection, and first weights."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgmkit.config import check_count
from pgmkit.errors import ParameterError

_Network = TypeVar("_Network", bound=nn.Module)


def check_sizes(num_partitions: int | None = None, **sizes: int) -> None:
    """Checks the sizes of a network, by name, and its number of partitions.

    Raises:
        ParameterError: one of them is no whole number from 1; only the partitions may be None.
    """
    for name, size in sizes.items():
        check_count(name, size)
    if num_partitions is not None:
        check_count("num_partitions", num_partitions)


def condition(y: Tensor | None, num_partitions: int | None) -> tuple[Tensor, ...]:
    """Returns what the layers of a network take beside x: (y,), or nothing without partitions.

    Args:
        y: partitions (B,), int64.
        num_partitions: of the network.

    Raises:
        ParameterError: y is missing, or the network has no partitions.
    """
    if y is None and num_partitions is None:
        return ()
    if y is None:
        raise ParameterError(
            f"the network has {num_partitions} partitions and was given none; give y (B,), int64, "
            f"from 0 to {num_partitions - 1 if num_partitions else 0}"
        )
    if num_partitions is None:
        raise ParameterError("the network has no partitions, so it takes no y; leave it out")
    return (y,)


def rows_of(weight: Tensor, y: Tensor) -> Tensor:
    """Returns the rows (B, d) of a weight (k, d) for partitions y (B,), int64.

    Raises:
        ParameterError: on the CPU, where it costs nothing: y is outside 0 to k - 1.
    """
    try:
        return F.embedding(y, weight)
    except IndexError as error:
        raise ParameterError(
            f"partitions are numbered 0 to {len(weight) - 1}, and y holds {int(y.min())} to "
            f"{int(y.max())}; give partitions that the network has"
        ) from error


class PartitionEmbedding(nn.Embedding):
    """A vector (d,) for each of k partitions."""

    def forward(self, y: Tensor) -> Tensor:
        """Returns vectors (B, d) for partitions y (B,)."""
        return rows_of(self.weight, y)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on a condition.

    Source: de Vries et al., "Modulating early visual processing by language", 2017; for GANs
    Miyato and Koyama, "cGANs with Projection Discriminator", 2018.

    Args:
        norm: of C channels, without gain and bias of its own.
        gain: maps conditions to what is added to a gain of 1, (B, C).
        bias: maps conditions to the bias, (B, C).
    """

    def __init__(self, norm: nn.Module, gain: nn.Module, bias: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.gain = gain
        self.bias = bias

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns x (B, C, ...) normalised, for conditions (B,) or (B, d)."""
        shape = (-1, x.shape[1], *[1] * (x.ndim - 2))
        gain, bias = self.gain(condition).reshape(shape), self.bias(condition).reshape(shape)
        normed: Tensor = self.norm(x)
        shifted: Tensor = normed * (1 + gain) + bias
        return shifted


def batch_norm(
    channels: int, num_partitions: int | None = None, kind: type[nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """Returns a batch norm, which takes partitions y (B,) beside x where there are partitions.

    Args:
        channels: C.
        num_partitions: k; each then has a gain and a bias of its own.
        kind: `nn.BatchNorm1d` or `nn.BatchNorm2d`.
    """
    if num_partitions is None:
        return kind(channels)
    return ConditionalBatchNorm(
        kind(channels, affine=False),
        PartitionEmbedding(num_partitions, channels),
        PartitionEmbedding(num_partitions, channels),
    )


class Projection(nn.Module):
    """The last layer of a discriminator: linear(h), and with partitions + ⟨embedding(y), h⟩.

    Source: Miyato and Koyama, "cGANs with Projection Discriminator", 2018, equation 3.

    Args:
        linear: d features to one value.
        embedding: of partitions in d dimensions; None without partitions.
    """

    def __init__(self, linear: nn.Module, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.linear = linear
        self.embedding = embedding

    def forward(self, h: Tensor, *y: Tensor) -> Tensor:
        """Returns logits (B,) for features h (B, d) and, with partitions, y (B,)."""
        logits: Tensor = self.linear(h).squeeze(1)
        for part in y:
            assert self.embedding is not None
            logits = logits + (self.embedding(part) * h).sum(dim=1)
        return logits


@torch.no_grad()
def initialise(module: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """Draws the weight of one layer, as `nn.Module.apply` comes to it; biases become 0.

    Gains and biases of conditional batch norms that are embeddings become 1 and 0, the same for
    all partitions.

    Args:
        module: a convolution, linear layer, embedding or conditional batch norm; others stay.
        draw: fills a weight.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        draw(module.weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.zero_()  # type: ignore[operator, union-attr]
    elif isinstance(module, ConditionalBatchNorm):
        for part in (module.gain, module.bias):
            if isinstance(part, nn.Embedding):
                part.weight.zero_()


def normal(weight: Tensor) -> None:
    """Fills a weight with values of N(0, 0.02²)."""
    nn.init.normal_(weight, 0.0, 0.02)


def orthogonal(weight: Tensor) -> None:
    """Fills a weight so that its rows, or columns, are orthonormal (Saxe et al. 2014)."""
    nn.init.orthogonal_(weight)


def initialised(network: _Network, draw: Callable[[Tensor], object]) -> _Network:
    """Draws all weights of a network, and returns it; see `initialise`."""
    return network.apply(partial(initialise, draw=draw))
