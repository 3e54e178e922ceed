"""Pictures of shattered generators: a row of samples per cluster, with its size and purity."""

import numpy as np
import torch
from matplotlib.figure import Figure

from pgmkit import pictures
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.figures import png
from pgmkit.shattering import ShatteredGenerator

_INCHES = 0.42  # of one sample


def cluster_grid(
    shattered: ShatteredGenerator,
    title: str,
    classifier: Classifier | None = None,
    *,
    columns: int = 16,
    scored: int = 200,
    seed: int = 0,
) -> bytes:
    """Draws samples of the mapper of each cluster, as PNG; a cluster without samples is blank.

    Args:
        shattered: fresh or loaded.
        title: above the picture.
        classifier: names each cluster by its most frequent class, with its share (purity).
        columns: samples of each cluster that are shown, at least 1; the first, none is chosen.
        scored: samples of each cluster that purity is of; at least `columns`.
        seed: of the samples.
    """
    sizes, value_range = shattered.cluster_sizes, shattered.generator.image.range
    height, width = shattered.generator.image.shape[1:]
    high = _INCHES * height / width + 0.06
    figure = Figure((_INCHES * columns + 1.8, high * len(sizes) + 0.4), layout="compressed")
    grid = figure.subplots(len(sizes), 1, squeeze=False).flatten()
    for cluster, axes in enumerate(grid):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        label = f"cluster {cluster}"
        count = max(columns, scored if classifier else 0)
        latents = shattered.try_cluster(count, cluster, seed) if sizes[cluster] else None
        if latents is not None:
            images = shattered.images(latents)
            strip = pictures.grid(pictures.to_uint8(images[:columns], value_range), columns)
            axes.imshow(strip, cmap="gray" if strip.ndim == 2 else None, vmin=0, vmax=255)
            if classifier is not None:
                label += f": {_purity(images, classifier, value_range)}"
        else:
            label += ": cannot be sampled" if sizes[cluster] else ""
            axes.imshow(np.full((height, width * columns), 255), cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(
            f"{label}\n{sizes[cluster]:,} latents",
            rotation=0,
            ha="right",
            va="center",
            fontsize="small",
        )
    figure.suptitle(title, fontsize="medium")
    return png(figure)


def _purity(images: torch.Tensor, classifier: Classifier, value_range: tuple[float, float]) -> str:
    counts = classifier.labels(images, value_range).bincount(minlength=len(classifier.classes))
    return f"{classifier.classes[int(counts.argmax())]}, {counts.max() / counts.sum():.0%}"
