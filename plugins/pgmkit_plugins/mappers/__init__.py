"""Mappers: they draw new latents of each cluster. One file per method."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_mappers() -> list[Component]:
    """Offers the mapper of the LASH paper, and those whose draws land where they should."""
    return [
        Component(
            "mixture",
            "pgmkit_plugins.mappers.mixture:MixtureMapper",
            "a Gaussian mixture per cluster",
            citation="Latent Shattering, section 3.2",
        ),
        Component(
            "refined",
            "pgmkit_plugins.mappers.refined:RefinedMapper",
            "mixtures, fitted again to those of their draws that land in the cluster",
        ),
        Component(
            "prior",
            "pgmkit_plugins.mappers.prior:PriorMapper",
            "the prior, whatever the cluster; a proposal for rejection",
        ),
        Component(
            "rejection",
            "pgmkit_plugins.mappers.rejection:RejectionMapper",
            "draws of another mapper, of which those are kept that lie in the cluster",
        ),
    ]
