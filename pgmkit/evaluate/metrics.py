"""How well clusters match classes. Class labels come from a classifier and serve nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.generator import Generator
from pgmkit.progress import track
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
        normalized_mutual_information: the same without the correction (arithmetic mean), in [0, 1];
            above 0 for chance, the more so the more clusters there are.
        class_entropy: of the classes over all samples, nats; what removal costs in diversity.
        mean_cluster_entropy: mean of `cluster_entropy` over the clusters that are not empty, each
            counted once, nats; most likely the "average cluster entropy" of the paper's Figure 3.
            Weighted by size the mean would be class_entropy · (1 - homogeneity).
        overall_purity: mean of `purity`, weighted by cluster size, in [0, 1]; never below the share
            of the most frequent class.
        purity: for each cluster the share of its most frequent class, in [0, 1]; 0 if empty.
        cluster_entropy: for each cluster the entropy of its classes, nats, from 0 (also if empty)
            to the logarithm of the number of classes.
        majority: for each cluster the name of that class; "" if empty.
        counts: samples by cluster and class, (k, number of classes).
        num_samples: how many samples were scored.
    """

    homogeneity: float
    completeness: float
    v_measure: float
    adjusted_mutual_information: float
    normalized_mutual_information: float
    class_entropy: float
    mean_cluster_entropy: float
    overall_purity: float
    purity: Sequence[float]
    cluster_entropy: Sequence[float]
    majority: Sequence[str]
    counts: Sequence[Sequence[int]]
    num_samples: int


def cluster_scores(
    clusters: Tensor, classes: Tensor, num_clusters: int, class_names: Sequence[str]
) -> ClusterScores:
    """Compares cluster numbers (n,) with class numbers (n,).

    Raises:
        ParameterError: they have different lengths, are empty, or hold a number out of range.
    """
    if len(clusters) != len(classes) or not len(clusters):
        raise ParameterError(
            f"clusters and classes must have the same length above 0, not {len(clusters)} and "
            f"{len(classes)}"
        )
    for what, numbers, bound in (
        ("clusters", clusters, num_clusters),
        ("classes", classes, len(class_names)),
    ):
        if int(numbers.min()) < 0 or int(numbers.max()) >= bound:
            raise ParameterError(
                f"the numbers of the {what} go from {int(numbers.min())} to {int(numbers.max())}, "
                f"and there are {bound} {what}, from 0"
            )
    from sklearn import metrics

    clusters, classes = clusters.cpu(), classes.cpu()
    counts = torch.zeros(num_clusters, len(class_names), dtype=torch.int64)
    counts.index_put_((clusters, classes), torch.tensor(1), accumulate=True)
    sizes = counts.sum(dim=1)
    largest = counts.max(dim=1).values
    entropy = _entropy(counts)
    found = metrics.homogeneity_completeness_v_measure(classes.numpy(), clusters.numpy())
    homogeneity, completeness, v_measure = map(float, found)
    return ClusterScores(
        homogeneity=homogeneity,
        completeness=completeness,
        v_measure=v_measure,
        adjusted_mutual_information=float(
            metrics.adjusted_mutual_info_score(classes.numpy(), clusters.numpy())
        ),
        normalized_mutual_information=float(
            metrics.normalized_mutual_info_score(classes.numpy(), clusters.numpy())
        ),
        class_entropy=float(_entropy(counts.sum(dim=0))),
        mean_cluster_entropy=float(entropy[sizes > 0].mean()),
        overall_purity=float(largest.sum() / len(classes)),
        purity=[round(float(p), 6) for p in largest / sizes.clamp(min=1)],
        cluster_entropy=[round(float(e), 6) for e in entropy],
        majority=[
            class_names[int(row.argmax())] if size else ""
            for row, size in zip(counts, sizes.tolist(), strict=True)
        ],
        counts=counts.tolist(),
        num_samples=len(classes),
    )


def classify_latents(generator: Generator, classifier: Classifier, latents: Tensor) -> Tensor:
    """Returns the class number of G(z), int64 (n,), for latents (n, M)."""
    name = f"classes of images by {classifier.name}"
    batches = track(generator.image_batches(latents), name, len(latents), "image", len)
    return torch.cat([classifier.labels(images, generator.image.range) for images in batches])


def score_latents(shattered: ShatteredGenerator, classifier: Classifier) -> ClusterScores:
    """Scores the clusters on the kept latents themselves (the protocol of the paper's Table 1).

    Raises:
        ParameterError: the shattered generator was loaded and no longer has its latents.
    """
    latents = kept_latents(shattered)
    classes = classify_latents(shattered.generator, classifier, latents)
    labels = torch.as_tensor(shattered.sampler.labels_)
    return cluster_scores(labels, classes, shattered.num_clusters, classifier.classes)


def score_known(
    shattered: ShatteredGenerator, classes: Tensor, class_names: Sequence[str]
) -> ClusterScores:
    """Scores as `score_latents` does, with classes that are known and without running G.

    Where many methods share one spectrum, its latents need only be classified once.

    Args:
        shattered: what `pgmkit.shatter` returned.
        classes: class number of every latent of the spectrum, kept or not, int64 (n,), as
            `classify_latents` gives them.
        class_names: of all classes, in order.

    Raises:
        ParameterError: the shattered generator was loaded and no longer has its latents, or there
            is not one class for each latent of its spectrum.
    """
    kept_latents(shattered)
    assert shattered.spectrum is not None
    assert shattered.selection is not None
    if classes.shape != (len(shattered.spectrum),):
        raise ParameterError(
            f"classes must hold one number for each of the {len(shattered.spectrum)} latents of "
            f"the spectrum, kept or not, so they cannot have the shape {tuple(classes.shape)}"
        )
    labels, kept = torch.as_tensor(shattered.sampler.labels_), classes[shattered.selection.kept]
    return cluster_scores(labels, kept, shattered.num_clusters, class_names)


def score_samples(
    shattered: ShatteredGenerator, classifier: Classifier, num_samples: int = 10_000, seed: int = 0
) -> ClusterScores:
    """Scores samples from the mapper, clusters mixed by size (the paper's Table 2).

    Clusters that cannot be sampled count as empty, with a warning.

    Raises:
        SamplingError: none of them can be sampled.
    """
    latents, clusters = shattered.draw(num_samples, seed=derive_seed(seed, "score"))
    return cluster_scores(
        clusters,
        classify_latents(shattered.generator, classifier, latents),
        shattered.num_clusters,
        classifier.classes,
    )


def kept_latents(shattered: ShatteredGenerator) -> Tensor:
    """Returns the latents (n, M) that were clustered.

    Raises:
        ParameterError: the shattered generator was loaded and no longer has them.
    """
    if shattered.spectrum is None or shattered.selection is None:
        raise ParameterError("the kept latents are not saved; score a fresh result, or samples")
    return shattered.spectrum.latents[shattered.selection.kept]


def _entropy(counts: Tensor) -> Tensor:
    """Returns the entropy in nats, float64, over the last dimension; 0 where all counts are 0."""
    shares = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy
