"""What the built-in cluster samplers share: points to cluster, a clusterer, and a mapper."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from torch import Tensor

from pgmkit.choice import make_kmeans
from pgmkit.config import check_count, component_table
from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.generator import Generator
from pgmkit.machine import thread_limit
from pgmkit.plugins import build_component
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed
from pgmkit_plugins.samplers.classifier import LatentClassifier
from pgmkit_plugins.samplers.mappers import Mapper, build_mapper

Array = npt.NDArray[np.float64]

PREDICT_FROM = ("points", "latents")

SKIPPED = -2
"""The label of a point that a method did not look at, since it takes no more than so many."""


class CheckedParameters(BaseEstimator):  # type: ignore[misc]
    """Parameters as scikit-learn's estimators have them, but always within their range."""

    _fitted_for: tuple[Generator | None, int] | None = None
    _loaded: bool = False

    def check_not_loaded(self) -> None:
        """Raises ParameterError for a sampler that was loaded.

        To fit it again could run code that its folder names, such as a clusterer.
        """
        if self._loaded:
            raise ParameterError(
                "a sampler that was loaded is not fitted again, since that could run code that its "
                "folder names; build a new one with its get_params()"
            )

    def set_params(self, **parameters: Any) -> Self:
        """Sets parameters, as scikit-learn's estimators do.

        Raises:
            ParameterError: a value is outside its range.
            ValueError: there is no such parameter.
        """
        before = self.get_params(deep=False)
        super().set_params(**parameters)
        try:
            type(self)(**self.get_params(deep=False))
        except Exception:
            super().set_params(**before)
            raise
        if set(parameters) - {"num_clusters"}:
            self._fitted_for = None
        return self


