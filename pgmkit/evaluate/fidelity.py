"""How close generated images come to real ones, as a feature extractor sees them.

All scores are computed in float64. They depend on the extractor, on the number of images on both
sides and on how images are resized, so all of these are part of a result.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load
from torch import Tensor, nn

from pgmkit import files, pictures
from pgmkit.cache import cache_entry, mark_used, publish
from pgmkit.errors import DataError, ParameterError, PgmkitWarning
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.extractors import FeatureExtractor, load_extractor
from pgmkit.generator import Generator
from pgmkit.images import ImageData, load_images
from pgmkit.loading.weights import serialise
from pgmkit.seeds import derive_seed
from pgmkit.shattering import ShatteredGenerator

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

_FILE = "features.safetensors"
_DIGEST = "features.sha256"
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
class ShatteringFidelity:
    """What shattering does to fidelity.

    Args:
        before: images of latents from the prior, against all references.
        after: images from the mapper, clusters mixed by size, against all references.
        clusters: images from the mapper of each cluster, against the references that `reference`
            names; None for one that is empty or cannot be sampled.
    """

    before: FidelityScores
    after: FidelityScores
    clusters: Sequence[FidelityScores | None]


@dataclass(frozen=True)
class Features:
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
    def of(cls, features: Tensor) -> "Features":
        """Takes features (n, d), n at least `FEWEST`, and computes all else in float64."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(features.double())
        mean = torch.from_numpy(found["mu"])
        covariance = torch.from_numpy(found["sigma"].reshape(features.shape[1], -1))
        centred = features.double() - mean
        nearest = [
            squared.topk(max(NEIGHBOURS) + 1, dim=1, largest=False).values[:, NEIGHBOURS]
            for squared in _squared_distances(centred, centred)
        ]
        return cls(features, mean, covariance, torch.cat(nearest))

    def __len__(self) -> int:
        return len(self.features)


def fidelity(
    images: Tensor | ImageData,
    reference: Tensor | ImageData,
    extractor: FeatureExtractor | nn.Module | str = "inception",
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    cache: bool = True,
    device: torch.device | str = "cpu",
) -> FidelityScores:
    """Scores images against reference images.

    Args:
        images: generated; (N, C, H, W) as bytes, or as floats in `value_range`.
        reference: real; likewise, or what `pgmkit.images.load_images` returned.
        extractor: see `load_extractor`.
        value_range: lowest and highest value of images that are floats.
        seed: of the subsets of KID.
        cache: whether to keep the reference's features, and take up those kept before.
        device: where the extractor runs.

    Raises:
        ParameterError: there are too few images, or they do not fit the extractor.
        UnknownNameError: there is no such extractor.
        LoadError: the extractor's weights are not there.
    """
    samples = _as_data(images, value_range, "the images")
    against = _as_data(reference, value_range, "the reference")
    _check_count(samples.images, "generated images")
    loaded = load_extractor(extractor, device)
    known = reference_features(against, loaded, cache=cache)
    found = Features.of(loaded.features(samples.images))
    scores = compare(found, known, loaded.name, f"all of {against.source}", seed=seed)
    _warn_of_few([scores])
    return scores


class Reference:
    """Real images with what is computed of them, or with them, only once.

    Args:
        data: the images; what their labels mean is told as `ImageData.numbered_as` does.
        extractor: looks at both kinds of images.
        cache: whether to keep the features, and take up those kept before.

    Raises:
        ParameterError: there are too few images, or they do not fit the extractor.
    """

    def __init__(self, data: ImageData, extractor: FeatureExtractor, *, cache: bool = True) -> None:
        self.data = data
        self.extractor = extractor
        self._all = reference_features(data, extractor, cache=cache)
        self._of_class: dict[tuple[int, tuple[str, ...]], Features | None] = {}
        self._before: dict[tuple[Generator, int, int], FidelityScores] = {}

    def score(self, samples: Features, *, seed: int) -> FidelityScores:
        """Scores samples against all images."""
        name = f"all of {self.data.source}"
        return compare(samples, self._all, self.extractor.name, name, seed=seed)

    def score_by_class(
        self, samples: Features, classes: Tensor, names: Sequence[str], *, seed: int
    ) -> FidelityScores:
        """Scores samples against the images of their most frequent class, if there are enough.

        Args:
            samples: of n images.
            classes: of these, (n,).
            names: of all classes.
            seed: of the subsets of KID.
        """
        majority = int(classes.bincount().argmax())
        key = (majority, tuple(names))
        if key not in self._of_class:
            labels = self.data.numbered_as(names, "the classifier").require_labels()
            chosen = self._all.features[labels == majority]
            self._of_class[key] = Features.of(chosen) if len(chosen) >= FEWEST else None
        known = self._of_class[key]
        if known is None:
            return self.score(samples, seed=seed)
        name = f"class {names[majority]} of {self.data.source}"
        return compare(samples, known, self.extractor.name, name, seed=seed)

    def score_prior(self, generator: Generator, num_samples: int, *, seed: int) -> FidelityScores:
        """Scores images of latents from the prior; the same question is answered only once."""
        key = (generator, num_samples, seed)
        if key not in self._before:
            latents = generator.sample_latents(num_samples, seed)
            samples, _ = _look(generator, latents, self.extractor, None)
            self._before[key] = self.score(samples, seed=seed)
        return self._before[key]


