"""Shattering: from a generator to one that can be sampled cluster by cluster."""

from pgmkit.loading.cards import Origin
from pgmkit.shattering.algorithm import check_shatter, shatter
from pgmkit.shattering.result import SAMPLER_CONFIG, ShatteredGenerator

__all__ = ["SAMPLER_CONFIG", "Origin", "ShatteredGenerator", "check_shatter", "shatter"]
