"""Generators, priors and image specs."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import GeneratorError, ParameterError

PRIORS = {
    "normal": (pgmkit.LatentSpec(3, std=2.0), stats.norm(scale=2.0)),
    "uniform": (pgmkit.LatentSpec(3, "uniform", low=-1.0, high=3.0), stats.uniform(-1.0, 4.0)),
    "truncated": (
        pgmkit.LatentSpec(3, "truncated-normal", std=0.8, low=-1.0, high=2.0),
        stats.truncnorm(-1.0 / 0.8, 2.0 / 0.8, scale=0.8),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_latents_follow_the_prior(name: str) -> None:
    spec, expected = PRIORS[name]
    z = spec.sample(4000, torch.Generator().manual_seed(0))
    assert z.shape == (4000, 3)
    assert z.dtype == torch.float32
    assert stats.kstest(z.flatten().numpy(), expected.cdf).pvalue > 0.001


@pytest.mark.parametrize("name", PRIORS)
def test_log_prior_is_the_log_density(name: str) -> None:
    spec, expected = PRIORS[name]
    z = spec.sample(50, torch.Generator().manual_seed(0))
    reference = torch.from_numpy(expected.logpdf(z.double().numpy()).sum(axis=1))
    torch.testing.assert_close(spec.log_prior(z), reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_latents_become_standard_normal_and_come_back(name: str) -> None:
    spec, _ = PRIORS[name]
    z = spec.sample(4000, torch.Generator().manual_seed(0))
    x = spec.to_normal(z)
    assert x.dtype == torch.float64
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01
    assert spec.from_normal(x).dtype == torch.float32
    torch.testing.assert_close(spec.from_normal(x), z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "truncated"])
def test_the_bounds_of_a_prior_become_finite_and_nothing_comes_back_outside(name: str) -> None:
    spec, _ = PRIORS[name]
    bounds = torch.tensor([[spec.low, spec.high, spec.low]])
    x = spec.to_normal(bounds)
    assert (x.abs() > 5).all()
    assert (x.abs() < 6).all()
    torch.testing.assert_close(spec.from_normal(x), bounds, rtol=0, atol=1e-5)
    far = spec.from_normal(torch.tensor([[-50.0, 50.0, math.inf]]))
    assert (far >= spec.low).all()
    assert (far <= spec.high).all()


@pytest.mark.parametrize("dim", [1, 3, 7, 64])
@pytest.mark.parametrize("name", PRIORS)
def test_fewer_latents_are_the_first_of_more_and_no_more_are_drawn_than_needed(
    name: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(PRIORS[name][0], dim=dim)
    generator = pgmkit.Generator(nn.Identity(), spec, pgmkit.ImageSpec((1, 1, dim)))
    many = generator.sample_latents(600, seed=3)
    counts = []
    sample = pgmkit.LatentSpec.sample

    def counted(spec: pgmkit.LatentSpec, count: int, random: torch.Generator) -> Tensor:
        counts.append(count)
        return sample(spec, count, random)

    monkeypatch.setattr(pgmkit.LatentSpec, "sample", counted)
    for count in (1, 2, 15, 17, 255, 257, 300):
        counts.clear()
        assert torch.equal(generator.sample_latents(count, seed=3), many[:count])
        assert sum(counts) < count + 16


def test_outside_a_bounded_prior_the_density_is_zero() -> None:
    for name in ("uniform", "truncated"):
        assert PRIORS[name][0].log_prior(torch.full((1, 3), 9.0)).item() == -math.inf


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 0},
        {"dim": 2.5},
        {"dim": 2, "distribution": "gaussian"},
        {"dim": 2, "std": 0.0},
        {"dim": 2, "low": 1.0, "high": 1.0},
        {"dim": 2, "high": math.inf},
    ],
)
def test_a_prior_outside_its_range_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="latent"):
        pgmkit.LatentSpec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments", [((32, 32),), ((1, 0, 4),), ((1, 4, 4), (1, 1)), ((1, 4, 4), (0, 1, 2))]
)
def test_an_image_spec_outside_its_range_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ParameterError, match="image"):
        pgmkit.ImageSpec(*arguments)  # type: ignore[arg-type]


def generator_of(module: nn.Module) -> pgmkit.Generator:
    return pgmkit.Generator(
        module, latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 2, 2)), name="mine"
    )


def test_wrapping_freezes_the_module() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    generator = generator_of(module.train())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert generator(torch.zeros(3, 2)).shape == (3, 1, 2, 2)
    assert "2 normal latents -> 1×2×2 images" in repr(generator)


@pytest.mark.parametrize("z", [torch.zeros(3), torch.zeros(3, 5), torch.zeros(3, 2, 1)])
def test_latents_of_the_wrong_shape_name_both_shapes(z: Tensor) -> None:
    with pytest.raises(GeneratorError, match=r"\(B, 2\), not"):
        generator_of(nn.Linear(2, 4))(z)


class Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, z: Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((torch.zeros(2, 4), None), "tuple"),
        (torch.zeros(2, 5), "image spec"),
        (torch.zeros(1, 8), "image spec"),
        (torch.full((2, 4), math.nan), "not finite"),
    ],
)
def test_a_generator_that_breaks_the_contract_is_named(value: object, message: str) -> None:
    with pytest.raises(GeneratorError, match=message) as error:
        generator_of(Returns(value)).check()
    assert "'mine'" in str(error.value)


def test_a_module_that_needs_other_latents_says_what_to_do() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(2, 1, 2))
    with pytest.raises(GeneratorError, match="must reshape them itself"):
        generator_of(module).check()


def test_only_modules_are_wrapped() -> None:
    with pytest.raises(ParameterError, match="not function"):
        generator_of(lambda z: z)  # type: ignore[arg-type]


def test_the_fingerprint_tells_weights_and_priors_apart() -> None:
    module = nn.Linear(2, 4)
    generator = generator_of(module)
    before = generator.fingerprint()
    other_prior = pgmkit.Generator(
        module, pgmkit.LatentSpec(2, std=2.0), pgmkit.ImageSpec((1, 2, 2))
    )
    assert other_prior.fingerprint() != before
    deeper = [generator_of(nn.Sequential(module, part)) for part in (nn.ELU(), nn.Tanh())]
    assert deeper[0].fingerprint() != deeper[1].fingerprint()
    module.weight[0, 0] += 1e-6
    assert generator.fingerprint() != before