def shattering_fidelity(
    shattered: ShatteredGenerator,
    reference: ImageData | Reference,
    extractor: FeatureExtractor | nn.Module | str = "inception",
    *,
    classifier: Classifier | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    cache: bool = True,
    device: torch.device | str = "cpu",
) -> ShatteringFidelity:
    """Scores a generator before and after shattering, and each of its clusters.

    A cluster is compared with the reference images of the class that most of its samples have, if
    the reference has labels, there is a classifier to find that class, and it has enough images;
    else with all. Against all, a cluster of one class must do badly in recall and coverage.

    Args:
        shattered: what is scored.
        reference: real images, or a `Reference`, which serves several results and has its own
            extractor.
        extractor: see `load_extractor`.
        classifier: gives samples their classes.
        num_samples: images before and after; each cluster gets as many, divided by the number of
            clusters.
        seed: of all samples and of the subsets of KID.
        cache: whether to keep the reference's features, and take up those kept before.
        device: where the extractor runs.

    Raises:
        ParameterError: `num_samples` is too small, or the classifier cannot see the images.
        DataError: the reference has other classes than the classifier.
        SamplingError: no cluster can be sampled; one that cannot is left out.
        UnknownNameError: there is no such extractor.
        LoadError: the extractor's weights are not there.
    """
    k = shattered.num_clusters
    check_fidelity(reference if isinstance(reference, ImageData) else reference.data, classifier)
    check_num_samples(num_samples, k)
    if classifier is not None:
        classifier.check_images(shattered.generator.image.shape)
    if isinstance(reference, ImageData):
        reference = Reference(reference, load_extractor(extractor, device), cache=cache)
    seed = derive_seed(seed, "fidelity")
    judge = None if reference.data.labels is None else classifier
    generator, looks = shattered.generator, reference.extractor
    before = reference.score_prior(generator, num_samples, seed=seed)
    samples, _ = _look(generator, shattered.try_latents(num_samples, seed)[0], looks, None)
    after = reference.score(samples, seed=seed)
    clusters: list[FidelityScores | None] = []
    for cluster, size in enumerate(shattered.cluster_sizes):
        latents = shattered.try_cluster(num_samples // k, cluster, seed) if size else None
        if latents is None:
            clusters.append(None)
            continue
        samples, classes = _look(generator, latents, looks, judge)
        if judge is None or classes is None:
            clusters.append(reference.score(samples, seed=seed))
        else:
            clusters.append(reference.score_by_class(samples, classes, judge.classes, seed=seed))
    result = ShatteringFidelity(before, after, clusters)
    _warn_of_few([before, after, *filter(None, clusters)])
    return result


def load_reference(source: str, generator: Generator, *, split: str = "train") -> ImageData:
    """Loads real images, made of the size of the generator's as `load_images` does it.

    Args:
        source: see `pgmkit.images.load_images`.
        generator: whose images they are compared with.
        split: "train" or "test", where the source has both.

    Raises:
        DataError: nothing is there, or it does not hold images.
        ParameterError: the generator makes points.
    """
    if generator.image.is_points:
        raise ParameterError(
            f"fidelity compares images, and {generator.name!r} makes points; leave it out"
        )
    _, height, width = generator.image.shape
    return load_images(source, split=split, size=(height, width))


def check_fidelity(reference: ImageData, classifier: Classifier | None) -> None:
    """Checks reference images before anything is loaded or computed.

    Raises:
        ParameterError: there are too few.
        DataError: they are of other classes than those of the classifier.
    """
    _check_count(reference.images, "reference images")
    if reference.labels is None or classifier is None:
        return
    whose = f"the classifier {classifier.name!r}"
    labels = reference.numbered_as(classifier.classes, whose).require_labels()
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classifier.classes):
        raise DataError(
            f"the labels in {reference.source} go from {low} to {high}, and {whose} knows 0 to "
            f"{len(classifier.classes) - 1}; give another classifier, or none to compare every "
            "cluster with all images"
        )


def check_features(extractor: FeatureExtractor, generator: Generator, reference: ImageData) -> None:
    """Checks on black images that an extractor sees both kinds, with as many features.

    Raises:
        ParameterError: it does not.
    """
    shapes = generator.image.shape, reference.images.shape[1:]
    found = [
        extractor.features(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1] for shape in shapes
    ]
    _check_dimensions(extractor.name, *found)


def check_num_samples(num_samples: int, num_clusters: int) -> None:
    """Raises ParameterError if there are too few samples for the fidelity of each cluster."""
    per_cluster = num_samples // num_clusters
    if per_cluster < FEWEST:
        raise ParameterError(
            f"{num_samples} samples are {per_cluster} for each of {num_clusters} clusters, and "
            f"fidelity needs {FEWEST}; ask for more samples"
        )


