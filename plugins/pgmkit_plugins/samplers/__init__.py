"""Cluster samplers: they find clusters of latents and draw new ones from each."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_cluster_samplers() -> list[Component]:
    """Offers any partitioner with any mapper, and the sampler of the LASH paper."""
    return [
        Component(
            "partition",
            "pgmkit.sampling:PartitionSampler",
            "the parts of a partitioner, and the draws of a mapper",
        ),
        Component(
            "kmeans-gmm",
            "pgmkit_plugins.samplers.kmeans_gmm:kmeans_gmm",
            "k-means on latents, then a Gaussian mixture per cluster",
            citation="Latent Shattering, section 3.2",
        ),
        Component(
            "merged",
            "pgmkit.sampling:MergedSampler",
            "clusters of another sampler, some taken together",
        ),
        Component(
            "split",
            "pgmkit.sampling:SplitSampler",
            "clusters of another sampler, one split by its images",
        ),
    ]
