"""Offers a density estimator to pgmkit. This module must not import torch; the factory's may."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_density_estimators():
    """Returns what pgmkit lists."""
    return [
        Component(
            "rank-volume",
            factory="pgmkit_rank_volume.component:RankVolume",
            summary="volume change of G, brought to one rank",
        )
    ]
