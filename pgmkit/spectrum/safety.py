"""The safety net of fast methods: each is checked against the exact one before it is used."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import GeneratorError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra
from pgmkit.spectrum.spectrum import Spectrum

SAMPLE = 128
"""Latents that both methods are applied to."""

REMOVED = 0.2
"""Share of the latents, those of least density, that two methods are to agree on."""


@dataclass(frozen=True)
class Check:
    """How a fast method compares with the exact one on a sample of latents.

    Args:
        method: the fast method.
        rank_correlation: Spearman's, of each quantity that density estimators use: the log-volume
            (of a top sketch, that of the largest singular values), the log-density, which is the
            log prior less the log-volume (not of a top sketch), and the Frobenius norm.
        removed_overlap: if as many as `REMOVED` were removed, those of least log-density, or with a
            top sketch those of largest volume: the share of them that both methods would remove.
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
    generator: Generator, z: Tensor, asked: JacobianSettings
) -> tuple[JacobianSpectra, Check | None]:
    """Returns what computes the spectrum of z (n, M): as it is asked for, or exactly instead.

    Returns:
        How spectra are computed, and how a fast method fared; None for an exact one.
    """
    if not asked.is_fast:
        return JacobianSpectra(generator, asked), None
    exact = JacobianSpectra(generator, asked.exact)
    try:
        fast = JacobianSpectra(generator, asked)
    except GeneratorError as error:
        check = Check(_name(asked), {}, 0.0, 0, asked.threshold, 0.0, False, str(error))
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
    log_prior = fast.generator.log_prior(z)
    for jacobians in (fast, exact):
        if jacobians.generator.device.type != "cpu":
            jacobians.compute(z)  # which loads what it runs there
        started = time.perf_counter()
        values = jacobians.compute(z)["singular_values"]
        seconds.append(time.perf_counter() - started)
        provenance = {"computed": computed(jacobians.settings)}
        spectra.append(Spectrum(z, values, log_prior, provenance=provenance))
    sketched, reference = spectra
    top = sketched.known_top_k
    volumes = [spectrum.log_volume(top_k=top) for spectrum in spectra]
    correlations = {
        "log_volume": _rank_correlation(*volumes),
        "frobenius": _rank_correlation(sketched.frobenius(), reference.frobenius()),
    }
    weights = [-volume for volume in volumes]
    if top is None:
        weights = [log_prior - volume for volume in volumes]
        correlations["log_density"] = _rank_correlation(*weights)
    threshold = fast.settings.threshold
    worst = min(correlations, key=lambda quantity: correlations[quantity])
    reason = ""
    if not correlations[worst] >= threshold:
        quantity = worst.replace("_", "-")
        reason = (
            f"its {quantity} has a rank correlation of {correlations[worst]:.4f} with the exact "
            f"one, less than {threshold}, on {len(z)} latents"
        )
    elif seconds[0] >= seconds[1]:
        reason = (
            f"it is not faster than the exact method here ({seconds[0] / seconds[1]:.2f} times "
            "the time)"
        )
    return Check(
        _name(fast.settings),
        correlations,
        _overlap(*weights),
        len(z),
        threshold,
        seconds[1] / seconds[0],
        not reason,
        reason,
    )


def settings_used(asked: JacobianSettings, check: Mapping[str, Any] | None) -> JacobianSettings:
    """Returns the settings that a recorded check led to."""
    return asked.exact if check is not None and not check["used"] else asked


def computed(settings: JacobianSettings) -> dict[str, Any]:
    """Returns what settings compute, as it is recorded with a spectrum."""
    return {
        "dtype": settings.dtype,
        "probes": settings.probes,
        "sketch": settings.sketch if settings.probes is not None else None,
    }


def _name(settings: JacobianSettings) -> str:
    if settings.probes is None:
        return f"dtype {settings.dtype!r}"
    return f"the {settings.sketch} sketch with {settings.probes} probes"


def _rank_correlation(left: Tensor, right: Tensor) -> float:
    """Returns Spearman's rank correlation over the latents where both are finite."""
    finite = left.isfinite() & right.isfinite()
    if finite.sum() < 2 or (left[finite] == left[finite][0]).all():
        return 1.0 if torch.allclose(left[finite], right[finite], rtol=1e-3) else 0.0
    if (right[finite] == right[finite][0]).all():
        return 0.0
    from scipy.stats import spearmanr  # which takes half a second

    return float(spearmanr(left[finite].numpy(), right[finite].numpy()).statistic)


def _overlap(left: Tensor, right: Tensor) -> float:
    """Returns the share of the latents of least weight that both agree on."""
    count = max(1, round(REMOVED * len(left)))
    removed = [
        set(weight.nan_to_num(-torch.inf).neg().topk(count).indices.tolist())
        for weight in (left, right)
    ]
    return len(removed[0] & removed[1]) / count
