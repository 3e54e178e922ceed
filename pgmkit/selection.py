"""From log-weights to the latents that are kept."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgmkit.components import called
from pgmkit.contracts import DensityEstimator, RankAware, log_weights_of, selection_of
from pgmkit.errors import ParameterError, PgmkitWarning, PluginError
from pgmkit.seeds import random_generator
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.spectrum import RANK_RTOL, NullTreatment
from pgmkit.spectrum.summary import term_spread

LOW_SAMPLE_SIZE = 0.01
"""Share of the latents under which an effective sample size is called a collapse."""


@dataclass(frozen=True)
class Selection:
    """Which latents are kept, and what that says.

    Args:
        kept: indices of the kept latents in ascending order, int64 (m,).
        log_weights: of all latents, float64 (n,).
        cut: the smallest log-weight that is kept, or None where latents were drawn by weight.
        statistics: mass kept, effective sample size and numeric rank.
    """

    kept: Tensor
    log_weights: Tensor
    cut: float | None
    statistics: Mapping[str, Any]


def select(
    estimator: DensityEstimator, spectrum: Spectrum, *, remove: float, seed: int
) -> Selection:
    """Removes a fraction of the prior mass (Algorithm 1 of the LASH paper).

    Latents drawn from the prior carry the same mass each, so `remove` is the share of latents that
    go. A latent whose Jacobian is not finite, or whose weight is -inf, goes first.

    Args:
        estimator: gives the log-weights.
        spectrum: of n latents.
        remove: fraction of prior mass, in [0, 1).
        seed: of the draw, where the estimator resamples.

    Raises:
        ParameterError: `remove` is outside [0, 1), or no latent is left.
        PluginError: the log-weights have another shape, or are all -inf.
    """
    check_remove(remove)
    weights, scores = _scored(estimator, spectrum, seed)
    count = min(num_kept(len(spectrum), remove), int((weights > -math.inf).sum()))
    if count == 0:
        raise ParameterError(
            f"remove={remove} leaves none of {len(spectrum)} latents; remove less or draw more"
        )
    kept = scores.argsort(descending=True, stable=True)[:count].sort().values
    selection = selection_of(estimator)
    finite = int(spectrum.finite().sum())
    if finite < num_kept(len(spectrum), remove):
        warnings.warn(
            f"{len(spectrum) - finite} of {len(spectrum)} latents have no finite Jacobian and are "
            f"removed, which is more than remove={remove} asks for; check the generator's weights",
            PgmkitWarning,
            stacklevel=3,
        )
    if ties := _num_tied(scores, kept):
        warnings.warn(
            f"{_name(estimator)} gives {ties} of the {len(spectrum) - count} removed latents the "
            "same log-weight as the last one that is kept, so which of them go is arbitrary",
            PgmkitWarning,
            stacklevel=3,
        )
    sample_size = _effective_sample_size(weights) if selection == "resample" else float(count)
    if selection == "resample" and sample_size < LOW_SAMPLE_SIZE * len(spectrum):
        warnings.warn(
            f"{_name(estimator)} puts almost all weight on few latents: the effective sample size "
            f"is {sample_size:.1f} of {len(spectrum)}; weaken it by its parameters",
            PgmkitWarning,
            stacklevel=3,
        )
    cut = float(weights[kept].min()) if selection == "threshold" else None
    rank_rtol = RANK_RTOL
    null: NullTreatment = "floor"
    if isinstance(estimator, RankAware):
        rank_rtol, null = estimator.rank_rtol, estimator.null
    rank = spectrum.numeric_rank(rank_rtol)[spectrum.finite()]
    condition = float(spectrum.condition_number()[spectrum.finite()].median())
    statistics = {
        "num_latents": len(spectrum),
        "num_kept": count,
        "mass_kept": count / len(spectrum),
        "effective_sample_size": sample_size,
        "selection": selection,
        "not_finite": int((~spectrum.finite()).sum()),
        "float64_share": spectrum.float64_share(),
        "numeric_rank": {
            "smallest": int(rank.min()),
            "median": int(rank.median()),
            "largest": int(rank.max()),
            "of": spectrum.singular_values.shape[1],
            "rtol": rank_rtol,
        },
        "median_condition_number": condition if math.isfinite(condition) else None,
        **term_spread(spectrum, rank_rtol=rank_rtol, null=null),
    }
    return Selection(kept, weights, cut, statistics)


def keep_scores(estimator: DensityEstimator, spectrum: Spectrum, *, seed: int) -> Tensor:
    """Returns scores (n,), float64: `select` keeps the latents with the largest, for any `remove`.

    They are the log-weights, with noise where the estimator resamples; -inf is never kept.

    Raises:
        PluginError: see `select`.
    """
    return _scored(estimator, spectrum, seed)[1]


def num_kept(num_latents: int, remove: float) -> int:
    """Returns how many latents are left when a fraction is removed, rounded half up."""
    return math.floor((1 - remove) * num_latents + 0.5)


def check_remove(remove: float) -> None:
    """Raises ParameterError unless `remove` is in [0, 1)."""
    if not isinstance(remove, int | float) or not 0 <= remove < 1:
        raise ParameterError(
            f"remove is a fraction of prior mass in [0, 1), such as 0.2, not {remove!r}"
        )


def _num_tied(scores: Tensor, kept: Tensor) -> int:
    """Returns how many latents are removed with the score of the last one that is kept."""
    last = scores[kept].min()
    return int((scores == last).sum() - (scores[kept] == last).sum())


def _name(estimator: DensityEstimator) -> str:
    return f"the {called('density-estimators', estimator)}"


def _scored(estimator: DensityEstimator, spectrum: Spectrum, seed: int) -> tuple[Tensor, Tensor]:
    """Returns log-weights and scores; the latents with the largest scores are kept."""
    selection = selection_of(estimator)
    weights = _usable(estimator, spectrum)
    if selection == "threshold":
        return weights, weights
    # The largest of log-weight plus Gumbel noise are a draw without replacement.
    uniform = torch.rand(
        len(weights), generator=random_generator(seed, "selection"), dtype=torch.float64
    )
    return weights, weights - (-uniform.clamp(min=1e-300).log()).log()


def _usable(estimator: DensityEstimator, spectrum: Spectrum) -> Tensor:
    """Returns log-weights (n,), -inf where the spectrum or the weight is not finite."""
    weights = log_weights_of(estimator, spectrum)
    weights = weights.masked_fill(~spectrum.finite() | weights.isnan(), -math.inf)
    if not (weights > -math.inf).any():
        raise PluginError(
            f"{_name(estimator)} removes every latent: all its log-weights are -inf or not a number"
        )
    return weights


def _effective_sample_size(log_weights: Tensor) -> float:
    """Returns (Σw)² / Σw² without leaving log space."""
    infinite = int((log_weights == math.inf).sum())
    if infinite:
        return float(infinite)
    ones = 2 * log_weights.logsumexp(dim=0) - (2 * log_weights).logsumexp(dim=0)
    return float(ones.exp())
