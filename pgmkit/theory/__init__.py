"""The theorems of "Partition-Guided GANs" (2021) as tools: two bounds and an audit."""

from pgmkit.theory.audit import PartitionerAudit, audit_partitioner
from pgmkit.theory.bound import (
    LipschitzEstimate,
    TotalVariationBound,
    lipschitz_estimate,
    tv_lower_bound,
)
from pgmkit.theory.distances import MeasuredParts, measure_parts
from pgmkit.theory.divergence import JsdDecomposition, jsd_decomposition

__all__ = [
    "JsdDecomposition",
    "LipschitzEstimate",
    "MeasuredParts",
    "PartitionerAudit",
    "TotalVariationBound",
    "audit_partitioner",
    "jsd_decomposition",
    "lipschitz_estimate",
    "measure_parts",
    "tv_lower_bound",
]
