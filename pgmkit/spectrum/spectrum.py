"""The Spectrum: what shattering needs to know of a generator, for each drawn latent."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pgmkit.errors import ParameterError, PgmkitWarning

NullTreatment = Literal["floor", "drop"]

RANK_RTOL = 1e-6
"""Singular values below this share of the largest one count as zero.

A Jacobian in float32 carries noise of about 1e-7 times its largest singular value; what lies within
ten times that cannot be told from zero.
"""


@dataclass(frozen=True)
class Spectrum:
    """Latents with the singular values of the Jacobian at each of them.

    Args:
        latents: z (n, M), float32.
        singular_values: σ (n, r), r = min(M, C·H·W) or the number of probes of a sketch,
            descending, float64; a row of NaN marks a latent whose Jacobian is not finite.
        log_prior: log p(z) (n,), nats, float64.
        provenance: how it was computed.
        float64: which latents were computed in float64, bool (n,); None if that is not known.
        reused: how many of the latents this process did not compute but read; 0 for a part.
    """

    latents: Tensor
    singular_values: Tensor
    log_prior: Tensor
    provenance: Mapping[str, Any] = field(default_factory=dict)
    float64: Tensor | None = None
    reused: int = 0

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def probes(self) -> int | None:
        """The number of random directions of a sketch; None if the spectrum is exact."""
        probes: int | None = self.provenance.get("computed", {}).get("probes")
        return probes

    @property
    def sketch(self) -> str | None:
        """Which sketch, "volume" or "top"; None if the spectrum is exact."""
        sketch: str | None = self.provenance.get("computed", {}).get("sketch")
        return sketch

    @property
    def known_top_k(self) -> int | None:
        """How many of the largest singular values are known; None for all that there are."""
        return self.probes if self.sketch == "top" else None

    def finite(self) -> Tensor:
        """Returns which latents have a finite Jacobian, bool (n,)."""
        return self.singular_values.isfinite().all(dim=1)

    def float64_share(self) -> float | None:
        """Returns the share of latents that were computed in float64; None if not known."""
        return None if self.float64 is None else float(self.float64.double().mean())

    def only_finite(self) -> "Spectrum":
        """Returns the part of the spectrum whose Jacobians are finite."""
        return self._part(self.finite())

    def first(self, count: int) -> "Spectrum":
        """Returns the spectrum of the first latents; with a seed, that of as many latents.

        Raises:
            ParameterError: there are fewer, or none are asked for.
        """
        if not 1 <= count <= len(self):
            raise ParameterError(
                f"the spectrum has {len(self)} latents, so the first {count} cannot be taken"
            )
        return self._part(slice(count))

    def _part(self, rows: Tensor | slice) -> "Spectrum":
        return Spectrum(
            self.latents[rows],
            self.singular_values[rows],
            self.log_prior[rows],
            self.provenance,
            None if self.float64 is None else self.float64[rows],
        )

    def numeric_rank(self, rtol: float = RANK_RTOL) -> Tensor:
        """Returns how many singular values exceed `rtol` times the largest, int64 (n,).

        Args:
            rtol: in [0, 1).
        """
        _check_rtol(rtol)
        return (self.singular_values > rtol * self.singular_values[:, :1]).sum(dim=1)

    def log_volume(
        self,
        *,
        rank_rtol: float = RANK_RTOL,
        null: NullTreatment = "floor",
        top_k: int | None = None,
    ) -> Tensor:
        """Returns `Σ log σ_i`, the log of √det(JᵀJ), in nats.

        Where J is rank-deficient the sum depends on what is done with null directions, and so does
        the set of latents that a density removes. Both choices are parameters for that reason.

        Args:
            rank_rtol: singular values at or below `rank_rtol · σ_1` count as null, in [0, 1).
            null: "floor" counts each null direction as `rank_rtol · σ_1`; "drop" leaves it out,
                which gives the volume of the image of the remaining directions.
            top_k: sum over the k largest singular values only; None for all.

        Returns:
            (n,), float64; NaN where the Jacobian is not finite, -inf where it is zero. Of a volume
            sketch with m of M directions, M/m times what it holds, so that it is to scale with
            the log prior.

        Raises:
            ParameterError: a value is outside its range, or the spectrum is a sketch that cannot
                tell.
        """
        check_volume(rank_rtol=rank_rtol, null=null, top_k=top_k)
        self._check_sketch(top_k)
        self._check_noise(rank_rtol)
        values = self.singular_values[:, :top_k]
        floor = rank_rtol * self.singular_values[:, :1]
        scale = self.latents.shape[1] / (self.probes or 1) if self.sketch == "volume" else 1.0
        if null == "floor":
            return scale * torch.maximum(values, floor).log().sum(dim=1)
        # σ_1 always counts: then a Jacobian of zero gives -inf and one of NaN gives NaN.
        kept = values > floor
        kept[:, 0] = True
        return scale * torch.where(kept, values.log(), 0.0).sum(dim=1)

    def _check_noise(self, rank_rtol: float) -> None:
        """Warns if noise of float32 counts as singular values."""
        if rank_rtol >= RANK_RTOL or self.float64 is None:
            return
        rounded = self.singular_values[~self.float64]
        if (rounded <= RANK_RTOL * rounded[:, :1]).any():
            warnings.warn(
                f"with rank_rtol {rank_rtol:g} singular values count that float32 does not tell "
                f"from zero, those up to {RANK_RTOL:g} of the largest; compute the spectrum with "
                "dtype 'float64'",
                PgmkitWarning,
                stacklevel=3,
            )

    def _check_sketch(self, top_k: int | None) -> None:
        if self.sketch == "volume" and top_k is not None:
            raise ParameterError(
                f"the spectrum is a sketch of the volume, which does not tell the {top_k} largest "
                f"singular values; compute it exactly, or with sketch='top' and probes={top_k}"
            )
        if self.sketch == "top" and (top_k is None or top_k > (self.probes or 0)):
            wanted = "all" if top_k is None else f"the {top_k} largest"
            raise ParameterError(
                f"the spectrum is a sketch of the {self.probes} largest singular values, and "
                f"{wanted} are asked for; set top_k to at most {self.probes}, or compute it "
                "exactly or with sketch='volume'"
            )

    def frobenius(self) -> Tensor:
        """Returns `‖J‖_F = √Σ σ_i²`, float64 (n,).

        From a volume sketch with m of M directions V it is `√(M/m) ‖J V‖_F`, whose square is
        unbiased for orthonormal V; from a top sketch it lacks the smallest singular values.
        """
        norm: Tensor = self.singular_values.square().sum(dim=1).sqrt()
        if self.sketch == "volume" and self.probes is not None:
            norm = norm * (self.latents.shape[1] / self.probes) ** 0.5
        return norm

    def condition_number(self) -> Tensor:
        """Returns the ratio of largest to smallest singular value (n,); inf at rank loss."""
        largest, smallest = self.singular_values[:, 0], self.singular_values[:, -1]
        return torch.where(smallest == 0, torch.inf, largest / smallest)

    def __repr__(self) -> str:
        if not len(self):
            return "Spectrum(no latents)"
        rank = self.numeric_rank()
        return (
            f"Spectrum({len(self):,} latents of {self.latents.shape[1]} dimensions, numeric rank "
            f"{int(rank.min())} to {int(rank.max())} of {self.singular_values.shape[1]})"
        )


def check_volume(
    *, rank_rtol: float = RANK_RTOL, null: NullTreatment = "floor", top_k: int | None = None
) -> None:
    """Checks the parameters of `Spectrum.log_volume`, for those who hand them on.

    Raises:
        ParameterError: one of them is outside its range.
    """
    _check_rtol(rank_rtol)
    if null not in ("floor", "drop"):
        raise ParameterError(f"null must be 'floor' or 'drop', not {null!r}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ParameterError(f"top_k must be a whole number from 1 or left out, not {top_k!r}")


def _check_rtol(rtol: float) -> None:
    if not isinstance(rtol, int | float) or not 0 <= rtol < 1:
        raise ParameterError(f"the rank tolerance (rank_rtol) must be in [0, 1), not {rtol!r}")
