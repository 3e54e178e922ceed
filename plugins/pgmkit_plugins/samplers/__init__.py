"""Cluster samplers: they find clusters of latents and draw new ones. One file per method."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_cluster_samplers() -> list[Component]:
    """Offers the sampler of the LASH paper and samplers that look at the images."""
    return [
        Component(
            "kmeans-gmm",
            "pgmkit_plugins.samplers.kmeans_gmm:KMeansGMM",
            "k-means on latents, then a Gaussian mixture per cluster",
            citation="Latent Shattering, section 3.2",
        ),
        Component(
            "output-kmeans",
            "pgmkit_plugins.samplers.output_kmeans:OutputKMeans",
            "k-means on principal components of the generated images",
        ),
        Component(
            "output-mixture",
            "pgmkit_plugins.samplers.output_mixture:OutputMixture",
            "Gaussians on principal components of the generated images",
        ),
        Component(
            "feature-kmeans",
            "pgmkit_plugins.samplers.feature_kmeans:FeatureKMeans",
            "k-means on features that a timm model or your own network has of the images",
        ),
        Component(
            "manifold",
            "pgmkit_plugins.samplers.manifold:Manifold",
            "clusters of a spectral or UMAP embedding of the images",
            citation="Ng, Jordan and Weiss, On Spectral Clustering: Analysis and an Algorithm, "
            "NeurIPS 2001; McInnes, Healy and Melville, UMAP, arXiv:1802.03426; Campello, Moulavi "
            "and Sander, Density-Based Clustering Based on Hierarchical Density Estimates, "
            "PAKDD 2013",
        ),
        Component(
            "learned",
            "pgmkit_plugins.samplers.learned:Learned",
            "k-means on features learned from the generator's images by contrast",
            citation="Chen et al., SimCLR, 2020, with moves of the latent",
        ),
        Component(
            "self-trained",
            "pgmkit_plugins.samplers.self_trained:SelfTrained",
            "the clusters of another sampler, corrected by a network that learns them",
            citation="Xie, Luong, Hovy and Le, Self-training with Noisy Student, CVPR 2020, from "
            "clusters instead of labels",
        ),
        Component(
            "most-stable",
            "pgmkit_plugins.samplers.most_stable:MostStable",
            "the most stable of several: learned and manifold, or those that you name",
            citation="Lange, Roth, Braun and Buhmann, Stability-Based Validation of Clustering "
            "Solutions, Neural Computation 2004",
        ),
        Component(
            "clusterer",
            "pgmkit_plugins.samplers.clusterer:AnyClusterer",
            "any clusterer with scikit-learn's interface, on images or latents",
        ),
    ]
