"""How close generated images come to real ones, before and after shattering."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.extractors import FeatureExtractor, load_extractor
from pgmkit.evaluate.fidelity_scores import (
    FEWEST,
    FeatureStatistics,
    FidelityScores,
    check_enough,
    compare,
    warn_of_few,
)
from pgmkit.evaluate.reference_images import (
    ReferenceImages,
    check_fidelity,
    features_of,
    look_at,
    reference_features,
)
from pgmkit.images import ArrayImages, ImageSource
from pgmkit.seeds import derive_seed
from pgmkit.shattering import ShatteredGenerator


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


def fidelity(
    images: Tensor | ImageSource,
    reference: Tensor | ImageSource,
    extractor: FeatureExtractor | nn.Module | str = "inception",
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    seed: int = 0,
    cache: bool = True,
    device: torch.device | str = "auto",
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
    samples = _as_source(images, value_range, "the images")
    against = _as_source(reference, value_range, "the reference")
    check_enough(samples, "generated images")
    loaded = load_extractor(extractor, device)
    known = reference_features(against, loaded, cache=cache)
    found = FeatureStatistics.of(features_of(samples, loaded))
    scores = compare(found, known, loaded.name, f"all of {against.name}", seed=seed)
    warn_of_few([scores])
    return scores


def shattering_fidelity(
    shattered: ShatteredGenerator,
    reference: ImageSource | ReferenceImages,
    extractor: FeatureExtractor | nn.Module | str = "inception",
    *,
    classifier: Classifier | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    cache: bool = True,
    device: torch.device | str = "auto",
) -> ShatteringFidelity:
    """Scores a generator before and after shattering, and each of its clusters.

    A cluster is compared with the reference images of the class that most of its samples have, if
    the reference has labels, there is a classifier to find that class, and it has enough images;
    else with all. Against all, a cluster of one class must do badly in recall and coverage.

    Args:
        shattered: what is scored.
        reference: real images, or a `ReferenceImages`, which serves several results and has its own
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
    data = reference.data if isinstance(reference, ReferenceImages) else reference
    check_fidelity(data, classifier)
    check_num_samples(num_samples, k)
    if classifier is not None:
        classifier.check_images(shattered.generator.image.shape)
    if not isinstance(reference, ReferenceImages):
        reference = ReferenceImages(reference, load_extractor(extractor, device), cache=cache)
    seed = derive_seed(seed, "fidelity")
    judge = None if reference.data.labels is None else classifier
    generator, looks = shattered.generator, reference.extractor
    before = reference.score_prior(generator, num_samples, seed=seed)
    samples, _ = look_at(generator, shattered.draw(num_samples, seed=seed)[0], looks, None)
    after = reference.score(samples, seed=seed)
    clusters: list[FidelityScores | None] = []
    for cluster, size in enumerate(shattered.cluster_sizes):
        latents = shattered.draw(num_samples // k, cluster, seed)[0] if size else None
        if latents is None or not len(latents):
            clusters.append(None)
            continue
        samples, classes = look_at(generator, latents, looks, judge)
        if judge is None or classes is None:
            clusters.append(reference.score(samples, seed=seed))
        else:
            clusters.append(reference.score_by_class(samples, classes, judge.classes, seed=seed))
    result = ShatteringFidelity(before, after, clusters)
    warn_of_few([before, after, *filter(None, clusters)])
    return result


def check_num_samples(num_samples: int, num_clusters: int) -> None:
    """Raises ParameterError if there are too few samples for the fidelity of each cluster."""
    per_cluster = num_samples // num_clusters
    if per_cluster < FEWEST:
        raise ParameterError(
            f"{num_samples} samples are {per_cluster} for each of {num_clusters} clusters, and "
            f"fidelity needs {FEWEST}; ask for more samples"
        )


def _as_source(
    images: Tensor | ImageSource, value_range: tuple[float, float], what: str
) -> ImageSource:
    if isinstance(images, Tensor):
        return ArrayImages(images, name=what, value_range=value_range)
    return images
