"""Tangents of all latent directions, pushed through a network one torch function at a time.

`program` runs what `recording` wrote down of a module and `simplify` made shorter; the `rules` say
how each function pushes tangents, `generic` takes those without a rule, and `convolutions` is where
the time goes.
"""

from pgmkit.tangents.checkpoints import checkpoints_run_through
from pgmkit.tangents.generic import FORWARD_MODE
from pgmkit.tangents.program import TangentProgram, check_independent, without_undefined
from pgmkit.tangents.tape import UnsupportedModuleError

__all__ = [
    "FORWARD_MODE",
    "TangentProgram",
    "UnsupportedModuleError",
    "check_independent",
    "checkpoints_run_through",
    "without_undefined",
]
