"""What follows from a partitioner: parts, margins, the guide, folders."""

from pgmkit.partition.fitted import FittedPartitioner, fit_partitioner, load_partitioner
from pgmkit.partition.parts import assign, gathered_logits, guide, margins_of, one_part
from pgmkit.partition.stability import refitted_stability

__all__ = [
    "FittedPartitioner",
    "assign",
    "fit_partitioner",
    "gathered_logits",
    "guide",
    "load_partitioner",
    "margins_of",
    "one_part",
    "refitted_stability",
]
