"""Singular values in float32, float64, bfloat16 and from sketches, against float64 autograd."""

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import GeneratorError, OutputError, ParameterError, PgmkitWarning
from pgmkit.machine import full_float32
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.differentiation import Differentiator, JacobianPlan
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra, _begin_values, _Begun
from pgmkit.spectrum.safety import choose
from pgmkit.tangents import TangentProgram
from pgmkit.tangents.rules import RULES


def generator_of(module: nn.Module, dim: int, shape: tuple[int, int, int]) -> pgmkit.Generator:
    return pgmkit.Generator(module, pgmkit.LatentSpec(dim), pgmkit.ImageSpec(shape), name="g")


def mlp_of(shares: Tensor) -> pgmkit.Generator:
    """Bends 12 latents into images whose singular values fall about as the shares do."""
    torch.manual_seed(0)
    first, second = nn.Linear(12, 32), nn.Linear(32, 32)
    with torch.no_grad():
        u, _, v = torch.linalg.svd(first.weight, full_matrices=False)
        first.weight.copy_(u @ torch.diag(10 * shares) @ v)
    layers = (first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Linear(32, 64), nn.Tanh())
    return generator_of(nn.Sequential(*layers, nn.Unflatten(1, (1, 8, 8))), 12, (1, 8, 8))


def rank_deficient_mlp() -> pgmkit.Generator:
    """Images hardly depend on some latents, as those of real MLP GANs."""
    return mlp_of(torch.logspace(0, -10, 12))


def mlp_at_the_tolerance() -> pgmkit.Generator:
    """Most singular values lie around 1e-6 of the largest."""
    return mlp_of(torch.cat([torch.ones(1), torch.logspace(-5.6, -6.05, 11)]))


def vae_decoder() -> pgmkit.Generator:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(6, 8 * 16), nn.SiLU(), nn.Unflatten(1, (8, 4, 4)),
        nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1),
        nn.Sigmoid(),
    )  # fmt: skip
    return generator_of(module, 6, (1, 16, 16))


def float64_reference(generator: pgmkit.Generator, z: Tensor) -> Tensor:
    module = copy.deepcopy(generator.module).double()
    jacobian = torch.func.jacfwd(lambda v: module(v[None]).flatten())
    return torch.stack([torch.linalg.svdvals(jacobian(latent)) for latent in z.double()])


