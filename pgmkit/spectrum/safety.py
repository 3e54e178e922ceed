"""The safety net of fast methods: each is checked against the exact one before it is used."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from pgmkit.errors import GeneratorError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.spectrum.jacobian import JacobianSpectra, Method
from pgmkit.spectrum.spectrum import Spectrum

SAMPLE = 128
"""Latents that both methods are applied to."""

REMOVED = 0.2
"""Share of latents that LASH removes in its paper; the sets that two methods remove are compared.
"""


@dataclass(frozen=True)
class Check:
    """How a fast method compares with the exact one on a sample of latents.

    Args:
        method: the fast method.
        rank_correlation: Spearman's, of each quantity that density estimators use.
        removed_overlap: share of the latents that LASH (Eq. 2) would remove with both methods.
        latents: size of the sample.
        threshold: the rank correlation asked for.
        speed: how many times faster than the exact method it was.
        used: whether it is used.
        reason: why not.
    """

    method: str
    rank_correlation: Mapping[str, float]
    removed_overlap: float
    latents: int
    threshold: float
    speed: float
    used: bool
    reason: str = ""


def choose(
    generator: Generator, z: Tensor, method: Method
) -> tuple[JacobianSpectra, Check | None]:
    """Returns what computes the spectrum: the method asked for, or the exact one instead of it.

    Args:
        generator: G.
        z: the latents (n, M) of the spectrum.
        method: what the user asks for.

    Returns:
        How spectra are computed, and how a fast method fared; None for an exact one.
    """
    if not method.is_fast:
        return JacobianSpectra(generator, method), None
    exact = JacobianSpectra(generator, method.exact)
    try:
        fast = JacobianSpectra(generator, method)
    except GeneratorError as error:
        check = Check(_name(method), {}, 0.0, 0, method.threshold, 0.0, False, str(error))
    else:
        sample = z[torch.linspace(0, len(z) - 1, min(SAMPLE, len(z))).long()]
        check = compare(fast, exact, sample)
        if check.used:
            return fast, check
    warnings.warn(
        f"{check.method} is not used, since {check.reason}; the spectrum is computed exactly",
        PgmkitWarning,
        stacklevel=2,
    )
    return exact, check


def compare(fast: JacobianSpectra, exact: JacobianSpectra, z: Tensor) -> Check:
    """Compares a fast method with the exact one on latents z (n, M)."""
    spectra, seconds = [], []
    for jacobians in (fast, exact):
        started = time.perf_counter()
        values = jacobians.compute(z)["singular_values"]
        seconds.append(time.perf_counter() - started)
        provenance = {"computed": computed(jacobians.method)}
        spectra.append(Spectrum(z, values, torch.zeros(len(z)), provenance=provenance))
    sketched, reference = spectra
    top = fast.method.probes if fast.method.sketch == "top" else None
    correlations = {
        "log_volume": _rank_correlation(
            sketched.log_volume(top_k=top), reference.log_volume(top_k=top)
        ),
        "frobenius": _rank_correlation(sketched.frobenius(), reference.frobenius()),
    }
    threshold = fast.method.threshold
    worst = min(correlations, key=lambda quantity: correlations[quantity])
    reason = ""
    if not correlations[worst] >= threshold:
        quantity = worst.replace("_", "-")
        reason = (
            f"its {quantity} has a rank correlation of {correlations[worst]:.4f} with the exact "
            f"one, less than {threshold}, on {len(z)} latents"
        )
    elif seconds[0] > seconds[1]:
        reason = f"it takes {seconds[0] / seconds[1]:.1f} times as long as the exact method here"
    return Check(
        _name(fast.method),
        correlations,
        _overlap(sketched.log_volume(top_k=top), reference.log_volume(top_k=top)),
        len(z),
        threshold,
        seconds[1] / seconds[0],
        not reason,
        reason,
    )


def used_method(method: Method, check: Mapping[str, Any] | None) -> Method:
    """Returns the method that a recorded check led to."""
    return method.exact if check is not None and not check["used"] else method


def computed(method: Method) -> dict[str, Any]:
    """Returns what a method computes, as it is recorded with a spectrum."""
    return {
        "dtype": method.dtype,
        "probes": method.probes,
        "sketch": method.sketch if method.probes is not None else None,
    }


def _name(method: Method) -> str:
    if method.probes is None:
        return f"dtype {method.dtype!r}"
    return f"the {method.sketch} sketch with {method.probes} probes"


def _rank_correlation(left: Tensor, right: Tensor) -> float:
    """Returns Spearman's rank correlation over the latents where both are finite."""
    finite = left.isfinite() & right.isfinite()
    if finite.sum() < 2 or (left[finite] == left[finite][0]).all():
        return 1.0 if torch.allclose(left[finite], right[finite], rtol=1e-3) else 0.0
    return float(spearmanr(left[finite].numpy(), right[finite].numpy()).statistic)


def _overlap(left: Tensor, right: Tensor) -> float:
    """Returns the share of the latents of largest volume that both agree on."""
    count = max(1, round(REMOVED * len(left)))
    removed = [set(volume.nan_to_num(torch.inf).topk(count).indices.tolist()) for volume in (left, right)]
    return len(removed[0] & removed[1]) / count
