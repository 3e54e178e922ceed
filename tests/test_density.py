"""Density estimators and the removal of latents."""

import json
import math
import warnings

import pytest
import torch
from torch import Tensor

import pgmkit
from pgmkit.components import parameters_of
from pgmkit.errors import ParameterError, PgmkitWarning, PluginError
from pgmkit.plugins import build
from pgmkit.selection import num_kept, select


def spectrum_of(count: int = 400, rank: int = 5, spread: float = 1.0) -> pgmkit.Spectrum:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(count, rank, generator=random)
    values = (spread * torch.randn(count, rank, generator=random, dtype=torch.float64)).exp()
    log_prior = pgmkit.LatentSpec(rank).log_prior(latents)
    return pgmkit.Spectrum(latents, values.sort(dim=1, descending=True).values, log_prior)


def log_weights(name: str, spectrum: pgmkit.Spectrum, **parameters: object) -> Tensor:
    weights: Tensor = build("density-estimators", name, **parameters).log_weights(spectrum)
    return weights


def test_lash_is_equation_1_and_without_prior_term_equation_2() -> None:
    spectrum = spectrum_of()
    volume = spectrum.singular_values.log().sum(dim=1)
    torch.testing.assert_close(log_weights("lash", spectrum), spectrum.log_prior - volume)
    torch.testing.assert_close(log_weights("lash", spectrum, prior_term=False), -volume)


def test_lash_density_integrates_to_one_for_a_linear_generator() -> None:
    """For G(z) = A z, q is N(0, A Aᵀ) on the image of A."""
    matrix = torch.tensor([[2.0, 0.0], [1.0, 3.0], [0.5, -1.0]])
    linear = torch.nn.Linear(2, 3, bias=False)
    linear.weight.data = matrix
    generator = pgmkit.Generator(linear, pgmkit.LatentSpec(2), pgmkit.ImageSpec((1, 1, 3)))
    spectrum = pgmkit.compute_spectrum(generator, latents=50)
    orthonormal, triangular = torch.linalg.qr(matrix.double())
    image = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), triangular @ triangular.T
    )
    expected = image.log_prob(generator(spectrum.latents).flatten(1).double() @ orthonormal)
    torch.testing.assert_close(log_weights("lash", spectrum), expected, rtol=1e-5, atol=1e-5)


def test_jbt_prefers_small_frobenius_norms() -> None:
    spectrum = spectrum_of()
    kept = select(build("density-estimators", "jbt"), spectrum, remove=0.5, seed=0).kept
    norms = spectrum.singular_values.norm(dim=1)
    removed = torch.ones(len(spectrum), dtype=torch.bool)
    removed[kept] = False
    assert norms[kept].max() <= norms[removed].min()


def test_polarity_is_a_power_of_the_largest_singular_values() -> None:
    spectrum = spectrum_of()
    expected = -0.3 * spectrum.singular_values[:, :2].log().sum(dim=1)
    torch.testing.assert_close(log_weights("polarity", spectrum, rho=-0.3, top_k=2), expected)


@pytest.mark.parametrize("name", ["lash", "jbt"])
def test_removed_latents_are_the_least_dense(name: str) -> None:
    spectrum = spectrum_of()
    estimator = build("density-estimators", name)
    selection = select(estimator, spectrum, remove=0.2, seed=0)
    assert len(selection.kept) == 320
    assert selection.statistics["mass_kept"] == pytest.approx(0.8)
    assert selection.statistics["effective_sample_size"] == 320
    assert selection.kept.tolist() == sorted(set(selection.kept.tolist()))
    weights = selection.log_weights
    removed = torch.ones(400, dtype=torch.bool)
    removed[selection.kept] = False
    assert weights[removed].max() <= weights[selection.kept].min() == selection.cut


def test_resampling_follows_the_weights() -> None:
    """With two kinds of latents of weight ratio 3, the first draws contain them 3 to 1."""
    values = torch.ones(20_000, 1, dtype=torch.float64)
    values[::2] = 3.0
    spectrum = pgmkit.Spectrum(torch.zeros(20_000, 1), values, torch.zeros(20_000).double())
    estimator = build("density-estimators", "polarity", rho=1.0, top_k=None)
    kept = select(estimator, spectrum, remove=0.98, seed=1).kept
    assert len(kept) == 400
    assert (kept % 2 == 0).double().mean().item() == pytest.approx(0.75, abs=0.07)


