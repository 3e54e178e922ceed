"""Polarity sampling."""

import math

from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.spectrum import RANK_RTOL, Spectrum, check_volume


class Polarity:
    """Resamples latents with weights `(Π σ_i)^ρ` over the largest singular values.

    Source: Humayun et al. (2022), Eq. 4; the LASH paper takes ρ = -0.1 and does not state k, the
    authors' code takes k from 10 to 30. With too many singular values or too strong a ρ a few
    latents carry all the weight, which the effective sample size shows.

    Args:
        rho: ρ; below 0 prefers modes, above 0 anti-modes, 0 is the prior.
        top_k: how many of the largest singular values count, at least 1; None for all.
        rank_rtol: singular values at or below this share of the largest count as that floor.
    """

    selection = "resample"
    null = "floor"

    def __init__(
        self, rho: float = -0.1, top_k: int | None = 10, rank_rtol: float = RANK_RTOL
    ) -> None:
        if not math.isfinite(rho):
            raise ParameterError(f"rho must be a finite number, not {rho}")
        check_volume(rank_rtol=rank_rtol, top_k=top_k)
        self.rho = rho
        self.top_k = top_k
        self.rank_rtol = rank_rtol

    def log_weights(self, spectrum: Spectrum) -> Tensor:
        """Returns ρ · Σ log σ_i in nats, float64 (n,)."""
        return self.rho * spectrum.log_volume(rank_rtol=self.rank_rtol, top_k=self.top_k)
