"""Cluster samplers: what finds clusters of latents and draws new ones from each."""

from pgmkit.sampling.by_partition import PartitionSampler

__all__ = ["PartitionSampler"]
