"""Which clusters lie side by side, and how far a latent may move before it leaves its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pgmkit.evaluate.metrics import kept_latents
from pgmkit.images import moved_latents
from pgmkit.progress import phase
from pgmkit.seeds import random_generator
from pgmkit.shattering import ShatteredGenerator

STEP = 0.2
"""How far latents move, of 1, where they would be drawn anew; see `pgmkit.images.moved_latents`."""

_MOST = 2_000


@dataclass(frozen=True)
class Neighbours:
    """What becomes of kept latents that move a little.

    Args:
        step: how far they move, in (0, 1].
        num_latents: how many were looked at.
        stay: share of them that stay in their cluster, in [0, 1]. Latents whose cluster is a matter
            of chance do so in 1/k of cases.
        stays: the same for each cluster; None where none of its latents was looked at.
        nearest: for each cluster the one that most of those go to that leave it; None where all
            stay.
    """

    step: float
    num_latents: int
    stay: float
    stays: Sequence[float | None]
    nearest: Sequence[int | None]


def neighbours(shattered: ShatteredGenerator, *, step: float = STEP, seed: int = 0) -> Neighbours:
    """Moves at most 2,000 kept latents by a small step, and looks in which clusters they end.

    It needs no labels, runs G once for each latent, and means the same for every cluster sampler.
    That clusters are stable so does not say that another seed would find them; for that see
    `pgmkit.evaluate.diagnostics.reproducibility`.

    Raises:
        ParameterError: the shattered generator was loaded and no longer has its latents.
    """
    latents, k = kept_latents(shattered), shattered.num_clusters
    order = torch.randperm(len(latents), generator=random_generator(seed, "neighbours"))[:_MOST]
    labels = torch.as_tensor(shattered.sampler.labels_)[order]
    with phase("latents that move a little"):
        random = random_generator(seed, "neighbours", "step")
        there = moved_latents(latents[order], shattered.generator.latent, step, random)
        found = shattered.predict(there.float())
    moves = torch.zeros(k, k, dtype=torch.int64)
    moves.index_put_((labels, found), torch.tensor(1), accumulate=True)
    counts, stayed = moves.sum(dim=1).tolist(), moves.diag().tolist()
    left = moves.fill_diagonal_(0)
    return Neighbours(
        step=step,
        num_latents=len(order),
        stay=sum(stayed) / len(order),
        stays=[s / n if n else None for s, n in zip(stayed, counts, strict=True)],
        nearest=[int(row.argmax()) if row.any() else None for row in left],
    )
