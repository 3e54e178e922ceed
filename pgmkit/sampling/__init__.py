"""Cluster samplers: what finds clusters of latents and draws new ones from each."""

from pgmkit.sampling.by_partition import PartitionSampler
from pgmkit.sampling.regrouped import MergedSampler, SplitSampler

__all__ = ["MergedSampler", "PartitionSampler", "SplitSampler"]
