"""Conditional generators: the result of partition-guided training."""

from pgmkit.conditional.drawing import Drawn
from pgmkit.conditional.result import ConditionalGenerator

__all__ = ["ConditionalGenerator", "Drawn"]
