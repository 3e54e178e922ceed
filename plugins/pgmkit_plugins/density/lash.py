"""LASH: the density that the generator gives to its own output."""

from torch import Tensor

from pgmkit.spectrum import RANK_RTOL, NullTreatment, Spectrum, check_volume


class LASH:
    """Weighs a latent by the density of its image, `log q(z) = log p(z) - Σ log σ_i(J)`.

    Args:
        prior_term: True is Eq. 1 of the LASH paper; False is Eq. 2, which drops `log p(z)`.
        rank_rtol: singular values at or below this share of the largest count as null, in [0, 1).
        null: "floor" counts null directions at that floor, "drop" leaves them out.
    """

    selection = "threshold"

    def __init__(
        self,
        prior_term: bool = True,
        rank_rtol: float = RANK_RTOL,
        null: NullTreatment = "floor",
    ) -> None:
        check_volume(rank_rtol=rank_rtol, null=null)
        self.prior_term = prior_term
        self.rank_rtol = rank_rtol
        self.null = null

    def log_weights(self, spectrum: Spectrum) -> Tensor:
        """Returns log q(z) in nats, float64 (n,)."""
        volume = spectrum.log_volume(rank_rtol=self.rank_rtol, null=self.null)
        return spectrum.log_prior - volume if self.prior_term else -volume
