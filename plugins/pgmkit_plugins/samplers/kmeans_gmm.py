"""k-means on the latents, then a Gaussian mixture per cluster."""

from pgmkit_plugins.samplers.composed import ComposedSampler


class KMeansGMM(ComposedSampler):
    """The cluster sampler of the LASH paper (section 3.2): k-means on latents, and mixtures.

    Parameters and attributes are those of `ComposedSampler`; `cluster_centers_` are latents (k, M).
    """
