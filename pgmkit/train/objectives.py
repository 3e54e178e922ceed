"""What a discriminator and a generator minimise, as functions of the discriminator's logits."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from pgmkit.config import make_settings
from pgmkit.errors import ParameterError, UnknownNameError


class Objective(Protocol):
    """The two losses of a GAN; logits are (B,), high for what is taken to be real."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns the discriminator's loss, a number."""

    def generator(self, fake: Tensor) -> Tensor:
        """Returns the generator's loss, a number."""


@runtime_checkable
class Penalises(Protocol):
    """An objective that also looks at how the discriminator changes between images."""

    def penalty(
        self, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, places: Tensor
    ) -> Tensor:
        """Returns what is added to the discriminator's loss.

        Args:
            judge: images to logits.
            real: images of the data (B, ...).
            fake: as many that were generated.
            places: (B,), uniform in [0, 1).
        """


@dataclass(frozen=True)
class NonSaturating:
    """The non-saturating loss of Goodfellow et al. (2014) in its logit form."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns `-log D(real) - log(1 - D(fake))`, each averaged over its batch, in nats."""
        return softplus(-real).mean() + softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """Returns `-log D(fake)`, averaged, in nats."""
        return softplus(-fake).mean()


@dataclass(frozen=True)
class Hinge:
    """The hinge loss (Lim and Ye, "Geometric GAN", 2017), as in Partition-Guided GANs."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns `(1 - real)₊ + (1 + fake)₊`, each averaged over its batch."""
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """Returns `-fake`, averaged."""
        return -fake.mean()


@dataclass(frozen=True)
class Wasserstein:
    """The Wasserstein loss with gradient penalty (Gulrajani et al. 2017).

    Args:
        weight: of the penalty, at least 0.

    Raises:
        ParameterError: the weight is outside its range.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ParameterError(f"loss.weight must be at least 0, not {self.weight!r}")

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns `fake - real`, each averaged over its batch."""
        return fake.mean() - real.mean()

    def generator(self, fake: Tensor) -> Tensor:
        """Returns `-fake`, averaged."""
        return -fake.mean()

    def penalty(
        self, judge: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, places: Tensor
    ) -> Tensor:
        """Returns `weight · (‖∇D(x)‖ - 1)²`, averaged over x between real and fake images."""
        share = places.reshape(-1, *[1] * (real.ndim - 1))
        between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
        length: Tensor = gradient.flatten(1).norm(dim=1)
        return self.weight * (length - 1).square().mean()


OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {"non-saturating": NonSaturating, "hinge": Hinge, "wasserstein": Wasserstein}
)
"""The losses that a config can name."""


def make_objective(what: str | Mapping[str, Any]) -> Objective:
    """Returns the loss that a name, or a table of `name` and parameters, stands for.

    Raises:
        UnknownNameError: there is no such loss.
        ParameterError: a parameter is unknown or outside its range.
    """
    table = {"name": what} if isinstance(what, str) else dict(what)
    name = str(table.pop("name", None))
    if name not in OBJECTIVES:
        raise UnknownNameError("loss", name, OBJECTIVES)
    return make_settings(OBJECTIVES[name], table, "model.loss")
