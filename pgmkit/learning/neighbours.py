"""The nearest neighbours of points among each other."""

import importlib.util

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pgmkit.machine import full_float32, thread_limit

_AT_ONCE = 2**28
"""Distances that are held in an accelerator's memory."""


def nearest_neighbors(points: Tensor, count: int) -> Tensor:
    """Returns the nearest other points of each of points (n, d), the nearest first.

    All distances are computed: on CUDA where points are there, and else by FAISS where it is
    installed, or by scikit-learn.

    Args:
        points: in float32 or float64; compared in float32.
        count: how many of each, at most n - 1 of which there are.

    Returns:
        Numbers of points, int64 (n, min(count, n - 1)), on the CPU.
    """
    count = min(count, len(points) - 1)
    if points.is_cuda:
        found = by_products(points.detach().float(), count + 1).cpu().numpy()
    else:
        values = np.ascontiguousarray(points.detach().cpu().float().numpy())
        search = _by_scikit_learn if importlib.util.find_spec("faiss") is None else _by_faiss
        with thread_limit(1):
            found = search(values, count + 1)
    # A point is not always the first of its own list, since others may lie in the same place.
    is_other = found != np.arange(len(found))[:, None]
    order = np.argsort(~is_other, axis=1, kind="stable")[:, :count]
    return torch.from_numpy(np.take_along_axis(found, order, axis=1))


def by_products(points: Tensor, count: int) -> Tensor:
    """Returns the nearest of all points (n, d) for each, (n, count), on their device."""
    squares = points.square().sum(dim=1)
    found = []
    with full_float32():
        for some in points.split(max(_AT_ONCE // len(points), 1)):
            distances = squares - 2 * (some @ points.T)  # less what is the same for all
            found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)


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
