"""Cluster samplers: they find clusters of latents and draw new ones. One file per method."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_cluster_samplers() -> list[Component]:
    """Offers the sampler of the LASH paper."""
    return [
        Component(
            "kmeans-gmm",
            "pgmkit_plugins.samplers.kmeans_gmm:KMeansGMM",
            "k-means on latents, then a Gaussian mixture per cluster",
            citation="Latent Shattering, section 3.2",
        ),
        Component(
            "learned",
            "pgmkit_plugins.samplers.learned:Learned",
            "k-means on features learned from the generator's images by contrast",
            citation="Chen et al., SimCLR, 2020, with moves of the latent",
        ),
    ]