def as_used(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what estimators make of singular values: log-volumes and numeric ranks."""
    spectrum = Spectrum(torch.zeros(len(values), 12), values, torch.zeros(len(values)))
    return spectrum.log_volume(), spectrum.numeric_rank()


def test_unsafe_latents_are_done_again_in_float64() -> None:
    generator = mlp_at_the_tolerance()
    z = generator.sample_latents(8, 0)
    result = JacobianSpectra(generator).compute(z)
    assert result["float64"].all()
    reference = float64_reference(generator, z)
    torch.testing.assert_close(result["singular_values"], reference, rtol=1e-9, atol=1e-12)


def test_float32_alone_is_wrong_on_them() -> None:
    """Otherwise the test above shows nothing."""
    generator = mlp_at_the_tolerance()
    z = generator.sample_latents(8, 0)
    result = JacobianSpectra(generator, JacobianSettings(dtype="float32")).compute(z)
    assert not result["float64"].any()
    volume, _ = as_used(result["singular_values"])
    expected, _ = as_used(float64_reference(generator, z))
    assert (volume - expected).abs().max() > 0.01


@pytest.mark.parametrize("least", [0.0, 1e-9])
def test_float32_is_safe_where_only_null_directions_are_noise(least: float) -> None:
    shares = torch.cat([torch.logspace(0, -3, 8), torch.full([4], least)])
    generator = mlp_of(shares)
    z = generator.sample_latents(32, 0)
    result = JacobianSpectra(generator).compute(z)
    assert not result["float64"].any()
    volume, rank = as_used(result["singular_values"])
    expected, expected_rank = as_used(float64_reference(generator, z))
    assert torch.equal(rank, expected_rank)
    torch.testing.assert_close(volume, expected, rtol=0, atol=1e-3)


def test_a_tolerance_that_counts_noise_of_float32_is_said() -> None:
    generator = mlp_of(torch.cat([torch.ones(8), torch.zeros(4)]))
    rounded = pgmkit.compute_spectrum(generator, latents=4)
    with pytest.warns(PgmkitWarning, match="float32 does not tell from zero"):
        rounded.log_volume(rank_rtol=1e-9)
    pgmkit.compute_spectrum(generator, latents=4, dtype="float64").log_volume(rank_rtol=1e-9)


def test_float64_decides_on_which_side_of_a_kink_a_unit_is() -> None:
    generator = mlp_of(torch.linspace(1, 0.5, 12))
    first = generator.module[0]
    z = generator.sample_latents(12, 0)
    row = first.weight[5].double()
    for latent in z[:6]:  # a step onto the kink of unit 5, as near as float32 can
        value = latent.double() @ row + first.bias[5]
        latent -= (value * row / row.square().sum()).float()
    result = JacobianSpectra(generator).compute(z)
    assert result["float64"].tolist() == [True] * 6 + [False] * 6
    reference = float64_reference(generator, z)
    torch.testing.assert_close(result["singular_values"], reference, rtol=1e-5, atol=0)


def test_safe_latents_stay_in_float32_and_agree_with_float64() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(16, 0)
    result = JacobianSpectra(generator).compute(z)
    assert not result["float64"].any()
    reference = float64_reference(generator, z)
    torch.testing.assert_close(result["singular_values"], reference, rtol=1e-4, atol=0)


def test_float64_mode_agrees_to_the_last_digits() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(4, 0)
    result = JacobianSpectra(generator, JacobianSettings(dtype="float64")).compute(z)
    assert result["float64"].all()
    reference = float64_reference(generator, z)
    torch.testing.assert_close(result["singular_values"], reference, rtol=1e-10, atol=0)


def test_half_precision_weights_are_computed_in_float32() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(2, 0)
    half = generator_of(generator.module.half(), 6, (1, 16, 16))
    values = JacobianSpectra(half).compute(z)["singular_values"]
    reference = float64_reference(half, z)
    torch.testing.assert_close(values, reference, rtol=1e-4, atol=0)


class Overflowing(nn.Module):
    """Overflows in float32, and in float64 where z is larger still."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        z = z * self.one
        return (z * z.abs().amax(1, keepdim=True).detach().mul(100).exp()).unflatten(1, (1, 1, 2))


def test_what_overflows_float32_is_done_again_and_the_rest_is_nan() -> None:
    generator = generator_of(Overflowing(), 2, (1, 1, 2))
    z = torch.tensor([[0.1, 0.0], [1.0, 0.5], [8.0, 1.0]])
    result = JacobianSpectra(generator).compute(z)
    assert result["float64"].tolist() == [False, True, True]
    assert result["singular_values"].isfinite().all(1).tolist() == [True, True, False]
    torch.testing.assert_close(
        result["singular_values"][1],
        torch.full([2], 100.0, dtype=torch.float64).exp(),
        rtol=1e-5,
        atol=0,
    )


@pytest.fixture(scope="module")
def upsampling() -> tuple[pgmkit.Generator, Tensor, Tensor]:
    """A generator, latents, and their singular values."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(24, 512), nn.Unflatten(1, (32, 4, 4)), nn.ReLU(), nn.Upsample(scale_factor=8),
        nn.Conv2d(32, 1, 3, padding=1), nn.Tanh(),
    )  # fmt: skip
    generator = generator_of(module, 24, (1, 32, 32))
    z = generator.sample_latents(2, 0)
    return generator, z, float64_reference(generator, z)


@pytest.mark.parametrize("budget", [2**20, 2**23, 2**30])
def test_a_small_memory_budget_changes_no_value(
    upsampling: tuple[pgmkit.Generator, Tensor, Tensor], budget: int
) -> None:
    generator, z, expected = upsampling
    jacobians = JacobianSpectra(generator, JacobianSettings(memory_budget=budget))
    values = jacobians.compute(z)["singular_values"]
    assert jacobians._differentiator.bytes_needed <= budget
    assert jacobians.plan.tangents < 24 or budget > 2**20
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)


class Hungry(nn.Module):
    """Runs out of memory with more than some number of rows."""

    limit = 10**9

    def forward(self, z: Tensor) -> Tensor:
        if len(z) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return z.tanh().repeat(1, 2).unflatten(1, (1, 2, 4))


def test_when_memory_runs_out_it_goes_on_with_fewer_latents() -> None:
    generator = generator_of(Hungry(), 4, (1, 2, 4))
    jacobians = JacobianSpectra(generator)
    z = generator.sample_latents(8, 0)
    expected = jacobians.compute(z)["singular_values"]
    jacobians._differentiator.plan = replace(jacobians.plan, batch_size=8)
    jacobians._differentiator._program._tapes.clear()
    jacobians._differentiator.generator.module.limit = 3
    result = jacobians.compute(z)["singular_values"]
    assert jacobians.plan.batch_size == 2
    torch.testing.assert_close(result, expected)


def test_a_worker_that_runs_out_of_memory_at_its_first_latents_goes_on_with_fewer() -> None:
    generator = generator_of(Hungry(), 4, (1, 2, 4))
    z = generator.sample_latents(4, 0)
    expected = JacobianSpectra(generator).compute(z)["singular_values"]
    jacobians = JacobianSpectra(generator, plan=JacobianPlan("layers", batch_size=2, tangents=4))
    jacobians._differentiator.generator.module.limit = 1
    torch.testing.assert_close(jacobians.compute(z)["singular_values"], expected)
    assert jacobians.plan.batch_size == 1


def test_when_there_is_no_memory_at_all_the_error_says_so() -> None:
    generator = generator_of(Hungry(), 4, (1, 2, 4))
    jacobians = JacobianSpectra(generator)
    jacobians._differentiator._program._tapes.clear()
    jacobians._differentiator.generator.module.limit = 0
    with pytest.raises(GeneratorError, match="one latent and one direction"):
        jacobians.compute(generator.sample_latents(2, 0))


def spectrum_of(generator: pgmkit.Generator, settings: JacobianSettings, z: Tensor) -> Spectrum:
    values = JacobianSpectra(generator, settings).compute(z)["singular_values"]
    provenance = {"computed": {"probes": settings.probes, "sketch": settings.sketch}}
    return Spectrum(z, values, torch.zeros(len(z)), provenance=provenance)


def test_a_sketch_with_all_directions_is_exact() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(5, 0)
    exact = spectrum_of(generator, JacobianSettings(), z)
    for sketch in ("volume", "top"):
        sketched = spectrum_of(generator, JacobianSettings(probes=6, sketch=sketch), z)
        torch.testing.assert_close(
            sketched.singular_values, exact.singular_values, rtol=1e-4, atol=0
        )


def test_the_sketched_frobenius_norm_is_of_the_right_size() -> None:
    """Its square is unbiased over subspaces; one subspace and many latents come close."""
    generator = vae_decoder()
    z = generator.sample_latents(64, 0)
    exact = spectrum_of(generator, JacobianSettings(), z).frobenius()
    sketched = spectrum_of(generator, JacobianSettings(probes=3), z).frobenius()
    assert 0.7 < float((sketched.square().mean() / exact.square().mean()).sqrt()) < 1.3


def test_a_top_sketch_finds_the_largest_singular_values() -> None:
    generator = rank_deficient_mlp()
    z = generator.sample_latents(8, 0)
    top = spectrum_of(generator, JacobianSettings(probes=6, sketch="top"), z).singular_values
    exact = float64_reference(generator, z)
    torch.testing.assert_close(top[:, :3], exact[:, :3], rtol=0.02, atol=0)


def test_a_fast_method_that_agrees_is_used() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(300, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may be too slow to be used
        _, check = choose(generator, z, JacobianSettings(probes=5, min_rank_correlation=0.5))
    assert check is not None
    assert check.latents == 128
    assert check.rank_correlation["log_volume"] > 0.5
    assert 0.5 <= check.removed_overlap <= 1
    assert check.used or "not faster" in check.reason


def test_a_fast_method_that_disagrees_gives_way_to_the_exact_one() -> None:
    generator = rank_deficient_mlp()
    z = generator.sample_latents(100, 0)
    with pytest.warns(PgmkitWarning, match=r"rank correlation of .* computed exactly"):
        jacobians, check = choose(
            generator, z, JacobianSettings(probes=2, min_rank_correlation=0.9999)
        )
    assert check is not None
    assert not check.used
    values = jacobians.compute(z[:4])["singular_values"]
    assert values.shape == (4, 12)


def test_bfloat16_cannot_follow_a_condition_number_of_thousands() -> None:
    generator = rank_deficient_mlp()
    z = generator.sample_latents(100, 0)
    with pytest.warns(PgmkitWarning, match="bfloat16"):
        _, check = choose(generator, z, JacobianSettings(dtype="bfloat16"))
    assert check is not None
    assert not check.used
    assert check.threshold == 0.995


def test_bfloat16_tangents_are_close_to_exact_ones() -> None:
    generator = vae_decoder()
    z = generator.sample_latents(8, 0)
    rounded = JacobianSpectra(generator, JacobianSettings(dtype="bfloat16")).compute(z)[
        "singular_values"
    ]
    reference = float64_reference(generator, z)
    torch.testing.assert_close(rounded, reference, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of auto, float32, float64, tf32, bfloat16"),
        ({"probes": 0}, "probes must be at least 1, not 0"),
        ({"probes": 2, "sketch": "bottom"}, "sketch must be one of volume, top"),
        ({"sketch": "top"}, "needs a number of probes"),
        ({"probes": 2, "dtype": "bfloat16"}, "two fast methods"),
        ({"min_rank_correlation": 1.5}, r"in \[-1, 1\], not 1.5"),
        (
            {"min_rank_correlation": 0.9},
            "would be ignored, since only probes and the dtypes 'tf32' and",
        ),
        ({"memory_budget": 1000}, "at least 2"),
    ],
)
def test_parameters_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        JacobianSettings(**arguments)  # type: ignore[arg-type]


def test_more_probes_than_latent_dimensions_are_refused() -> None:
    with pytest.raises(ParameterError, match="at most 6, the latent dimension"):
        JacobianSpectra(vae_decoder(), JacobianSettings(probes=7))


def test_a_spectrum_says_how_it_was_computed() -> None:
    spectrum = pgmkit.compute_spectrum(mlp_at_the_tolerance(), latents=6)
    assert spectrum.provenance["computed"] == {"dtype": "auto", "probes": None, "sketch": None}
    assert spectrum.provenance["check"] is None
    assert spectrum.float64_share() == 1
    exact = pgmkit.compute_spectrum(vae_decoder(), latents=6)
    assert exact.float64_share() == 0


@pytest.mark.filterwarnings("ignore:.*computed exactly")
def test_a_sketched_spectrum_continues_as_it_was_begun(tmp_path: Path) -> None:
    def compute() -> Spectrum:
        return pgmkit.compute_spectrum(
            vae_decoder(),
            latents=40,
            probes=4,
            min_rank_correlation=-1,
            block_size=10,
            out=tmp_path,
        )

    first = compute()
    check = first.provenance["check"]
    assert check["latents"] == 40
    assert first.probes == (4 if check["used"] else None)
    assert first.singular_values.shape[1] == (4 if check["used"] else 6)
    shard = tmp_path / "block-000001.safetensors"
    whole = shard.read_bytes()
    shard.unlink()
    again = compute()
    assert shard.read_bytes() == whole
    assert again.provenance == first.provenance


def test_another_method_is_another_spectrum(tmp_path: Path) -> None:
    pgmkit.compute_spectrum(vae_decoder(), latents=4, out=tmp_path)
    with pytest.raises(OutputError, match=r"another dtype \('auto', not 'float64'\)"):
        pgmkit.compute_spectrum(vae_decoder(), latents=4, out=tmp_path, dtype="float64")


def provenance_of(sketch: str, probes: int) -> dict[str, object]:
    return {"computed": {"dtype": "auto", "probes": probes, "sketch": sketch}}


def test_sketches_refuse_what_they_cannot_tell() -> None:
    values = torch.tensor([[4.0, 2.0]], dtype=torch.float64)
    z, prior = torch.zeros(1, 6), torch.zeros(1)
    volume = Spectrum(z, values, prior, provenance_of("volume", 2))
    top = Spectrum(z, values, prior, provenance_of("top", 2))
    torch.testing.assert_close(volume.log_volume(), 3 * values.log().sum(1))
    torch.testing.assert_close(top.log_volume(top_k=2), values.log().sum(1))
    with pytest.raises(ParameterError, match="does not tell the 2 largest"):
        volume.log_volume(top_k=2)
    for top_k in (None, 3):
        with pytest.raises(ParameterError, match="sketch of the 2 largest singular values"):
            top.log_volume(top_k=top_k)


@pytest.mark.parametrize("mode", ["layers", "forward", "reverse"])
def test_a_latent_whose_image_is_not_finite_has_no_spectrum(mode: str) -> None:
    """Behind a ReLU nothing is left of a NaN, and a Jacobian of zero is finite."""
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.Unflatten(1, (1, 2, 2)))
    generator = generator_of(module, 3, (1, 2, 2))
    z = torch.tensor([[0.1, 0.2, 0.3], [float("nan"), 0.0, 0.0], [0.3, 0.2, 0.1]])
    jacobians = JacobianSpectra(generator, plan=JacobianPlan(mode, batch_size=3, tangents=3))
    values = jacobians.compute(z)["singular_values"]
    assert values.isfinite().all(1).tolist() == [True, False, True]


class InPlace(nn.Module):
    """Works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 16)

    def forward(self, z: Tensor) -> Tensor:
        z.mul_(2)
        return self.linear(z).tanh().unflatten(1, (1, 4, 4))


