"""What can be said of clusters without labels or data.

None of these says that clusters are classes. They say whether clusters are apart, whether another
seed would find them again, whether they show in the images, and whether the mapper hits them.
"""

import itertools
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.contracts import Rejects, acceptance_rate_of, fit_sampler, predicted_by
from pgmkit.errors import ParameterError, PgmkitWarning, SamplingError
from pgmkit.evaluate.metrics import kept_latents
from pgmkit.generator import Generator
from pgmkit.images import shrunk
from pgmkit.machine import thread_limit
from pgmkit.partition.fixed import FixedPartitioner
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed, random_generator
from pgmkit.shattering import ShatteredGenerator

_STARTS = 4
_SIDE = 32


@dataclass(frozen=True)
class ReturnRate:
    """Whether the mapper's samples come back to the cluster that they were asked from.

    Args:
        overall: share of samples that `predict` assigns to the cluster they were asked from, in
            [0, 1], clusters weighted by size. A mapper that ignores clusters scores about 1/k.
        clusters: the same for each cluster; None for one that is empty or cannot be sampled, which
            has no part in the numbers over all.
        seconds_per_accepted: time of drawing over samples that came back, clusters weighted by
            size; None if none did. G is not run unless the sampler itself does.
        acceptance_rates: for each cluster the share of proposals that a sampler which rejects some
            keeps, in [0, 1]; None if it reports none.
        num_samples: samples asked from each cluster.
    """

    overall: float
    clusters: Sequence[float | None]
    seconds_per_accepted: float | None
    acceptance_rates: Sequence[float | None] | None
    num_samples: int


@dataclass(frozen=True)
class Reproducibility:
    """Whether other seeds find the same clusters.

    Args:
        mean: adjusted mutual information between two clusterings, mean over all pairs; 0 for
            chance, 1 if all agree.
        lowest: of the worst pair.
        num_fits: clusterings that were compared.
        num_fitted: latents that each was fitted on.
        num_held_out: other latents that all were compared on.
    """

    mean: float
    lowest: float
    num_fits: int
    num_fitted: int
    num_held_out: int


@dataclass(frozen=True)
class Diagnostics:
    """All that can be said of a shattered generator without labels.

    Args:
        latents: which ones were looked at: "kept latents", or "mapper samples" of a result that was
            loaded, which tend to look a little tidier.
        num_latents: how many.
        silhouette_latents: of the clusters in latent space; see `silhouette`.
        silhouette_images: of the same clusters in the space of pixels; images larger than 32 pixels
            are made smaller first.
        latent_output_agreement: see `latent_output_agreement`; on the same images.
        reproducibility: see `reproducibility`; None for a result that was loaded, or if not asked
            for.
        return_rate: see `return_rate`.
    """

    latents: str
    num_latents: int
    silhouette_latents: float | None
    silhouette_images: float | None
    latent_output_agreement: float
    reproducibility: Reproducibility | None
    return_rate: ReturnRate


