"""Offers features to pgmkit. This module must not import torch; the factory's may."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_features():
    """Returns what pgmkit lists."""
    return [
        Component(
            "own-network",
            factory="pgmkit_own_network.component:OwnNetwork",
            summary="what a network of one's own sees",
        )
    ]
