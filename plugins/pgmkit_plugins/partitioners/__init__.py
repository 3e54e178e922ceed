"""Partitioners: they split images, or latents, into parts. One file per method."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_partitioners() -> list[Component]:
    """Offers partitioners, none of which but `labels` sees labels."""
    return [
        Component(
            "kmeans",
            "pgmkit_plugins.partitioners.kmeans:KMeansPartitioner",
            "the nearest of the centres that k-means finds",
        ),
        Component(
            "mixture",
            "pgmkit_plugins.partitioners.mixture:MixturePartitioner",
            "the likeliest of Gaussians with full covariances",
        ),
        Component(
            "clusterer",
            "pgmkit_plugins.partitioners.clusterer:ClustererPartitioner",
            "any clusterer with scikit-learn's interface",
        ),
        Component(
            "manifold",
            "pgmkit_plugins.partitioners.manifold:ManifoldPartitioner",
            "clusters of a spectral embedding",
            citation="Ng, Jordan and Weiss, On Spectral Clustering: Analysis and an Algorithm, "
            "NeurIPS 2001",
        ),
        Component(
            "most-stable",
            "pgmkit_plugins.partitioners.most_stable:MostStable",
            "the most stable of several: contrastive, mixture and manifold, or those you name",
            citation="Lange, Roth, Braun and Buhmann, Stability-Based Validation of Clustering "
            "Solutions, Neural Computation 2004",
        ),
        Component(
            "self-trained",
            "pgmkit_plugins.partitioners.self_trained:SelfTrained",
            "the parts of another partitioner, corrected by a network that learns them",
            citation="Xie, Luong, Hovy and Le, Self-training with Noisy Student, CVPR 2020, from "
            "clusters instead of labels",
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
        ),
    ]
