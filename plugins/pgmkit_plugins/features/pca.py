"""Principal components of other features."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.config import check_count
from pgmkit.images import ImageSource, batches
from pgmkit.learning.pca import principal_components
from pgmkit.machine import thread_limit
from pgmkit.plugins import build


class PCA:
    """The leading principal components of other features, by default of the pixels.

    Images are looked at batch by batch, twice: to find the components, then to project on them. The
    covariance takes 8·D² bytes, 75 MB for the pixels of colour images of 32×32.

    Args:
        features: what the components are of: a name, a table, or an object.
        num_dims: how many components, at least 1.

    Attributes:
        mean_: of the features, (D,), float64.
        components_: orthonormal, (d, D), float64.
    """

    mean_: Tensor
    components_: Tensor

    def __init__(self, features: Any = "pixels", num_dims: int = 50) -> None:
        check_count("num_dims", num_dims)
        self.features = build("features", features)
        self.num_dims = num_dims
        self.space = contracts.space_of(self.features)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features that the components are of."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the features and finds the components of all images."""
        contracts.fit("features", self.features, source, seed)
        with thread_limit(1):
            self.mean_, self.components_ = principal_components(self._rows(source), self.num_dims)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the projections (B, d), float64, of images x (B, C, H, W)."""
        points = contracts.points_of(self.features, x).double()
        self.mean_, self.components_ = self.mean_.to(x.device), self.components_.to(x.device)
        return (points - self.mean_) @ self.components_.T

    def state(self) -> Mapping[str, Tensor]:
        """Returns mean and components."""
        return {"mean": self.mean_, "components": self.components_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.mean_, self.components_ = state["mean"], state["components"]

    @torch.no_grad()
    def _rows(self, source: ImageSource) -> Iterator[Tensor]:
        for x in batches(source):
            yield contracts.points_of(self.features, x).cpu().double()
