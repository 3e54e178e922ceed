"""k-means on the latents, then a Gaussian mixture per cluster."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.seeds import derive_seed, random_generator

Array = npt.NDArray[np.float64]


class KMeansGMM(BaseEstimator):  # type: ignore[misc]
    """The cluster sampler of the LASH paper (section 3.2).

    Everything is fitted in float64 on latents that are centred and divided by one common scale. A
    cluster with fewer than `num_components · (M + 1)` latents cannot carry full covariances: it
    gets one Gaussian with the covariance that all clusters share, and a warning says so.

    Args:
        num_clusters: k, at least 1.
        num_components: Gaussians per cluster, at least 1.
        num_starts: runs of k-means from different centres, of which the best is kept.

    Attributes:
        labels_: cluster of each latent that was fitted, int64 (n,).
        cluster_centers_: (k, M), float64.
        weights_: of the components, (k, num_components), float64, each row sums to 1.
        means_: (k, num_components, M), float64.
        cholesky_: lower factors L of the covariances L·Lᵀ, (k, num_components, M, M), float64.
    """

    def __init__(
        self, num_clusters: int = 10, num_components: int = 2, num_starts: int = 4
    ) -> None:
        values = {
            "num_clusters": num_clusters,
            "num_components": num_components,
            "num_starts": num_starts,
        }
        for name, value in values.items():
            if not isinstance(value, int) or value < 1:
                raise ParameterError(f"{name} must be a whole number from 1, not {value!r}")
        self.num_clusters = num_clusters
        self.num_components = num_components
        self.num_starts = num_starts

    def fit(
        self,
        latents: Tensor,
        *,
        images: Tensor | None = None,
        generator: Generator | None = None,
        seed: int = 0,
    ) -> "KMeansGMM":
        """Finds the clusters and fits a mixture to each.

        Args:
            latents: z (n, M), n at least `num_clusters`.
            images: not used.
            generator: not used.
            seed: of k-means and of the mixtures.

        Raises:
            ParameterError: there are fewer (distinct) latents than clusters.
        """
        z = latents.detach().cpu().double().numpy()
        distinct = len(np.unique(z, axis=0))
        if distinct < self.num_clusters:
            raise ParameterError(
                f"{self.num_clusters} clusters need as many distinct latents, and there are "
                f"{distinct}; ask for fewer clusters or more latents"
            )
        centre = z.mean(axis=0)
        scale = float(z.std()) or 1.0
        scaled = (z - centre) / scale
        # Threads would add up the centres in an order that changes from run to run.
        with threadpool_limits(limits=1):
            kmeans = KMeans(
                self.num_clusters,
                n_init=self.num_starts,
                random_state=derive_seed(seed, "k-means") % 2**32,
            ).fit(scaled)
            labels = kmeans.labels_
            within = scaled - kmeans.cluster_centers_[labels]
            shared = np.cov(within, rowvar=False, bias=True).reshape(z.shape[1], z.shape[1])
            self._warn_of_small_clusters(
                np.bincount(labels, minlength=self.num_clusters), z.shape[1]
            )
            fitted = [
                self._fit_cluster(scaled[labels == cluster], cluster, shared, seed)
                for cluster in range(self.num_clusters)
            ]
        weights, means, cholesky = (np.stack(parts) for parts in zip(*fitted, strict=True))
        self.labels_ = torch.from_numpy(labels.astype(np.int64))
        self.cluster_centers_ = torch.from_numpy(kmeans.cluster_centers_ * scale + centre)
        self.weights_ = torch.from_numpy(weights)
        self.means_ = torch.from_numpy(means * scale + centre)
        self.cholesky_ = torch.from_numpy(cholesky * scale)
        return self

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster with the nearest centre for each latent (n, M), int64 (n,)."""
        return torch.cdist(latents.cpu().double(), self.cluster_centers_).argmin(dim=1)

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M), float32, from the mixture of one cluster."""
        random = random_generator(seed, "cluster", cluster)
        component = torch.multinomial(self.weights_[cluster], n, replacement=True, generator=random)
        drawn = torch.randn(n, self.means_.shape[2], generator=random, dtype=torch.float64)
        for index, (mean, factor) in enumerate(
            zip(self.means_[cluster], self.cholesky_[cluster], strict=True)
        ):
            chosen = component == index
            drawn[chosen] = mean + drawn[chosen] @ factor.T
        return drawn.float()

    def state(self) -> dict[str, Tensor]:
        """Returns all that was fitted, by name."""
        return {
            "labels": self.labels_,
            "cluster_centers": self.cluster_centers_,
            "weights": self.weights_,
            "means": self.means_,
            "cholesky": self.cholesky_,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        for name, value in state.items():
            setattr(self, f"{name}_", value)

    def _smallest_cluster(self, dim: int) -> int:
        """Returns how many latents a mixture with full covariances needs."""
        return self.num_components * (dim + 1)

    def _warn_of_small_clusters(self, sizes: npt.NDArray[np.int64], dim: int) -> None:
        needed = self._smallest_cluster(dim)
        small = [f"{cluster} ({size})" for cluster, size in enumerate(sizes) if size < needed]
        if small:
            warnings.warn(
                f"{len(small)} of {len(sizes)} clusters have fewer latents than the {needed} that "
                f"{self.num_components} full covariances in {dim} dimensions need, so each gets "
                f"one Gaussian with the covariance that all share: {', '.join(small[:8])}; draw "
                "more latents or ask for fewer clusters",
                PgmkitWarning,
                stacklevel=3,
            )

    def _fit_cluster(
        self, points: Array, cluster: int, shared: Array, seed: int
    ) -> tuple[Array, Array, Array]:
        """Returns weights (c,), means (c, M) and Cholesky factors (c, M, M) of one cluster."""
        count, dim = points.shape
        if count < self._smallest_cluster(dim):
            weights = np.zeros(self.num_components)
            weights[0] = 1.0
            means = np.repeat(points.mean(axis=0)[None], self.num_components, axis=0)
            factor = np.linalg.cholesky(shared + 1e-6 * np.eye(dim))
            return weights, means, np.repeat(factor[None], self.num_components, axis=0)
        mixture = GaussianMixture(
            self.num_components,
            reg_covar=1e-6,
            random_state=derive_seed(seed, "mixture", cluster) % 2**32,
        )
        with warnings.catch_warnings():
            # A mixture that is still moving after 100 rounds is as good a sampler.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(points)
        return mixture.weights_, mixture.means_, np.linalg.cholesky(mixture.covariances_)
