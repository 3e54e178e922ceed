"""Parts around the centres that k-means finds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.choosing import make_kmeans
from pgmkit.config import check_count
from pgmkit.images import ImageSource
from pgmkit.learning.points import gathered_points
from pgmkit.machine import thread_limit
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

if TYPE_CHECKING:
    from sklearn.cluster import KMeans


class KMeansPartitioner:
    """The nearest of the centres that k-means finds in points of the images.

    Args:
        num_partitions: k, at least 1.
        features: makes points of images, or of latents: a name, a table, or an object.
        num_starts: runs of k-means from different centres, of which the best is kept.

    Attributes:
        centers_: (k, d), float64.
    """

    centers_: Tensor

    def __init__(
        self, num_partitions: int = 10, features: Any = "pca", num_starts: int = 20
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
        """Fits the features, and finds centres among the points of all images."""
        self._split(self.prepare(source, seed=seed), seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the points (n, d), float64."""
        contracts.fit("features", self.features, source, seed)
        return gathered_points(self.features, source)

    def make_clusterer(self, num_partitions: int, seed: int) -> "KMeans":
        """Returns k-means."""
        return make_kmeans(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Finds the centres."""
        self._split(gathered_points(self.features, source), seed)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the distances to all centres, negative, float64 (B, k)."""
        points = contracts.points_of(self.features, x).double()
        # By differences, not by a product of matrices, whose last bits depend on the other points.
        self.centers_ = self.centers_.to(x.device)
        return -torch.cdist(points, self.centers_, compute_mode="donot_use_mm_for_euclid_dist")

    def state(self) -> Mapping[str, Tensor]:
        """Returns the centres."""
        return {"centers": self.centers_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.centers_ = state["centers"]
        self.num_partitions = len(self.centers_)

    def _split(self, points: Tensor, seed: int) -> None:
        from sklearn.cluster import KMeans

        kmeans = KMeans(
            self.num_partitions,
            n_init=self.num_starts,
            random_state=derive_seed(seed, "k-means") % 2**32,
        )
        with thread_limit(1):
            self.centers_ = torch.from_numpy(kmeans.fit(points.numpy()).cluster_centers_)
