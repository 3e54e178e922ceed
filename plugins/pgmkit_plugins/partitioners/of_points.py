"""What partitioners have in common that seek parts among points of the images."""

from collections.abc import Mapping
from typing import Any

from sklearn.cluster import KMeans
from torch import Tensor

from pgmkit import contracts
from pgmkit.choosing import make_kmeans
from pgmkit.config import check_count
from pgmkit.images.source import ImageSource
from pgmkit.learning.assigner import Assigner
from pgmkit.learning.points import gathered_points
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed


class OfPoints:
    """Fits features and splits the points that they make of the images.

    Args:
        num_partitions: k, at least 1.
        features: makes points of images, or of latents: a name, a table, or an object.
    """

    def __init__(self, num_partitions: int, features: Any) -> None:
        check_count("num_partitions", num_partitions)
        self.num_partitions = num_partitions
        self.features = build("features", features)
        self.space = contracts.space_of(self.features)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the features, and finds parts among the points of all images."""
        self._split(self.prepare(source, seed=seed), seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the points (n, d), float64."""
        contracts.fit("features", self.features, source, seed)
        return gathered_points(self.features, source)

    def make_clusterer(self, num_partitions: int, seed: int) -> KMeans:
        """Returns k-means."""
        return make_kmeans(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Finds parts among the points of these images."""
        self._split(gathered_points(self.features, source), seed)

    def _split(self, points: Tensor, seed: int) -> None:
        """Finds `num_partitions` parts among points (n, d)."""
        raise NotImplementedError


class ByVotes(OfPoints):
    """Parts that a classifier of points learns, since new points cannot be told apart otherwise.

    Attributes:
        assigner_: assigns new points.
        held_out_logits: of points that it did not learn from, float64 (m, k).
    """

    def logits(self, x: Tensor) -> Tensor:
        """Returns the votes for each part, (B, k), float64; they have no gradient."""
        points = contracts.points_of(self.features, x)
        return self.assigner_.scores(points).to(x.device)

    def findings(self) -> Mapping[str, Any]:
        """Returns how well other images are assigned."""
        return {"agreement": round(self.assigner_.agreement_, 4)}

    def state(self) -> Mapping[str, Tensor]:
        """Returns what assigns new points."""
        return self.assigner_.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.assigner_ = Assigner()
        self.assigner_.load_state(dict(state))
        self.num_partitions = self.assigner_.num_labels

    def _learn(self, points: Tensor, labels: Tensor, seed: int) -> None:
        self.assigner_ = Assigner().fit(points, labels, derive_seed(seed, "assign"))
        self.held_out_logits = self.assigner_.held_out_scores_
        self.num_partitions = self.assigner_.num_labels
