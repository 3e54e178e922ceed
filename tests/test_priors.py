"""Priors: what they draw, how dense they are, and the way to a normal distribution and back."""

import json
import math
import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pgmkit
from pgmkit.config import make_settings
from pgmkit.errors import GeneratorError, ParameterError
from pgmkit.images import moved_latents
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra

LatentSpec = pgmkit.LatentSpec


def truncated(mean: float, std: float, low: float, high: float) -> Any:
    return stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)


CONTINUOUS: dict[str, tuple[pgmkit.LatentSpec, list[Any]]] = {
    "normal": (LatentSpec(3, std=2.0), [stats.norm(scale=2.0)] * 3),
    "uniform": (LatentSpec(3, "uniform", low=-1.0, high=3.0), [stats.uniform(-1.0, 4.0)] * 3),
    "truncated": (
        LatentSpec(3, "truncated-normal", std=0.8, low=-1.0, high=2.0),
        [truncated(0.0, 0.8, -1.0, 2.0)] * 3,
    ),
    "normal with a mean": (
        LatentSpec(2, mean=[5.0, -1.0], std=[0.5, 3.0]),
        [stats.norm(5.0, 0.5), stats.norm(-1.0, 3.0)],
    ),
    "uniform with bounds of its own": (
        LatentSpec(2, "uniform", low=[0, -2], high=[1, 6]),
        [stats.uniform(0, 1), stats.uniform(-2, 8)],
    ),
    "truncated with a mean": (
        LatentSpec(2, "truncated-normal", mean=[1.0, -3.0], std=0.5, low=[0.5, -4], high=[2, -2.9]),
        [truncated(1.0, 0.5, 0.5, 2.0), truncated(-3.0, 0.5, -4.0, -2.9)],
    ),
    "parts": (
        LatentSpec(parts=[{"dim": 1, "mean": 2}, {"dim": 2, "distribution": "uniform"}]),
        [stats.norm(2.0), *[stats.uniform(-1.0, 2.0)] * 2],
    ),
}
BOUNDED = [name for name in CONTINUOUS if name.startswith(("uniform", "truncated"))]
MIXTURE = LatentSpec(
    2, "mixture", weights=[0.2, 0.8], means=[[-3, 0], [1, 2]], stds=[0.5, [1.0, 2.0]]
)
INFO = LatentSpec(
    parts=[
        {"dim": 3, "distribution": "uniform"},
        {"dim": 4, "distribution": "categorical", "probabilities": [0.1, 0.2, 0.3, 0.4]},
        {"dim": 2},
        {"dim": 2, "distribution": "categorical"},
    ]
)
"""As in InfoGAN: continuous codes and one-hot ones."""

EVERY = {
    **{name: spec for name, (spec, _) in CONTINUOUS.items()},
    "mixture": MIXTURE,
    "categorical": LatentSpec(5, "categorical"),
    "categorical parts": INFO,
    "shape": LatentSpec(shape=(8, 2, 2)),
    "mixture of equals": LatentSpec(3, "mixture", means=[-1, 1]),
}
every = pytest.mark.parametrize("name", EVERY)


