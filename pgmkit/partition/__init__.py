"""What follows from a partitioner: parts, margins, the guide, folders."""

from pgmkit.partition.fitted import FittedPartitioner, fit_partitioner, load_partitioner
from pgmkit.partition.parts import assign, guide, margins_of

__all__ = [
    "FittedPartitioner",
    "assign",
    "fit_partitioner",
    "guide",
    "load_partitioner",
    "margins_of",
]
