"""Spectra against independent references in float64."""

import copy
import dataclasses
import json
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pgmkit
from pgmkit import progress
from pgmkit.engines.local import LocalEngine
from pgmkit.errors import LoadError, OutputError, ParameterError, PgmkitWarning
from pgmkit.spectrum import differentiation, load_spectrum
from pgmkit.spectrum.blocks import BlockStore, recorded_settings
from pgmkit.spectrum.differentiation import Differentiator, JacobianPlan
from pgmkit.spectrum.folders import folder_at
from pgmkit.spectrum.jacobian import JacobianSpectra
from pgmkit.tangents.convolutions import LIVE

LATENT = 6


class Residual(nn.Module):
    """A module that layer-by-layer rules cover only through tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, 48)
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.tanh(self.first(z)).view(-1, 3, 4, 4)
        return self.norm(self.convolution(x)) + x


class Attention(nn.Module):
    """Multiplies activations with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, 48)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).view(-1, 16, 3)
        weights = (x @ x.transpose(1, 2)).softmax(dim=-1)
        return weights @ x


class _Cube(torch.autograd.Function):
    """A custom function with a backward and no forward derivative."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        context.save_for_backward(x)  # type: ignore[attr-defined]
        return x**3

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors  # type: ignore[attr-defined]
        return 3 * x**2 * gradient


class Custom(nn.Module):
    cube = staticmethod(_Cube.apply)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(LATENT, 48)

    def forward(self, z: Tensor) -> Tensor:
        return self.cube(self.first(z))


@torch.library.custom_op("pgmkit_tests::cube", mutates_args=())
def _cube(x: Tensor) -> Tensor:
    return x**3


def _cube_backward(context: Any, gradient: Tensor) -> Tensor:
    return 3 * context.saved_tensors[0] ** 2 * gradient


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_cube.register_autograd(_cube_backward, setup_context=_keep)


class Operator(Custom):
    """Has the same function as an operator of torch, of which only the backward is known."""

    cube = staticmethod(_cube)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)),
        nn.ConvTranspose2d(LATENT, 8, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 4, 4, 2, 1),
        nn.BatchNorm2d(4, affine=False),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.PixelShuffle(2),
        nn.Tanh(),
    )


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 32),
        nn.BatchNorm1d(32),
        nn.ELU(),
        nn.Linear(32, 32),
        nn.SiLU(),
        nn.Dropout(),
        nn.Linear(32, 48, bias=False),
        nn.Sigmoid(),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "convolutional": (convolutional, "layers"),
    "dense": (dense, "layers"),
    "residual": (Residual, "layers"),
    "attention": (Attention, "layers"),
    "custom function": (Custom, "layers"),
    "custom operator": (Operator, "reverse"),
}


def generator_of(network: nn.Module) -> pgmkit.Generator:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.3, 2.0)
    network.eval()
    with torch.no_grad():
        made = network(torch.zeros(1, LATENT))
    shape = (1, 1, *made.shape[1:])[-3:]
    image = pgmkit.ImageSpec(shape, (-1, 1))
    return pgmkit.Generator(network, latent=pgmkit.LatentSpec(LATENT), image=image)


def reference_singular_values(generator: pgmkit.Generator, z: Tensor) -> Tensor:
    """Ordinary reverse-mode autograd in float64, one latent at a time."""
    module = copy.deepcopy(generator.module).double()
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    rows = []
    for latent in z.double():
        jacobian = torch.autograd.functional.jacobian(
            lambda value: module(value[None]).flatten(), latent, vectorize=True
        )
        rows.append(torch.linalg.svdvals(jacobian))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_log_volume_agrees_with_float64_autograd_to_1e_4_nats(name: str) -> None:
    build, mode = NETWORKS[name]
    generator = generator_of(build())
    spectrum = pgmkit.compute_spectrum(generator, latents=20, block_size=7)
    assert spectrum.provenance["jacobian"]["mode"] == mode
    expected = reference_singular_values(generator, spectrum.latents)
    torch.testing.assert_close(spectrum.singular_values, expected, rtol=1e-4, atol=1e-6)
    difference = spectrum.log_volume(rank_rtol=0) - expected.log().sum(dim=1)
    assert difference.abs().max() < 1e-4


def test_the_shipped_generator_agrees_with_float64_autograd_to_1e_4_nats() -> None:
    generator = pgmkit.load_generator("mnist-dcgan")
    spectrum = pgmkit.compute_spectrum(generator, 6, seed=3)
    module = copy.deepcopy(generator.module).double()
    z = spectrum.latents.double()
    jacobians = torch.func.vmap(torch.func.jacfwd(lambda z: module(z[None]).flatten()))(z)
    z.requires_grad_()
    weights = torch.randn(jacobians.shape[1], dtype=z.dtype)
    (by_reverse,) = torch.autograd.grad((module(z).flatten(1) @ weights).sum(), z)
    torch.testing.assert_close(weights @ jacobians, by_reverse, rtol=1e-9, atol=1e-12)
    expected = torch.linalg.svdvals(jacobians)
    difference = spectrum.log_volume(rank_rtol=0) - expected.log().sum(dim=1)
    assert difference.abs().max() < 1e-4
    assert (spectrum.numeric_rank() == 64).all()


@pytest.mark.parametrize("mode", ["layers", "forward", "reverse"])
def test_all_ways_give_the_same_singular_values(mode: str) -> None:
    generator = generator_of(convolutional())
    z = generator.sample_latents(5, seed=1)
    automatic = JacobianSpectra(generator)
    assert automatic.plan.mode == "layers"
    plan = JacobianPlan(mode, batch_size=2, tangents=4)
    torch.testing.assert_close(
        JacobianSpectra(generator, plan=plan).compute(z)["singular_values"],
        automatic.compute(z)["singular_values"],
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_float64_generator_is_computed_in_float64_throughout() -> None:
    generator = generator_of(dense().double().float())
    generator.module.double()
    z = generator.sample_latents(4, seed=0)
    values = JacobianSpectra(generator).compute(z)["singular_values"]
    torch.testing.assert_close(
        values, reference_singular_values(generator, z), rtol=1e-10, atol=1e-14
    )


def test_the_generator_is_left_as_it_was() -> None:
    generator = generator_of(convolutional())
    before = generator.fingerprint()
    types = [type(part) for part in generator.module.modules()]
    pgmkit.compute_spectrum(generator, latents=3)
    assert generator.fingerprint() == before
    assert [type(part) for part in generator.module.modules()] == types
    assert generator.module[3].inplace is True


def test_the_plan_names_the_functions_without_a_rule() -> None:
    assert JacobianSpectra(generator_of(Custom())).plan.generic == ["custom function _Cube"]
    assert JacobianSpectra(generator_of(Residual())).plan.generic == []


class ByView(nn.Module):
    """Changes a tensor by a view of it, which cannot be written down."""

    def forward(self, z: Tensor) -> Tensor:
        y = 2 * z
        y[:, :2].mul_(2)
        return y.unflatten(1, (1, 1, LATENT))


def test_the_plan_says_why_a_way_was_not_taken() -> None:
    spectrum = pgmkit.compute_spectrum(generator_of(ByView()), latents=4)
    plan = spectrum.provenance["jacobian"]
    assert plan["mode"] == "forward"
    assert plan["declined"] == ["layers: it writes into a tensor that it also uses by a view"]
    assert JacobianSpectra(generator_of(dense())).plan.declined == []


def test_a_module_that_moves_the_latents_is_given_one_at_a_time() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Linear(LATENT, 48), nn.Unflatten(1, (4, 12)), layer, nn.Flatten())
    generator = generator_of(network)
    plan = JacobianSpectra(generator).plan
    assert (plan.mode, plan.batch_size) == ("layers", 1)
    z = generator.sample_latents(3, seed=0)
    expected = reference_singular_values(generator, z)
    values = JacobianSpectra(generator).compute(z)["singular_values"]
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


def test_a_rank_deficient_generator_has_the_rank_of_its_bottleneck() -> None:
    network = nn.Sequential(nn.Linear(LATENT, 3), nn.Linear(3, 48), nn.Tanh())
    spectrum = pgmkit.compute_spectrum(generator_of(network), latents=10)
    assert spectrum.singular_values.shape == (10, LATENT)
    assert (spectrum.numeric_rank() == 3).all()


def test_null_directions_are_floored_or_dropped_as_asked() -> None:
    values = torch.tensor([[4.0, 2.0, 1e-9]], dtype=torch.float64)
    spectrum = pgmkit.Spectrum(torch.zeros(1, 3), values, torch.zeros(1, dtype=torch.float64))
    assert spectrum.numeric_rank(1e-6).item() == 2
    assert spectrum.log_volume(rank_rtol=1e-6).item() == pytest.approx(math.log(8 * 4e-6))
    assert spectrum.log_volume(rank_rtol=1e-6, null="drop").item() == pytest.approx(math.log(8))
    assert spectrum.log_volume(rank_rtol=0).item() == pytest.approx(math.log(8e-9))
    assert spectrum.log_volume(top_k=1).item() == pytest.approx(math.log(4))
    assert spectrum.frobenius().item() == pytest.approx(math.sqrt(20))


@pytest.mark.parametrize("null", ["floor", "drop"])
def test_zero_and_nan_jacobians_stay_visible_in_the_log_volume(null: str) -> None:
    values = torch.tensor([[0.0, 0.0], [math.nan, math.nan]], dtype=torch.float64)
    spectrum = pgmkit.Spectrum(torch.zeros(2, 2), values, torch.zeros(2, dtype=torch.float64))
    volume = spectrum.log_volume(null=null)  # type: ignore[arg-type]
    assert volume[0] == -math.inf
    assert volume[1].isnan()
    assert spectrum.finite().tolist() == [True, False]


@pytest.mark.parametrize("arguments", [{"rank_rtol": 1.0}, {"null": "keep"}, {"top_k": 0}])
def test_bad_rank_parameters_are_refused(arguments: dict[str, object]) -> None:
    spectrum = pgmkit.Spectrum(torch.zeros(1, 1), torch.ones(1, 1).double(), torch.zeros(1))
    with pytest.raises(ParameterError):
        spectrum.log_volume(**arguments)  # type: ignore[arg-type]


def test_a_latent_with_an_infinite_jacobian_does_not_spoil_the_others() -> None:
    class Pole(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.where(z[:, :1] > 1.5, z * math.inf, z.tanh())

    network = Pole()
    generator = pgmkit.Generator(network, pgmkit.LatentSpec(2), pgmkit.ImageSpec((1, 1, 2)))
    z = torch.tensor([[0.1, 0.2], [2.0, 0.0], [0.3, -0.2]])
    with pytest.warns(PgmkitWarning, match=r"not finite at 1 of 3 latents \(33.3%\)"):
        spectrum = pgmkit.compute_spectrum(generator, latents=z)
    assert spectrum.finite().tolist() == [True, False, True]
    expected = (1 - z[0].double().tanh() ** 2).sort(descending=True).values
    torch.testing.assert_close(spectrum.singular_values[0], expected, rtol=1e-5, atol=0)


def test_the_number_of_workers_changes_no_bit() -> None:
    generator = generator_of(convolutional())
    results = [
        pgmkit.compute_spectrum(
            generator, latents=50, block_size=8, engine=LocalEngine(workers)
        ).singular_values
        for workers in (1, 2, 3)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("kernel", [*LIVE, "taps"])
def test_a_plan_that_this_process_chose_before_is_followed_to_the_bit(
    kernel: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have the plan alone; what was tried to find it must leave nothing behind."""
    network = nn.Sequential(
        nn.Linear(LATENT, 64 * 16),
        nn.Unflatten(1, (64, 4, 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 2, 4, 2, 1),
    )
    generator = generator_of(network)
    z = generator.sample_latents(5, seed=0)
    plan = JacobianPlan("layers", batch_size, LATENT, {"3": kernel})
    of_worker = JacobianSpectra(generator, plan=plan).compute(z)["singular_values"]
    dense_plan = dataclasses.replace(plan, kernels={})
    by_dense = JacobianSpectra(generator, plan=dense_plan).compute(z)["singular_values"]
    assert not torch.equal(of_worker, by_dense)

    monkeypatch.setattr(differentiation, "_CALIBRATED", {})
    monkeypatch.setattr(Differentiator, "_calibrate", lambda self, memory: plan)
    chosen = JacobianSpectra(generator)
    assert chosen.plan == plan
    assert torch.equal(chosen.compute(z)["singular_values"], of_worker)


def test_what_computes_jacobians_does_the_same_to_the_bit_in_another_process() -> None:
    generator = generator_of(convolutional())
    z = generator.sample_latents(5, seed=0)
    jacobians = JacobianSpectra(generator, plan=JacobianPlan("layers", 2, 4))
    sent = pickle.loads(pickle.dumps(jacobians))
    assert (sent.plan, sent.settings) == (jacobians.plan, jacobians.settings)
    values = jacobians.compute(z)["singular_values"]
    assert torch.equal(sent.compute(z)["singular_values"], values)


def test_fewer_latents_are_the_first_of_more() -> None:
    generator = generator_of(dense())
    few = pgmkit.compute_spectrum(generator, latents=10, seed=4)
    many = pgmkit.compute_spectrum(generator, latents=generator.sample_latents(300, 4)[:10])
    assert torch.equal(few.latents, many.latents)
    assert torch.equal(few.singular_values, many.singular_values)
    other = pgmkit.compute_spectrum(generator, latents=10, seed=5)
    assert not torch.equal(few.latents, other.latents)


def test_log_prior_comes_with_the_spectrum() -> None:
    spectrum = pgmkit.compute_spectrum(generator_of(dense()), latents=4)
    normal = torch.distributions.MultivariateNormal(torch.zeros(LATENT), torch.eye(LATENT))
    torch.testing.assert_close(
        spectrum.log_prior, normal.log_prob(spectrum.latents).double(), rtol=1e-5, atol=1e-5
    )


class TestSavedSpectrum:
    """A folder of blocks is complete, or continues; damage is repaired."""

    def compute(self, folder: Path, **arguments: int) -> pgmkit.Spectrum:
        torch.manual_seed(0)
        generator = generator_of(convolutional())
        settings = {"latents": 30, "seed": 0, "block_size": 8, **arguments}
        return pgmkit.compute_spectrum(generator, out=folder, **settings)

    def test_reading_back_computes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.compute(tmp_path)
        assert len(list(tmp_path.glob("block-*.safetensors"))) == 4
        monkeypatch.setattr(JacobianSpectra, "compute", lambda *_: pytest.fail("computed again"))
        assert torch.equal(self.compute(tmp_path).singular_values, first.singular_values)

    @pytest.mark.parametrize("damage", ["missing", "truncated", "bit flipped"])
    def test_a_damaged_block_is_computed_again(self, tmp_path: Path, damage: str) -> None:
        self.compute(tmp_path)
        shard = tmp_path / "block-000002.safetensors"
        whole = shard.read_bytes()
        if damage == "missing":
            shard.unlink()
        elif damage == "truncated":
            shard.write_bytes(whole[:-9])
        else:
            shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        self.compute(tmp_path)
        assert shard.read_bytes() == whole

    def test_blocks_that_no_manifest_names_count_if_they_certify_themselves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.compute(tmp_path)
        manifest = tmp_path / "manifest.json"
        whole = manifest.read_bytes()
        manifest.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(JacobianSpectra, "compute", lambda *_: pytest.fail("computed again"))
            assert torch.equal(self.compute(tmp_path).singular_values, first.singular_values)
        assert manifest.read_bytes() == whole

    @pytest.mark.parametrize("place", [9, 200, 700, -9])
    def test_a_flipped_bit_is_found_without_the_manifest_too(
        self, tmp_path: Path, place: int
    ) -> None:
        self.compute(tmp_path)
        (tmp_path / "manifest.json").unlink()
        shard = tmp_path / "block-000001.safetensors"
        whole = shard.read_bytes()
        damaged = bytearray(whole)
        damaged[place] ^= 4
        shard.write_bytes(damaged)
        self.compute(tmp_path)
        assert shard.read_bytes() == whole

    def test_a_block_of_another_spectrum_or_with_another_number_does_not_count(
        self, tmp_path: Path
    ) -> None:
        self.compute(tmp_path / "a")
        self.compute(tmp_path / "b", seed=1)
        name, other = "block-000001.safetensors", "block-000002.safetensors"
        whole = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
        (tmp_path / "a" / "manifest.json").unlink()
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
        (tmp_path / "a" / other).write_bytes(whole["block-000003.safetensors"])
        self.compute(tmp_path / "a")
        assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == whole

    def test_the_plan_on_record_is_taken_up_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choose = Differentiator._choose_plan

        def otherwise(self: Differentiator, memory: int) -> JacobianPlan:
            return dataclasses.replace(choose(self, memory), batch_size=3)

        with monkeypatch.context() as patch:
            patch.setattr(Differentiator, "_choose_plan", otherwise)
            first = self.compute(tmp_path)
        (tmp_path / "block-000001.safetensors").unlink()
        again = self.compute(tmp_path)
        assert again.provenance == first.provenance
        assert again.provenance["jacobian"]["batch_size"] == 3
        assert torch.equal(again.singular_values, first.singular_values)

    def test_it_says_how_many_latents_were_not_computed_but_read(self, tmp_path: Path) -> None:
        assert self.compute(tmp_path).reused == 0
        (tmp_path / "block-000001.safetensors").unlink()
        assert self.compute(tmp_path).reused == 22
        assert self.compute(tmp_path).reused == load_spectrum(tmp_path).reused == 30

    def test_a_store_goes_to_other_processes_without_what_is_in_memory(
        self, tmp_path: Path
    ) -> None:
        self.compute(tmp_path)
        settings = recorded_settings(folder_at(tmp_path))
        assert settings is not None
        store = BlockStore(settings, folder_at(tmp_path))
        store.open()
        assert store.missing == []
        sent = pickle.loads(pickle.dumps(store))
        assert (sent.missing, sent.tensors) == ([0, 1, 2, 3], {})
        assert sent.copy(store) == 4
        assert torch.equal(sent.tensors["latents"], store.tensors["latents"])

    def test_more_latents_do_not_fit_the_folder(self, tmp_path: Path) -> None:
        self.compute(tmp_path)
        with pytest.raises(OutputError, match="another latents"):
            self.compute(tmp_path, seed=1)
        with pytest.raises(OutputError, match="block_size"):
            self.compute(tmp_path, block_size=9)

    def test_a_saved_spectrum_is_loaded_without_its_generator(self, tmp_path: Path) -> None:
        computed = self.compute(tmp_path)
        loaded = load_spectrum(tmp_path)
        for name in ("latents", "singular_values", "log_prior"):
            assert torch.equal(getattr(loaded, name), getattr(computed, name)), name
        assert loaded.provenance == computed.provenance
        (tmp_path / "block-000001.safetensors").unlink()
        with pytest.raises(LoadError, match="block 1 of 4"):
            load_spectrum(tmp_path)
        with pytest.raises(LoadError, match="holds no spectrum"):
            load_spectrum(tmp_path / "elsewhere")

    def test_the_manifest_names_every_block_with_its_checksum(self, tmp_path: Path) -> None:
        self.compute(tmp_path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert list(manifest["blocks"]) == ["0", "1", "2", "3"]
        assert manifest["settings"]["jacobian"]["mode"] == "layers"


@pytest.mark.parametrize("latents", [0, -3, True, 2.5, None, torch.zeros(0, LATENT)])
def test_latents_are_a_number_or_the_latents_themselves_and_not_empty(latents: object) -> None:
    with pytest.raises(ParameterError, match="latents"):
        pgmkit.compute_spectrum(generator_of(dense()), latents)  # type: ignore[arg-type]


def test_progress_tells_how_many_latents_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compute = JacobianSpectra.compute

    def slowly(jacobians: JacobianSpectra, z: Tensor) -> dict[str, Tensor]:
        time.sleep(0.2)
        return compute(jacobians, z)

    monkeypatch.setattr(JacobianSpectra, "compute", slowly)
    monkeypatch.setattr("pgmkit.progress._SECONDS", 0.01)
    pgmkit.compute_spectrum(generator_of(dense()), 12)
    assert capsys.readouterr().err == ""
    with progress.shown():
        pgmkit.compute_spectrum(generator_of(dense()), 12)
    assert capsys.readouterr().err == "Jacobians of 12 latents: 12 latents\n"
