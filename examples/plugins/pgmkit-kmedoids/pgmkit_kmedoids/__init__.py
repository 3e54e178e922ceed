"""Offers a partitioner to pgmkit. This module must not import torch; the factory's may."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_partitioners():
    """Returns what pgmkit lists."""
    return [
        Component(
            "kmedoids",
            factory="pgmkit_kmedoids.component:KMedoids",
            summary="the nearest of k images, which k-medoids finds",
            requires=("kmedoids",),
            trial={"num_partitions": 4},
            citation="Schubert and Rousseeuw, Fast and Eager k-Medoids Clustering, 2021",
        )
    ]
