"""Real images that generated ones are compared with, and their features, computed only once."""

import contextlib
from collections.abc import Sequence
from importlib.metadata import version

import torch
from safetensors.torch import load
from torch import Tensor

from pgmkit import pictures
from pgmkit.cache import cache_entry, kept_file, publish_file
from pgmkit.errors import DataError, ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.extractors import FeatureExtractor
from pgmkit.evaluate.fidelity_scores import (
    FEWEST,
    NEIGHBOURS,
    FeatureStatistics,
    FidelityScores,
    check_dimensions,
    check_enough,
    compare,
)
from pgmkit.generator import Generator
from pgmkit.images import ImageSource, batches, labels_among, load_images, require_labels
from pgmkit.loading.weights import serialise
from pgmkit.progress import track


class ReferenceImages:
    """Real images with what is computed of them, or with them, only once.

    Args:
        data: the images; what their labels mean is told as `labels_among` does.
        extractor: looks at both kinds of images.
        cache: whether to keep the features, and take up those kept before.

    Raises:
        ParameterError: there are too few images, or they do not fit the extractor.
    """

    def __init__(
        self, data: ImageSource, extractor: FeatureExtractor, *, cache: bool = True
    ) -> None:
        self.data = data
        self.extractor = extractor
        self._all = reference_features(data, extractor, cache=cache)
        self._of_class: dict[tuple[int, tuple[str, ...]], FeatureStatistics | None] = {}
        self._before: dict[tuple[Generator, int, int], FidelityScores] = {}

    def score(self, samples: FeatureStatistics, *, seed: int) -> FidelityScores:
        """Scores samples against all images."""
        name = f"all of {self.data.name}"
        return compare(samples, self._all, self.extractor.name, name, seed=seed)

    def score_by_class(
        self, samples: FeatureStatistics, classes: Tensor, names: Sequence[str], *, seed: int
    ) -> FidelityScores:
        """Scores samples, of classes (n,), against images of the most frequent, if enough."""
        majority = int(classes.bincount().argmax())
        key = (majority, tuple(names))
        if key not in self._of_class:
            require_labels(self.data)
            labels = labels_among(self.data, names, "the classifier")
            chosen = self._all.features[labels == majority]
            self._of_class[key] = FeatureStatistics.of(chosen) if len(chosen) >= FEWEST else None
        known = self._of_class[key]
        if known is None:
            return self.score(samples, seed=seed)
        name = f"class {names[majority]} of {self.data.name}"
        return compare(samples, known, self.extractor.name, name, seed=seed)

    def score_prior(self, generator: Generator, num_samples: int, *, seed: int) -> FidelityScores:
        """Scores images of latents from the prior; the same question is answered only once."""
        key = (generator, num_samples, seed)
        if key not in self._before:
            latents = generator.sample_latents(num_samples, seed)
            samples, _ = look_at(generator, latents, self.extractor, None)
            self._before[key] = self.score(samples, seed=seed)
        return self._before[key]


def load_reference(source: str, generator: Generator, *, split: str = "train") -> ImageSource:
    """Loads real images (see `load_images`), made of the size of the generator's.

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


def check_fidelity(reference: ImageSource, classifier: Classifier | None) -> None:
    """Checks reference images before anything is loaded or computed.

    Raises:
        ParameterError: there are too few.
        DataError: they are of other classes than those of the classifier.
    """
    check_enough(reference, "reference images")
    if reference.labels is None or classifier is None:
        return
    whose = f"the classifier {classifier.name!r}"
    labels = labels_among(reference, classifier.classes, whose)
    assert labels is not None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classifier.classes):
        raise DataError(
            f"the labels in {reference.name} go from {low} to {high}, and {whose} knows 0 to "
            f"{len(classifier.classes) - 1}; give another classifier, or none to compare every "
            "cluster with all images"
        )


def check_features(
    extractor: FeatureExtractor, generator: Generator, reference: ImageSource
) -> None:
    """Checks on black images that an extractor sees both kinds, with as many features.

    Raises:
        ParameterError: it does not.
    """
    shapes = generator.image.shape, reference.image.shape
    found = [
        extractor.features(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1] for shape in shapes
    ]
    check_dimensions(extractor.name, *found)


def reference_features(
    reference: ImageSource, extractor: FeatureExtractor, *, cache: bool = True
) -> FeatureStatistics:
    """Returns the features of reference images, from the cache where it has them.

    An entry depends on the images, on the extractor's weights, code and preparation of images, and
    on the versions of torch and torchvision; a damaged one is computed again. An extractor without
    a `version` is never cached.

    Raises:
        ParameterError: there are too few images, or they do not fit the extractor.
    """
    check_enough(reference, "reference images")
    if not cache or extractor.version is None:
        return FeatureStatistics.of(features_of(reference, extractor))
    summary = reference.summary()
    determining = {
        "shape": summary["shape"],
        "sha256": summary["sha256"],
        "extractor": extractor.version,
        "prepared": [
            extractor.channels,
            extractor.size,
            list(extractor.range),
            extractor.interpolation,
        ],
        "neighbours": NEIGHBOURS,
        "versions": [torch.__version__, version("torchvision")],
    }
    entry = cache_entry("references", determining)
    with contextlib.suppress(OSError):
        if kept := kept_file(entry):
            return FeatureStatistics(**load(kept[0].read_bytes()))
    found = FeatureStatistics.of(features_of(reference, extractor))
    data = serialise(vars(found))
    what = "set of reference features"
    publish_file(entry, lambda file: file.write(data), len(data), what=what)
    return found


def look_at(
    generator: Generator, latents: Tensor, extractor: FeatureExtractor, judge: Classifier | None
) -> tuple[FeatureStatistics, Tensor | None]:
    """Returns the features of G(z) and, with a classifier, the classes."""
    features, classes = [], []
    name = f"images of {generator.name} looked at by {extractor.name}"
    for batch in track(generator.image_batches(latents), name, len(latents), "image", len):
        images = pictures.to_uint8(batch, generator.image.range)
        features.append(extractor.features(images))
        if judge is not None:
            classes.append(judge.labels(images, (0.0, 255.0)))
    found = torch.cat(features)
    check_enough(found, "generated images")
    return FeatureStatistics.of(found), torch.cat(classes) if classes else None


def features_of(images: ImageSource, extractor: FeatureExtractor) -> Tensor:
    """Returns the features of all images of a source, float32 (n, d)."""
    name = f"{images.name} looked at by {extractor.name}"
    tracked = track(batches(images), name, len(images), "image", len)
    found = (pictures.to_uint8(batch, images.image.range) for batch in tracked)
    return torch.cat([extractor.features(batch) for batch in found])
