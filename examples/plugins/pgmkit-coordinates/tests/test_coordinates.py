"""The checks of pgmkit, each of them a test (see pgmkit.testing), and what this one promises."""

import torch
from pgmkit_coordinates.component import Generator

from pgmkit.testing import parametrize_with_checks


@parametrize_with_checks("backbones", ["coordinates"])
def test_contract_of_the_backbone(component, check):
    check(component)


@parametrize_with_checks("generator-loaders", ["coordinates"])
def test_contract_of_the_loader(component, check):
    check(component)


def test_the_same_weights_paint_images_of_any_side():
    small, large = Generator(side=8), Generator(side=24)
    large.load_state_dict(small.state_dict())
    z = torch.randn(2, 64)
    torch.testing.assert_close(large(z)[..., 1::3, 1::3], small(z))
