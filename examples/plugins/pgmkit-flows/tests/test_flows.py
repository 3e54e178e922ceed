"""The checks of pgmkit, each of them a test (see pgmkit.testing), and what this one promises."""

import torch
from pgmkit_flows.component import Flows

from pgmkit import LatentSpec
from pgmkit.testing import parametrize_with_checks


@parametrize_with_checks("mappers", ["flows"])
def test_contract(component, check):
    check(component)


def test_a_cluster_may_be_bent():
    angle = torch.linspace(0, 3.1, 400)
    arc = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    mapper, context = Flows(steps=150), {"assign": None, "prior": LatentSpec(2)}
    mapper.fit(arc, torch.zeros(400).long(), num_clusters=1, seed=0, **context)
    drawn = mapper.sample(500, 0, seed=0, **context)
    far = (drawn.norm(dim=1) - 2).abs().mean()
    normal = arc.mean(dim=0) + torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ (
        torch.linalg.cholesky(arc.T.cov()).T
    )
    assert far < (normal.norm(dim=1) - 2).abs().mean() / 2
