"""JBT: Jacobian-based truncation."""

from torch import Tensor

from pgmkit.spectrum import Spectrum


class JBT:
    """Weighs a latent by `-log ‖J‖_F` (Tanielian et al. 2020), exactly and not by probes.

    The authors estimate the norm with finite differences; it is free once the spectrum is there.
    """

    selection = "threshold"

    def log_weights(self, spectrum: Spectrum) -> Tensor:
        """Returns -log ‖J‖_F, float64 (n,)."""
        return -spectrum.frobenius().log()
