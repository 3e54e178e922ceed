"""The baseline: no density at all."""

import torch
from torch import Tensor

from pgmkit.spectrum import Spectrum


class NoDensity:
    """Weighs every latent alike, so that what is removed is a random share of the prior.

    This is the "original generator" of the LASH paper's tables.
    """

    selection = "resample"

    def log_weights(self, spectrum: Spectrum) -> Tensor:
        """Returns zeros, float64 (n,)."""
        return torch.zeros(len(spectrum), dtype=torch.float64)
