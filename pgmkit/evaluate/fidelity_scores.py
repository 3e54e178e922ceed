"""Scores of generated images against real ones, of the features of both.

All are computed in float64. They depend on the extractor, on the number of images on both sides and
on how images are resized, so all of these are part of a result.
"""

import warnings
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.seeds import derive_seed

PR_NEIGHBOURS = 3
"""k of precision and recall, as in their paper."""

DC_NEIGHBOURS = 5
"""k of density and coverage, as in their paper."""

NEIGHBOURS = (PR_NEIGHBOURS, DC_NEIGHBOURS)

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
"""How many subsets KID draws from each side and how large they are, at most."""

FEWEST = DC_NEIGHBOURS + 1
"""Images on either side below which nothing can be scored."""

_ROWS = 512
_TIE = 1e-12
"""Distances that differ by less, relative to squared norms, are the same."""


@dataclass(frozen=True)
class FidelityScores:
    """Distance and overlap of generated and reference images in one feature space.

    Args:
        extractor: whose features.
        reference: which reference images.
        num_samples: generated images, n.
        num_reference: reference images, m.
        num_features: dimension of the features, d. With n or m not above d, a covariance is
            singular and FID is biased upwards, strongly.
        fid: Fréchet inception distance (Heusel et al. 2017), from 0. It falls with n and m, so only
            values with the same n, m and reference compare.
        kid: kernel inception distance (Bińkowski et al. 2018), unbiased, mean over subsets; about 0
            for equal distributions, also slightly below.
        kid_std: standard deviation over subsets; not of the mean.
        kid_subset_size: images per subset: 1,000, or half of the smaller side.
        precision: share of samples inside the manifold of the references, in [0, 1]
            (Kynkäänniemi et al. 2019, k = 3).
        recall: share of references inside the manifold of the samples, in [0, 1].
        density: how many balls around references a sample lies in, over k = 5 (Naeem et al. 2020);
            from 0, about 1 for equal distributions, and above it where samples crowd in dense
            places.
        coverage: share of references with a sample in their ball, in [0, 1].
    """

    extractor: str
    reference: str
    num_samples: int
    num_reference: int
    num_features: int
    fid: float
    kid: float
    kid_std: float
    kid_subset_size: int
    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Moments:
    """What FID compares of features: their mean float64 (d,), and covariance over n - 1, (d, d)."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Takes features (n, d), n at least 2."""
        features = features.double()
        centred = features - features.mean(dim=0)
        return cls(features.mean(dim=0), centred.T @ centred / (len(features) - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Returns the Fréchet distance of two normal distributions, which is FID of their features."""
    from torch_fidelity import metric_fid

    sides = [
        {"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (first, second)
    ]
    found = metric_fid.fid_statistics_to_metric(*sides, verbose=False)
    return max(0.0, float(found[metric_fid.KEY_METRIC_FID]))


@dataclass(frozen=True)
class FeatureStatistics:
    """Features of images with what is computed of them alone.

    Args:
        features: float32 (n, d).
        mean: float64 (d,).
        covariance: float64 (d, d), over n - 1.
        radii: squared distances to the k-th nearest other point, for k of `NEIGHBOURS`, float64
            (n, 2).
    """

    features: Tensor
    mean: Tensor
    covariance: Tensor
    radii: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Takes features (n, d), n at least `FEWEST`, and computes all else in float64."""
        moments = Moments.of(features)
        centred = features.double() - moments.mean
        nearest = [
            squared.topk(max(NEIGHBOURS) + 1, dim=1, largest=False).values[:, NEIGHBOURS]
            for squared in _squared_distances(centred, centred)
        ]
        return cls(features, moments.mean, moments.covariance, torch.cat(nearest))

    def __len__(self) -> int:
        return len(self.features)


def compare(
    samples: FeatureStatistics,
    reference: FeatureStatistics,
    extractor: str,
    name: str,
    *,
    seed: int = 0,
) -> FidelityScores:
    """Scores features of samples against those of references, at least `FEWEST` of each.

    Raises:
        ParameterError: their dimensions differ.
    """
    from torch_fidelity import metric_kid

    n, m, d = len(samples), len(reference), samples.features.shape[1]
    check_dimensions(extractor, d, reference.features.shape[1])
    fid = frechet_distance(*(Moments(s.mean, s.covariance) for s in (samples, reference)))
    subset_size = min(KID_SUBSET_SIZE, min(n, m) // 2)
    kid = metric_kid.kid_features_to_metric(
        samples.features.double(),
        reference.features.double(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=derive_seed(seed, "kid") % 2**32,
        verbose=False,
    )
    precision, recall, density, coverage = manifold_scores(samples, reference)
    return FidelityScores(
        extractor=extractor,
        reference=name,
        num_samples=n,
        num_reference=m,
        num_features=d,
        fid=fid,
        kid=kid[metric_kid.KEY_METRIC_KID_MEAN],
        kid_std=kid[metric_kid.KEY_METRIC_KID_STD],
        kid_subset_size=subset_size,
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
    )


def manifold_scores(
    samples: FeatureStatistics, reference: FeatureStatistics
) -> tuple[float, float, float, float]:
    """Returns precision, recall, density and coverage.

    The manifold of points is a union of balls, each reaching to the k-th nearest other point.
    Precision and recall (Kynkäänniemi et al. 2019, equation 1) count the surface of a ball; density
    and coverage (Naeem et al. 2020, equations 3 and 4) do not, as in the code of their paper.
    """
    x = samples.features.double() - reference.mean
    y = reference.features.double() - reference.mean
    norms = x.square().sum(dim=1), y.square().sum(dim=1)
    slack = _TIE * (norms[0].max() + norms[1].max())
    around_y, density_radii = reference.radii.unbind(dim=1)
    precise = inside = 0
    recalled = torch.zeros(len(y), dtype=torch.bool)
    covered = torch.zeros(len(y), dtype=torch.bool)
    radii = iter(samples.radii[:, 0].split(_ROWS))
    for squared in _squared_distances(x, y):
        precise += int((squared <= around_y + slack).any(dim=1).sum())
        recalled |= (squared <= next(radii)[:, None] + slack).any(dim=0)
        within = squared < density_radii - slack
        inside += int(within.sum())
        covered |= within.any(dim=0)
    density = inside / (DC_NEIGHBOURS * len(x))
    return (
        precise / len(x),
        float(recalled.double().mean()),
        density,
        float(covered.double().mean()),
    )


def check_enough(images: Sized, what: str) -> None:
    """Raises ParameterError if there are fewer images, or features of them, than can be scored."""
    if len(images) < FEWEST:
        raise ParameterError(
            f"fidelity needs at least {FEWEST} {what}, and thousands to mean much; there are "
            f"{len(images)}"
        )


def check_dimensions(extractor: str, of_samples: int, of_reference: int) -> None:
    """Raises ParameterError unless both sides have as many features."""
    if of_samples != of_reference:
        raise ParameterError(
            f"the extractor {extractor!r} gives {of_samples} features for the samples and "
            f"{of_reference} for the reference; give both the same size, or an extractor with a "
            "size of its own"
        )


def warn_of_few(scores: Sequence[FidelityScores]) -> None:
    """Says once that covariances are singular, with the smallest numbers."""
    few = [s for s in scores if min(s.num_samples, s.num_reference) <= s.num_features]
    if few:
        worst = min(few, key=lambda s: min(s.num_samples, s.num_reference))
        warnings.warn(
            f"{len(few)} of {len(scores)} FIDs come from no more images than features, down to "
            f"{worst.num_samples:,} samples and {worst.num_reference:,} references in "
            f"{worst.num_features:,} dimensions: their covariances are singular and FID is far too "
            "high; ask for more samples, or look at KID, which is unbiased",
            PgmkitWarning,
            stacklevel=3,
        )


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yields ‖x - y‖² of all pairs, in blocks of at most `_ROWS` rows of x.

    Args:
        x: float64 (n, d), about centred: large common offsets cost digits.
        y: float64 (m, d), likewise.
    """
    norms = y.square().sum(dim=1)
    for rows in x.split(_ROWS):
        squared = torch.addmm(norms, rows, y.T, alpha=-2)
        yield squared.add_(rows.square().sum(dim=1, keepdim=True)).clamp_(min=0)
