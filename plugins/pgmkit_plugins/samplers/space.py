"""What the samplers share that cluster the points of another one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit_plugins.samplers.composed import (
    Array,
    ComposedSampler,
    check_max_points,
    check_predict_from,
    inner_sampler,
    with_prefix,
    without_prefix,
)

_PREFIX = "space."


class SpaceSampler(ComposedSampler):
    """Clusters the points in which another cluster sampler would seek its clusters.

    The clusterers are such that cannot assign new points, so a classifier learns the clusters.

    Args:
        num_clusters: k, at least 1.
        space: the other sampler, by name or as a table of `name` and parameters.
        max_points: how many points are clustered, at least `num_clusters`; the classifier assigns
            the others.
        predict_from: "points" assigns a new latent by its point; "latents" trains the classifier on
            latents, so that no image is made, and less is right; see `agreement_`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.
        num_starts: as for `ComposedSampler`.

    Attributes:
        space_: the other sampler, which makes the points but has no clusters.
    """

    _saved = ("labels",)
    _classified = True

    def __init__(
        self,
        num_clusters: int,
        space: str | Mapping[str, Any],
        max_points: int,
        predict_from: str,
        num_components: int | str,
        mapper: str,
        mapper_args: Mapping[str, Any] | None,
        num_starts: int = 1,
    ) -> None:
        super().__init__(num_clusters, num_starts, num_components, mapper, mapper_args)
        check_max_points(max_points, num_clusters)
        check_predict_from(predict_from)
        self.space = space
        self.max_points = max_points
        self.predict_from = predict_from
        self._build_space()  # a name or parameters that do not fit are refused here
        self.space_: ComposedSampler | None = None

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are; a loaded sampler gets it back so."""
        super().bind(generator)
        if self.space_ is not None:
            self.space_.bind(generator)

    def points_state(self) -> dict[str, Tensor]:
        """Returns what was fitted to turn latents into points, by name."""
        assert self.space_ is not None
        return with_prefix(_PREFIX, self.space_.points_state())

    def load_points_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `points_state` returned; there may be more in it."""
        self.space_ = self._build_space()
        self.space_.bind(self._generator)
        self.space_.load_points_state(without_prefix(_PREFIX, state))

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Learns how to turn latents (n, M) into points."""
        self.space_ = self._build_space()
        self.space_.bind(self._generator)
        self.space_.fit_points(latents, seed)

    def points(self, latents: Tensor) -> Array:
        """Returns the points (n, d) of latents (n, M)."""
        assert self.space_ is not None
        return self.space_.points(latents)

    def _build_space(self) -> ComposedSampler:
        sampler = inner_sampler("space", self.space, "output-kmeans", {})
        if not isinstance(sampler, ComposedSampler) or not sampler._makes_points:
            raise ParameterError(
                f"the cluster sampler of space = {self.space!r} does not make points of latents "
                "one by one; name another, such as 'output-kmeans' or 'learned'"
            )
        return sampler