class ComposedSampler(CheckedParameters):
    """A cluster sampler in three steps: latents become points, points clusters, clusters latents.

    This class clusters the latents themselves by k-means. A method of its own overrides

    * `fit_points` and `points`, if it clusters something else than latents;
    * `_find_clusters` and `_scores`, if it clusters otherwise than by k-means; instead of `_scores`
      it may set `_classified`, and a classifier learns the clusters that were found;
    * `_makes_points`, False if what it clusters is more than the points of single latents;
    * `_finds_number`, if it finds the number of clusters itself;
    * `_saved`, the names of the fitted tensors that make up its state (without the trailing
      underscore), and `_saved_of_points`, of those that `points` needs; or `points_state` and
      `load_points_state`, if they have other names.

    Args:
        num_clusters: k, at least 1.
        num_starts: runs of k-means from different centres, of which the best is kept.
        num_components: Gaussians per cluster of the mapper's mixtures, or "bic".
        mapper: "mixture", "refined" or "rejection"; see `pgmkit_plugins.samplers.mappers`.
        mapper_args: further parameters of the mapper.

    Attributes:
        labels_: cluster of each latent that was fitted, int64 (n,).
        num_clusters_: how many clusters there are; `num_clusters`, unless the method finds it.
        cluster_centers_: (k, d), float64.
        mapper_: fitted.
        core_margins_: for a mapper that draws from the core of clusters, by how much a latent must
            score higher in its own than in any other, (k,), float64; None if all of them counts.
        agreement_: share of held-out latents on which the classifier that assigns new ones agrees
            with the clusters, in [0, 1]; None where no classifier is needed.
    """

    _saved: tuple[str, ...] = ("labels", "cluster_centers")
    _saved_of_points: tuple[str, ...] = ()
    _made: tuple[Tensor, Array] | None = None
    _makes_points: bool = True
    _classified: bool = False
    _finds_number: bool = False
    predict_from: str = "points"

    def __init__(
        self,
        num_clusters: int = 10,
        num_starts: int = 4,
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("num_clusters", num_clusters)
        check_count("num_starts", num_starts)
        self.num_clusters = num_clusters
        self.num_starts = num_starts
        self.num_components = num_components
        self.mapper = mapper
        self.mapper_args = mapper_args
        self._build_mapper()  # parameters that do not fit are refused here
        self._generator: Generator | None = None
        self.classifier_: LatentClassifier | None = None
        self.core_margins_: Tensor | None = None

    def features(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the points (n, d), float64, in which clusters of latents (n, M) are sought.

        They do not depend on `num_clusters`. A `fit` that follows, with the same generator and
        seed, takes up what was learned from these latents, be it on a part of them.

        Raises:
            ParameterError: the method looks at images, and there is no generator.
        """
        self.check_not_loaded()
        self.bind(generator)
        with thread_limit(1):
            self.fit_points(latents, seed)
        self._fitted_for = (generator, seed)
        self._made = latents, self.points(latents)
        return torch.from_numpy(self._made[1])

    def fit(
        self,
        latents: Tensor,
        *,
        images: Tensor | None = None,
        generator: Generator | None = None,
        seed: int = 0,
    ) -> "ComposedSampler":
        """Finds the clusters and learns to draw from each.

        Args:
            latents: z (n, M), n at least `num_clusters`.
            images: not used; images are made from the latents, batch by batch.
            generator: G; needed by methods that look at images.
            seed: of everything random.

        Raises:
            ParameterError: there are fewer distinct latents than clusters, or no generator, or
                none of the latents belongs to a cluster.
        """
        labels, points = self._find(latents, generator, seed)
        self.mapper_ = self._build_mapper()
        self.core_margins_ = None
        if self._core < 1:
            self.core_margins_ = self._find_core(self._inputs(latents, points))
        self.mapper_.fit(
            latents,
            labels,
            self.num_clusters_,
            assign=self._assign_core,
            prior=self._prior,
            seed=seed,
        )
        self.labels_ = self._without_noise(labels, latents, points)
        return self

    def find_clusters(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the clusters (n,), int64, of latents (n, M), and learns nothing to draw from.

        The errors are those of `fit`.
        """
        labels, points = self._find(latents, generator, seed)
        return self._without_noise(labels, latents, points)

    def _find(
        self, latents: Tensor, generator: Generator | None, seed: int
    ) -> tuple[Tensor, Array]:
        """Returns the clusters (n,), -1 for noise, and the points (n, d) of latents (n, M)."""
        self.check_not_loaded()
        distinct = len(latents.detach().cpu().unique(dim=0))
        if distinct < self.num_clusters:
            raise ParameterError(
                f"{self.num_clusters} clusters need as many distinct latents, and there are "
                f"{distinct}; ask for fewer clusters or more latents"
            )
        prepared, self._fitted_for = self._fitted_for == (generator, seed), None
        self.bind(generator)
        if not prepared:
            self._made = None
            with thread_limit(1):
                self.fit_points(latents, seed)
        made, self._made = self._made, None
        if made is not None and torch.equal(made[0], latents):
            points = made[1]
        else:
            points = self.points(latents)
        with thread_limit(1):
            found = self._find_clusters(points, derive_seed(seed, "k-means") % 2**32)
        labels = torch.from_numpy(found.astype(np.int64))
        if int(labels.max()) < 0:
            raise ParameterError(
                f"{type(self).__name__} takes all {len(labels)} latents for noise; make it less "
                "strict, or draw more latents"
            )
        self.num_clusters_ = int(labels.max()) + 1
        if not self._finds_number:
            self.num_clusters_ = max(self.num_clusters, self.num_clusters_)
        self.classifier_ = None
        if self._classified or self.predict_from == "latents":
            known = labels >= 0
            inputs = self._inputs(latents[known], points[known.numpy()])
            with thread_limit(1):
                self.classifier_ = LatentClassifier().fit(
                    inputs, labels[known].numpy(), derive_seed(seed, "assign")
                )
        skipped = labels == SKIPPED
        labels[skipped] = self._clusters(self._inputs(latents[skipped], points[skipped.numpy()]))
        return labels, points

    def _without_noise(self, labels: Tensor, latents: Tensor, points: Array) -> Tensor:
        """Puts what belongs nowhere, -1 among the labels (n,), where it is nearest."""
        noise = labels < 0
        labels[noise] = self._clusters(self._inputs(latents[noise], points[noise.numpy()]))
        return labels

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        return self._clusters(self._inputs(latents))

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M), float32, from one cluster.

        Raises:
            SamplingError: the mapper does not find as many in the tries that it has.
        """
        return self.mapper_.sample(
            n, cluster, assign=self._assign_core, prior=self._prior, seed=seed
        )

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the share of the mapper's proposals that it accepts; None if it takes all."""
        rates = getattr(getattr(self, "mapper_", None), "acceptance_", None)
        return None if rates is None else float(rates[cluster])

    def summary(self) -> dict[str, Any]:
        """Returns how well new latents are assigned and how often draws are kept, for reports."""
        facts: dict[str, Any] = {}
        if self.agreement_ is not None:
            facts["agreement"] = round(self.agreement_, 4)
        rates = [self.acceptance_rate(cluster) for cluster in range(self.num_clusters_)]
        known = [rate for rate in rates if rate is not None]
        if known:
            facts["acceptance"] = f"{min(known):.2f} to {max(known):.2f}"
        return facts

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are; a loaded sampler gets it back so."""
        self._generator = generator

    def state(self) -> dict[str, Tensor]:
        """Returns all that was fitted, by name."""
        own = {name: getattr(self, f"{name}_") for name in self._saved}
        own["num_clusters"] = torch.tensor(self.num_clusters_)
        if self.core_margins_ is not None:
            own["core_margins"] = self.core_margins_
        classifier = {} if self.classifier_ is None else self.classifier_.state()
        return (
            own
            | self.points_state()
            | with_prefix("mapper.", self.mapper_.state())
            | with_prefix("classifier.", classifier)
        )

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._loaded = True
        for name in self._saved:
            setattr(self, f"{name}_", state[name])
        self.num_clusters_ = int(state["num_clusters"])
        self.load_points_state(state)
        self.mapper_ = self._build_mapper()
        self.mapper_.load_state(without_prefix("mapper.", state))
        self.core_margins_ = state["core_margins"] if self._core < 1 else None
        classifier = without_prefix("classifier.", state)
        self.classifier_ = None
        if classifier:
            self.classifier_ = LatentClassifier()
            self.classifier_.load_state(classifier)

    def points_state(self) -> dict[str, Tensor]:
        """Returns what was fitted to turn latents into points, by name."""
        return {name: getattr(self, f"{name}_") for name in self._saved_of_points}

    def load_points_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `points_state` returned; there may be more in it."""
        for name in self._saved_of_points:
            setattr(self, f"{name}_", state[name])

    @property
    def agreement_(self) -> float | None:
        """Share of held-out latents on which classifier and clusters agree; None without one."""
        return None if self.classifier_ is None else self.classifier_.agreement_

    def _inputs(self, latents: Tensor, points: Array | None = None) -> Array:
        """Returns what new latents are assigned by: their points, or the latents themselves."""
        if self.predict_from == "latents":
            return as_array(latents)
        return self.points(latents) if points is None else points

    def _clusters(self, inputs: Array) -> Tensor:
        """Returns the cluster of each of the `_inputs` (n, d), int64 (n,)."""
        if not len(inputs):
            return torch.empty(0, dtype=torch.int64)
        return torch.from_numpy(self._scored(inputs).argmax(axis=1))

    def _scored(self, inputs: Array) -> Array:
        """Returns how well each of the `_inputs` (n, d) fits in each cluster, (n, k)."""
        score = self._scores if self.classifier_ is None else self.classifier_.scores
        return score(inputs)

    @property
    def _core(self) -> float:
        return getattr(self.mapper_, "core", 1.0)

    def _find_core(self, inputs: Array) -> Tensor:
        """Returns the margin that a share of each cluster, its core, has at least, (k,)."""
        scores = (
            self._scores(inputs) if self.classifier_ is None else self.classifier_.held_out_scores_
        )
        clusters, margins = scores.argmax(axis=1), margins_of(scores)
        found = [margins[clusters == cluster] for cluster in range(self.num_clusters_)]
        least = [np.quantile(part, 1 - self._core) if len(part) else 0.0 for part in found]
        return torch.tensor(least, dtype=torch.float64)

    def _assign_core(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,), -1 where it is not of its core."""
        if self.core_margins_ is None:
            return self.predict(latents)
        scores = self._scored(self._inputs(latents))
        clusters = torch.from_numpy(scores.argmax(axis=1))
        outside = torch.from_numpy(margins_of(scores)) < self.core_margins_[clusters]
        return clusters.masked_fill(outside, -1)

    def _build_mapper(self) -> Mapper:
        parameters = {"num_components": self.num_components, **(self.mapper_args or {})}
        return build_mapper(self.mapper, **parameters)

    @property
    def _prior(self) -> LatentSpec | None:
        return None if self._generator is None else self._generator.latent

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Learns how to turn latents (n, M) into points."""

    def points(self, latents: Tensor) -> Array:
        """Returns the points (n, d) of latents (n, M)."""
        return as_array(latents)

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        """Returns the cluster of each point (n, d), from 0.

        It is -1 where a point has none, and `SKIPPED` where a point was not looked at.
        """
        kmeans = KMeans(self.num_clusters, n_init=self.num_starts, random_state=random_state)
        labels: npt.NDArray[Any] = kmeans.fit_predict(points)
        self.cluster_centers_ = torch.from_numpy(kmeans.cluster_centers_)
        return labels

    def _scores(self, points: Array) -> Array:
        """Returns how well each new point (n, d) fits in each cluster, (n, k); higher is better."""
        # By differences, not by a product of matrices, whose last bits depend on the other points.
        distances = torch.cdist(
            torch.from_numpy(points),
            self.cluster_centers_,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        scores: Array = -distances.numpy()
        return scores


def margins_of(scores: Array) -> Array:
    """Returns by how much the best of each row of scores (n, k) exceeds the second, (n,)."""
    if scores.shape[1] == 1:
        return np.zeros(len(scores))
    second, best = np.partition(scores, -2, axis=1)[:, -2:].T
    margins: Array = best - second
    return margins


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state whose names begin with a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns that part of a state whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def as_array(latents: Tensor) -> Array:
    """Returns latents (n, M) as float64 on the CPU."""
    array: Array = latents.detach().cpu().double().numpy()
    return array


def check_predict_from(predict_from: str) -> None:
    """Raises UnknownNameError unless new latents are assigned from "points" or "latents"."""
    if predict_from not in PREDICT_FROM:
        raise UnknownNameError("value of predict_from", predict_from, PREDICT_FROM)


def check_max_points(max_points: int, num_clusters: int) -> None:
    """Raises ParameterError unless `max_points` latents are enough for the clusters."""
    check_count("max_points", max_points)
    if max_points < num_clusters:
        raise ParameterError(
            f"max_points must be at least the number of clusters, {num_clusters}, not {max_points}"
        )


def some_of(points: Array, count: int, random_state: int) -> npt.NDArray[np.int64]:
    """Returns the numbers of all points (n, d), or of `count` random ones if there are more."""
    if len(points) <= count:
        return np.arange(len(points))
    chosen = np.random.default_rng(random_state).choice(len(points), count, replace=False)
    return np.sort(chosen)


def clusterer_of(sampler: Any, num_clusters: int, seed: int) -> Any:
    """Returns what a cluster sampler finds clusters of its points with, or else k-means."""
    make = getattr(sampler, "make_clusterer", None)
    if make is not None:
        return make(num_clusters, seed)
    return make_kmeans(num_clusters, seed)


def find_clusters(sampler: Any, latents: Tensor, generator: Generator | None, seed: int) -> Tensor:
    """Returns the clusters (n,) that any cluster sampler finds among latents (n, M)."""
    find = getattr(sampler, "find_clusters", None)
    if find is None:
        sampler.fit(latents, generator=generator, seed=seed)
        return torch.as_tensor(sampler.labels_).cpu()
    labels: Tensor = find(latents, generator=generator, seed=seed)
    return labels


def inner_sampler(setting: str, value: Any, default: str, given: Mapping[str, Any]) -> Any:
    """Builds the sampler that another one works with.

    Args:
        setting: of the other sampler, for the messages.
        value: a name, or a table of `name` and parameters.
        default: the name where a table has none.
        given: parameters, unless the table has them.

    Raises:
        ParameterError: the table holds `num_clusters`, which is not its own to choose.
    """
    table = component_table(setting, value, default)
    if "num_clusters" in table:
        raise ParameterError(
            f"num_clusters stands in {setting}; set that of the sampler that {setting} belongs to"
        )
    name = table.pop("name")
    return build_component("cluster-samplers", name, **{**given, **table})


def images_of(generator: Generator | None, method: str, *, points: bool = False) -> Generator:
    """Returns the generator that a method looks through.

    Args:
        generator: if there is one.
        method: for the messages.
        points: whether points will do.

    Raises:
        ParameterError: there is none, or it makes points and no images.
    """
    if generator is None:
        raise ParameterError(
            f"the cluster sampler {method!r} looks at images, so it needs the generator; "
            "fit with generator=..., and bind a loaded sampler to its generator"
        )
    if generator.image.is_points and not points:
        raise ParameterError(
            f"the cluster sampler {method!r} looks at images, and {generator.name!r} makes points; "
            "choose another, such as 'kmeans-gmm' or 'output-kmeans'"
        )
    return generator
