"""Parts of a spectral embedding, which follows the manifold that the images lie on."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.choosing import make_kmeans
from pgmkit.config import check_count
from pgmkit.errors import UnknownNameError
from pgmkit.images import ImageSource
from pgmkit.learning.assigner import Assigner
from pgmkit.learning.pca import leading_eigenvectors
from pgmkit.learning.points import check_max_points, gathered_points, some_of
from pgmkit.machine import thread_limit
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

if TYPE_CHECKING:
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

Array = npt.NDArray[np.float64]

CLUSTERERS = ("mixture", "kmeans")
_RIDGE = 1e-4


class ManifoldPartitioner:
    """Clusters of a spectral embedding of points of the images (Ng, Jordan and Weiss 2001).

    Points are embedded in few dimensions, so that they stay near their nearest neighbours, and
    clusters are found there. The embedding does not extend to new points, so a classifier of points
    learns the clusters.

    Args:
        num_partitions: k, at least 1.
        clusterer: of the embedding: "mixture" (Gaussians with full covariances) or "kmeans".
        num_neighbors: of each point in the graph, at least 1.
        embedding_dims: of the embedding, at least 1.
        features: makes points of images, or of latents: a name, a table, or an object.
        max_points: how many points are embedded, at least `num_partitions`.
        num_starts: runs of k-means, of which the best is kept; a mixture starts from it.

    Attributes:
        assigner_: assigns new points.
        held_out_logits: of points that it did not learn from, float64 (m, k).
    """

    def __init__(
        self,
        num_partitions: int = 10,
        clusterer: str = "mixture",
        num_neighbors: int = 15,
        embedding_dims: int = 10,
        features: Any = "pca",
        max_points: int = 20_000,
        num_starts: int = 20,
    ) -> None:
        check_count("num_partitions", num_partitions)
        check_max_points(max_points, num_partitions)
        if clusterer not in CLUSTERERS:
            raise UnknownNameError("clusterer", clusterer, CLUSTERERS)
        check_count("num_neighbors", num_neighbors)
        check_count("embedding_dims", embedding_dims)
        check_count("num_starts", num_starts)
        self.num_partitions = num_partitions
        self.num_neighbors = num_neighbors
        self.embedding_dims = embedding_dims
        self.features = build("features", features)
        self.max_points = max_points
        self.num_starts = num_starts
        self.space = contracts.space_of(self.features)
        self.clusterer = clusterer
        self._known: tuple[Array, Array] | None = None

    @property
    def parts(self) -> Mapping[str, Any]:
        """The features."""
        return {"features": self.features}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the features, embeds the points, finds clusters and learns to assign others."""
        contracts.fit("features", self.features, source, seed)
        self.split(source, seed=seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Fits the features and returns the embedding (n, d), float64, of all images."""
        contracts.fit("features", self.features, source, seed)
        points = gathered_points(self.features, source).numpy()
        with thread_limit(1):
            self._known = points, self._embed(points)
        return torch.from_numpy(self._known[1])

    def make_clusterer(self, num_partitions: int, seed: int) -> "KMeans":
        """Returns k-means."""
        return make_kmeans(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Embeds the points again if they are others, finds clusters and learns to assign."""
        points = gathered_points(self.features, source).numpy()
        state = derive_seed(seed, "k-means") % 2**32
        chosen = points[some_of(len(points), self.max_points, state)]
        known, self._known = self._known, None
        with thread_limit(1):
            is_known = known is not None and np.array_equal(known[0], chosen)
            embedded = known[1] if is_known and known is not None else self._embed(chosen)
            labels = self._cluster(embedded, state)
        self.assigner_ = Assigner().fit(
            torch.from_numpy(chosen), torch.from_numpy(labels), derive_seed(seed, "assign")
        )
        self.held_out_logits = self.assigner_.held_out_scores_
        self.num_partitions = self.assigner_.num_labels

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

    def _embed(self, points: Array) -> Array:
        neighbors = min(self.num_neighbors, len(points) - 1)
        return spectral_embedding(points, neighbors, self.embedding_dims)

    def _cluster(self, embedded: Array, seed: int) -> npt.NDArray[np.int64]:
        """Returns the cluster of each embedded point (n, d)."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        model: Any = KMeans(self.num_partitions, n_init=self.num_starts, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if self.clusterer == "mixture":
                embedded = (embedded - embedded.mean(axis=0)) / max(float(embedded.std()), 1e-12)
                model = _mixture_from(embedded, model.fit_predict(embedded), seed)
            return np.asarray(model.fit_predict(embedded), dtype=np.int64)


def spectral_embedding(points: Array, num_neighbors: int, num_dims: int) -> Array:
    """Embeds points (n, D) by the graph of their nearest neighbours (Ng, Jordan and Weiss 2001).

    Two points are linked where one is among the `num_neighbors` nearest of the other. Parts of the
    graph that hang together with no other are linked by their nearest points, since a solver for a
    few eigenvectors may miss some of an eigenvalue that occurs several times.

    Returns:
        The `num_dims` leading eigenvectors of the normalised adjacency matrix as rows of length 1,
        (n, d), float64; d is n where that is smaller.
    """
    from scipy import sparse

    graph = _linked(_neighbour_graph(points, num_neighbors), points)
    scaling = sparse.diags_array(graph.sum(axis=1) ** -0.5)
    _, vectors = leading_eigenvectors((scaling @ graph @ scaling).tocsr(), num_dims)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    embedded: Array = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
    return embedded


def _mixture_from(points: Array, labels: npt.NDArray[Any], random_state: int) -> "GaussianMixture":
    """Returns a mixture that starts from the means and covariances of the clusters (n,)."""
    from sklearn.mixture import GaussianMixture

    dim = points.shape[1]
    groups = [points[labels == cluster] for cluster in range(int(labels.max()) + 1)]
    spreads = [np.cov(group, rowvar=False, bias=True).reshape(dim, dim) for group in groups]
    return GaussianMixture(
        len(groups),
        weights_init=np.array([len(group) for group in groups]) / len(points),
        means_init=np.stack([group.mean(axis=0) for group in groups]),
        precisions_init=np.linalg.inv(np.stack(spreads) + _RIDGE * np.eye(dim)),
        init_params="random_from_data",
        reg_covar=_RIDGE,
        random_state=random_state,
    )


def _neighbour_graph(points: Array, num_neighbors: int) -> Any:
    """Returns the symmetric adjacency matrix (n, n), sparse, of zeros and ones."""
    from scipy import sparse
    from sklearn.neighbors import NearestNeighbors

    directed = NearestNeighbors(n_neighbors=num_neighbors).fit(points).kneighbors_graph()
    return sparse.csr_array(directed.maximum(directed.T))


def _linked(graph: Any, points: Array) -> Any:
    """Links each part of a graph to the nearest point outside it, until all hang together."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    while True:
        count, part = connected_components(graph, directed=False)
        if count == 1:
            return graph
        ends = []
        for number in range(count):
            inside, outside = np.flatnonzero(part == number), np.flatnonzero(part != number)
            search = NearestNeighbors(n_neighbors=1).fit(points[outside])
            distance, nearest = (found[:, 0] for found in search.kneighbors(points[inside]))
            first = distance.argmin()
            ends.append((inside[first], outside[nearest[first]]))
        rows, columns = np.array(ends).T
        links = sparse.csr_array((np.ones(count), (rows, columns)), shape=graph.shape)
        links.data[:] = 1.0
        graph = graph.maximum(links).maximum(links.T)