def test_a_generator_that_works_in_place_leaves_the_latents_alone() -> None:
    generator = generator_of(InPlace(), 4, (1, 4, 4))
    z = generator.sample_latents(6, 0)
    before = z.clone()
    spectrum = pgmkit.compute_spectrum(generator, z, block_size=3)
    assert torch.equal(z, before)
    assert torch.equal(spectrum.latents, before)
    linear = generator.module.linear
    slopes = 1 - torch.tanh(linear(2 * before).detach()) ** 2
    jacobians = slopes[:, :, None] * linear.weight.detach() * 2
    torch.testing.assert_close(
        spectrum.singular_values, torch.linalg.svdvals(jacobians.double()), rtol=1e-4, atol=0
    )


class Mixing(nn.Module):
    """Looks at the whole batch, as minibatch statistics do."""

    def forward(self, z: Tensor) -> Tensor:
        return (z - 0.5 * z.mean(0)).unflatten(1, (1, 2, 2))


class Noisy(nn.Module):
    """Draws new noise for each image."""

    def forward(self, z: Tensor) -> Tensor:
        return (z + torch.randn_like(z)).unflatten(1, (1, 2, 2))


@pytest.mark.parametrize("module", [Mixing(), Noisy()])
def test_latents_that_depend_on_each_other_or_on_chance_are_refused(module: nn.Module) -> None:
    with pytest.raises(GeneratorError, match="mixes latents or is random"):
        pgmkit.compute_spectrum(generator_of(module, 4, (1, 2, 2)), latents=8)


