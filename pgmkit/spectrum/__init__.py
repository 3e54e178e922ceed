"""Jacobian spectra: the one expensive thing that every density estimator shares."""

from pgmkit.spectrum.blocks import load_spectrum
from pgmkit.spectrum.compute import compute_spectrum
from pgmkit.spectrum.spectrum import Spectrum

__all__ = ["Spectrum", "compute_spectrum", "load_spectrum"]
