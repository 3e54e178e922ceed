"""Jacobian spectra: the one expensive thing that every density estimator shares."""

from pgmkit.spectrum.blocks import load_spectrum
from pgmkit.spectrum.compute import compute_spectrum
from pgmkit.spectrum.spectrum import RANK_RTOL, NullTreatment, Spectrum, check_volume

__all__ = [
    "RANK_RTOL",
    "NullTreatment",
    "Spectrum",
    "check_volume",
    "compute_spectrum",
    "load_spectrum",
]
