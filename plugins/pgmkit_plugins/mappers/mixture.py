"""A Gaussian mixture per cluster."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgmkit import LatentSpec
from pgmkit.config import check_count
from pgmkit.contracts import Assign
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed, random_generator

Array = npt.NDArray[np.float64]


class MixtureMapper:
    """A Gaussian mixture per cluster: the mapper of the LASH paper (section 3.2).

    Everything is fitted in float64 on latents that are centred and divided by one common scale, the
    spread within clusters. Where the prior has bounds, or differs between coordinates, latents are
    first turned into those of a normal prior, and what is drawn is turned back, so that it lies
    inside (`LatentSpec.to_normal`).
    Mixtures are of the continuous coordinates; each Gaussian has probabilities of its own for the
    categories of categorical parts, the frequencies among the latents that it stands for.
    A cluster with fewer than `num_components · (M + 1)` latents cannot carry full covariances: it
    gets one Gaussian with the covariance that all clusters share, and a warning says so.

    Args:
        num_components: Gaussians per cluster, at least 1.

    Attributes:
        weights_: of the components, (k, c), float64, each row sums to 1; 0 fills up clusters with
            fewer components than others.
        means_: (k, c, M), float64.
        cholesky_: lower factors L of the covariances L·Lᵀ, (k, c, M, M), float64.
        categories_: probabilities of the categories of all categorical parts, (k, c, C), float64.
        turned_: whether the prior is not `LatentSpec.even`, so that the mixtures are those of
            `to_normal`.
    """

    _saved = ("weights", "means", "cholesky", "categories", "turned")

    def __init__(self, num_components: int = 2) -> None:
        check_count("num_components", num_components)
        self.num_components = num_components

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
        """Fits a mixture to each cluster; see `pgmkit.contracts.Mapper`."""
        sizes = labels[labels >= 0].bincount(minlength=num_clusters)
        dim = latents.shape[1] if prior is None else int(prior.continuous.sum())
        if dim == 0:
            raise ParameterError(
                f"mappers draw from continuous coordinates, and {prior} latents have none; add a "
                "continuous part to the prior"
            )
        self._warn_of_small_clusters(sizes.tolist(), dim)
        self.fit_again(latents, labels, num_clusters, prior, seed)

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, from the mixture of one cluster.

        Raises:
            ParameterError: the prior is needed, and is not given.
        """
        random = random_generator(seed, "cluster", cluster)
        component = torch.multinomial(self.weights_[cluster], n, replacement=True, generator=random)
        drawn = torch.randn(n, self.means_.shape[2], generator=random, dtype=torch.float64)
        for index in component.unique().tolist():
            chosen = component == index
            factor = self.cholesky_[cluster, index]
            drawn[chosen] = self.means_[cluster, index] + drawn[chosen] @ factor.T
        if not self.turned_:
            return drawn.float()
        if prior is None:
            raise ParameterError(
                "these clusters were found in latents that the prior turned into normal ones; bind "
                "the sampler to its generator, which knows it"
            )
        latents = torch.zeros(n, prior.dim, dtype=torch.float64)
        latents[:, prior.continuous] = drawn
        first = 0
        for place in prior.categories:
            last = first + place.stop - place.start
            shares = self.categories_[cluster, component, first:last]
            chosen = torch.multinomial(shares, 1, generator=random)
            latents[:, place] = torch.zeros_like(shares).scatter_(1, chosen, 1.0)
            first = last
        return prior.from_normal(latents)

    def state(self) -> Mapping[str, Tensor]:
        """Returns all that was fitted, by name."""
        return {name: getattr(self, f"{name}_") for name in self._saved}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        for name in self._saved:
            setattr(self, f"{name}_", state[name])

    def fit_again(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits a mixture to each cluster, without a word on small ones."""
        latents = latents.detach().cpu().double()
        turned = prior is not None and not prior.even
        continuous = torch.full((latents.shape[1],), True)
        if prior is not None and turned:
            latents, continuous = prior.to_normal(latents), prior.continuous
        z, one_hot = latents[:, continuous].numpy(), latents[:, ~continuous].numpy()
        members = [(labels == cluster).numpy() for cluster in range(num_clusters)]
        centre = z.mean(axis=0)
        groups = [z[inside] - centre for inside in members]
        within = np.concatenate([group - group.mean(axis=0) for group in groups if len(group)])
        # Clusters that are points have no spread but what rounding makes of it.
        scale = max(float(within.std()), 1e-6 * float(z.std())) or 1.0
        shared = np.cov(within / scale, rowvar=False, bias=True).reshape(z.shape[1], z.shape[1])
        with thread_limit(1):
            fitted = [
                self._fit_cluster(
                    group / scale,
                    one_hot[members[cluster]],
                    shared,
                    derive_seed(seed, "mixture", cluster) % 2**32,
                )
                for cluster, group in enumerate(groups)
            ]
        weights, means, cholesky, categories = (
            _stacked(parts) for parts in zip(*fitted, strict=True)
        )
        self.weights_ = torch.from_numpy(weights)
        self.means_ = torch.from_numpy(means * scale + centre)
        self.cholesky_ = torch.from_numpy(cholesky * scale)
        self.categories_ = torch.from_numpy(categories)
        self.turned_ = torch.tensor(turned)

    def _warn_of_small_clusters(self, sizes: list[int], dim: int) -> None:
        small = [
            f"{cluster} ({size})"
            for cluster, size in enumerate(sizes)
            if size < self.num_components * (dim + 1)
        ]
        if small:
            number = self.num_components
            warnings.warn(
                f"{len(small)} of {len(sizes)} clusters have fewer latents than the "
                f"{number * (dim + 1)} that {number} full covariances in {dim} dimensions need, so "
                f"each gets one Gaussian with the covariance that all share: "
                f"{', '.join(small[:8])}; draw more latents or ask for fewer clusters",
                PgmkitWarning,
                stacklevel=4,
            )

    def _fit_cluster(
        self, points: Array, one_hot: Array, shared: Array, random_state: int
    ) -> tuple[npt.NDArray[Any], ...]:
        """Returns weights (c,), means (c, M), Cholesky factors (c, M, M) and categories (c, C)."""
        count, dim = points.shape
        if count < self.num_components * (dim + 1):
            mean = points.mean(axis=0) if count else np.zeros(dim)
            factor = np.linalg.cholesky(shared + 1e-6 * np.eye(dim))
            frequencies = one_hot.mean(axis=0) if count else np.ones(one_hot.shape[1])
            return np.ones((1,)), np.asarray(mean)[None], factor[None], frequencies[None]
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(self.num_components, reg_covar=1e-6, random_state=random_state)
        with warnings.catch_warnings():
            # A mixture that is still moving after 100 rounds is as good a sampler.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(points)
        found = mixture.predict_proba(points)
        frequencies = found.T @ one_hot / found.sum(axis=0)[:, None].clip(min=1e-300)
        return (
            mixture.weights_,
            mixture.means_,
            np.linalg.cholesky(mixture.covariances_),
            frequencies,
        )


def _stacked(parts: tuple[npt.NDArray[Any], ...]) -> Array:
    """Stacks arrays over clusters; those with fewer components are filled up with their first.

    Weights are filled up with 0, so that what is filled in is never drawn.
    """
    most = max(len(part) for part in parts)
    filled = []
    for part in parts:
        missing = most - len(part)
        extra = np.zeros(missing) if part.ndim == 1 else np.repeat(part[:1], missing, axis=0)
        filled.append(np.concatenate([part, extra]))
    return np.stack(filled)