def diagnose(
    shattered: ShatteredGenerator, *, num_latents: int = 5_000, seed: int = 0, refit: bool = True
) -> Diagnostics:
    """Returns all label-free diagnostics.

    Args:
        shattered: fresh or loaded.
        num_latents: how many latents are looked at, at most; the sampler is refitted on all.
        seed: of everything random.
        refit: whether to measure reproducibility, for which the sampler is fitted again.

    Raises:
        ParameterError: `num_latents` is below 1.
        SamplingError: no cluster can be sampled.
    """
    check_count("the number of latents", num_latents)
    seed = derive_seed(seed, "diagnostics")
    fresh = shattered.spectrum is not None
    if fresh:
        latents, clusters = kept_latents(shattered), torch.as_tensor(shattered.sampler.labels_)
        chosen = _subset(len(latents), num_latents, seed)
        latents, clusters = latents[chosen], clusters[chosen]
    else:
        latents, clusters = shattered.draw(num_latents, seed=seed)
    images = _small_images(shattered.generator, latents)
    per_cluster = max(1, num_latents // shattered.num_clusters)
    return Diagnostics(
        latents="kept latents" if fresh else "mapper samples",
        num_latents=len(latents),
        silhouette_latents=silhouette(latents, clusters, seed=seed),
        silhouette_images=silhouette(images, clusters, seed=seed),
        latent_output_agreement=latent_output_agreement(images, clusters, seed=seed),
        reproducibility=reproducibility(shattered, seed=seed) if fresh and refit else None,
        return_rate=return_rate(shattered, per_cluster, seed=seed),
    )


def silhouette(
    points: Tensor, clusters: Tensor, *, max_points: int = 2_000, seed: int = 0
) -> float | None:
    """Returns the mean silhouette coefficient (Rousseeuw 1987), in [-1, 1].

    1 if clusters are far apart, 0 if they touch, below 0 if points lie nearer to another cluster
    than to their own. Parts of one Gaussian, which k-means cuts out of any prior, are near 0.
    Distances are Euclidean, so in many dimensions all values shrink towards 0.

    Args:
        points: latents (n, M) or images (n, C, H, W).
        clusters: of each, (n,).
        max_points: a random subset of this size stands for more points.
        seed: of the subset.

    Returns:
        None if the points lie in one cluster, or each in its own.
    """
    chosen = _subset(len(points), max_points, seed)
    flat = points[chosen].flatten(1).double().numpy()
    labels = clusters.cpu()[chosen].numpy()
    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    return float(metrics.silhouette_score(flat, labels))


def latent_output_agreement(
    images: Tensor, clusters: Tensor, *, num_components: int = 50, seed: int = 0
) -> float:
    """Returns how far clusters agree with clusters of the images themselves.

    That is the adjusted mutual information between the given clusters and as many that k-means
    finds in the leading principal components of the images: 0 for chance, 1 for identity. A low
    value means that the clusters do not show in raw pixels; they may still be classes.

    Args:
        images: G(z), (n, C, H, W).
        clusters: found for the same latents, (n,).
        num_components: principal components, at most.
        seed: of both methods.
    """
    pixels = images.flatten(1).double().numpy()
    labels = clusters.cpu().numpy()
    state = derive_seed(seed, "outputs") % 2**32
    k = len(np.unique(labels))
    with thread_limit(1):
        if num_components < min(pixels.shape):
            pca = PCA(num_components, svd_solver="randomized", random_state=state)
            pixels = pca.fit_transform(pixels)
        if len(np.unique(pixels, axis=0)) < k:
            return 0.0  # images that are all alike have no clusters
        found = KMeans(k, n_init=_STARTS, random_state=state).fit_predict(pixels)
    return float(metrics.adjusted_mutual_info_score(labels, found))


def reproducibility(
    shattered: ShatteredGenerator, *, num_fits: int = 3, seed: int = 0
) -> Reproducibility:
    """Returns how far samplers that are fitted with other seeds find the same clusters.

    Each is fitted on the same three quarters of the kept latents and assigns the remaining quarter.
    High values need not mean good clusters: a method that always cuts the latent space in the same
    arbitrary way is stable, too.

    Args:
        shattered: a fresh result of a sampler that a plugin offers.
        num_fits: how many samplers are fitted, at least 2.
        seed: from which those of the fits come.

    Raises:
        ParameterError: the result was loaded, is of a sampler of one's own, or has too few latents.
    """
    if num_fits < 2:
        raise ParameterError(f"reproducibility compares at least 2 fits, not {num_fits}")
    name, parameters = (shattered.origin.sampler[part] for part in ("name", "params"))
    if ":" not in name:
        raise ParameterError(
            f"the cluster sampler {name!r} is no component, so it cannot be built again; offer it "
            "in a plugin and pass its name"
        )
    if isinstance(getattr(shattered.sampler, "partitioner", None), FixedPartitioner):
        raise ParameterError(
            "its partitioner was fitted before, to other images; there is nothing to fit again"
        )
    parameters = {"num_clusters": shattered.num_clusters, **parameters}
    latents = kept_latents(shattered)
    order = _subset(len(latents), len(latents), derive_seed(seed, "reproducibility"))
    held_out, fitted = latents[order[: len(order) // 4]], latents[order[len(order) // 4 :]]
    if len(held_out) < 2:
        raise ParameterError(f"{len(latents)} kept latents are too few to compare fits on")
    assigned = []
    for index in range(num_fits):
        sampler = build("cluster-samplers", name, **parameters)
        with warnings.catch_warnings():
            # Small clusters were warned of when the result was made.
            warnings.simplefilter("ignore", PgmkitWarning)
            fit_sampler(
                sampler,
                fitted,
                generator=shattered.generator,
                seed=derive_seed(seed, "refit", index),
            )
        assigned.append(predicted_by(sampler, held_out).numpy())
    scores = [
        float(metrics.adjusted_mutual_info_score(*pair))
        for pair in itertools.combinations(assigned, 2)
    ]
    return Reproducibility(
        mean=sum(scores) / len(scores),
        lowest=min(scores),
        num_fits=num_fits,
        num_fitted=len(fitted),
        num_held_out=len(held_out),
    )


def return_rate(
    shattered: ShatteredGenerator, num_samples: int = 500, *, seed: int = 0
) -> ReturnRate:
    """Asks the mapper for samples of each cluster and the clusterer where they belong.

    Raises:
        ParameterError: `num_samples` is below 1.
        SamplingError: no cluster can be sampled.
    """
    check_count("the number of samples", num_samples)
    seed = derive_seed(seed, "return")
    returned: list[float | None] = []
    total_share = total_seconds = total_size = 0.0
    for cluster, size in enumerate(shattered.cluster_sizes):
        started = time.perf_counter()
        latents = shattered.draw(num_samples, cluster, seed)[0] if size else torch.empty(0)
        seconds = time.perf_counter() - started
        if not len(latents):
            returned.append(None)
            continue
        share = float((shattered.predict(latents) == cluster).double().mean())
        returned.append(share)
        total_share += share * size
        total_seconds += seconds / num_samples * size
        total_size += size
    if not total_size:
        raise SamplingError(f"none of the {shattered.num_clusters} clusters can be sampled")
    return ReturnRate(
        overall=total_share / total_size,
        clusters=returned,
        seconds_per_accepted=total_seconds / total_share if total_share else None,
        acceptance_rates=_acceptance_rates(shattered),
        num_samples=num_samples,
    )


def _small_images(generator: Generator, latents: Tensor) -> Tensor:
    """Returns G(z) on the CPU, larger images made smaller batch by batch to bound the memory.

    The longer side becomes 32 pixels.
    """
    batches = generator.image_batches(latents)
    return torch.cat([shrunk(batch.float(), _SIDE).cpu() for batch in batches])


def _acceptance_rates(shattered: ShatteredGenerator) -> list[float | None] | None:
    sampler = shattered.sampler
    if not isinstance(sampler, Rejects):
        return None
    rates = [
        acceptance_rate_of("cluster-samplers", sampler, cluster)
        for cluster in range(shattered.num_clusters)
    ]
    return None if all(rate is None for rate in rates) else rates


def _subset(count: int, at_most: int, seed: int) -> Tensor:
    """Returns `at_most` of `count` indices, all different, in random order."""
    return torch.randperm(count, generator=random_generator(seed, "subset"))[:at_most]
