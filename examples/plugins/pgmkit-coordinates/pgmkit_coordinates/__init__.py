"""Offers a backbone to pgmkit, and the loader of what is trained with it.

This module must not import torch; that of the factories may.
"""

from pgmkit import Component, hookimpl

_TRIAL = {"latent_dim": 5, "side": 8, "width": 8, "image_channels": 1}
_SOURCE = "Anokhin et al., Image Generators with Conditionally-Independent Pixel Synthesis, 2021"


@hookimpl
def pgmkit_backbones():
    """Returns what pgmkit lists."""
    return [
        Component(
            "coordinates",
            factory="pgmkit_coordinates.component:Coordinates",
            summary="a generator that paints each pixel from its place",
            citation=_SOURCE,
            trial=_TRIAL,
        )
    ]


@hookimpl
def pgmkit_generator_loaders():
    """Returns the loader of the same name and parameters, and num_partitions."""
    return [
        Component(
            "coordinates",
            factory="pgmkit_coordinates.component:Generator",
            summary="the generator of the backbone of this name",
            citation=_SOURCE,
            trial=_TRIAL,
        )
    ]
