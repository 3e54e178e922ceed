"""How well clusters match classes. Class labels come from a classifier and serve nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn import metrics
from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.seeds import derive_seed
from pgmkit.shattering import ShatteredGenerator


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of clusters with classes (LASH paper, section 5.3).

    Args:
        homogeneity: 1 if each cluster holds one class, in [0, 1].
        completeness: 1 if each class lies in one cluster, in [0, 1].
        v_measure: harmonic mean of the two, in [0, 1].
        adjusted_mutual_information: mutual information corrected for chance (Vinh et al. 2010,
            arithmetic mean), 0 for chance and 1 for identity.
        class_entropy: of the classes over all samples, nats; what removal costs in diversity.
        purity: for each cluster the share of its most frequent class, in [0, 1]; 0 if empty.
        majority: for each cluster the name of that class; "" if empty.
        num_samples: how many samples were scored.
    """

    homogeneity: float
    completeness: float
    v_measure: float
    adjusted_mutual_information: float
    class_entropy: float
    purity: Sequence[float]
    majority: Sequence[str]
    num_samples: int


def cluster_scores(
    clusters: Tensor, classes: Tensor, num_clusters: int, class_names: Sequence[str]
) -> ClusterScores:
    """Compares cluster numbers (n,) with class numbers (n,).

    Raises:
        ParameterError: they have different lengths or are empty.
    """
    if len(clusters) != len(classes) or not len(clusters):
        raise ParameterError(
            f"clusters and classes must have the same length above 0, not {len(clusters)} and "
            f"{len(classes)}"
        )
    counts = torch.zeros(num_clusters, len(class_names), dtype=torch.int64)
    counts.index_put_((clusters.cpu(), classes.cpu()), torch.tensor(1), accumulate=True)
    sizes = counts.sum(dim=1)
    shares = counts.sum(dim=0) / len(classes)
    found = metrics.homogeneity_completeness_v_measure(classes.numpy(), clusters.numpy())
    homogeneity, completeness, v_measure = map(float, found)
    return ClusterScores(
        homogeneity=homogeneity,
        completeness=completeness,
        v_measure=v_measure,
        adjusted_mutual_information=float(
            metrics.adjusted_mutual_info_score(classes.numpy(), clusters.numpy())
        ),
        class_entropy=float(-shares[shares > 0].mul(shares[shares > 0].log()).sum()),
        purity=[round(float(p), 6) for p in counts.max(dim=1).values / sizes.clamp(min=1)],
        majority=[
            class_names[int(row.argmax())] if size else ""
            for row, size in zip(counts, sizes.tolist(), strict=True)
        ],
        num_samples=len(classes),
    )


def score_latents(shattered: ShatteredGenerator, classifier: Classifier) -> ClusterScores:
    """Scores the clusters on the kept latents themselves (the protocol of the paper's Table 1).

    Raises:
        ParameterError: the shattered generator was loaded and no longer has its latents.
    """
    if shattered.spectrum is None or shattered.selection is None:
        raise ParameterError("the kept latents are not saved; score a fresh result, or samples")
    latents = shattered.spectrum.latents[shattered.selection.kept]
    return _score(shattered, classifier, latents, torch.as_tensor(shattered.sampler.labels_))


def score_samples(
    shattered: ShatteredGenerator, classifier: Classifier, num_samples: int = 10_000, seed: int = 0
) -> ClusterScores:
    """Scores samples from the mapper, clusters mixed by size (the paper's Table 2)."""
    seed = derive_seed(seed, "score")
    latents = shattered.sample_latents(num_samples, seed=seed)
    return _score(shattered, classifier, latents, shattered.sample_clusters(num_samples, seed))


def _score(
    shattered: ShatteredGenerator, classifier: Classifier, latents: Tensor, clusters: Tensor
) -> ClusterScores:
    classes = torch.cat(
        [
            classifier.labels(shattered.images(batch), shattered.generator.image.range)
            for batch in latents.split(1024)
        ]
    )
    return cluster_scores(clusters, classes.cpu(), shattered.num_clusters, classifier.classes)