def drawn(spec: pgmkit.LatentSpec, count: int = 4000, seed: int = 0) -> Tensor:
    return spec.sample(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_latents_follow_the_prior(name: str) -> None:
    spec, expected = CONTINUOUS[name]
    z = drawn(spec)
    assert z.shape == (4000, len(expected))
    assert z.dtype == torch.float32
    for values, law in zip(z.T, expected, strict=True):
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-3


def test_the_same_seed_gives_the_latents_that_it_always_gave() -> None:
    """Drawn by the formulas, in one go for all coordinates."""

    def random() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    normal = torch.randn(9, 3, generator=random())
    share = torch.rand(9, 3, generator=random(), dtype=torch.float64)
    below, above = torch.special.ndtr(torch.tensor([-1.0, 2.0], dtype=torch.float64) / 0.8).tolist()
    bounded = torch.special.ndtri(below + (above - below) * share) * 0.8
    assert torch.equal(LatentSpec(3, std=0.7).sample(9, random()), normal * 0.7)
    uniform = LatentSpec(3, "uniform", low=-0.1, high=3.0)
    assert torch.equal(uniform.sample(9, random()), (-0.1 + (3.0 + 0.1) * share).float())
    assert torch.equal(CONTINUOUS["truncated"][0].sample(9, random()), bounded.float())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_log_prior_is_the_log_density(name: str) -> None:
    spec, expected = CONTINUOUS[name]
    z = drawn(spec, 50)
    columns = zip(z.double().T, expected, strict=True)
    reference = sum(torch.from_numpy(law.logpdf(values.numpy())) for values, law in columns)
    torch.testing.assert_close(spec.log_prior(z), reference, rtol=1e-6, atol=1e-6)


def test_the_density_of_a_mixture_is_that_of_its_gaussians() -> None:
    z = drawn(MIXTURE, 50)
    parts = [
        0.2 * stats.multivariate_normal([-3, 0], np.diag([0.25, 0.25])).pdf(z.double().numpy()),
        0.8 * stats.multivariate_normal([1, 2], np.diag([1.0, 4.0])).pdf(z.double().numpy()),
    ]
    reference = torch.from_numpy(sum(parts)).log()
    torch.testing.assert_close(MIXTURE.log_prior(z), reference, rtol=1e-6, atol=1e-6)


def test_categories_are_one_hot_and_as_frequent_as_they_are_probable() -> None:
    z = drawn(INFO)
    assert [(place.start, place.stop) for place in INFO.categories] == [(3, 7), (9, 11)]
    assert INFO.continuous.nonzero().flatten().tolist() == [0, 1, 2, 7, 8]
    for place, probabilities in zip(
        INFO.categories, ([0.1, 0.2, 0.3, 0.4], [0.5] * 2), strict=True
    ):
        part = z[:, place]
        assert ((part == 0) | (part == 1)).all()
        assert (part.sum(dim=1) == 1).all()
        expected = [4000 * p for p in probabilities]
        assert stats.chisquare(part.sum(dim=0).numpy().astype(float), expected).pvalue > 1e-3


def test_a_category_counts_with_its_log_probability() -> None:
    z = drawn(INFO, 20)
    chosen = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().log()[z[:, 3:7].argmax(dim=1)]
    normal = torch.from_numpy(stats.norm.logpdf(z[:, 7:9].double().numpy()).sum(axis=1))
    expected = 3 * math.log(0.5) + chosen + normal + math.log(0.5)
    torch.testing.assert_close(INFO.log_prior(z), expected)


@pytest.mark.parametrize("part", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.0, 0.1]])
def test_what_is_not_one_hot_lies_outside(part: list[float]) -> None:
    z = drawn(INFO, 1)
    z[:, 9:] = torch.tensor(part)
    assert INFO.log_prior(z).item() == -math.inf


def test_outside_a_bounded_prior_the_density_is_zero() -> None:
    for name in BOUNDED:
        spec = CONTINUOUS[name][0]
        assert spec.log_prior(torch.full((1, spec.dim), 9.0)).item() == -math.inf


def test_a_latent_on_a_bound_lies_inside() -> None:
    spec = LatentSpec(1, "uniform", low=-0.1, high=0.1)  # neither of which float32 knows
    assert spec.log_prior(spec.clamp(torch.tensor([[-9.0], [9.0]]))).isfinite().all()


# The way to a normal distribution


@every
def test_continuous_latents_become_standard_normal_and_come_back(name: str) -> None:
    spec = EVERY[name]
    z = drawn(spec)
    x = spec.to_normal(z)
    assert x.dtype == torch.float64
    for values in x.T[spec.continuous]:
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    assert spec.from_normal(x).dtype == torch.float32
    torch.testing.assert_close(spec.from_normal(x), z, rtol=1e-5, atol=1e-5)


@every
def test_what_comes_from_a_normal_distribution_follows_the_prior(name: str) -> None:
    spec = EVERY[name]
    x = torch.randn(4000, spec.dim, generator=torch.Generator().manual_seed(1)).double()
    back, fresh = spec.from_normal(x), drawn(spec)
    for one, other in zip(back.T[spec.continuous], fresh.T[spec.continuous], strict=True):
        assert stats.ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3
    assert spec.log_prior(back).isfinite().all()


def test_the_coordinates_of_a_mixture_become_independent() -> None:
    """Before that, the first one tells which Gaussian the second one is of."""
    z = drawn(MIXTURE)
    before, after = (stats.spearmanr(x[:, 0], x[:, 1]).pvalue for x in (z, MIXTURE.to_normal(z)))
    assert before < 1e-6 < 1e-3 < after


def test_a_mixture_in_one_dimension_is_turned_by_its_quantiles() -> None:
    spec = LatentSpec(1, "mixture", weights=[0.3, 0.7], means=[-4, 1], stds=[1, 0.5])
    z = torch.linspace(-6, 2, 30)[:, None]
    share = 0.3 * stats.norm(-4, 1).cdf(z.double()) + 0.7 * stats.norm(1, 0.5).cdf(z.double())
    torch.testing.assert_close(spec.to_normal(z), torch.from_numpy(stats.norm.ppf(share)))


