"""How close generated images come to real ones, as a feature extractor sees them.

All scores are computed in float64. They depend on the extractor, on the number of images on both
sides and on how images are resized, so all of these are part of a result.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from safetensors.torch import load
from sklearn.metrics import pairwise_distances_chunked
from torch import Tensor, nn

from pgmkit import files, hub, pictures
from pgmkit.cache import cache_entry, mark_used, publish
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.extractors import FeatureExtractor, load_extractor
from pgmkit.generator import Generator
from pgmkit.images import ImageData
from pgmkit.seeds import derive_seed
from pgmkit.shattering import ShatteredGenerator

Array = npt.NDArray[np.float64]

PR_NEIGHBOURS = 3
"""k of precision and recall, as in their paper."""

DC_NEIGHBOURS = 5
"""k of density and coverage, as in their paper."""

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
"""How many subsets KID draws from each side and how large they are, at most."""

FEWEST = DC_NEIGHBOURS + 1
"""Images on either side below which nothing can be scored."""

_FILE = "features.safetensors"
_DIGEST = "features.sha256"
_ROWS = 512
_CHUNK = 64
"""MiB of distances that are in memory at once."""


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
            names; None for an empty cluster.
    """

    before: FidelityScores
    after: FidelityScores
    clusters: Sequence[FidelityScores | None]


@dataclass(frozen=True)
class Features:
    """Features of images with their mean and covariance.

    Args:
        features: float32 (n, d).
        mean: float64 (d,).
        covariance: float64 (d, d), over n - 1.
    """

    features: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Features":
        """Takes features (n, d), n at least 2, and computes mean and covariance in float64."""
        from torch_fidelity.metric_fid import fid_features_to_statistics

        found = fid_features_to_statistics(features.double())
        covariance = torch.from_numpy(found["sigma"].reshape(features.shape[1], -1))
        return cls(features, torch.from_numpy(found["mu"]), covariance)

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


