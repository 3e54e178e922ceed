"""Parts by any clusterer with scikit-learn's interface."""

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from pgmkit.components import check_parameters
from pgmkit.errors import ParameterError, PluginError
from pgmkit.images.source import ImageSource
from pgmkit.learning.points import check_max_points, some_of
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed
from pgmkit_plugins.partitioners.of_points import ByVotes

_COUNTS = ("n_clusters", "n_components")


class ClustererPartitioner(ByVotes):
    """Clusters points of the images by a class with `fit_predict(points) -> labels`.

    The class gets `num_partitions` as its `n_clusters` or `n_components`; if it has neither, it
    finds the number itself, and `num_partitions` says it afterwards. The label -1 is noise and goes
    to the nearest part. Other images are assigned by a classifier of points that learns the parts.

    The class is imported when parts are found. A partitioner that was loaded imports nothing.

    Args:
        num_partitions: k, at least 1.
        clusterer: "module:Class".
        clusterer_args: parameters of the class.
        features: makes points of images, or of latents: a name, a table, or an object.
        max_points: how many points are clustered, at least `num_partitions`; many clusterers need
            memory that grows with its square.
    """

    def __init__(
        self,
        num_partitions: int = 10,
        clusterer: str = "sklearn.cluster:AgglomerativeClustering",
        clusterer_args: Mapping[str, Any] | None = None,
        features: Any = "pca",
        max_points: int = 10_000,
    ) -> None:
        super().__init__(num_partitions, features)
        check_max_points(max_points, num_partitions)
        module, _, attribute = clusterer.partition(":")
        if not module or not attribute:
            raise ParameterError(
                "clusterer is written 'module:Class', such as "
                f"'sklearn.cluster:AgglomerativeClustering', not {clusterer!r}"
            )
        self.clusterer_args = clusterer_args
        self.max_points = max_points
        self.clusterer = clusterer
        self._is_loaded = False

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the points (n, d), float64; see `split`."""
        self._check_not_loaded()
        return super().prepare(source, seed=seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Clusters the points and learns to assign others.

        Raises:
            PluginError: the class cannot be imported, or is no clusterer.
            ParameterError: it takes everything for noise; or this was loaded, and to fit it again
                could run code that its folder names.
        """
        self._check_not_loaded()
        super().split(source, seed=seed)

    def distrust(self) -> None:
        """Refuses to be fitted from now on."""
        self._is_loaded = True

    def _split(self, points: Tensor, seed: int) -> None:
        state = derive_seed(seed, "k-means") % 2**32
        model = self._build(state)
        chosen = points.numpy()[some_of(len(points), self.max_points, state)]
        with thread_limit(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = np.asarray(model.fit_predict(chosen))
            if labels.shape != (len(chosen),):
                raise PluginError(
                    f"{self.clusterer} returns labels of shape {labels.shape} for {len(chosen)} "
                    "points"
                )
            known = labels >= 0
            if not known.any():
                raise ParameterError(
                    f"{self.clusterer} takes all {len(labels)} images for noise; make it less "
                    "strict, or give it more"
                )
        inside = torch.from_numpy(chosen[known]), torch.from_numpy(labels[known].astype(np.int64))
        self._learn(*inside, seed)

    def _check_not_loaded(self) -> None:
        if self._is_loaded:
            raise ParameterError(
                "a partitioner that was loaded is not fitted again, since that could run code that "
                "its folder names; build a new one with the same parameters"
            )

    def _build(self, seed: int) -> Any:
        """Imports the class and builds the clusterer.

        Raises:
            PluginError: it cannot be imported, or is no clusterer.
            ParameterError: it has no such parameter, or the number of parts is given twice.
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
        if counted is not None and counted in (self.clusterer_args or {}):
            raise ParameterError(
                f"{counted} is given in clusterer_args; give num_partitions instead"
            )
        own = {} if counted is None else {counted: self.num_partitions}
        if "random_state" in known:
            own["random_state"] = seed
        parameters = {**own, **(self.clusterer_args or {})}
        check_parameters(kind, parameters, f"clusterer {self.clusterer!r}")
        return kind(**parameters)
