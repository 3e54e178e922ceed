"""The classifier of photographs."""

import torch

from pgmkit.images import resized
from pgmkit_plugins.classifiers.residual import ResidualClassifier


def test_images_are_mirrored_and_shifted_in_training_alone() -> None:
    torch.manual_seed(0)
    network = ResidualClassifier(num_classes=3, width=2)
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.rand(40, 3, 32, 32)
    network(x)
    middle = slice(8, 24)
    fits = [
        [
            torch.equal(whole[:, 8 + down : 24 + down, 8 + right : 24 + right], shown)
            for down in range(-4, 5)
            for right in range(-4, 5)
            for whole in (image, image.flip(2))
        ]
        for image, shown in zip(x, seen[0][..., middle, middle], strict=True)
    ]
    assert all(sum(places) == 1 for places in fits)
    assert {places.index(True) // 2 for places in fits} == {fits[0].index(True) // 2}  # all alike
    assert {places.index(True) % 2 for places in fits} == {0, 1}
    network.eval()
    network(x)
    assert torch.equal(seen[1], x)


def test_other_sizes_are_resized() -> None:
    network = ResidualClassifier(num_classes=3, width=2).eval()
    x = torch.rand(2, 3, 48, 48)
    assert network.features(x).shape == (2, 128)
    assert torch.equal(network(x), network(resized(x, 32)))
