"""What is measured of a cell. A new measure is a function and a line in `MEASURES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean
from typing import Literal

import torch
from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.diagnostics import cluster_fidelity
from pgmkit.evaluate.metrics import cluster_scores
from pgmkit.generator import Generator
from pgmkit.seeds import derive_seed
from pgmkit.shattering import ShatteredGenerator

Pairs = tuple[Tensor, Tensor]
"""Cluster number and class number of n latents or samples, int64 (n,) each."""

_BATCH = 128


class Subject:
    """The result of a cell, with all that measures share; what costs time is made once, on demand.

    Args:
        shattered: fresh, with spectrum and selection.
        classes: class of each latent of the spectrum, int64 (n,); None without a classifier.
        classifier: that gave them.
        num_samples: how many samples of the mapper are measured.

    Attributes:
        seed: of these samples.
    """

    def __init__(
        self,
        shattered: ShatteredGenerator,
        *,
        classes: Tensor | None = None,
        classifier: Classifier | None = None,
        num_samples: int = 5_000,
    ) -> None:
        self.shattered = shattered
        self.classes = classes
        self.classifier = classifier
        self.num_samples = num_samples
        self.seed = derive_seed(int(shattered.origin.settings["seed"]), "score")

    @cached_property
    def sample_latents(self) -> Tensor:
        """Latents (n, M) of samples from the mapper, clusters mixed by size."""
        return self.shattered.sample_latents(self.num_samples, seed=self.seed)

    @cached_property
    def sample_clusters(self) -> Tensor:
        """The clusters (n,) that these were drawn from."""
        return self.shattered.sample_clusters(self.num_samples, self.seed)

    @cached_property
    def latent_pairs(self) -> Pairs:
        """Clusters and classes of the kept latents (the paper's Table 1)."""
        if self.classes is None or self.shattered.selection is None:
            raise ParameterError("there are no class labels of the kept latents")
        clusters = torch.as_tensor(self.shattered.sampler.labels_).cpu()
        return clusters, self.classes[self.shattered.selection.kept]

    @cached_property
    def sample_pairs(self) -> Pairs:
        """Clusters and classes of the samples (the paper's Table 2)."""
        if self.classifier is None:
            raise ParameterError("there is no classifier to label samples with")
        classes = label(self.shattered.generator, self.classifier, self.sample_latents)
        return self.sample_clusters, classes


@dataclass(frozen=True)
class Metric:
    """How a number is shown.

    Args:
        title: in tables and figures.
        best: which values are better; None where that cannot be said.
        form: format of the number.
        panel: metrics of one panel share the axes of a figure; by default each has its own.
    """

    title: str
    best: Literal["high", "low"] | None = None
    form: str = ".4f"
    panel: str = ""


@dataclass(frozen=True)
class Measure:
    """A measure of cells.

    Args:
        function: returns numbers by name.
        title: of its table.
        metrics: those of the numbers that tables and figures show, in order; files hold all.
        needs_classes: whether it needs a classifier.
        pairs: where given, the table of cluster × class counts is kept with the cell.
    """

    function: Callable[[Subject], Mapping[str, float | None]]
    title: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    needs_classes: bool = False
    pairs: Callable[[Subject], Pairs] | None = None


@torch.no_grad()
def label(generator: Generator, classifier: Classifier, latents: Tensor) -> Tensor:
    """Returns the class of G(z) for latents (n, M), int64 (n,), made batch by batch."""
    value_range = generator.image.range
    batches = latents.split(_BATCH)
    return torch.cat([classifier.labels(generator(z), value_range).cpu() for z in batches])


def count_pairs(pairs: Pairs, num_clusters: int, num_classes: int) -> Tensor:
    """Returns how often each class lies in each cluster, int64 (k, classes)."""
    clusters, classes = pairs
    numbers = (clusters * num_classes + classes).bincount(minlength=num_clusters * num_classes)
    return numbers.reshape(num_clusters, num_classes)


def mean_cluster_entropy(counts: Tensor) -> float:
    """Returns the mean over clusters of the entropy of their classes, nats (paper, Figure 3).

    Args:
        counts: of each class in each cluster (k, classes); empty clusters are left out.
    """
    filled = counts[counts.sum(dim=1) > 0].double()
    return float(torch.distributions.Categorical(filled).entropy().mean())


def measure_selection(subject: Subject) -> dict[str, float | None]:
    """Measures what was kept and how it was divided, without looking at images."""
    statistics, sizes = subject.shattered.origin.statistics, subject.shattered.cluster_sizes
    return {
        "num_clusters": len(sizes),
        "num_kept": statistics["num_kept"],
        "mass_kept": statistics["mass_kept"],
        "effective_sample_size": statistics["effective_sample_size"],
        "median_rank": statistics["numeric_rank"]["median"],
        "smallest_cluster": min(sizes) / sum(sizes),
        "largest_cluster": max(sizes) / sum(sizes),
    }


def measure_clusters(subject: Subject) -> dict[str, float | None]:
    """Measures how clusters of kept latents agree with classes."""
    return _agreement(subject, subject.latent_pairs)


def measure_samples(subject: Subject) -> dict[str, float | None]:
    """Measures how samples of the mapper agree with classes."""
    return _agreement(subject, subject.sample_pairs)


def measure_fidelity(subject: Subject) -> dict[str, float | None]:
    """Measures whether samples come back to their cluster, as many asked from each cluster."""
    shattered = subject.shattered
    per_cluster = max(1, subject.num_samples // shattered.num_clusters)
    found = cluster_fidelity(shattered, per_cluster, seed=subject.seed)
    rates = [rate for rate in found.acceptance_rates or () if rate is not None]
    seconds = found.seconds_per_accepted
    return {
        "cluster_fidelity": found.overall,
        "worst_cluster": min(share for share in found.clusters if share is not None),
        "acceptance_rate": mean(rates) if rates else None,
        "milliseconds": None if seconds is None else 1000 * seconds,
    }


def _agreement(subject: Subject, pairs: Pairs) -> dict[str, float | None]:
    assert subject.classifier is not None
    k, names = subject.shattered.num_clusters, subject.classifier.classes
    scores = cluster_scores(*pairs, k, names)
    return {
        "homogeneity": scores.homogeneity,
        "completeness": scores.completeness,
        "v_measure": scores.v_measure,
        "adjusted_mutual_information": scores.adjusted_mutual_information,
        "mean_cluster_entropy": mean_cluster_entropy(count_pairs(pairs, k, len(names))),
        "class_entropy": scores.class_entropy,
    }


_AGREEMENT = {
    "homogeneity": Metric("Homogeneity", "high"),
    "completeness": Metric("Completeness", "high"),
    "v_measure": Metric("V Measure", "high"),
    "adjusted_mutual_information": Metric("Adjusted MI", "high"),
    "mean_cluster_entropy": Metric("Mean cluster entropy", "low", panel="entropy, nats"),
    "class_entropy": Metric("Total class entropy", panel="entropy, nats"),
}

MEASURES = {
    "clusters": Measure(
        measure_clusters,
        "Clusters of the kept latents against classes",
        _AGREEMENT,
        needs_classes=True,
        pairs=lambda subject: subject.latent_pairs,
    ),
    "samples": Measure(
        measure_samples,
        "Samples from the mapper of each cluster against classes",
        _AGREEMENT,
        needs_classes=True,
        pairs=lambda subject: subject.sample_pairs,
    ),
    "selection": Measure(
        measure_selection,
        "What was kept, and how it was divided",
        {
            "effective_sample_size": Metric("Effective sample size", form=",.0f"),
            "mass_kept": Metric("Mass kept"),
            "num_clusters": Metric("Clusters found", form=".4g"),
            "smallest_cluster": Metric("Share of the smallest cluster"),
            "largest_cluster": Metric("Share of the largest cluster"),
        },
    ),
    "fidelity": Measure(
        measure_fidelity,
        "Samples from the mapper that come back to their cluster",
        {
            "cluster_fidelity": Metric("Cluster fidelity", "high"),
            "worst_cluster": Metric("Fidelity of the worst cluster", "high"),
            "acceptance_rate": Metric("Mean acceptance rate"),
            "milliseconds": Metric("ms per sample that comes back", form=".3g"),
        },
    ),
}
"""All measures by name."""

DEFAULT_MEASURES = ("clusters", "samples", "selection")
