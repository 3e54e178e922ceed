"""Principal components of rows that never lie in memory all at once."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgmkit.errors import GeneratorError

_NEGLIGIBLE = 1e-12


def principal_components(batches: Iterable[Tensor], num_dims: int) -> tuple[Tensor, Tensor]:
    """Finds the leading principal components from the covariance, which is added up in float64.

    The memory needed is that of one batch and of the covariance, 8·D² bytes.

    Args:
        batches: rows (B, D), float64.
        num_dims: how many components, at least 1.

    Returns:
        Mean (D,) and orthonormal components (d, D), float64, largest variance first. d is
        `num_dims`, or the rank of the covariance where that is smaller.

    Raises:
        GeneratorError: a value is not finite, or all rows are the same.
    """
    count = 0
    shift = total = products = torch.empty(0)
    for batch in batches:
        if not count:  # sums around a first guess of the mean lose no digits
            shift = batch.mean(dim=0)
            total = torch.zeros_like(shift)
            products = shift.new_zeros(len(shift), len(shift))
        centred = batch - shift
        total += centred.sum(dim=0)
        products.addmm_(centred.T, centred)
        count += len(batch)
    offset = total / count
    mean = shift + offset
    covariance = (products / count - offset.outer(offset)).numpy()
    if not np.isfinite(covariance).all():
        raise GeneratorError(
            "some images have values that are not finite; check where they come from"
        )
    values, vectors = leading_eigenvectors(covariance, num_dims)
    # What rounding alone leaves of a variance of 0; images have about seven digits.
    floor = float(mean.square().mean()) * np.finfo(np.float32).eps ** 2
    kept = int((values > max(_NEGLIGIBLE * float(values[0]), float(floor))).sum())
    if not kept:
        raise GeneratorError(f"all {count} images are the same, so there are no parts to find")
    components = torch.from_numpy(np.ascontiguousarray(vectors[:, :kept].T))
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return mean, components * largest.sign()


def leading_eigenvectors(
    matrix: Any, count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the largest eigenvalues (c,), falling, and eigenvectors (n, c), the same each time.

    Args:
        matrix: symmetric (n, n), float64, dense or sparse.
        count: how many; c is n where that is smaller.
    """
    size = matrix.shape[0]
    if 4 * count < size:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(size)
        values, vectors = eigsh(matrix, count, which="LA", v0=start, ncv=max(2 * count, 40))
    else:
        dense = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
        values, vectors = (part[..., -count:] for part in np.linalg.eigh(dense))
    # Copies, since torch takes no view that runs backwards, and it is one even with one component.
    return values[::-1].copy(), vectors[:, ::-1].copy()
