"""Parts where one of several Gaussians is the likeliest."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.config import check_count
from pgmkit.images import ImageSource
from pgmkit.learning.points import gathered_points
from pgmkit.machine import thread_limit
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

_RIDGE = 1e-3


class MixturePartitioner:
    """The likeliest of Gaussians with full covariances, fitted to points of the images.

    Unlike k-means, a mixture tells classes apart by their spread, too: faces that all look to
    the front lie close together around their mean, and flowers far around theirs.

    Args:
        num_partitions: k, at least 1.
        features: makes points of images, or of latents: a name, a table, or an object.
        num_starts: fits from different runs of k-means, of which the most likely is kept.

    Attributes:
        log_weights_: of the Gaussians, (k,), float64, nats.
        means_: (k, d), float64.
        precision_factors_: upper factors U of the inverse covariances U·Uᵀ, (k, d, d), float64.
    """

    log_weights_: Tensor
    means_: Tensor
    precision_factors_: Tensor

    def __init__(
        self, num_partitions: int = 10, features: Any = "pca", num_starts: int = 1
    ) -> None:
        check_count("num_partitions", num_partitions)
        check_count("num_starts", num_starts)
        self.num_partitions = num_partitions
        self.features = build("features", features)
        self.num_starts = num_starts
        self.space = contracts.space_of(self.features)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the features, and Gaussians to the points of all images."""
        self._split(self.prepare(source, seed=seed), seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the points (n, d), float64."""
        contracts.fit("features", self.features, source, seed)
        return gathered_points(self.features, source)

    def make_clusterer(self, num_partitions: int, seed: int) -> "_Mixture":
        """Returns a mixture."""
        return _Mixture(num_partitions, self.num_starts, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Fits the Gaussians."""
        self._split(gathered_points(self.features, source), seed)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the log-density of each Gaussian, in nats less a constant, float64 (B, k)."""
        points = contracts.points_of(self.features, x).double()
        self.log_weights_, self.means_ = self.log_weights_.to(x.device), self.means_.to(x.device)
        self.precision_factors_ = self.precision_factors_.to(x.device)
        parts = (self.log_weights_, self.means_, self.precision_factors_)
        scores = [
            log_weight
            + factor.diagonal().log().sum()
            - ((points - mean) @ factor).square().sum(dim=1) / 2
            for log_weight, mean, factor in zip(*parts, strict=True)
        ]
        return torch.stack(scores, dim=1)

    def state(self) -> Mapping[str, Tensor]:
        """Returns the parameters of the Gaussians."""
        return {
            "log_weights": self.log_weights_,
            "means": self.means_,
            "precision_factors": self.precision_factors_,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.log_weights_, self.means_ = state["log_weights"], state["means"]
        self.precision_factors_ = state["precision_factors"]
        self.num_partitions = len(self.means_)

    def _split(self, points: Tensor, seed: int) -> None:
        clusterer = self.make_clusterer(self.num_partitions, derive_seed(seed, "k-means") % 2**32)
        with thread_limit(1):
            mixture = clusterer.fit(points.numpy()).mixture
        self.log_weights_ = torch.from_numpy(np.log(mixture.weights_))
        self.means_ = torch.from_numpy(mixture.means_)
        self.precision_factors_ = torch.from_numpy(mixture.precisions_cholesky_)


class _Mixture:
    """A mixture whose least variance follows the points, and that may stop while it moves."""

    mixture: "GaussianMixture"

    def __init__(self, num_components: int, num_starts: int, seed: int) -> None:
        self._given = (num_components, num_starts, seed)

    def fit(self, points: Any) -> "_Mixture":
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        num_components, num_starts, seed = self._given
        ridge = _RIDGE * float(points.var(axis=0).mean())
        self.mixture = GaussianMixture(
            num_components, reg_covar=ridge, n_init=num_starts, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.mixture.fit(points)
        return self

    def predict(self, points: Any) -> Any:
        return self.mixture.predict(points)