def test_the_baseline_removes_a_random_share_that_the_seed_decides() -> None:
    spectrum = spectrum_of()
    estimator = build("density-estimators", "none")
    first, again, other = (select(estimator, spectrum, remove=0.5, seed=s).kept for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first) == 200


def test_effective_sample_size_counts_latents_that_carry_weight() -> None:
    values = torch.full((100, 1), 1e-8, dtype=torch.float64)
    values[:4] = 1.0
    spectrum = pgmkit.Spectrum(torch.zeros(100, 1), values, torch.zeros(100).double())
    estimator = build("density-estimators", "polarity", rho=5.0)
    selection = select(estimator, spectrum, remove=0.2, seed=0)
    assert selection.statistics["effective_sample_size"] == pytest.approx(4.0, rel=1e-6)


def test_a_rho_that_collapses_the_draw_warns_with_the_sample_size() -> None:
    spectrum = spectrum_of(spread=5.0)
    estimator = build("density-estimators", "polarity", rho=-5, top_k=None)
    with pytest.warns(PgmkitWarning, match=r"effective sample size is \d+\.\d of 400"):
        select(estimator, spectrum, remove=0.2, seed=0)


def test_latents_without_a_finite_jacobian_are_never_kept() -> None:
    spectrum = spectrum_of()
    spectrum.singular_values[:10] = math.nan
    for name in ("lash", "jbt", "polarity", "none"):
        estimator = build("density-estimators", name)
        with pytest.warns(PgmkitWarning, match="10 of 400 latents have no finite Jacobian"):
            selection = select(estimator, spectrum, remove=0.0, seed=0)
        assert selection.kept.min() == 10
        assert selection.statistics["not_finite"] == 10


@pytest.mark.parametrize("name", ["lash", "jbt", "polarity"])
def test_a_zero_jacobian_leaves_all_statistics_finite(name: str) -> None:
    spectrum = spectrum_of()
    spectrum.singular_values[3] = 0.0
    estimator = build("density-estimators", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PgmkitWarning)
        statistics = select(estimator, spectrum, remove=0.2, seed=0).statistics
    json.dumps(statistics, allow_nan=False)


def test_the_rank_is_reported_at_the_estimator_s_tolerance() -> None:
    spectrum = spectrum_of(spread=2.0)
    strict = build("density-estimators", "lash", rank_rtol=0.5)
    rank = select(strict, spectrum, remove=0.2, seed=0).statistics["numeric_rank"]
    assert rank["rtol"] == 0.5
    assert rank["median"] == int(spectrum.numeric_rank(0.5).median())
    assert rank["median"] < 5


class OfWeights:
    def __init__(self, weights: object) -> None:
        self.weights = weights

    def log_weights(self, spectrum: pgmkit.Spectrum) -> object:
        return self.weights


def test_minus_infinity_removes_a_latent_whatever_remove_says() -> None:
    weights = torch.zeros(400)
    weights[::2] = -math.inf
    kept = select(OfWeights(weights), spectrum_of(), remove=0.0, seed=0).kept  # type: ignore[arg-type]
    assert kept.tolist() == list(range(1, 400, 2))


@pytest.mark.parametrize(
    "weights", [torch.zeros(3), torch.full((400,), -math.inf), [0.0] * 400, torch.zeros(400, 1)]
)
def test_misshapen_or_empty_weights_name_the_estimator(weights: object) -> None:
    with pytest.raises(PluginError, match="OfWeights"):
        select(OfWeights(weights), spectrum_of(), remove=0.2, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("remove", [-0.1, 1.0, math.nan, "a"])
def test_remove_is_a_fraction_below_one(remove: float) -> None:
    estimator = build("density-estimators", "lash")
    with pytest.raises(ParameterError, match=r"\[0, 1\)"):
        select(estimator, spectrum_of(), remove=remove, seed=0)


def test_the_number_kept_is_rounded() -> None:
    assert [num_kept(10, remove) for remove in (0.0, 0.2, 0.25, 0.99)] == [10, 8, 8, 0]


def test_the_parameters_of_estimators_are_known() -> None:
    estimator = build("density-estimators", "lash", prior_term=False)
    assert parameters_of(estimator) == {"prior_term": False, "rank_rtol": 1e-6, "null": "floor"}


def test_how_weights_are_used_is_checked_where_an_estimator_is_built() -> None:
    class Best:
        selection = "best"

        def log_weights(self, spectrum: pgmkit.Spectrum) -> Tensor:
            return torch.zeros(len(spectrum))

    with pytest.raises(PluginError, match="has selection = 'best'; it must be one of threshold"):
        build("density-estimators", Best())
