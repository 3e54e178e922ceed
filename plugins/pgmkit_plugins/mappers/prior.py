"""The generator's prior, for proposals."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgmkit import LatentSpec
from pgmkit.contracts import Assign
from pgmkit.errors import ParameterError
from pgmkit.seeds import random_generator


class PriorMapper:
    """Draws from the prior, whatever the cluster.

    As the proposal of `rejection` it makes of it the prior restricted to the cluster, latents of
    removed mass included.
    """

    def fit(self, latents: Tensor, labels: Tensor, **context: Any) -> None:
        """Learns nothing."""

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, from the prior.

        Raises:
            ParameterError: there is no generator, whose prior it would be.
        """
        if prior is None:
            raise ParameterError(
                "the mapper 'prior' needs the generator whose prior it is; fit with generator=..., "
                "or take 'mixture'"
            )
        return prior.sample(n, random_generator(seed, "cluster", cluster))

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
