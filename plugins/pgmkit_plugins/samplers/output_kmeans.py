"""k-means on principal components of the generated images."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.images import shrunk
from pgmkit_plugins.samplers.composed import (
    Array,
    ComposedSampler,
    check_predict_from,
    images_of,
)
from pgmkit_plugins.samplers.pca import principal_components


class OutputKMeans(ComposedSampler):
    """k-means on the leading principal components of the images G(z).

    Images are made batch by batch, twice: to find the components, then to project on them. Larger
    images are shrunk first, smoothed against aliasing, until their longer side is `image_size`; the
    covariance takes 8·(C·H·W)² bytes, 75 MB for colour images of 32×32.

    Args:
        num_clusters: k, at least 1.
        num_dims: principal components, at least 1.
        image_size: longest side of the images that are compared, in pixels, at least 1.
        num_starts: runs of k-means from different centres, of which the best is kept.
        predict_from: "points" assigns a new latent by the image that it gives; "latents" trains a
            classifier on latents, so that no image is made, and less is right; see `agreement_`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.

    Attributes:
        mean_: of the images, (D,), float64.
        components_: orthonormal, (d, D), float64.
    """

    _name = "output-kmeans"
    _saved_of_points: tuple[str, ...] = ("mean", "components")

    def __init__(
        self,
        num_clusters: int = 10,
        num_dims: int = 50,
        image_size: int = 32,
        num_starts: int = 4,
        predict_from: str = "points",
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_clusters, num_starts, num_components, mapper, mapper_args)
        check_count("num_dims", num_dims)
        check_count("image_size", image_size)
        check_predict_from(predict_from)
        self.num_dims = num_dims
        self.image_size = image_size
        self.predict_from = predict_from

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Learns how to turn latents (n, M) into points."""
        self.mean_, self.components_ = principal_components(self._rows(latents), self.num_dims)

    def points(self, latents: Tensor) -> Array:
        """Returns the points (n, d) of latents (n, M)."""
        projected = [(rows - self.mean_) @ self.components_.T for rows in self._rows(latents)]
        points: Array = torch.cat(projected).numpy()
        return points

    def _rows(self, latents: Tensor) -> Iterator[Tensor]:
        """Yields what the components are of, batches (B, D), float64 on the CPU."""
        generator = images_of(self._generator, self._name, points=True)
        for images in generator.image_batches(latents):
            yield shrunk(images.float(), self.image_size).flatten(1).cpu().double()
