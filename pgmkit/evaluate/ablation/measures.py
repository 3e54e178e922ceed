"""What is measured of a cell. A new measure is a function and a line in `MEASURES`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from statistics import mean
from typing import Literal

from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.diagnostics import diagnose, reproducibility
from pgmkit.evaluate.fidelity import shattering_fidelity
from pgmkit.evaluate.metrics import ClusterScores, score_known, score_samples
from pgmkit.evaluate.reference_images import ReferenceImages
from pgmkit.shattering import ShatteredGenerator

_LATENTS_DIAGNOSED = 5_000


class Subject:
    """The result of a cell, with all that measures share; what costs time is made once, on demand.

    Args:
        shattered: fresh, with spectrum and selection.
        classes: class of each latent of the spectrum, int64 (n,); None without a classifier.
        classifier: that gave them.
        reference: real images; None if there are none.
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
        reference: ReferenceImages | None = None,
        num_samples: int = 5_000,
    ) -> None:
        self.shattered = shattered
        self.classes = classes
        self.classifier = classifier
        self.reference = reference
        self.num_samples = num_samples
        self.seed = int(shattered.origin.settings["seed"])

    @cached_property
    def latent_scores(self) -> ClusterScores:
        """Agreement of the kept latents with classes (the paper's Table 1)."""
        if self.classes is None or self.classifier is None:
            raise ParameterError("there are no class labels of the kept latents")
        return score_known(self.shattered, self.classes, self.classifier.classes)

    @cached_property
    def sample_scores(self) -> ClusterScores:
        """Agreement of samples with classes (the paper's Table 2)."""
        if self.classifier is None:
            raise ParameterError("there is no classifier to label samples with")
        return score_samples(self.shattered, self.classifier, self.num_samples, self.seed)


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
        needs: which setting of its generator it cannot do without, if any.
        counts: where given, the table of cluster × class counts is kept with the cell.
    """

    function: Callable[[Subject], Mapping[str, float | None]]
    title: str
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    needs: Literal["classifier", "reference"] | None = None
    counts: Callable[[Subject], Sequence[Sequence[int]]] | None = None


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


def measure_choices(subject: Subject) -> dict[str, float | None]:
    """Returns what was chosen without labels, each with 1 if the choice was convincing, else 0."""
    found: dict[str, float | None] = {}
    for name, record in subject.shattered.origin.settings.get("chosen", {}).items():
        found[name] = record["value"]
        found[f"{name}_convincing"] = float(record["convincing"])
    return found


def measure_diagnostics(subject: Subject) -> dict[str, float | None]:
    """Measures what can be said without labels, but for reproducibility."""
    shattered = subject.shattered
    count = min(subject.num_samples, _LATENTS_DIAGNOSED)
    found = diagnose(shattered, num_latents=count, seed=subject.seed, refit=False)
    returned = found.return_rate
    sizes = shattered.cluster_sizes
    shares = [share or 0.0 for share, size in zip(returned.clusters, sizes, strict=True) if size]
    rates = [rate for rate in returned.acceptance_rates or () if rate is not None]
    seconds = returned.seconds_per_accepted
    return {
        "return_rate": returned.overall,
        "worst_return_rate": min(shares),
        "clusters_without_samples": returned.clusters.count(None),
        "milliseconds_per_accepted": None if seconds is None else 1000 * seconds,
        "acceptance_rate": mean(rates) if rates else None,
        "silhouette_latents": found.silhouette_latents,
        "silhouette_images": found.silhouette_images,
        "latent_output_agreement": found.latent_output_agreement,
    }


def measure_fidelity(subject: Subject) -> dict[str, float | None]:
    """Measures how close images come to real ones, before and after, and the mean of clusters."""
    if subject.reference is None:
        raise ParameterError("there are no reference images to compare with")
    found = shattering_fidelity(
        subject.shattered,
        subject.reference,
        classifier=subject.classifier,
        num_samples=subject.num_samples,
        seed=subject.seed,
    )
    parts = {
        "before": [found.before],
        "after": [found.after],
        "clusters": [scores for scores in found.clusters if scores is not None],
    }
    by_class = [one for one in parts["clusters"] if one.reference != found.after.reference]
    return {
        "clusters_scored": len(parts["clusters"]),
        "clusters_against_class": len(by_class),
        **{
            f"{score}_{part}": mean(getattr(one, score) for one in scores) if scores else None
            for score in _FIDELITY
            for part, scores in parts.items()
        },
    }


def _numbers(record: object) -> dict[str, float | None]:
    """Returns the fields of a record of scores that are numbers."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


