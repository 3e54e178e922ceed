"""The checks of pgmkit, each of them a test (see pgmkit.testing), and what this one promises."""

import torch
from pgmkit_kmedoids.component import KMedoids

from pgmkit.images import ArrayImages
from pgmkit.testing import parametrize_with_checks


@parametrize_with_checks("partitioners", ["kmedoids", {"name": "kmedoids", "features": "pixels"}])
def test_contract(component, check):
    check(component)


def test_each_part_has_an_image_in_its_middle():
    x = torch.cat([torch.full((20, 1, 4, 4), level) for level in (-0.5, 0.0, 0.7)])
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    parts = KMedoids(3, features="pixels")
    parts.fit(ArrayImages(x, value_range=(-1, 1)), seed=0)
    assert (parts.logits(x).max(dim=0).values > -1e-6).all()
    assert parts.logits(x).argmax(dim=1).bincount().tolist() == [20, 20, 20]
