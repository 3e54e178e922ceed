"""How well parts of images match their labels, which serve nothing else."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pgmkit.images.source import ImageSource


@dataclass(frozen=True)
class PartitionScores:
    """Agreement of parts with labels.

    Args:
        normalized_mutual_information: arithmetic mean, in [0, 1].
        adjusted_mutual_information: corrected for chance, 0 for chance and 1 for identity.
        adjusted_rand_index: likewise, over pairs of images.
        matched_accuracy: share of images that are right when parts are matched with classes one to
            one in the best way (Kuhn 1955), in [0, 1]; with more parts than classes, some parts
            count as wrong.
        num_images: how many were scored.
    """

    normalized_mutual_information: float
    adjusted_mutual_information: float
    adjusted_rand_index: float
    matched_accuracy: float
    num_images: int


def partition_scores(parts: Tensor, labels: Tensor) -> PartitionScores:
    """Compares part numbers (n,) with class numbers (n,)."""
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics

    found, known = parts.cpu().numpy(), labels.cpu().numpy()
    _, columns = np.unique(known, return_inverse=True)
    counts = np.zeros((int(found.max()) + 1, int(columns.max()) + 1), dtype=np.int64)
    np.add.at(counts, (found, columns), 1)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return PartitionScores(
        normalized_mutual_information=float(metrics.normalized_mutual_info_score(known, found)),
        adjusted_mutual_information=float(metrics.adjusted_mutual_info_score(known, found)),
        adjusted_rand_index=float(metrics.adjusted_rand_score(known, found)),
        matched_accuracy=float(matched / len(found)),
        num_images=len(found),
    )


def score_partition(parts: Tensor, source: ImageSource) -> dict[str, Any] | None:
    """Returns the scores of the parts (n,) of a source's images; None if they have no labels."""
    return None if source.labels is None else asdict(partition_scores(parts, source.labels))
