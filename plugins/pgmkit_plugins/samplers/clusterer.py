"""Any clusterer with scikit-learn's interface."""

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from pgmkit.components import check_parameters
from pgmkit.errors import ParameterError, PluginError
from pgmkit_plugins.samplers.composed import SKIPPED, Array, some_of
from pgmkit_plugins.samplers.space import SpaceSampler

_COUNTS = ("n_clusters", "n_components")


class AnyClusterer(SpaceSampler):
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
        space: as for `SpaceSampler`; "kmeans-gmm" has the latents themselves for points.
        max_points: as for `SpaceSampler`; many clusterers need memory that grows with its square.
        predict_from: as for `SpaceSampler`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.
    """

    def __init__(
        self,
        num_clusters: int = 10,
        clusterer: str = "sklearn.cluster:AgglomerativeClustering",
        clusterer_args: Mapping[str, Any] | None = None,
        space: str | Mapping[str, Any] = "output-kmeans",
        max_points: int = 10_000,
        predict_from: str = "points",
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_clusters,
            space,
            max_points,
            predict_from,
            num_components,
            mapper,
            mapper_args,
        )
        module, _, attribute = str(clusterer).partition(":")
        if not isinstance(clusterer, str) or not module or not attribute:
            raise ParameterError(
                "clusterer is written 'module:Class', such as "
                f"'sklearn.cluster:AgglomerativeClustering', not {clusterer!r}"
            )
        self.clusterer = clusterer
        self.clusterer_args = clusterer_args

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
