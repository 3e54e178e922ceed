"""Parts by any clusterer with scikit-learn's interface."""

import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.choosing import make_kmeans
from pgmkit.components import check_parameters
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PluginError
from pgmkit.images import ImageSource
from pgmkit.learning.assigner import Assigner
from pgmkit.learning.points import check_max_points, gathered_points, some_of
from pgmkit.machine import thread_limit
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

_COUNTS = ("n_clusters", "n_components")


class ClustererPartitioner:
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

    Attributes:
        assigner_: assigns new points.
        held_out_logits: of points that it did not learn from, float64 (m, k).
    """

    def __init__(
        self,
        num_partitions: int = 10,
        clusterer: str = "sklearn.cluster:AgglomerativeClustering",
        clusterer_args: Mapping[str, Any] | None = None,
        features: Any = "pca",
        max_points: int = 10_000,
    ) -> None:
        check_count("num_partitions", num_partitions)
        check_max_points(max_points, num_partitions)
        module, _, attribute = clusterer.partition(":")
        if not module or not attribute:
            raise ParameterError(
                "clusterer is written 'module:Class', such as "
                f"'sklearn.cluster:AgglomerativeClustering', not {clusterer!r}"
            )
        self.num_partitions = num_partitions
        self.clusterer_args = clusterer_args
        self.features = build("features", features)
        self.max_points = max_points
        self.space = contracts.space_of(self.features)
        self.clusterer = clusterer
        self._is_loaded = False

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features, and what assigns new points."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the features, clusters the points, and learns to assign others.

        Raises:
            PluginError: the class cannot be imported, or is no clusterer.
            ParameterError: it takes everything for noise; or this was loaded, and to fit it again
                could run code that its folder names.
        """
        self._split(self.prepare(source, seed=seed), seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the points (n, d), float64."""
        self._check_not_loaded()
        contracts.fit("features", self.features, source, seed)
        return gathered_points(self.features, source)

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        """Returns k-means, since most clusterers cannot assign other points."""
        return make_kmeans(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Clusters the points and learns to assign others."""
        self._check_not_loaded()
        self._split(gathered_points(self.features, source), seed)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the votes for each part, (B, k), float64; they have no gradient."""
        points = contracts.points_of(self.features, x)
        return self.assigner_.scores(points).to(x.device)

    def findings(self) -> Mapping[str, Any]:
        """Returns how well other images are assigned."""
        return {"agreement": round(self.assigner_.agreement_, 4)}

    def state(self) -> Mapping[str, Tensor]:
        """Returns what assigns new points."""
        return self.assigner_.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.assigner_ = Assigner()
        self.assigner_.load_state(dict(state))
        self.num_partitions = self.assigner_.num_labels

    def distrust(self) -> None:
        """Refuses to be fitted from now on."""
        self._is_loaded = True

    def _split(self, points: Tensor, seed: int) -> None:
        from sklearn.exceptions import ConvergenceWarning

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
        self.assigner_ = Assigner().fit(*inside, derive_seed(seed, "assign"))
        self.held_out_logits = self.assigner_.held_out_scores_
        self.num_partitions = self.assigner_.num_labels

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
