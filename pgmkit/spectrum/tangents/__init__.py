"""Tangents of all latent directions, pushed through a network one torch function at a time.

`program` runs what `recording` wrote down of a module and `simplify` made shorter; the `rules` say
how each function pushes tangents, `generic` takes those without a rule, and `convolutions` is where
the time goes.
"""

from pgmkit.spectrum.tangents.checkpoints import checkpoints_run_through
from pgmkit.spectrum.tangents.generic import FORWARD_MODE
from pgmkit.spectrum.tangents.program import TangentProgram, check_independent, without_undefined
from pgmkit.spectrum.tangents.recording import UnsupportedModuleError

__all__ = [
    "FORWARD_MODE",
    "TangentProgram",
    "UnsupportedModuleError",
    "check_independent",
    "checkpoints_run_through",
    "without_undefined",
]
