"""How many modes of a known distribution a generator reaches, and how evenly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.images.points import Modes

_WITHIN = 3.0
_MEDIAN = math.sqrt(2 * math.log(2))
"""Median length of two standard normal coordinates."""


@dataclass(frozen=True)
class ModeScores:
    """Modes that samples reach.

    Args:
        covered: how many modes have a sample; of points, one of high quality.
        modes: how many there are, K.
        high_quality: share of samples of which both coordinates lie within three standard
            deviations of the nearest mode's centre; 1 where samples are no points.
        reverse_kl: `Σ p log(K·p)` in nats, of the shares p of all samples that lie nearest to each
            mode; 0 where all modes have as many.
        spread: median distance of samples from the nearest mode's centre, over that of points of
            the distribution; 1 for these, and less where samples crowd at the centres. None where
            samples are no points.
    """

    covered: int
    modes: int
    high_quality: float
    reverse_kl: float
    spread: float | None = None


def mode_scores(points: Tensor, modes: Modes) -> ModeScores:
    """Scores points (n, 2) by the protocol of Partition-Guided GANs' released code.

    Raises:
        ParameterError: there are none, or they are of another shape.
    """
    if points.ndim != 2 or points.shape[1:] != modes.centres.shape[1:] or not len(points):
        raise ParameterError(f"modes are those of points (n, 2), not {tuple(points.shape)}")
    points = points.double().cpu()
    distance, nearest = torch.cdist(points, modes.centres.double()).min(dim=1)
    away = (points - modes.centres.double()[nearest]).abs().amax(dim=1)
    is_good = away <= _WITHIN * modes.std
    number = len(modes.centres)
    return ModeScores(
        covered=len(nearest[is_good].unique()),
        modes=number,
        high_quality=float(is_good.double().mean()),
        reverse_kl=_reverse_kl(nearest, number),
        spread=float(distance.median()) / (_MEDIAN * modes.std),
    )


def class_mode_scores(classes: Tensor, num_classes: int) -> ModeScores:
    """Scores samples by the classes (n,) that a classifier sees in them, as modes.

    Raises:
        ParameterError: there are none, or a class is not among so many.
    """
    if classes.ndim != 1 or not len(classes):
        raise ParameterError(f"classes of samples are (n,), not {tuple(classes.shape)}")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise ParameterError(f"classes go from {low} to {high}, and there are {num_classes}")
    return ModeScores(
        covered=len(classes.unique()),
        modes=num_classes,
        high_quality=1.0,
        reverse_kl=_reverse_kl(classes, num_classes),
    )


def _reverse_kl(modes: Tensor, number: int) -> float:
    shares = modes.bincount(minlength=number).double() / len(modes)
    return float(torch.special.xlogy(shares, shares).sum()) + math.log(number)