class OnlyFloat32(nn.Module):
    """Holds what no conversion reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        with torch.no_grad():
            self.linear.weight.copy_(torch.diag(torch.logspace(0, -8, 4)))
        self.matrix = (torch.eye(4),)

    def forward(self, z: Tensor) -> Tensor:
        return (self.linear(z) @ self.matrix[0]).unflatten(1, (1, 2, 2))


def test_a_generator_that_knows_float32_only_stays_in_it_with_a_warning() -> None:
    generator = generator_of(OnlyFloat32(), 4, (1, 2, 2))
    with pytest.warns(PgmkitWarning, match="does not run in float64"):
        spectrum = pgmkit.compute_spectrum(generator, latents=4)
    assert spectrum.float64_share() == 0


def test_a_recorded_plan_gives_way_to_a_smaller_budget() -> None:
    generator = vae_decoder()
    plan = replace(JacobianSpectra(generator).plan, batch_size=64, tangents=6)
    small = JacobianSpectra(generator, JacobianSettings(memory_budget=2**20), plan)
    assert small._differentiator.bytes_needed <= 2**20 // 4
    z = generator.sample_latents(8, 0)
    expected = JacobianSpectra(generator, plan=plan).compute(z)["singular_values"]
    torch.testing.assert_close(small.compute(z)["singular_values"], expected, rtol=1e-5, atol=0)


class TestApart:
    """An accelerator makes products, and threads of the CPU decompose them."""

    @pytest.mark.parametrize("ahead", [2**29, 1])
    @pytest.mark.parametrize("dtype", ["auto", "float64"])
    @pytest.mark.parametrize("deficient", [False, True])
    def test_singular_values_are_those_of_lapack_at_once(
        self, dtype: str, deficient: bool, ahead: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgmkit.spectrum.jacobian._AHEAD", ahead)
        monkeypatch.setattr("pgmkit.spectrum.jacobian._DECOMPOSED", 1)
        generator = rank_deficient_mlp() if deficient else vae_decoder()
        z = generator.sample_latents(13, 0)
        jacobians = JacobianSpectra(generator, JacobianSettings(dtype=dtype))
        expected = jacobians.compute(z)
        jacobians._apart = True
        found = jacobians.compute(z)
        assert torch.equal(found["float64"], expected["float64"])
        largest = expected["singular_values"][:, :1]
        error = (found["singular_values"] - expected["singular_values"]).abs() / largest
        assert error.max() <= 1e-14

    def test_a_latent_that_is_not_finite_spoils_no_other(self) -> None:
        jacobians = torch.randn(3, 4, 9, dtype=torch.float64)
        jacobians[1, 2, 5] = torch.nan
        values = _begin_values(jacobians, apart=True).finish()
        assert values.isfinite().all(1).tolist() == [True, False, True]
        torch.testing.assert_close(values[2], torch.linalg.svdvals(jacobians[2]))

    def test_the_next_batch_is_begun_before_the_one_before_has_arrived(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = vae_decoder()
        jacobians = JacobianSpectra(generator)
        expected = jacobians.compute(generator.sample_latents(12, 0))["singular_values"]
        jacobians._differentiator.plan = replace(jacobians.plan, batch_size=4)
        jacobians._apart = True
        all_begun, events, push = threading.Event(), [], Differentiator.push

        def slow(matrices: Tensor) -> tuple[Tensor, Callable[[], None]]:
            def wait() -> None:
                assert all_begun.wait(10)  # as a device does that has much to do

            return matrices, wait

        def pushed(*arguments: Any) -> Tensor:
            events.append("pushed")
            if events.count("pushed") == 3:
                all_begun.set()
            return push(*arguments)

        monkeypatch.setattr("pgmkit.spectrum.jacobian.fetched", slow)
        monkeypatch.setattr(Differentiator, "push", pushed)
        values = jacobians.compute(generator.sample_latents(12, 0))["singular_values"]
        assert events[:3] == ["pushed"] * 3
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=0)

    def test_it_is_ahead_with_no_more_than_memory_allows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = vae_decoder()
        jacobians = JacobianSpectra(generator)
        jacobians._differentiator.plan = replace(jacobians.plan, batch_size=1)
        monkeypatch.setattr("pgmkit.spectrum.jacobian._AHEAD", 1)
        waiting: list[int] = []

        def step(_: Differentiator, batch: Tensor) -> _Begun[Tensor]:
            waiting.append(1)
            assert len(waiting) <= 2

            def finish() -> Tensor:
                waiting.clear()
                return batch

            return _Begun(finish, num_bytes=2)

        z = generator.sample_latents(9, 0)
        assert torch.equal(
            torch.cat(jacobians._over_batches(jacobians._differentiator, z, step)), z
        )


@pytest.mark.parametrize(
    ("free", "budget"),
    [(None, 2**30), (80 * 2**30, 2**35), (79 * 2**30, 2**35), (3 * 2**30, 2**30), (2**19, 2**20)],
)
def test_the_budget_follows_what_is_free_on_an_accelerator(
    free: int | None, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgmkit.spectrum.jacobian.free_device_memory", lambda _: free)
    jacobians = JacobianSpectra(vae_decoder())
    assert budget - 4 * 2**20 <= jacobians._memory <= budget


def test_tf32_where_there_is_none_gives_way_to_the_exact_method() -> None:
    generator = vae_decoder()
    with pytest.warns(PgmkitWarning, match=r"'tf32' is not used, since TF32 is .* is on cpu"):
        spectrum = pgmkit.compute_spectrum(generator, 4, dtype="tf32")
    assert spectrum.provenance["computed"]["dtype"] == "auto"
    exact = pgmkit.compute_spectrum(generator, 4)
    assert torch.equal(spectrum.singular_values, exact.singular_values)


def test_tf32_rounds_products_of_tangents_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed() -> bool:
        return torch.backends.cudnn.allow_tf32

    class Looking(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            assert not allowed()
            convolved = convolution(z.unflatten(1, (2, 2, 2)))
            return (convolved + linear(z).unflatten(1, (1, 2, 2))).relu()

    convolution, linear = nn.Conv2d(2, 1, 3, padding=1), nn.Linear(8, 4)
    seen: list[bool] = []

    def noted(rule: Any) -> Any:
        return lambda call: (seen.append(allowed()), rule(call))[1]

    for name in ("conv2d", "linear"):
        monkeypatch.setitem(RULES, name, noted(RULES[name]))
    with full_float32():
        TangentProgram(Looking(), tf32=True).push_forward(torch.randn(2, 8))
        assert seen == [True, True]
        TangentProgram(Looking()).push_forward(torch.randn(2, 8))
        assert seen[2:] == [False, False]
