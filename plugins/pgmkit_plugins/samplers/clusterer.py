"""Any clusterer with scikit-learn's interface."""

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from pgmkit.components import check_parameters
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit_plugins.samplers.composed import SKIPPED, Array, as_array, some_of
from pgmkit_plugins.samplers.output_kmeans import OutputKMeans

SPACES = ("outputs", "latents")
_COUNTS = ("n_clusters", "n_components")


class AnyClusterer(OutputKMeans):
    """Clusters by a class that has scikit-learn's `fit_predict(points) -> labels`.

    The class gets `num_clusters` as its `n_clusters` or `n_components`; if it has neither, it finds
    the number of clusters itself (`num_clusters_`). The label -1 is noise and goes to the nearest
    cluster. New latents are assigned by a classifier that learns the clusters; see `agreement_`.

    The class is imported when the sampler is fitted. A sampler that was loaded imports nothing and
    cannot be fitted again.

    Args:
        num_clusters: k, at least 1.
        clusterer: "module:Class".
        clusterer_args: parameters of the class.
        space: "outputs" clusters principal components of the images, "latents" the latents.
        max_points: how many latents the clusterer gets, at least 1, since many need memory that
            grows with their square; the classifier assigns the others.
        num_dims: as for `OutputKMeans`.
        image_size: as for `OutputKMeans`.
        predict_from: as for `OutputKMeans`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.
    """

    _name = "clusterer"
    _classified = True

    def __init__(
        self,
        num_clusters: int = 10,
        clusterer: str = "sklearn.cluster:AgglomerativeClustering",
        clusterer_args: Mapping[str, Any] | None = None,
        space: str = "outputs",
        max_points: int = 10_000,
        num_dims: int = 50,
        image_size: int = 32,
        predict_from: str = "points",
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_clusters=num_clusters,
            num_dims=num_dims,
            image_size=image_size,
            predict_from=predict_from,
            num_components=num_components,
            mapper=mapper,
            mapper_args=mapper_args,
        )
        module, _, attribute = str(clusterer).partition(":")
        if not isinstance(clusterer, str) or not module or not attribute:
            raise ParameterError(
                "clusterer is written 'module:Class', such as "
                f"'sklearn.cluster:AgglomerativeClustering', not {clusterer!r}"
            )
        if space not in SPACES:
            raise UnknownNameError("space", space, SPACES)
        check_count("max_points", max_points)
        self.clusterer = clusterer
        self.clusterer_args = clusterer_args
        self.space = space
        self.max_points = max_points
        self._loaded = False

    @property
    def _saved(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("labels", "mean", "components") if self.space == "outputs" else ("labels",)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned, and imports no clusterer."""
        super().load_state(state)
        self._loaded = True

    def _fit_points(self, latents: Tensor, seed: int) -> None:
        if self._loaded:
            raise ParameterError(
                f"a sampler that was loaded does not import {self.clusterer!r}, since that would "
                "run code that its folder names; build a new one to fit it"
            )
        if self.space == "outputs":
            super()._fit_points(latents, seed)

    def _points(self, latents: Tensor) -> Array:
        return super()._points(latents) if self.space == "outputs" else as_array(latents)

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        model = self._build(random_state)
        chosen = some_of(points, self.max_points, random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = np.asarray(model.fit_predict(points[chosen]))
        if labels.shape != (len(chosen),):
            raise PluginError(
                f"{self.clusterer} returns labels of shape {labels.shape} for {len(chosen)} points"
            )
        found = np.full(len(points), SKIPPED)
        found[chosen] = np.where(labels < 0, -1, labels)
        return found

    def _build(self, random_state: int) -> Any:
        """Imports the class and builds the clusterer.

        Raises:
            PluginError: it cannot be imported, or is no clusterer.
            ParameterError: it has no such parameter, or the number of clusters is given twice.
        """
        module, _, attribute = self.clusterer.partition(":")
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"the clusterer {self.clusterer!r} cannot be imported: {error}"
            ) from error
        if not inspect.isclass(kind) or not hasattr(kind, "fit_predict"):
            raise PluginError(f"{self.clusterer!r} is no class with fit_predict, so no clusterer")
        known = inspect.signature(kind).parameters
        counted = next((name for name in _COUNTS if name in known), None)
        self._finds_number = counted is None
        if counted is not None and counted in (self.clusterer_args or {}):
            raise ParameterError(
                f"{counted} is given in clusterer_args; give num_clusters of the sampler instead"
            )
        own = {} if counted is None else {counted: self.num_clusters}
        if "random_state" in known:
            own["random_state"] = random_state
        parameters = {**own, **(self.clusterer_args or {})}
        check_parameters(kind, parameters, f"clusterer {self.clusterer!r}")
        return kind(**parameters)
