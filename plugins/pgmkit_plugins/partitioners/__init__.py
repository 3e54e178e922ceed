"""Partitioners: they split images, or latents, into parts. One file per method."""

from pgmkit import Component, hookimpl

_QUICK = {"steps": 3, "batch_size": 16, "width": 4}


@hookimpl
def pgmkit_partitioners() -> list[Component]:
    """Offers partitioners, none of which but `labels` sees labels."""
    return [
        Component(
            "kmeans",
            "pgmkit_plugins.partitioners.kmeans:KMeansPartitioner",
            "the nearest of the centres that k-means finds",
            trial={"num_partitions": 4},
        ),
        Component(
            "mixture",
            "pgmkit_plugins.partitioners.mixture:MixturePartitioner",
            "the likeliest of Gaussians with full covariances",
            trial={"num_partitions": 4, "features": {"name": "pca", "num_dims": 5}},
        ),
        Component(
            "clusterer",
            "pgmkit_plugins.partitioners.clusterer:ClustererPartitioner",
            "any clusterer with scikit-learn's interface",
            trial={"num_partitions": 4},
        ),
        Component(
            "manifold",
            "pgmkit_plugins.partitioners.manifold:ManifoldPartitioner",
            "clusters of a spectral embedding",
            citation="Ng, Jordan and Weiss, On Spectral Clustering: Analysis and an Algorithm, "
            "NeurIPS 2001",
            trial={"num_partitions": 4},
        ),
        Component(
            "most-stable",
            "pgmkit_plugins.partitioners.most_stable:MostStable",
            "the most stable of several: contrastive, mixture and manifold, or those you name",
            citation="Lange, Roth, Braun and Buhmann, Stability-Based Validation of Clustering "
            "Solutions, Neural Computation 2004",
            trial={"num_partitions": 4, "candidates": ["kmeans"]},
        ),
        Component(
            "self-trained",
            "pgmkit_plugins.partitioners.self_trained:SelfTrained",
            "the parts of another partitioner, corrected by a network that learns them",
            citation="Xie, Luong, Hovy and Le, Self-training with Noisy Student, CVPR 2020, from "
            "clusters instead of labels",
            trial={"num_partitions": 4, "base": "kmeans", **_QUICK},
        ),
        Component(
            "fixed",
            "pgmkit.partition.fixed:FixedPartitioner",
            "parts that were found before, in other images",
        ),
        Component(
            "labels",
            "pgmkit_plugins.partitioners.labels:Labels",
            "supervised: the classes that a network predicts; an upper bound for comparisons",
            trial=_QUICK,
        ),
        Component(
            "random",
            "pgmkit_plugins.partitioners.random:RandomPartitioner",
            "the largest of random projections, which look for nothing; for comparisons",
        ),
        Component(
            "single",
            "pgmkit_plugins.partitioners.single:Single",
            "one part, everything: the unconditional baseline",
        ),
        Component(
            "iresnet",
            "pgmkit_plugins.partitioners.iresnet:IResNet",
            "an invertible residual network that gives images and their neighbours one part",
            citation="Armandpour, Sadeghian, Li and Zhou, Partition-Guided GANs, CVPR 2021",
            trial={
                "num_partitions": 4,
                "network": {"blocks": [1, 1], "width": 16, "power_iterations": 1},
                "pretext": {"steps": 3, "batch_size": 24, "projection": [32, 16]},
                "partition": {"steps": 3, "batch_size": 24, "num_neighbors": 5},
                "deformations": "digits",
            },
        ),
    ]
