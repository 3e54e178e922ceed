"""The nearest neighbours of points among each other."""

import importlib.util

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pgmkit.machine import thread_limit


def nearest_neighbors(points: Tensor, count: int) -> Tensor:
    """Returns the nearest other points of each of points (n, d), the nearest first.

    All distances are computed, by FAISS where it is installed, and else by scikit-learn.

    Args:
        points: in float32 or float64; compared in float32.
        count: how many of each, at most n - 1 of which there are.

    Returns:
        Numbers of points, int64 (n, min(count, n - 1)).
    """
    values = np.ascontiguousarray(points.detach().cpu().float().numpy())
    count = min(count, len(values) - 1)
    with thread_limit(1):
        search = _by_scikit_learn if importlib.util.find_spec("faiss") is None else _by_faiss
        found = search(values, count + 1)
    # A point is not always the first of its own list, since others may lie in the same place.
    is_other = found != np.arange(len(values))[:, None]
    order = np.argsort(~is_other, axis=1, kind="stable")[:, :count]
    return torch.from_numpy(np.take_along_axis(found, order, axis=1))


def _by_scikit_learn(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(values)
    found: npt.NDArray[np.int64] = search.kneighbors(values, return_distance=False)
    return found.astype(np.int64)


def _by_faiss(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    import faiss

    search = faiss.IndexFlatL2(values.shape[1])
    search.add(values)
    found: npt.NDArray[np.int64] = search.search(values, count)[1]
    return found
