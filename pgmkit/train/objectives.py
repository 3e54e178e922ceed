"""What a discriminator and a generator minimise, as functions of the discriminator's logits."""

from typing import Protocol

from torch import Tensor
from torch.nn.functional import softplus


class Objective(Protocol):
    """The two losses of a GAN; logits are (B,), high for what is taken to be real."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns the discriminator's loss, a number."""

    def generator(self, fake: Tensor) -> Tensor:
        """Returns the generator's loss, a number."""


class NonSaturating:
    """The non-saturating loss of Goodfellow et al. (2014) in its logit form."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns `-log D(real) - log(1 - D(fake))`, each averaged over its batch, in nats."""
        return softplus(-real).mean() + softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """Returns `-log D(fake)`, averaged, in nats."""
        return softplus(-fake).mean()
