"""A mixture of Gaussians on principal components of the generated images."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from pgmkit_plugins.samplers.composed import Array
from pgmkit_plugins.samplers.output_kmeans import OutputKMeans

_RIDGE = 1e-3


class OutputMixture(OutputKMeans):
    """Gaussians with full covariances on the leading principal components of the images G(z).

    Unlike k-means, a mixture tells classes apart by their spread, too: faces that all look to
    the front lie close together around their mean, and flowers far around theirs.

    Args:
        num_clusters: k, at least 1.
        num_dims: as for `OutputKMeans`.
        image_size: as for `OutputKMeans`.
        num_starts: fits from different runs of k-means, of which the most likely is kept.
        predict_from: as for `OutputKMeans`.
        num_components: of the mapper's mixtures in latents, as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.

    Attributes:
        log_weights_: of the Gaussians, (k,), float64, nats.
        means_: (k, d), float64.
        precision_factors_: upper factors U of the inverse covariances U·Uᵀ, (k, d, d), float64.
    """

    _name = "output-mixture"
    _saved = ("labels", "log_weights", "means", "precision_factors")

    def __init__(
        self,
        num_clusters: int = 10,
        num_dims: int = 50,
        image_size: int = 32,
        num_starts: int = 1,
        predict_from: str = "points",
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_clusters,
            num_dims,
            image_size,
            num_starts,
            predict_from,
            num_components,
            mapper,
            mapper_args,
        )

    def make_clusterer(self, num_clusters: int, seed: int) -> "_Mixture":
        """Returns what finds so many clusters of points, for the choice of their number."""
        return _Mixture(num_clusters, n_init=self.num_starts, random_state=seed)

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        mixture = self.make_clusterer(self.num_clusters, random_state).fit(points)
        self.log_weights_ = torch.from_numpy(np.log(mixture.weights_))
        self.means_ = torch.from_numpy(mixture.means_)
        self.precision_factors_ = torch.from_numpy(mixture.precisions_cholesky_)
        labels: npt.NDArray[Any] = self._scores(points).argmax(axis=1)
        return labels

    def _scores(self, points: Array) -> Array:
        """Returns the log-density of each Gaussian at each point, (n, k), less a constant."""
        rows = torch.from_numpy(points)
        scores = [
            log_weight
            + factor.diagonal().log().sum()
            - ((rows - mean) @ factor).square().sum(dim=1) / 2
            for log_weight, mean, factor in zip(
                self.log_weights_, self.means_, self.precision_factors_, strict=True
            )
        ]
        stacked: Array = torch.stack(scores, dim=1).numpy()
        return stacked


class _Mixture(GaussianMixture):  # type: ignore[misc]
    """A mixture whose least variance follows the points, and that may stop while it moves."""

    def fit(self, points: Array, y: None = None) -> "_Mixture":
        self.reg_covar = _RIDGE * float(points.var(axis=0).mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            super().fit(points)
        return self
