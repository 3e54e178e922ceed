"""How stable the parts of any partitioner are, by fitting it again."""

import math
import warnings

import torch

from pgmkit import contracts
from pgmkit.components import copied
from pgmkit.errors import PgmkitWarning
from pgmkit.images.source import ImageSource
from pgmkit.partition.parts import gathered_logits
from pgmkit.seeds import derive_seed, random_generator

_HALF = 2_000
_REPEATS = 2
_LEAST_PER_PART = 4


def refitted_stability(
    partitioner: contracts.Partitioner, source: ImageSource, *, seed: int
) -> float:
    """Returns how far copies that are fitted to disjoint halves agree, the mean of two repeats.

    The measure is the adjusted Rand index of their parts of the second half, of at most 2,000
    images: 0 for chance, 1 if both find the same. Unlike the criterion "stability" of
    `pgmkit.choosing` it is not corrected for what images without parts would show, since there are
    no such images to fit to.

    Returns:
        NaN for a single part, or fewer than four images for each.
    """
    k = contracts.num_partitions_of(partitioner)
    if k < 2 or len(source) < _LEAST_PER_PART * k:
        return math.nan
    from sklearn.metrics import adjusted_rand_score

    scores = []
    for repeat in range(_REPEATS):
        order = torch.randperm(len(source), generator=random_generator(seed, "halves", repeat))
        half = min(_HALF, len(source) // 2)
        first, second = (source.subset(part) for part in (order[:half], order[half : 2 * half]))
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)  # only the comparison counts here
            for number, part in enumerate((first, second)):
                trial = copied(partitioner)
                contracts.fit("partitioners", trial, part, derive_seed(seed, repeat, number))
                found.append(gathered_logits(trial, second).argmax(dim=1).numpy())
        scores.append(float(adjusted_rand_score(*found)))
    return sum(scores) / len(scores)
