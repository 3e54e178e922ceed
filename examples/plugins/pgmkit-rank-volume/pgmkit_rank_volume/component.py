"""Volume change that can be compared between latents of different rank."""

from pgmkit.errors import ParameterError


class RankVolume:
    """Weighs a latent by `log p(z) - (R / r) Σ log σ_i`, over the r directions that are not null.

    Where G loses rank, some singular values are noise. LASH counts them at a floor, so the number
    of null directions decides; left out, sums of unlike length are compared. Here each is brought
    to one length, R, the median of all ranks. Where all ranks are the same it is LASH.

    Args:
        rank_rtol: singular values at or below this share of the largest are null, in [0, 1).
    """

    selection = "threshold"

    def __init__(self, rank_rtol: float = 1e-6):
        if not 0 <= rank_rtol < 1:
            raise ParameterError(f"rank_rtol must be in [0, 1), not {rank_rtol}")
        self.rank_rtol = rank_rtol

    def log_weights(self, spectrum):
        """Returns log-weights in nats, float64 (n,)."""
        rank = spectrum.numeric_rank(self.rank_rtol).clamp(min=1)
        volume = spectrum.log_volume(rank_rtol=self.rank_rtol, null="drop")
        return spectrum.log_prior - volume * rank.median() / rank
