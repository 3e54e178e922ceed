"""Density estimators: each maps a Spectrum to one log-weight per latent. One file per method."""

from pgmkit import Component, hookimpl

_PACKAGE = "pgmkit_plugins.density"


@hookimpl
def pgmkit_density_estimators() -> list[Component]:
    """Offers the estimators of the LASH paper."""
    return [
        Component(
            "lash",
            f"{_PACKAGE}.lash:LASH",
            "density of G(z) by the volume change of G",
            citation="Latent Shattering, Eq. 1 and 2",
        ),
        Component(
            "jbt",
            f"{_PACKAGE}.jbt:JBT",
            "smallest Frobenius norm of the Jacobian",
            citation="Tanielian et al., Learning disconnected manifolds: a no GAN's land, 2020",
        ),
        Component(
            "polarity",
            f"{_PACKAGE}.polarity:Polarity",
            "resampling by a power of the volume change",
            citation="Humayun et al., Polarity Sampling, 2022",
        ),
        Component("none", f"{_PACKAGE}.none:NoDensity", "the prior itself, the baseline"),
    ]
