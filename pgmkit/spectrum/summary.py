"""A spectrum in a few numbers."""

import math
from typing import Any

from torch import Tensor

from pgmkit.spectrum.spectrum import RANK_RTOL, NullTreatment, Spectrum

QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}


def summarize(spectrum: Spectrum, rank_rtol: float = RANK_RTOL) -> dict[str, Any]:
    """Returns the statistics of a spectrum as plain values; None stands for an infinite number.

    Args:
        spectrum: of n latents.
        rank_rtol: singular values at or below this share of the largest count as null, in [0, 1).

    Returns:
        The number of latents, their dimension, how many have no finite Jacobian, the share that was
        computed in float64, the standard deviations of log prior and log-volume and their ratio,
        and quantiles over the latents with a finite Jacobian. Numeric rank and log-volume are those
        at `rank_rtol`.

    Raises:
        ParameterError: `rank_rtol` is outside [0, 1).
    """
    usable = spectrum.only_finite()
    quantities = {
        "numeric_rank": usable.numeric_rank(rank_rtol),
        "condition_number": usable.condition_number(),
        "log_volume": usable.log_volume(rank_rtol=rank_rtol, top_k=usable.known_top_k),
        "frobenius_norm": usable.frobenius(),
        "log_prior": usable.log_prior,
    }
    spread = term_spread(spectrum, rank_rtol=rank_rtol)
    prior, volume = spread["std_log_prior"], spread["std_log_volume"]
    return {
        "num_latents": len(spectrum),
        "latent_dim": spectrum.latents.shape[1],
        "num_singular_values": spectrum.singular_values.shape[1],
        "not_finite": len(spectrum) - len(usable),
        "float64_share": spectrum.float64_share(),
        "rank_rtol": rank_rtol,
        **spread,
        "std_ratio": prior / volume if volume else None,
        "quantiles": {name: _quantiles(values) for name, values in quantities.items()}
        if len(usable)
        else None,
    }


def term_spread(
    spectrum: Spectrum, *, rank_rtol: float = RANK_RTOL, null: NullTreatment = "floor"
) -> dict[str, float]:
    """Returns the standard deviations of log prior and log-volume, where both are finite.

    A log-density is their difference, so the one that spreads more decides the order of latents.
    Parameters are those of `Spectrum.log_volume`.
    """
    volume = spectrum.log_volume(rank_rtol=rank_rtol, null=null, top_k=spectrum.known_top_k)
    finite = volume.isfinite() & spectrum.log_prior.isfinite()
    volume, prior = volume[finite], spectrum.log_prior[finite]
    return {
        "std_log_prior": float(prior.std(correction=0)) if len(prior) else 0.0,
        "std_log_volume": float(volume.std(correction=0)) if len(volume) else 0.0,
    }


def _quantiles(values: Tensor) -> dict[str, float | None]:
    """Returns quantiles that are values themselves, so that infinite ones spoil no others."""
    ordered = values.sort().values
    return {name: _plain(ordered[round(q * (len(ordered) - 1))]) for name, q in QUANTILES.items()}


def _plain(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
