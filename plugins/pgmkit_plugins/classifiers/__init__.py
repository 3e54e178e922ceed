"""Classifiers that score clusters, one file per network."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_classifiers() -> list[Component]:
    """Offers the networks that give generated images their classes."""
    return [
        Component(
            "lash-classifier",
            "pgmkit_plugins.classifiers.lash:LASHClassifier",
            "two convolutions and a linear layer on 28×28 images",
            citation="appendix A.2 of the LASH paper",
        ),
        Component(
            "residual-classifier",
            "pgmkit_plugins.classifiers.residual:ResidualClassifier",
            "residual blocks on photographs of 32×32",
            citation="He et al. 2016",
            trial={"width": 2},
        ),
    ]
