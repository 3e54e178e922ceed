"""Clusters of an embedding of the generated images: spectral or UMAP, then a clusterer."""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit.generator import Generator
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed
from pgmkit_plugins.samplers.composed import SKIPPED, Array, some_of
from pgmkit_plugins.samplers.pca import leading_eigenvectors
from pgmkit_plugins.samplers.space import SpaceSampler

EMBEDDINGS = ("spectral", "umap")
CLUSTERERS = ("mixture", "kmeans", "hdbscan")
_RIDGE = 1e-4


class Manifold(SpaceSampler):
    """Clusters of an embedding of the images G(z), which follows the manifold that they lie on.

    The points of another sampler, such as principal components of the images, are embedded in few
    dimensions, so that they stay near their nearest neighbours, and clusters are found there.
    Neither embedding extends to new points without keeping more than tensors, so a classifier
    learns the clusters from the points; see `agreement_`.

    Args:
        num_clusters: k, at least 1; "hdbscan" does not use it.
        embedding: "spectral" (Ng, Jordan and Weiss 2001) takes the leading eigenvectors of the
            normalised graph of nearest neighbours, and gives each row the length 1; "umap" is UMAP
            (McInnes et al. 2018) and needs `pip install pgmkit[manifold]`.
        clusterer: "mixture" (Gaussians with full covariances), "kmeans", or "hdbscan", which finds
            the number of clusters itself (`num_clusters_`) and gives noise to the nearest.
        num_neighbors: of each point in the graph, at least 1.
        embedding_dims: of the embedding, at least 1.
        min_cluster_size: of "hdbscan", at least 2; None is a hundredth of the latents, at least 5.
        space: as for `SpaceSampler`.
        max_points: as for `SpaceSampler`.
        num_starts: runs of k-means, of which the best is kept; a mixture starts from it.
        predict_from: as for `SpaceSampler`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.
    """

    _makes_points = False

    def __init__(
        self,
        num_clusters: int = 10,
        embedding: str = "spectral",
        clusterer: str = "mixture",
        num_neighbors: int = 15,
        embedding_dims: int = 10,
        min_cluster_size: int | None = None,
        space: str | Mapping[str, Any] = "output-kmeans",
        max_points: int = 20_000,
        num_starts: int = 4,
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
            num_starts,
        )
        if embedding not in EMBEDDINGS:
            raise UnknownNameError("embedding", embedding, EMBEDDINGS)
        if clusterer not in CLUSTERERS:
            raise UnknownNameError("clusterer", clusterer, CLUSTERERS)
        check_count("num_neighbors", num_neighbors)
        check_count("embedding_dims", embedding_dims)
        if min_cluster_size is not None:
            check_count("min_cluster_size", min_cluster_size)
            if min_cluster_size < 2:
                raise ParameterError("min_cluster_size must be a whole number from 2, not 1")
        self.embedding = embedding
        self.clusterer = clusterer
        self.num_neighbors = num_neighbors
        self.embedding_dims = embedding_dims
        self.min_cluster_size = min_cluster_size
        self._embedded: tuple[Array, Array] | None = None

    def features(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the embedding (n, d), float64, of latents (n, M); see `ComposedSampler`.

        All of them are embedded, however many there are.
        """
        points = super().features(latents, generator=generator, seed=seed).numpy()
        with thread_limit(1):
            embedded = self._embed(points, derive_seed(seed, "k-means") % 2**32)
        self._embedded = points, embedded
        return torch.from_numpy(embedded)

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        self._finds_number = self.clusterer == "hdbscan"
        chosen = some_of(points, self.max_points, random_state)
        known, self._embedded = self._embedded, None
        if known is not None and np.array_equal(known[0], points[chosen]):
            embedded = known[1]
        else:
            embedded = self._embed(points[chosen], random_state)
        found = np.full(len(points), SKIPPED)
        found[chosen] = self._cluster(embedded, random_state)
        return found

    def _embed(self, points: Array, random_state: int) -> Array:
        """Returns the embedding (n, d) of points (n, D)."""
        neighbors = min(self.num_neighbors, len(points) - 1)
        if self.embedding == "spectral":
            return spectral_embedding(points, neighbors, self.embedding_dims)
        if importlib.util.find_spec("umap") is None:
            raise PluginError(
                "the embedding 'umap' needs umap-learn; run: pip install pgmkit[manifold], or take "
                "embedding 'spectral'"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            umap = importlib.import_module("umap").UMAP(
                n_components=self.embedding_dims,
                n_neighbors=max(neighbors, 2),
                min_dist=0.0,
                random_state=random_state,
                n_jobs=1,
            )
            embedded: Array = np.asarray(umap.fit_transform(points), dtype=np.float64)
        return embedded

    def _cluster(self, embedded: Array, random_state: int) -> npt.NDArray[Any]:
        """Returns the cluster of each embedded point (n, d), and -1 for noise."""
        model: Any
        if self.clusterer == "hdbscan":
            size = self.min_cluster_size or max(5, len(embedded) // 100)
            model = HDBSCAN(min_cluster_size=min(size, len(embedded)), copy=True)
        else:
            model = KMeans(self.num_clusters, n_init=self.num_starts, random_state=random_state)
            if self.clusterer == "mixture":
                embedded = (embedded - embedded.mean(axis=0)) / max(float(embedded.std()), 1e-12)
                model = _mixture_from(embedded, model.fit_predict(embedded), random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found: npt.NDArray[Any] = model.fit_predict(embedded)
        return found


def spectral_embedding(points: Array, num_neighbors: int, num_dims: int) -> Array:
    """Embeds points (n, D) by the graph of their nearest neighbours (Ng, Jordan and Weiss 2001).

    Two points are linked where one is among the `num_neighbors` nearest of the other. Parts of the
    graph that hang together with no other are linked by their nearest points, since a solver for a
    few eigenvectors may miss some of an eigenvalue that occurs several times.

    Returns:
        The `num_dims` leading eigenvectors of the normalised adjacency matrix as rows of length 1,
        (n, d), float64; d is n where that is smaller.
    """
    graph = _linked(_neighbour_graph(points, num_neighbors), points)
    scaling = sparse.diags_array(graph.sum(axis=1) ** -0.5)
    _, vectors = leading_eigenvectors((scaling @ graph @ scaling).tocsr(), num_dims)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    embedded: Array = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
    return embedded


def _mixture_from(points: Array, labels: npt.NDArray[Any], random_state: int) -> GaussianMixture:
    """Returns a mixture that starts from the means and covariances of the clusters (n,)."""
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
    directed = NearestNeighbors(n_neighbors=num_neighbors).fit(points).kneighbors_graph()
    return sparse.csr_array(directed.maximum(directed.T))


def _linked(graph: Any, points: Array) -> Any:
    """Links each part of a graph to the nearest point outside it, until all hang together."""
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