_AGREEMENT = {
    "homogeneity": Metric("Homogeneity", "high"),
    "completeness": Metric("Completeness", "high"),
    "v_measure": Metric("V Measure", "high"),
    "adjusted_mutual_information": Metric("Adjusted MI", "high"),
    "overall_purity": Metric("Purity", "high"),
    "mean_cluster_entropy": Metric("Mean cluster entropy", "low", panel="entropy, nats"),
    "class_entropy": Metric("Total class entropy", panel="entropy, nats"),
}

_FIDELITY: dict[str, tuple[str, Literal["high", "low"] | None]] = {
    "fid": ("FID", "low"),
    "kid": ("KID", "low"),
    "precision": ("Precision", "high"),
    "recall": ("Recall", "high"),
    "density": ("Density", None),
    "coverage": ("Coverage", "high"),
}

MEASURES = {
    "clusters": Measure(
        lambda subject: _numbers(subject.latent_scores),
        "Clusters of the kept latents against classes",
        _AGREEMENT,
        needs="classifier",
        counts=lambda subject: subject.latent_scores.counts,
    ),
    "samples": Measure(
        lambda subject: _numbers(subject.sample_scores),
        "Samples from the mapper of each cluster against classes",
        _AGREEMENT,
        needs="classifier",
        counts=lambda subject: subject.sample_scores.counts,
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
    "choices": Measure(
        measure_choices,
        "What was chosen without labels",
        {
            "clusters": Metric("Clusters", form=".4g"),
            "clusters_convincing": Metric("Clusters, share of convincing choices", form=".2f"),
            "remove": Metric("Removed mass"),
            "remove_convincing": Metric("Removed mass, share of convincing choices", form=".2f"),
        },
    ),
    "diagnostics": Measure(
        measure_diagnostics,
        "Clusters and mapper, without labels",
        {
            "return_rate": Metric("Return rate", "high", panel="return rate"),
            "worst_return_rate": Metric("Return rate, worst", "high", panel="return rate"),
            "clusters_without_samples": Metric("Clusters without samples", "low", ".3g"),
            "acceptance_rate": Metric("Acceptance rate", "high"),
            "milliseconds_per_accepted": Metric("Milliseconds per sample", "low", ".3g"),
            "silhouette_latents": Metric("Silhouette of latents", "high", panel="silhouette"),
            "silhouette_images": Metric("Silhouette of images", "high", panel="silhouette"),
            "latent_output_agreement": Metric("Latent-output agreement", "high"),
        },
    ),
    "reproducibility": Measure(
        lambda subject: _numbers(reproducibility(subject.shattered, seed=subject.seed)),
        "Agreement of clusters that other seeds find",
        {
            "mean": Metric("Reproducibility", "high", panel="reproducibility"),
            "lowest": Metric("Reproducibility, worst pair", "high", panel="reproducibility"),
        },
    ),
    "fidelity": Measure(
        measure_fidelity,
        "Images against real ones, before and after shattering, and mean over clusters",
        {
            **{
                f"{score}_{part}": Metric(
                    f"{title} {part}", None if part == "before" else best, panel=title
                )
                for score, (title, best) in _FIDELITY.items()
                for part in ("before", "after", "clusters")
            },
            "clusters_scored": Metric("Clusters scored", form=".3g", panel="clusters"),
            "clusters_against_class": Metric(
                "Clusters against images of their class", form=".3g", panel="clusters"
            ),
        },
        needs="reference",
    ),
}
"""All measures by name."""

DEFAULT_MEASURES = ("clusters", "samples", "selection")
CHOICES = "choices"
"""The measure that every ablation has in which something is left to be chosen."""
