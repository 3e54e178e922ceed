"""Theorem 3: whether the guide leads into every part, as far as it can be seen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.images import ImageSource
from pgmkit.partition import FittedPartitioner
from pgmkit.seeds import random_generator
from pgmkit.theory.descent import descend, joined, pull
from pgmkit.theory.distances import IMAGES, MeasuredParts, measured, sampled_parts
from pgmkit.theory.representation import Representation, look_at

TRIES = 100
STEPS = 200
"""Of descents and paths, and of the steps in each, where nobody says otherwise."""

_PAIRED = 1_000
_VANISHES = 1e-6


@dataclass(frozen=True)
class PartitionerAudit:
    """What was seen of the condition and the promises of Theorem 3.

    Args:
        parts: masses and distances of the parts.
        representation: what φ does to distances.
        gradients: the smallest ‖∇R_i‖ outside part i on each descent, its start included.
        first_gradients: ‖∇R_i‖ at the images where the descents started.
        steps: at most so many in each descent.
        starts: of each part, how many descents into it started at images of other parts.
        reached: how many of them arrived.
        pairs: of each part, between how many pairs of its images a path was sought.
        joined: how many of them a path within the part joins.
        straight: how many of these paths are straight lines.
    """

    parts: MeasuredParts
    representation: Representation
    gradients: list[float]
    first_gradients: list[float]
    steps: int
    starts: list[int]
    reached: list[int]
    pairs: list[int]
    joined: list[int]
    straight: list[int]

    @property
    def vanishes(self) -> bool:
        """Whether a gradient was 0 but for rounding, beside the median where descents start."""
        usual = float(torch.tensor(self.first_gradients).median())
        return min(self.gradients) <= _VANISHES * usual

    @property
    def applies(self) -> bool:
        """Whether nothing that was seen excludes that Theorem 3 applies."""
        found = self.representation
        return found.num_dims == found.image_dims and found.c0 > 0

    @property
    def keeps(self) -> bool:
        """Whether all that Theorem 3 promises was seen."""
        return self.reached == self.starts and self.joined == self.pairs and not self.vanishes


def audit_partitioner(
    fitted: FittedPartitioner,
    source: ImageSource,
    *,
    images: int = IMAGES,
    tries: int = TRIES,
    steps: int = STEPS,
    seed: int = 0,
) -> PartitionerAudit:
    """Looks for what Theorem 3 of Partition-Guided GANs needs, and for what it promises.

    If `f = W φ(x)` with φ continuously differentiable and `c₀ ‖x − y‖ ≤ ‖φ(x) − φ(y)‖`, c₀ > 0, in
    as many dimensions as x, then the guide R_i (`pgmkit.partition.guide`) has no local minima but
    0, `‖∇R_i‖ ≥ b₀ > 0` outside part i, and every part is connected. What is measured cannot prove
    any of this, since it is seen at some images only; it can refute it.

    Args:
        fitted: of at least two parts, with logits that have a gradient.
        source: images of the shape that it was fitted to.
        images: at most so many are looked at, at least 2, and no more than 256 MiB hold.
        tries: descents, and pairs of images between which a path is sought, at least 1, shared out
            among the parts that have images.
        steps: of each descent, at least 1.
        seed: of the sample, and of what starts where.

    Raises:
        ParameterError: a value is outside its range, the images have another shape or all lie in
            one part, or the logits have no gradient.
        PluginError: the partitioner fails, or tells a representation whose head gives other logits.
    """
    check_count("the number of tries", tries)
    check_count("the number of steps", steps)
    check_count("the number of images", images)
    fitted.check_images(source.image.shape, source.name)
    partitioner, number, device = fitted.partitioner, fitted.num_partitions, source.device
    pull(partitioner, source.batch(torch.arange(1)), torch.zeros(1, dtype=torch.int64))
    x, labels = sampled_parts(fitted, source, images, seed)
    parts = measured(x, labels, number)
    representation = look_at(partitioner, x[:_PAIRED].to(device))
    starts, goals, reach = _starts(x, labels, tries, random_generator(seed, "descents"))
    led = descend(partitioner, starts.to(device), goals, reach, steps)
    pairs, within = _pairs(labels, tries, random_generator(seed, "pairs"))
    first, second = (x[index].to(device) for index in pairs.unbind(1))
    found, straight = joined(partitioner, first, second, within, steps)
    outside = ~led.first.isnan()
    return PartitionerAudit(
        parts=parts,
        representation=representation,
        gradients=led.smallest[outside].tolist(),
        first_gradients=led.first[outside].tolist(),
        steps=steps,
        starts=_count(goals, number),
        reached=_count(goals[led.reached], number),
        pairs=_count(within, number),
        joined=_count(within[found], number),
        straight=_count(within[straight], number),
    )


def _starts(
    x: Tensor, labels: Tensor, tries: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images to start at, a part without each, and its distance from that part's images."""
    goals = _shared_out(labels.unique(), tries, random)
    starts, reach = [], []
    for goal in goals.tolist():
        others = (labels != goal).nonzero().flatten()
        start = x[others[torch.randint(len(others), (1,), generator=random)]]
        starts.append(start)
        reach.append((x[labels == goal] - start).flatten(1).norm(dim=1).min())
    return torch.cat(starts), goals, torch.stack(reach).double()


def _pairs(labels: Tensor, tries: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns numbers of two images of one part each, (n, 2), and the part of each two, (n,)."""
    parts, counts = labels.unique(return_counts=True)
    within = _shared_out(parts[counts > 1], tries, random)
    chosen = torch.empty(len(within), 2, dtype=torch.int64)
    for row, part in enumerate(within.tolist()):
        index = (labels == part).nonzero().flatten()
        chosen[row] = index[torch.randperm(len(index), generator=random)[:2]]
    return chosen, within


def _shared_out(parts: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Returns `count` of the parts in random order, each as often as any other, give or take 1."""
    order = parts[torch.randperm(len(parts), generator=random)]
    return order.repeat(-(-count // max(len(order), 1)))[:count]


def _count(parts: Tensor, number: int) -> list[int]:
    counts: list[int] = parts.bincount(minlength=number).tolist()
    return counts
