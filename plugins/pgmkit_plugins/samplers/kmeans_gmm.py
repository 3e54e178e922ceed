"""k-means on the latents, then a Gaussian mixture per cluster."""

from pgmkit.sampling import PartitionSampler


def kmeans_gmm(
    num_clusters: int = 10, num_starts: int = 4, num_components: int = 2
) -> PartitionSampler:
    """Builds the cluster sampler of the LASH paper (section 3.2).

    Args:
        num_clusters: k, at least 1.
        num_starts: runs of k-means from different centres, of which the best is kept.
        num_components: Gaussians per cluster, at least 1.
    """
    partitioner = {"name": "kmeans", "features": "latents", "num_starts": num_starts}
    mapper = {"name": "mixture", "num_components": num_components}
    return PartitionSampler(num_clusters, partitioner, mapper)
