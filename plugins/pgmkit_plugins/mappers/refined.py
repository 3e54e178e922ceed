"""Mixtures that are fitted again to their own draws."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pgmkit import LatentSpec
from pgmkit.config import check_count
from pgmkit.contracts import Assign
from pgmkit.errors import ParameterError
from pgmkit.seeds import derive_seed
from pgmkit_plugins.mappers.mixture import MixtureMapper


class RefinedMapper:
    """A Gaussian mixture per cluster, fitted again to those of its own draws that land in it.

    Each round draws from every mixture, keeps what is assigned to the cluster that it was drawn
    for, and fits the mixture to that and the cluster's latents together. So more of what it draws
    lands in the cluster, at the price of a plain mixture; `rejection` keeps the promise exactly.

    Args:
        num_components: Gaussians per cluster, at least 1.
        rounds: how often, at least 1.
        draws: draws per round, as a multiple of the cluster's size, above 0.
    """

    def __init__(self, num_components: int = 2, rounds: int = 2, draws: float = 2.0) -> None:
        check_count("rounds", rounds)
        if not 0 < draws < math.inf:
            raise ParameterError(f"draws must be a number above 0, not {draws!r}")
        self._mixture = MixtureMapper(num_components)
        self.rounds = rounds
        self.draws = draws

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        *,
        num_clusters: int,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits a mixture to each cluster, then refines it; see `pgmkit.contracts.Mapper`."""
        self._mixture.fit(
            latents, labels, num_clusters=num_clusters, assign=assign, prior=prior, seed=seed
        )
        own = latents.detach().cpu()
        sizes = labels[labels >= 0].bincount(minlength=num_clusters).tolist()
        for turn in range(self.rounds):
            points, clusters = [own], [labels]
            for cluster, size in enumerate(sizes):
                if not size:
                    continue
                drawn = self._mixture.sample(
                    math.ceil(self.draws * size),
                    cluster,
                    assign=assign,
                    prior=prior,
                    seed=derive_seed(seed, "refine", turn),
                )
                landed = drawn[assign(drawn) == cluster].to(own.dtype)
                points.append(landed)
                clusters.append(torch.full((len(landed),), cluster))
            self._mixture.fit_again(
                torch.cat(points),
                torch.cat(clusters),
                num_clusters,
                prior,
                derive_seed(seed, "refit", turn),
            )

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, from the mixture of one cluster."""
        return self._mixture.sample(n, cluster, assign=assign, prior=prior, seed=seed)

    def state(self) -> Mapping[str, Tensor]:
        """Returns the mixtures."""
        return self._mixture.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._mixture.load_state(state)