def reference_features(
    reference: ImageData, extractor: FeatureExtractor, *, cache: bool = True
) -> Features:
    """Returns the features of reference images, from the cache where it has them.

    An entry depends on every pixel, on the extractor's weights, code and preparation of images, and
    on the versions of torch and torchvision; a damaged one is computed again.

    Args:
        reference: the images.
        extractor: one without a `version` is never cached.
        cache: whether to use the cache at all.

    Raises:
        ParameterError: there are too few images, or they do not fit the extractor.
    """
    images = reference.images
    _check_count(images, "reference images")
    if not cache or extractor.version is None:
        return Features.of(extractor.features(images))
    determining = {
        "shape": list(images.shape),
        "sha256": hashlib.sha256(images.contiguous().numpy().data).hexdigest(),
        "extractor": extractor.version,
        "prepared": [
            extractor.channels,
            extractor.size,
            list(extractor.range),
            extractor.interpolation,
        ],
        "neighbours": NEIGHBOURS,
        "versions": [torch.__version__, torchvision.__version__],
    }
    entry = cache_entry("references", determining)
    found = _read(entry)
    if found is not None:
        mark_used(entry)
        return found
    found = Features.of(extractor.features(images))
    data = serialise(vars(found))
    digest = hashlib.sha256(data).hexdigest()

    def write(folder: Path) -> None:
        files.write_bytes(folder / _FILE, data)
        files.write_text(folder / _DIGEST, digest)

    publish(entry, write, len(data), what="set of reference features")
    return found


def compare(
    samples: Features, reference: Features, extractor: str, name: str, *, seed: int = 0
) -> FidelityScores:
    """Scores features of samples against those of references.

    Args:
        samples: of at least `FEWEST` generated images.
        reference: of at least `FEWEST` real images.
        extractor: its name.
        name: of the reference.
        seed: of the subsets of KID.

    Raises:
        ParameterError: their dimensions differ.
    """
    from torch_fidelity import metric_fid, metric_kid

    n, m, d = len(samples), len(reference), samples.features.shape[1]
    _check_dimensions(extractor, d, reference.features.shape[1])
    sides = [
        {"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (samples, reference)
    ]
    fid = metric_fid.fid_statistics_to_metric(*sides, verbose=False)
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
        fid=max(0.0, fid[metric_fid.KEY_METRIC_FID]),
        kid=kid[metric_kid.KEY_METRIC_KID_MEAN],
        kid_std=kid[metric_kid.KEY_METRIC_KID_STD],
        kid_subset_size=subset_size,
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
    )


def manifold_scores(samples: Features, reference: Features) -> tuple[float, float, float, float]:
    """Returns precision, recall, density and coverage.

    The manifold of points is a union of balls, each reaching to the k-th nearest other point.
    Precision and recall (Kynkäänniemi et al. 2019, equation 1) count the surface of a ball; density
    and coverage (Naeem et al. 2020, equations 3 and 4) do not, as in the code of their paper.

    Args:
        samples: of n images.
        reference: of m images.
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


def _read(entry: Path) -> Features | None:
    """Returns the features of a cache entry; None if it is not there or not whole."""
    try:
        data = (entry / _FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() == (entry / _DIGEST).read_text():
            return Features(**load(data))
    except (OSError, ValueError):
        pass
    return None


def _look(
    generator: Generator, latents: Tensor, extractor: FeatureExtractor, judge: Classifier | None
) -> tuple[Features, Tensor | None]:
    """Returns the features of G(z) and, with a classifier, the classes."""
    features, classes = [], []
    for batch in generator.image_batches(latents):
        images = pictures.to_uint8(batch, generator.image.range)
        features.append(extractor.features(images))
        if judge is not None:
            classes.append(judge.labels(images, (0.0, 255.0)))
    found = torch.cat(features)
    _check_count(found, "generated images")
    return Features.of(found), torch.cat(classes) if classes else None


def _as_data(images: Tensor | ImageData, value_range: tuple[float, float], what: str) -> ImageData:
    if isinstance(images, ImageData):
        return images
    if images.dtype != torch.uint8:
        images = pictures.to_uint8(images, value_range).cpu()
    return ImageData(images, None, what)


def _check_count(images: Tensor, what: str) -> None:
    if len(images) < FEWEST:
        raise ParameterError(
            f"fidelity needs at least {FEWEST} {what}, and thousands to mean much; there are "
            f"{len(images)}"
        )


def _check_dimensions(extractor: str, of_samples: int, of_reference: int) -> None:
    if of_samples != of_reference:
        raise ParameterError(
            f"the extractor {extractor!r} gives {of_samples} features for the samples and "
            f"{of_reference} for the reference; give both the same size, or an extractor with a "
            "size of its own"
        )


def _warn_of_few(scores: Sequence[FidelityScores]) -> None:
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
