"""What `pgmkit sample` draws, and from which clusters or partitions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgmkit import progress
from pgmkit.conditional import ConditionalGenerator
from pgmkit.conditional.drawing import Drawn
from pgmkit.errors import UnknownNameError
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.metrics import cluster_scores
from pgmkit.generator import Generator
from pgmkit.shattering import ShatteredGenerator

_PER_PART = 64
"""Images of each cluster or partition that a classifier looks at."""


@dataclass(frozen=True)
class Judged:
    """What a classifier finds in each cluster or partition.

    Args:
        majority: the most frequent class; "" where there is nothing.
        purity: its share.
    """

    majority: Sequence[str]
    purity: Sequence[float]

    def of_class(self, name: str) -> list[int]:
        """Returns the clusters or partitions that are mostly of a class.

        Raises:
            UnknownNameError: none is.
        """
        found = [part for part, majority in enumerate(self.majority) if majority == name]
        if not found:
            raise UnknownNameError(
                "class that a cluster or partition is mostly of",
                name,
                filter(None, self.majority),
                "more clusters tell more classes apart",
            )
        shares = ", ".join(f"{part} ({self.purity[part]:.0%})" for part in found)
        progress.tell(f"class {name}: {shares}")
        return found


def judged_by(model: ShatteredGenerator | ConditionalGenerator, classifier: str) -> Judged:
    """Has a classifier look at images of each cluster or partition; see `load_classifier`."""
    judge = load_classifier(classifier)
    frozen = model.generator if isinstance(model, ShatteredGenerator) else model
    judge.check_images(frozen.image.shape)
    parts, classes = [], []
    number = model.num_clusters if isinstance(model, ShatteredGenerator) else model.num_partitions
    for part in progress.track(range(number), "looking at each part", number, "part"):
        if isinstance(model, ShatteredGenerator):
            latents, _ = model.draw(_PER_PART, part)
            images = model.images(latents) if len(latents) else latents
        else:
            images = model.sample(_PER_PART, part)
        if len(images):
            parts.append(torch.full((len(images),), part))
            classes.append(judge.labels(images, frozen.image.range))
    scores = cluster_scores(torch.cat(parts), torch.cat(classes), number, judge.classes)
    return Judged(scores.majority, scores.purity)


@dataclass(frozen=True)
class Made:
    """Images (n, C, H, W) with their latents (n, M); of a conditional generator what was drawn."""

    images: Tensor
    latents: Tensor
    drawn: Drawn | None = None


def make(
    model: Generator | ShatteredGenerator | ConditionalGenerator,
    count: int,
    seed: int,
    *,
    parts: Any = None,
    how: Mapping[str, Any] | None = None,
) -> Made:
    """Makes images.

    Args:
        model: of any kind.
        count: how many, at least 1.
        seed: of everything random.
        parts: a cluster or partition, or several; None is all.
        how: further arguments of `ConditionalGenerator.draw`.

    Raises:
        PgmkitError: see `sample_latents` and `draw` of the models.
    """
    if isinstance(model, ConditionalGenerator):
        drawn = model.draw(count, parts, seed=seed, **(how or {}))
        return Made(drawn.images, drawn.latents, drawn)
    if isinstance(model, ShatteredGenerator):
        latents = model.sample_latents(count, parts, seed)
    else:
        latents = model.sample_latents(count, seed)
    return Made(model.images(latents), latents)
