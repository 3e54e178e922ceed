"""Losses of GANs, modes that samples reach, and the moments that FID compares."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.evaluate.fidelity_scores import Moments, frechet_distance
from pgmkit.evaluate.modes import class_mode_scores, mode_scores
from pgmkit.images.points import PLANES
from pgmkit.learning.clock import clock_at
from pgmkit.train.conditions import Guide
from pgmkit.train.objectives import Penalises, Wasserstein, make_objective

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("hinge", (0 + 0.5) / 2 + (0 + 1) / 2, 1.5),
        ("wasserstein", -1.5 - 1.25, 1.5),
        (
            "non-saturating",
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.5))) / 2
            + (math.log1p(math.exp(-3)) + math.log(2)) / 2,
            (3 + math.log1p(math.exp(-3)) + math.log(2)) / 2,
        ),
    ],
)
def test_losses_are_those_of_their_formulas(
    name: str, discriminator: float, generator: float
) -> None:
    objective = make_objective(name)
    assert float(objective.discriminator(REAL, FAKE)) == pytest.approx(discriminator, abs=1e-6)
    assert float(objective.generator(FAKE)) == pytest.approx(generator, abs=1e-6)
    assert isinstance(objective, Penalises) == (name == "wasserstein")


def test_the_penalty_is_of_the_gradient_between_real_and_fake_images() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    places = torch.rand(5, generator=torch.Generator().manual_seed(0))

    def linear(x: Tensor) -> Tensor:
        return x @ weight

    objective = make_objective({"name": "wasserstein", "weight": 2.0})
    assert isinstance(objective, Wasserstein)
    penalty = objective.penalty(linear, torch.zeros(5, 2), torch.ones(5, 2), places)
    assert float(penalty.detach()) == pytest.approx(2 * (5 - 1) ** 2)
    penalty.backward()  # 2·2·(‖w‖ - 1)·w/‖w‖
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 16 * torch.tensor([0.6, 0.8]))

    def seen(x: Tensor) -> Tensor:
        assert ((x > 0) & (x < 1)).all()
        assert (x == x[:, :1]).all()  # one share for each image
        assert torch.equal(x[:, 0], 1 - places)
        return x.sum(dim=1)

    objective.penalty(seen, torch.zeros(5, 2), torch.ones(5, 2), places)


def test_losses_that_there_are_not_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'hing'.*hinge"):
        make_objective("hing")
    with pytest.raises(ParameterError, match=r"loss\.weight must be at least 0, not -1"):
        make_objective({"name": "wasserstein", "weight": -1.0})
    with pytest.raises(ParameterError, match="no setting 'weight'"):
        make_objective({"name": "hinge", "weight": 1.0})


def test_the_guide_s_weight_falls_on_a_straight_line() -> None:
    whole, half = Guide(), Guide(2.0, 1.0, steps=50)
    authors = [whole.weight(clock_at(0, step, 101), 8) for step in (0, 50, 100)]
    assert authors == pytest.approx([6 / 8, (6 + 1e-4) / 16, 1e-4 / 8])  # 6 to 1e-4 of the mean
    found = [half.weight(clock_at(0, step, 101), 8) for step in (0, 25, 50, 75)]
    assert found == pytest.approx([2, 1.5, 1, 1], abs=0.01)
    assert not whole.is_off
    assert Guide(0, 0).is_off
    for wrong in ({"start": -1.0}, {"end": math.inf}, {"steps": 0}):
        with pytest.raises(ParameterError, match=f"guide.{min(wrong)} must be"):
            Guide(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(PLANES))
def test_real_points_reach_all_modes_evenly(name: str) -> None:
    """Of two normal coordinates 0.9973² lie within three standard deviations."""
    points, _ = PLANES[name].sample(50_000, torch.Generator().manual_seed(0))
    scores = mode_scores(points, PLANES[name])
    number = len(PLANES[name].centres)
    assert (scores.covered, scores.modes) == (number, number)
    assert scores.high_quality == pytest.approx(0.9973**2, abs=0.001)
    assert scores.spread == pytest.approx(1, abs=0.01)
    # Of n samples it is about (K - 1) / 2n on average.
    assert scores.reverse_kl == pytest.approx((number - 1) / 1e5, rel=0.9)


def test_modes_are_counted_by_good_points_and_kl_by_all() -> None:
    ring = PLANES["ring"]
    near = ring.centres[torch.tensor([0, 0, 1, 2])]
    off = torch.tensor([[0.0, 0.0], [0.029, -0.029], [0.031, 0.0], [0.0, 0.5]])
    scores = mode_scores(near + off, ring)
    assert scores.covered == 1
    assert scores.high_quality == 0.5
    crowded = mode_scores(near + torch.tensor([0.001, 0.0]), ring)
    assert crowded.spread == pytest.approx(0.1 / math.sqrt(2 * math.log(2)), rel=1e-3)
    shares = np.array([0.5, 0.25, 0.25])
    assert scores.reverse_kl == pytest.approx(float((shares * np.log(8 * shares)).sum()))
    for wrong in (torch.zeros(3), torch.zeros(0, 2), torch.zeros(4, 3)):
        with pytest.raises(ParameterError, match=r"points \(n, 2\)"):
            mode_scores(wrong, ring)


def test_classes_are_modes_too() -> None:
    scores = class_mode_scores(torch.tensor([0, 0, 3]), 4)
    assert (scores.covered, scores.modes, scores.high_quality) == (2, 4, 1.0)
    assert scores.spread is None
    assert scores.reverse_kl == pytest.approx(math.log(8 / 3) * 2 / 3 + math.log(4 / 3) / 3)
    with pytest.raises(ParameterError, match="go from 0 to 4, and there are 4"):
        class_mode_scores(torch.tensor([0, 4]), 4)


def test_the_distance_is_that_of_two_normal_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(200, 3, generator=random) * scale for scale in (1.0, 2.0))
    found = frechet_distance(Moments.of(first), Moments.of(second))
    a, b = (np.cov(x.double().numpy().T) for x in (first, second))
    apart = (first.double().mean(dim=0) - second.double().mean(dim=0)).square().sum()
    expected = float(apart) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(Moments.of(first), Moments.of(first)) == pytest.approx(0, abs=1e-6)
