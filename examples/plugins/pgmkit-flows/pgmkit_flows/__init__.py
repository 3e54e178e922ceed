"""Offers a mapper to pgmkit. This module must not import torch; the factory's may."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_mappers():
    """Returns what pgmkit lists."""
    return [
        Component(
            "flows",
            factory="pgmkit_flows.component:Flows",
            summary="a normalising flow per cluster",
            requires=("zuko",),
            trial={"width": 8, "steps": 20},
            citation="Papamakarios et al., Masked Autoregressive Flow, 2017",
        )
    ]
