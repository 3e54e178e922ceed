"""Cluster samplers: they find clusters of latents and draw new ones from each."""

from pgmkit import Component, hookimpl

_FOUR = {"name": "kmeans-gmm", "num_clusters": 4}


@hookimpl
def pgmkit_cluster_samplers() -> list[Component]:
    """Offers any partitioner with any mapper, and the sampler of the LASH paper."""
    return [
        Component(
            "partition",
            "pgmkit.sampling:PartitionSampler",
            "the parts of a partitioner, and the draws of a mapper",
            trial={"num_clusters": 4, "partitioner": {"name": "kmeans", "features": "pixels"}},
        ),
        Component(
            "kmeans-gmm",
            "pgmkit_plugins.samplers.kmeans_gmm:kmeans_gmm",
            "k-means on latents, then a Gaussian mixture per cluster",
            citation="Latent Shattering, section 3.2",
            trial={"num_clusters": 4},
        ),
        Component(
            "merged",
            "pgmkit.sampling:MergedSampler",
            "clusters of another sampler, some taken together",
            trial={"sampler": _FOUR, "groups": [[0, 2], [1], [3]]},
        ),
        Component(
            "split",
            "pgmkit.sampling:SplitSampler",
            "clusters of another sampler, one split by its images",
            trial={
                "sampler": _FOUR,
                "cluster": 1,
                "partitioner": {"name": "kmeans", "num_partitions": 2, "features": "pixels"},
            },
        ),
    ]
