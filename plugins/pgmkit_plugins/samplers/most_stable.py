"""The one of several cluster samplers whose clusters are the most stable."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgmkit.choice import choose_num_clusters
from pgmkit.config import check_count, component_table
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit_plugins.samplers.composed import (
    CheckedParameters,
    clusterer_of,
    find_clusters,
    inner_sampler,
    with_prefix,
    without_prefix,
)
from pgmkit_plugins.samplers.mappers import build_mapper

_LEAST_PER_CLUSTER = 4
_NEAR = 0.2
"""By how much stabilities may differ and still count as the same."""


class MostStable(CheckedParameters):
    """Tries several cluster samplers and keeps the one whose clusters are the most stable.

    Each candidate turns the latents into the points in which it would seek clusters. Two halves of
    these points are clustered apart from each other, by the candidate's `make_clusterer` if it has
    one, by k-means if not; the more they agree on the second half, the more stable the clusters
    are. What points without clusters would show is taken off.
    This is the criterion "stability" of `pgmkit.choice` (Ben-Hur, Elisseeff and Guyon 2002; Lange
    et al. 2004), for one k and several spaces instead of one space and several k. Where several
    come within 0.2 of the best, the one that is listed first is kept, and others are not tried
    where they cannot change that. With one cluster, or fewer than four latents for each, nothing
    can be compared, and the first is kept.

    Args:
        num_clusters: k, at least 1.
        candidates: cluster samplers with `features`, by name or as tables of `name` and parameters,
            the preferred first.
        num_components: of the mapper's mixtures; handed to the candidates.
        mapper: handed to the candidates; "rejection" by default: what is drawn lies in its cluster.
        mapper_args: handed to the candidates.

    Attributes:
        chosen_: the sampler that was kept, fitted.
        stability_: of each candidate, float64 (candidates,), at most 1; higher is more stable. NaN
            for those that were not tried, since they could not have been kept.
        labels_: cluster of each latent that was fitted, int64 (n,).
        num_clusters_: how many clusters there are.
    """

    def __init__(
        self,
        num_clusters: int = 10,
        candidates: Sequence[str | Mapping[str, Any]] = (
            "learned",
            "output-mixture",
            "manifold",
        ),
        num_components: int | str = 2,
        mapper: str = "rejection",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("num_clusters", num_clusters)
        if isinstance(candidates, str) or not len(candidates):
            raise ParameterError(
                f"candidates must be a list of cluster samplers, such as ['learned', 'manifold'], "
                f"not {candidates!r}"
            )
        self.num_clusters = num_clusters
        self.candidates = candidates
        self.num_components = num_components
        self.mapper = mapper
        self.mapper_args = mapper_args
        build_mapper(mapper, num_components=num_components, **(mapper_args or {}))
        for index in range(len(candidates)):
            self._build(index)  # names and parameters that do not fit are refused here
        self._candidates: list[tuple[Any, Tensor]] = []
        self._latents: Tensor | None = None

    def features(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the points (n, d) of the most stable candidate for latents (n, M).

        It is the most stable at `num_clusters`. A `fit` that follows, with the same generator and
        seed, takes up what the candidates learned, and chooses again if `num_clusters` was set
        to another number.

        Raises:
            ParameterError: a candidate cannot learn from these latents.
        """
        self.check_not_loaded()
        self._candidates, self._latents = [], latents
        points = self._choose(generator, seed)
        self._fitted_for = (generator, seed)
        return points

    def fit(
        self,
        latents: Tensor,
        *,
        images: Tensor | None = None,
        generator: Generator | None = None,
        seed: int = 0,
    ) -> "MostStable":
        """Chooses a candidate and fits it.

        Args:
            latents: z (n, M), n at least `num_clusters`.
            images: not used; images are made from the latents, batch by batch.
            generator: G; needed by candidates that look at images.
            seed: of everything random.

        Raises:
            ParameterError: there are fewer distinct latents than clusters, or no generator.
        """
        self._prepare(latents, generator, seed)
        self.chosen_.fit(latents, generator=generator, seed=seed)
        return self

    def find_clusters(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the clusters (n,) of latents (n, M), and learns nothing to draw from.

        The errors are those of `fit`.
        """
        self._prepare(latents, generator, seed)
        return find_clusters(self.chosen_, latents, generator, seed)

    @property
    def labels_(self) -> Tensor:
        """Cluster of each latent that was fitted, int64 (n,)."""
        labels: Tensor = self.chosen_.labels_
        return labels

    @property
    def num_clusters_(self) -> int:
        """How many clusters there are."""
        return int(getattr(self.chosen_, "num_clusters_", self.num_clusters))

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        clusters: Tensor = self.chosen_.predict(latents)
        return clusters

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M), float32, from one cluster.

        Raises:
            SamplingError: the mapper does not find as many in the tries that it has.
        """
        drawn: Tensor = self.chosen_.sample(n, cluster, seed)
        return drawn

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the share of the mapper's proposals that it accepts; None if it takes all."""
        rate: float | None = self.chosen_.acceptance_rate(cluster)
        return rate

    def summary(self) -> dict[str, Any]:
        """Returns which candidate was kept, and how stable each was, for reports."""
        names = [component_table("candidates", c, "")["name"] for c in self.candidates]
        names = [
            name if names.count(name) == 1 else f"{name} ({number})"
            for number, name in enumerate(names, start=1)
        ]
        stability = ", ".join(
            f"{name} {value:.3f}"
            for name, value in zip(names, self.stability_.tolist(), strict=True)
            if not math.isnan(value)
        )
        rest: dict[str, Any] = getattr(self.chosen_, "summary", dict)()
        return {"chosen": names[self._index], "stability": stability, **rest}

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        """Returns what finds so many clusters of the kept candidate's points."""
        return clusterer_of(getattr(self, "chosen_", None), num_clusters, seed)

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are; a loaded sampler gets it back so."""
        self.chosen_.bind(generator)

    def state(self) -> dict[str, Tensor]:
        """Returns all that was fitted, by name."""
        chosen = with_prefix("chosen.", self.chosen_.state())
        return chosen | {"index": torch.tensor(self._index), "stability": self.stability_}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._loaded = True
        self._index, self.stability_ = int(state["index"]), state["stability"]
        self.chosen_ = self._build(self._index)
        self.chosen_.load_state(without_prefix("chosen.", state))

    def _build(self, index: int) -> Any:
        given = {
            "num_clusters": self.num_clusters,
            "num_components": self.num_components,
            "mapper": self.mapper,
            "mapper_args": self.mapper_args,
        }
        sampler = inner_sampler("candidates", self.candidates[index], "", given)
        if not hasattr(sampler, "features"):
            raise ParameterError(
                f"the cluster sampler {self.candidates[index]!r} cannot be a candidate, since it "
                "has no features()"
            )
        return sampler

    def _prepare(self, latents: Tensor, generator: Generator | None, seed: int) -> None:
        """Chooses the candidate that is to be fitted."""
        self.check_not_loaded()
        if self._fitted_for != (generator, seed):
            self.features(latents, generator=generator, seed=seed)
        elif self._judged_at != self.num_clusters:
            self._choose(generator, seed)
        self._fitted_for, self._candidates, self._latents = None, [], None
        self.chosen_.set_params(num_clusters=self.num_clusters)

    def _choose(self, generator: Generator | None, seed: int) -> Tensor:
        """Takes the candidate that is stable enough at `num_clusters`; returns its points."""
        stability = torch.full((len(self.candidates),), math.nan, dtype=torch.float64)
        for index in range(len(self.candidates)):
            if index == len(self._candidates):
                sampler = self._build(index)
                points = sampler.features(self._latents, generator=generator, seed=seed)
                self._candidates.append((sampler, torch.as_tensor(points)))
            stability[index] = self._stability(*self._candidates[index], seed)
            known = stability[: index + 1].nan_to_num()
            first = int((known >= known.max() - _NEAR).int().argmax())
            if stability[index].isnan() or known[first] >= 1 - _NEAR:
                break  # whatever the others are like, this one is kept
        self.stability_, self._index, self._judged_at = stability, first, self.num_clusters
        self.chosen_, points = self._candidates[first]
        return points

    def _stability(self, sampler: Any, points: Tensor, seed: int) -> float:
        if self.num_clusters < 2 or len(points) < _LEAST_PER_CLUSTER * self.num_clusters:
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)  # only the comparison counts here
            choice = choose_num_clusters(
                points,
                [self.num_clusters],
                make_clusterer=partial(clusterer_of, sampler),
                seed=seed,
            )
        return choice.mean[0]