@pytest.mark.parametrize("name", BOUNDED)
def test_the_bounds_of_a_prior_become_finite_and_nothing_comes_back_outside(name: str) -> None:
    spec = CONTINUOUS[name][0]
    bounds = torch.stack([spec.clamp(torch.full((spec.dim,), s * 99.0)[None])[0] for s in (-1, 1)])
    x = spec.to_normal(bounds)
    assert (x.abs() > 5).all()
    assert (x.abs() < 6).all()
    torch.testing.assert_close(spec.from_normal(x), bounds, rtol=0, atol=1e-5)
    far = spec.from_normal(torch.tensor([[-50.0], [50.0], [math.inf]]).expand(-1, spec.dim))
    assert spec.log_prior(far).isfinite().all()


@every
@pytest.mark.parametrize("step", [0.1, 0.9])
def test_moves_leave_the_prior_as_it_is_and_categories_where_they_are(
    name: str, step: float
) -> None:
    spec = EVERY[name]
    z = drawn(spec)
    after = moved_latents(z, spec, step, torch.Generator().manual_seed(3))
    assert torch.equal(after[:, ~spec.continuous], z[:, ~spec.continuous])
    fresh = drawn(spec, seed=9)
    for one, other in zip(after.T[spec.continuous], fresh.T[spec.continuous], strict=True):
        assert stats.ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3


@every
def test_any_numbers_are_clamped_to_latents_of_the_prior(name: str) -> None:
    spec = EVERY[name]
    anything = torch.randn(200, spec.dim, generator=torch.Generator().manual_seed(0)) * 5
    inside = spec.clamp(anything)
    assert spec.log_prior(inside).isfinite().all()
    assert torch.equal(spec.clamp(inside), inside)
    own = drawn(spec, 50)
    assert torch.equal(spec.clamp(own), own)


# Specifications


@every
def test_a_prior_comes_back_from_its_table(name: str) -> None:
    spec = EVERY[name]
    table = json.loads(json.dumps(spec.table()))
    again = make_settings(LatentSpec, table, "'latent' in config.json")
    assert again == spec
    assert hash(again) == hash(spec)
    assert eval(repr(spec), {"LatentSpec": LatentSpec}) == spec


def test_a_prior_is_written_in_toml_as_in_json() -> None:
    table = tomllib.loads("""
        [latent]
        parts = [{dim = 10}, {dim = 10, distribution = "categorical"}]
    """)["latent"]
    spec = make_settings(LatentSpec, table, "latent")
    assert spec == LatentSpec(parts=[LatentSpec(10), LatentSpec(10, "categorical")])
    assert (spec.dim, str(spec)) == (20, "20 (10 normal, 10 categorical)")


