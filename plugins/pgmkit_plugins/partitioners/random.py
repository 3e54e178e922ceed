"""Parts by chance that are the same for the same image: random projections."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.config import check_count
from pgmkit.images import ImageSource
from pgmkit.learning.pca import principal_components
from pgmkit.learning.points import gathered_points, some_of
from pgmkit.machine import thread_limit
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed, random_generator

_MOST = 10_000
_ROUNDS = 100
_EVEN = 0.1
_LEAST_SHARE = 0.1
_LEAST_SPREAD = 0.1


class RandomPartitioner:
    """The largest of k random linear functions of the image: parts that say little of it.

    The functions are drawn among points whose principal components are scaled to variance 1, so
    that what differs most between images, such as how bright they are, counts no more than the
    rest; components of less than a tenth of the largest standard deviation are scaled as if they
    had that. Each function then gets mean 0, standard deviation 1 and an offset, which is lowered
    by the logarithm of the part's share until no share is further than a tenth from 1/k, or for a
    hundred rounds. At most 10,000 images are looked at.

    Once they are fitted, the same image always has the same part, so the parts shatter and guide as
    those of other partitioners do.

    Args:
        num_partitions: k, at least 1.
        features: what the functions are of: a name, a table, or an object.

    Attributes:
        weights_: of the functions, (k, d), float64.
        offsets_: (k,), float64.
    """

    weights_: Tensor
    offsets_: Tensor

    def __init__(self, num_partitions: int = 10, features: Any = "pca") -> None:
        check_count("num_partitions", num_partitions)
        self.num_partitions = num_partitions
        self.features = build("features", features)
        self.space = contracts.space_of(self.features)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Draws the functions, and scales and shifts them by the images."""
        contracts.fit("features", self.features, source, seed)
        chosen = some_of(len(source), _MOST, derive_seed(seed, "images") % 2**32)
        points = gathered_points(self.features, source.subset(torch.from_numpy(chosen)))
        with thread_limit(1):
            mean, components = principal_components([points], points.shape[1])
            scores = (points - mean) @ components.T
            spread = scores.std(dim=0, correction=0)
            white = components / spread.clamp(min=_LEAST_SPREAD * float(spread.max()))[:, None]
            shape, random = (self.num_partitions, len(white)), random_generator(seed, "projections")
            weights = torch.randn(shape, generator=random, dtype=torch.float64) @ white
            values = (points - mean) @ weights.T
            scale = values.std(dim=0, correction=0)
            self.weights_ = weights / scale[:, None]
            self.offsets_ = _evening_offsets(values / scale) - self.weights_ @ mean

    def logits(self, x: Tensor) -> Tensor:
        """Returns the values of the functions, float64 (B, k)."""
        points = contracts.points_of(self.features, x).double()
        self.weights_, self.offsets_ = self.weights_.to(x.device), self.offsets_.to(x.device)
        return points @ self.weights_.T + self.offsets_

    def state(self) -> Mapping[str, Tensor]:
        """Returns the functions."""
        return {"weights": self.weights_, "offsets": self.offsets_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.weights_, self.offsets_ = state["weights"], state["offsets"]
        self.num_partitions = len(self.offsets_)


def _evening_offsets(values: Tensor) -> Tensor:
    """Returns offsets (k,) with which each column of values (n, k) is about equally often largest.

    Those of the most even round, if none is even.
    """
    count, k = values.shape
    offsets = best = torch.zeros(k, dtype=values.dtype)
    least = float("inf")
    for turn in range(_ROUNDS):
        largest = (values + offsets).argmax(dim=1)
        shares = largest.bincount(minlength=k).double() * (k / count)
        uneven = float((shares - 1).abs().max())
        if uneven < least:
            least, best = uneven, offsets
        if uneven <= _EVEN:
            break
        step = 0.5 / (1 + turn) ** 0.5
        offsets = offsets - step * shares.clamp(min=_LEAST_SHARE).log()
    return best