def shattering_fidelity(
    shattered: ShatteredGenerator,
    reference: ImageData,
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
        reference: real images; their labels are class numbers of the classifier.
        extractor: see `load_extractor`.
        classifier: gives samples their classes.
        num_samples: images before and after; each cluster gets as many, divided by the number of
            clusters.
        seed: of all samples and of the subsets of KID.
        cache: whether to keep the reference's features, and take up those kept before.
        device: where the extractor runs.

    Raises:
        ParameterError: `num_samples` is too small, or the reference has other classes.
        UnknownNameError: there is no such extractor.
        LoadError: the extractor's weights are not there.
    """
    per_cluster = num_samples // shattered.num_clusters
    check_fidelity(shattered, reference, classifier, num_samples)
    loaded = load_extractor(extractor, device)
    seed = derive_seed(seed, "fidelity")
    everything = reference_features(reference, loaded, cache=cache)
    known: dict[str, Features] = {f"all of {reference.source}": everything}

    def score(latents: Tensor, judge: Classifier | None) -> FidelityScores:
        found, classes = _look(shattered.generator, latents, loaded, judge)
        name = f"all of {reference.source}"
        if judge is not None and classes is not None and reference.labels is not None:
            majority = int(classes.bincount().argmax())
            chosen = reference.labels == majority
            if int(chosen.sum()) >= FEWEST:
                name = f"class {judge.classes[majority]} of {reference.source}"
                if name not in known:
                    known[name] = Features.of(everything.features[chosen])
        return compare(found, known[name], loaded.name, name, seed=seed)

    result = ShatteringFidelity(
        before=score(shattered.generator.sample_latents(num_samples, seed), None),
        after=score(shattered.sample_latents(num_samples, seed=seed), None),
        clusters=[
            score(shattered.sample_latents(per_cluster, cluster, seed), classifier)
            if size
            else None
            for cluster, size in enumerate(shattered.cluster_sizes)
        ],
    )
    _warn_of_few([result.before, result.after, *filter(None, result.clusters)])
    return result


def check_fidelity(
    shattered: ShatteredGenerator,
    reference: ImageData,
    classifier: Classifier | None,
    num_samples: int,
) -> None:
    """Checks what `shattering_fidelity` takes, before anything is loaded or computed.

    Raises:
        ParameterError: `num_samples` is too small, or the reference has other classes.
    """
    per_cluster = num_samples // shattered.num_clusters
    if per_cluster < FEWEST:
        raise ParameterError(
            f"{num_samples} samples are {per_cluster} for each of {shattered.num_clusters} "
            f"clusters, and fidelity needs {FEWEST}; ask for more samples"
        )
    _check_count(reference.images, "reference images")
    if reference.labels is None or classifier is None:
        return
    low, high = int(reference.labels.min()), int(reference.labels.max())
    if low < 0 or high >= len(classifier.classes):
        raise ParameterError(
            f"the labels in {reference.source} go from {low} to {high}, and the classifier "
            f"{classifier.name!r} knows 0 to {len(classifier.classes) - 1}; give another "
            "classifier, or none to compare every cluster with all images"
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
        "versions": [torch.__version__, torchvision.__version__],
    }
    entry = cache_entry("references", determining)
    found = _read(entry)
    if found is not None:
        mark_used(entry)
        return found
    found = Features.of(extractor.features(images))
    data = hub.serialise(vars(found))
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
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    n, m, d = len(samples), len(reference), samples.features.shape[1]
    if reference.features.shape[1] != d:
        raise ParameterError(
            f"the extractor {extractor!r} gives {d} features for the samples and "
            f"{reference.features.shape[1]} for the reference; give both the same size, or an "
            "extractor with a size of its own"
        )
    sides = [
        {"mu": side.mean.numpy(), "sigma": side.covariance.numpy()} for side in (samples, reference)
    ]
    fid = metric_fid.fid_statistics_to_metric(*sides, verbose=False)
    x, y = samples.features.double(), reference.features.double()
    subset_size = min(KID_SUBSET_SIZE, min(n, m) // 2)
    kid = metric_kid.kid_features_to_metric(
        x,
        y,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=derive_seed(seed, "kid") % 2**32,
        verbose=False,
    )
    manifolds = metric_prc.prc_features_to_metric(
        x,
        y,
        prc_neighborhood=PR_NEIGHBOURS,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    density, coverage = density_and_coverage(x.numpy(), y.numpy())
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
        precision=manifolds[metric_prc.KEY_METRIC_PRECISION],
        recall=manifolds[metric_prc.KEY_METRIC_RECALL],
        density=density,
        coverage=coverage,
    )


def density_and_coverage(
    samples: Array, reference: Array, neighbours: int = DC_NEIGHBOURS
) -> tuple[float, float]:
    """Returns density and coverage (Naeem et al. 2020, equations 3 and 4).

    The ball of a reference point reaches to its k-th nearest other reference point, and does not
    hold its own surface, as in the code of the paper. Distances are made in blocks.

    Args:
        samples: float64 (n, d).
        reference: float64 (m, d), m above `neighbours`.
        neighbours: k.
    """
    blocks = pairwise_distances_chunked(
        reference,
        reduce_func=lambda block, start: np.partition(block, neighbours, axis=1)[:, neighbours],
        working_memory=_CHUNK,
    )
    radii = np.concatenate(list(blocks))
    inside = 0
    nearest = np.full(len(reference), np.inf)
    for block in pairwise_distances_chunked(samples, reference, working_memory=_CHUNK):
        inside += int((block < radii).sum())
        np.minimum(nearest, block.min(axis=0), out=nearest)
    return inside / (neighbours * len(samples)), float((nearest < radii).mean())


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
    for z in latents.split(_ROWS):
        images = pictures.to_uint8(generator.images(z), generator.image.range)
        features.append(extractor.features(images))
        if judge is not None:
            classes.append(judge.labels(images, (0.0, 255.0)))
    return Features.of(torch.cat(features)), torch.cat(classes) if classes else None


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