def test_numbers_may_come_as_tensors_and_arrays() -> None:
    spec = LatentSpec(2, mean=torch.tensor([1.0, 2.0]), std=np.array([0.5, 1.0]))  # type: ignore[arg-type]
    assert spec == LatentSpec(2, mean=[1, 2], std=[0.5, 1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dim": 0}, "latent.dim must be"),
        ({}, "latent.dim must be"),
        ({"dim": 2.5}, "latent.dim must be"),
        ({"dim": 10**12}, "latent.dim must be a whole number from 1 to 2147483648"),
        ({"dim": 2, "mean": 10**400}, "latent.mean must be a finite number"),
        ({"dim": 2, "distribution": "gaussian"}, "latent.distribution must be one of normal"),
        ({"dim": 2, "distribution": ["normal"]}, "latent.distribution must be one of normal"),
        ({"dim": 2, "std": 0.0}, "latent.std must be above 0, not 0.0"),
        ({"dim": 2, "std": [1, -2]}, "latent.std must be above 0, not -2.0"),
        ({"dim": 2, "std": "1"}, "latent.std must be a finite number"),
        ({"dim": 3, "mean": [1, 2]}, "latent.mean has 2 numbers, and there are 3 dimensions"),
        ({"dim": 2, "mean": [1, None]}, "latent.mean must be a finite number"),
        ({"dim": 2, "mean": math.nan}, "latent.mean must be a finite number"),
        ({"dim": 2, "low": -2.0}, "latent.low has no use in a 'normal' prior"),
        ({"dim": 2, "distribution": "uniform", "mean": 1}, "latent.mean has no use"),
        ({"dim": 2, "distribution": "uniform", "low": 1.0}, "latent.low must be below"),
        ({"dim": 2, "distribution": "uniform", "high": math.inf}, "latent.high must be a finite"),
        (
            {"dim": 2, "distribution": "truncated-normal", "low": 8, "high": 9},
            "of the mass of the normal distribution",
        ),
        ({"dim": 1, "distribution": "categorical"}, "must be at least 2"),
        (
            {"dim": 3, "distribution": "categorical", "probabilities": [0.2, 0.2, 0.2]},
            "latent.probabilities must sum to 1, not 0.6",
        ),
        (
            {"dim": 2, "distribution": "categorical", "probabilities": [1.0, 0.0]},
            "latent.probabilities must be numbers above 0",
        ),
        (
            {"dim": 2, "distribution": "categorical", "probabilities": [1.0]},
            "latent.probabilities must be 2 numbers, not 1",
        ),
        ({"dim": 2, "distribution": "mixture"}, "needs latent.means"),
        (
            {"dim": 2, "distribution": "mixture", "means": [1, 2], "stds": [1]},
            "latent.stds has 1 entries and latent.means 2",
        ),
        (
            {"dim": 2, "distribution": "mixture", "means": [1, [1, 2, 3]]},
            r"latent.means\[1\] has 3 numbers",
        ),
        (
            {"dim": 2, "distribution": "mixture", "means": [1, 2], "weights": [0.5, 0.6]},
            "latent.weights must sum to 1",
        ),
        (
            {"parts": [{"dim": 2, "sdt": 1}]},
            r"latent.parts\[0\] has no setting 'sdt'; did you mean",
        ),
        ({"parts": [{"dim": 2}, {"dim": 2, "std": -1}]}, r"latent.parts\[1\].std must be above 0"),
        ({"parts": [{"parts": [{"dim": 2}]}]}, r"latent.parts\[0\] cannot have parts of its own"),
        ({"parts": {"dim": 2}}, "latent.parts must be a list"),
        ({"parts": [2]}, r"latent.parts\[0\] must be a table"),
        ({"parts": [{"dim": 2}], "std": 2}, "latent.std stands beside latent.parts"),
        ({"parts": [{"dim": 2}], "dim": 3}, "latent.parts stands for 2 coordinates"),
        ({"dim": 5, "shape": [100, 1, 1]}, "latent.shape stands for 100 coordinates"),
        ({"dim": 5, "shape": [2.5, 2]}, "latent.shape must be whole numbers"),
        ({"dim": 5, "shape": 5}, "latent.shape must be a list"),
    ],
)
def test_a_prior_that_cannot_be_is_refused_in_one_line(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ParameterError, match=said) as error:
        LatentSpec(**arguments)
    assert "\n" not in str(error.value)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ParameterError, match="has no setting 'probabilites'; did you mean 'prob"):
        make_settings(LatentSpec, {"dim": 2, "probabilites": [0.5, 0.5]}, "'latent' in config.json")


# Spectra


class Decoder(nn.Module):
    """Sees the category through its index, as an embedding does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.codes = nn.Linear(5, 12)
            self.classes = nn.Embedding(4, 12)

    def forward(self, z: Tensor) -> Tensor:
        codes = torch.cat([z[:, :3], z[:, 7:9]], dim=1)
        return torch.tanh(self.codes(codes) * self.classes(z[:, 3:7].argmax(dim=1)))


def test_the_jacobian_is_that_of_the_continuous_coordinates() -> None:
    generator = pgmkit.Generator(Decoder(), INFO, pgmkit.ImageSpec((1, 3, 4)))
    spectrum = pgmkit.compute_spectrum(generator, latents=20, seed=0)
    assert spectrum.singular_values.shape == (20, 5)
    module = Decoder().double()
    for latent, values in zip(spectrum.latents.double(), spectrum.singular_values, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: module(z[None])[0], latent)
        expected = torch.linalg.svdvals(jacobian[:, INFO.continuous])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(spectrum.log_prior, INFO.log_prior(spectrum.latents))


def test_latents_without_a_continuous_part_have_no_spectrum() -> None:
    net = nn.Linear(4, 4)
    generator = pgmkit.Generator(net, LatentSpec(4, "categorical"), pgmkit.ImageSpec((1, 2, 2)))
    with pytest.raises(GeneratorError, match=r"all categorical.*add a continuous part"):
        pgmkit.compute_spectrum(generator, latents=20)


def test_sketches_are_not_made_of_categorical_latents() -> None:
    generator = pgmkit.Generator(Decoder(), INFO, pgmkit.ImageSpec((1, 3, 4)))
    with pytest.raises(ParameterError, match="leave probes out"):
        JacobianSpectra(generator, JacobianSettings(probes=2))
