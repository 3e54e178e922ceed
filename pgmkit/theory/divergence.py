"""Theorem 2: the divergence of two mixtures over one partition, part by part."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr

from pgmkit.errors import ParameterError

_Array = npt.NDArray[np.float64]

_SUM_ATOL = 1e-4


@dataclass(frozen=True)
class JsdDecomposition:
    """The Jensen-Shannon divergence of P and Q as a sum over parts, in nats.

    `total = between + Σ_i masses_i · within_i`. Where P and Q give each part the same mass, as
    Theorem 2 demands, `between` is 0 and `within` is the divergence of p_i and q_i.

    Args:
        total: JSD(P‖Q), in [0, log 2].
        between: the divergence of the masses that P and Q give to the parts.
        masses: of each part, the mean of P's and Q's, (k,).
        within: of each part, the divergence of p_i and q_i, weighed by P's and Q's share of its
            mass, (k,); 0 for a part without mass.
    """

    total: float
    between: float
    masses: _Array
    within: _Array


def jsd_decomposition(p: Any, q: Any, parts: Any, *, weights: Any = None) -> JsdDecomposition:
    """Splits JSD(P‖Q) over the parts of a space (Partition-Guided GANs, Theorem 2).

    With `P = Σ π_i p_i` and `Q = Σ π_i q_i`, p_i and q_i on part i alone, JSD(P‖Q) is
    `Σ π_i JSD(p_i‖q_i)`: whoever makes every part right makes the whole right. If Q has other
    masses ρ_i, the divergence of the masses comes on top, and within each part p_i and q_i count by
    π_i and ρ_i (the chain rule of relative entropy).

    Args:
        p: probabilities of P (n,), which sum to 1; or densities at the n nodes of a quadrature.
        q: those of Q at the same places.
        parts: the part of each place, whole numbers from 0, (n,).
        weights: of the quadrature, above 0, (n,), for densities; none for probabilities.

    Raises:
        ParameterError: shapes or values are of another kind, or a distribution does not sum to 1
            within 1e-4.

    Example:
        >>> found = jsd_decomposition([0.1, 0.4, 0.5], [0.3, 0.2, 0.5], [0, 0, 1])
        >>> round(found.total, 4), found.between, found.masses.round(4), found.within.round(4)
        (0.0432, 0.0, array([0.5, 0.5]), array([0.0863, 0.    ]))
    """
    mass_p, mass_q = (np.asarray(values, dtype=np.float64) for values in (p, q))
    where = np.asarray(parts)
    step = np.ones_like(mass_p) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, values in (("q", mass_q), ("parts", where), ("weights", step)):
        if mass_p.ndim != 1 or values.shape != mass_p.shape:
            raise ParameterError(
                f"p, q, parts and weights are rows of one length, and p has the shape "
                f"{mass_p.shape} and {name} {values.shape}"
            )
    if where.dtype.kind not in "iu" or (len(where) and where.min() < 0):
        raise ParameterError("parts must be whole numbers from 0")
    if not (step > 0).all():
        raise ParameterError(f"weights must be above 0, not {float(step.min()):g}")
    mass_p, mass_q = mass_p * step, mass_q * step
    for name, values in (("p", mass_p), ("q", mass_q)):
        total = float(values.sum())
        if not (values >= 0).all() or not abs(total - 1) <= _SUM_ATOL:
            raise ParameterError(
                f"{name} must be at least 0 and sum to 1 (a density: with its weights), not to "
                f"{total:g}"
            )
    of_p, of_q = (_summed(where, values) for values in (mass_p, mass_q))
    masses = (of_p + of_q) / 2
    inside = _divergence(
        _ratio(mass_p, of_p[where]),
        _ratio(mass_q, of_q[where]),
        _ratio(of_p[where], 2 * masses[where]),
    )
    within = _summed(where, inside)
    between = float(_divergence(of_p, of_q, 0.5).sum())
    return JsdDecomposition(float(_divergence(mass_p, mass_q, 0.5).sum()), between, masses, within)


def _summed(parts: npt.NDArray[np.int64], values: _Array) -> _Array:
    """Returns the sum of the values of each part, (k,)."""
    return np.bincount(parts, values).astype(np.float64)


def _divergence(p: _Array, q: _Array, share: _Array | float) -> _Array:
    """Returns what each place adds to the divergence of p and q, of which p has a share."""
    mean = share * p + (1 - share) * q
    terms: _Array = share * rel_entr(p, mean) + (1 - share) * rel_entr(q, mean)
    return terms


def _ratio(value: _Array, of: _Array) -> _Array:
    """Returns value / of, and 0 where both are 0."""
    found: _Array = np.divide(value, of, out=np.zeros_like(value), where=of > 0)
    return found
