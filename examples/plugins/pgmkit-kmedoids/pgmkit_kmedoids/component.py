"""Parts around the images that k-medoids finds."""

import kmedoids
import numpy as np
import torch

from pgmkit import contracts
from pgmkit.errors import ParameterError
from pgmkit.learning.points import gathered_points, some_of
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed


class KMedoids:
    """The nearest of k points that are images themselves, unlike the means of k-means.

    Args:
        num_partitions: k, at least 1.
        features: makes points of images, or of latents: a name, a table, or an object.
        max_points: how many points are compared with each other, at least k.
    """

    def __init__(self, num_partitions: int = 10, features="pca", max_points: int = 4000):
        if not 1 <= num_partitions <= max_points:
            raise ParameterError(
                f"num_partitions must be from 1 to max_points, {max_points}, not {num_partitions}"
            )
        self.num_partitions, self.max_points = num_partitions, max_points
        self.features = build("features", features)
        self.space = contracts.space_of(self.features)

    @property
    def parts(self):
        """The features, which are saved and told about with it."""
        return {"features": self.features}

    def fit(self, source, *, seed):
        """Fits the features, and finds the medoids among the points of images."""
        contracts.fit("features", self.features, source, seed)
        points = gathered_points(self.features, source)
        chance = derive_seed(seed, "k-medoids") % 2**32
        points = points[some_of(len(points), self.max_points, chance)]
        far = torch.cdist(points, points).numpy()
        found = kmedoids.fasterpam(far, self.num_partitions, random_state=chance, n_cpu=1)
        self.medoids = points[np.asarray(found.medoids, dtype=np.int64)]

    def logits(self, x):
        """Returns the distances to all medoids, negative, float64 (B, k)."""
        points = contracts.points_of(self.features, x).double()
        # By differences, not by a product of matrices, whose last bits depend on the other points.
        return -torch.cdist(
            points, self.medoids.to(x.device), compute_mode="donot_use_mm_for_euclid_dist"
        )

    def state(self):
        """Returns the medoids; the features are saved by themselves."""
        return {"medoids": self.medoids}

    def load_state(self, state):
        """Takes up what `state` returned."""
        self.medoids = state["medoids"]
