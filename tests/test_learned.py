"""The cluster sampler that learns features by contrast: its parts, and what it promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pgmkit
from pgmkit.errors import ParameterError
from pgmkit.plugins import build_component
from pgmkit_plugins.samplers.learned import contrastive_loss, deformed, looked_at, moved


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, channels: int = 1) -> Tensor:
    """A bright bar on black, thicker from picture to picture."""
    images = torch.full((count, channels, 32, 32), -1.0)
    for index in range(count):
        images[index, :, 8:24, 14 : 16 + index] = 1.0
    return images


@pytest.mark.parametrize(
    "prior",
    [
        pgmkit.LatentSpec(3, std=2.0),
        pgmkit.LatentSpec(3, "uniform", low=-1.0, high=3.0),
        pgmkit.LatentSpec(3, "truncated-normal", low=-0.5, high=1.0),
    ],
)
@pytest.mark.parametrize("step", [0.1, 0.9])
def test_moves_leave_the_prior_as_it_is(prior: pgmkit.LatentSpec, step: float) -> None:
    z = prior.sample(20_000, random())
    there = moved(z, prior, step, random(1))
    torch.testing.assert_close(there.mean(0), z.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(there.std(0), z.std(0), rtol=0, atol=0.05)
    together = torch.corrcoef(torch.stack([z[:, 0], there[:, 0]]))[0, 1]
    assert float(together) == pytest.approx(math.sqrt(1 - step**2), abs=0.03)
    if prior.distribution != "normal":
        assert prior.low <= there.min() <= there.max() <= prior.high


def test_without_strength_an_image_stays_as_it_is() -> None:
    images = pictures(channels=3)
    same = deformed(images, 0.0, False, random())
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    for made, original, without in zip(same, images, grey, strict=True):
        assert torch.allclose(made, original, atol=1e-5) or torch.allclose(made, without, atol=1e-5)
    mirrored = deformed(pictures(64), 0.0, True, random()).sub(pictures(64)).abs()
    assert 0 < (mirrored.amax(dim=(1, 2, 3)) > 0.5).float().mean() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_deformed_images_differ_and_stay_in_range(channels: int) -> None:
    images = pictures(channels=channels)
    before = images.clone()
    first, again = (deformed(images, 1.0, False, random(3)) for _ in range(2))
    other = deformed(images, 1.0, False, random(4))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert first.abs().max() <= 1
    assert ((first - other).abs().mean(dim=(1, 2, 3)) > 0.005).all()
    assert ((first - images).abs().mean(dim=(1, 2, 3)) > 0.005).all()


def test_strokes_become_thicker_and_thinner() -> None:
    bright = (deformed(pictures(1).repeat(200, 1, 1, 1), 1.0, False, random()) > 0).float()
    inside = bright.mean(dim=(1, 2, 3)) / (pictures(1) > 0).float().mean()
    assert inside.min() < 0.5
    assert inside.max() > 1.5


def test_the_loss_agrees_with_a_case_worked_out_by_hand() -> None:
    """Two pairs of unit vectors at right angles: each partner has cosine 1, all others 0."""
    left = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = contrastive_loss(left, 3 * left, temperature=0.5)
    assert float(loss) == pytest.approx(math.log(math.exp(2.0) + 2.0) - 2.0)
    swapped = contrastive_loss(left, left.flip(0), temperature=0.5)
    assert float(swapped) == pytest.approx(math.log(math.exp(2.0) + 2.0))


class Bars(torch.nn.Module):
    """One bar, upright or level by the sign of z₀·z₁, its brightness and place by the others."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        places = torch.arange(self.size) - self.size / 2
        bar = (1.5 - (places + 2 * torch.tanh(z[:, 2:3])).abs()).clamp(0, 1)
        long = (self.size / 3 - places.abs()).clamp(0, 1).expand_as(bar)
        upright = bar[:, None, :] * long[:, :, None]
        level = bar[:, :, None] * long[:, None, :]
        image = torch.where((z[:, 0] * z[:, 1] > 0)[:, None, None], upright, level)
        return (image * (0.6 + 0.4 * torch.sigmoid(z[:, 3]))[:, None, None])[:, None] * 510


def bars(size: int = 16) -> pgmkit.Generator:
    return pgmkit.Generator(
        Bars(size), pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, size, size), (0.0, 510.0))
    )


def learner(**parameters: Any) -> Any:
    given = {"num_clusters": 2, "steps": 60, "batch_size": 64, "width": 4, **parameters}
    return build_component("cluster-samplers", "learned", **given)


def test_what_the_network_sees_is_32_pixels_wide_from_minus_one_to_one() -> None:
    for size in (16, 32, 50):
        seen = looked_at(bars(size), bars().sample_latents(5, 0))
        assert seen.shape == (5, 1, 32, 32)
        assert seen.min() == -1
        assert 0 < seen.max() <= 1


def test_a_shape_is_found_whatever_its_place_and_brightness() -> None:
    generator = bars()
    latents = generator.sample_latents(800, seed=0)
    sampler = learner().fit(latents, generator=generator, seed=0)
    truth = (latents[:, 0] * latents[:, 1] > 0).long()
    right = (sampler.labels_ == truth).float().mean()
    assert max(right, 1 - right) > 0.98
    assert sampler.losses_.shape == (60,)
    assert sampler.losses_[-10:].mean() < sampler.losses_[:10].mean() - 0.5
    drawn = sampler.sample(100, 1, seed=0)
    assert (sampler.predict(drawn) == 1).all()
    assert 0 < sampler.acceptance_rate(1) <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("width", 0),
        ("batch_size", 0),
        ("temperature", 0.0),
        ("learning_rate", -1.0),
        ("move", 1.0),
        ("move", -0.1),
        ("strength", -1.0),
    ],
)
def test_parameters_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ParameterError, match=rf"{name} must be .*{value}"):
        learner(**{name: value})


def test_too_few_latents_to_learn_from_are_refused() -> None:
    generator = bars()
    with pytest.raises(ParameterError, match="at least 16 latents to learn from, not 15"):
        learner().fit(generator.sample_latents(15, 0), generator=generator)


def test_the_number_of_threads_changes_nothing() -> None:
    generator = bars()
    latents = generator.sample_latents(100, seed=0)
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(learner(steps=5).fit(latents, generator=generator, seed=0).state())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
