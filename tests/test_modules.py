"""Modules of every kind behind a generator, and what is wrong with some of them."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pgmkit
from pgmkit.errors import GeneratorError, PgmkitWarning, PluginError
from pgmkit.plugins import build
from pgmkit.selection import select
from pgmkit.tangents.recording import record
from pgmkit.tangents.rules import COMPOSITIONS, PRIMITIVES

# Declared ranges are a matter of their own.
pytestmark = pytest.mark.filterwarnings("ignore:the generator 'mine' makes images")


class Network(nn.Module):
    def __init__(self, part: Callable[..., Tensor] = lambda images, z: images) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 9)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(
                    torch.linspace(-1, 1, layer.weight.numel()).sin_().view_as(layer.weight)
                )
                layer.bias.copy_(torch.linspace(-0.3, 0.4, len(layer.bias)))
                layer.weight.add_(torch.eye(*layer.weight.shape))
        self.part = part

    def forward(self, z: Tensor) -> Tensor:
        return self.part(self.second(self.first(z).tanh()), z)


class Plain(nn.Module):
    """What TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ELU(), nn.Linear(12, 9)
        )
        with torch.no_grad():
            for number, part in enumerate(self.parameters()):
                part.copy_(
                    torch.linspace(-1, 1.3, part.numel()).mul(number + 2).sin().view_as(part)
                )

    def forward(self, z: Tensor) -> Tensor:
        return self.network(z)


def generator_of(module: nn.Module) -> pgmkit.Generator:
    return pgmkit.Generator(module, pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, 3, 3)), name="mine")


def exact_values(module: nn.Module, z: Tensor) -> Tensor:
    """Returns singular values by reverse mode in float64."""
    twin = copy.deepcopy(module).double().eval()
    rows = [
        torch.autograd.functional.jacobian(lambda v: twin(v[None])[0], latent)
        for latent in z.double()
    ]
    return torch.linalg.svdvals(torch.stack(rows))  # type: ignore[arg-type]


def check_values(module: nn.Module, twin: nn.Module) -> None:
    """Shatters a module, and checks its spectrum against that of one that computes the same."""
    generator = generator_of(module)
    spectrum = pgmkit.compute_spectrum(generator, latents=60, seed=0)
    expected = exact_values(twin, spectrum.latents[:8])
    torch.testing.assert_close(spectrum.singular_values[:8], expected, rtol=1e-5, atol=1e-6)
    shattered = pgmkit.shatter(generator, spectrum=spectrum, clusters=2, sampler="kmeans-gmm")
    assert shattered.sample(3, cluster=1).shape == (3, 1, 3, 3)


def scripted(folder: Path) -> nn.Module:
    with pytest.warns(FutureWarning, match="torch.jit"):
        module: nn.Module = torch.jit.script(Plain())
    return module


def loaded(folder: Path) -> nn.Module:
    scripted(folder).save(str(folder / "net.pt"))  # type: ignore[operator]
    with pytest.warns(FutureWarning, match="torch.jit"):
        module: nn.Module = torch.jit.load(str(folder / "net.pt"))
    return module


def exported(folder: Path) -> nn.Module:
    sizes = ({0: torch.export.Dim("latents")},)
    program = torch.export.export(Plain().eval(), (torch.ones(3, 4),), dynamic_shapes=sizes)
    return program.module()


@pytest.mark.parametrize("program", [scripted, loaded, exported])
def test_a_program_is_a_generator_like_any_other(
    program: Callable[[Path], nn.Module], tmp_path: Path
) -> None:
    check_values(program(tmp_path), Plain())


def test_a_program_for_a_fixed_number_of_latents_says_how_to_export_it() -> None:
    program = torch.export.export(Plain().eval(), (torch.ones(3, 4),))
    with pytest.raises(GeneratorError, match="with dynamic_shapes"):
        generator_of(program.module()).check()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_change_nothing(reentrant: bool) -> None:
    def part(images: Tensor, z: Tensor) -> Tensor:
        out: Tensor = checkpoint(torch.sin, images, use_reentrant=reentrant)
        return out

    check_values(Network(part), Network(lambda images, z: images.sin()))
    leaf = torch.ones(2, 2, requires_grad=True)
    checkpoint(torch.sin, leaf, use_reentrant=True).sum().backward()  # works as before
    torch.testing.assert_close(leaf.grad, torch.ones(2, 2).cos())


def test_compiled_modules_are_written_down_as_they_were_written() -> None:
    runs = []

    class Compiled(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            runs.append(torch.compiler.is_compiling())
            return z.sin()

    module = torch.compile(Compiled())
    tape = record(module, torch.ones(2, 4), PRIMITIVES, COMPOSITIONS)  # type: ignore[arg-type]
    assert [call.name for call in tape.calls] == ["sin"]
    assert runs == [False]


def test_complex_weights_stay_complex_in_float64() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            angles = torch.linspace(0, 9, 36).view(4, 9)
            self.weight = nn.Parameter(torch.polar(angles.cos() + 2, angles))
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, z: Tensor) -> Tensor:
            return (z.to(self.weight.dtype) @ self.weight).abs() * self.scale

    generator = generator_of(Complex())
    spectra = [
        pgmkit.compute_spectrum(generator, latents=4, dtype=dtype).singular_values
        for dtype in ("float32", "float64")
    ]
    torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_generator_of_any_precision_takes_its_own_spectrum(dtype: torch.dtype) -> None:
    module = Network().to(dtype)
    check_values(module, Network().to(dtype))
    assert module.first.weight.dtype == dtype
    assert generator_of(module).dtype == dtype


DERIVATIVES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "rounded": (lambda images, z: images.sigmoid().mul(255).round(), "rounding to bytes"),
    "saturated": (lambda images, z: (1e6 * images).tanh(), "tanh is saturated"),
    "signs": (lambda images, z: images.sign(), "though their images differ"),
    "constant": (lambda images, z: images * 0 + 0.5, "their images are all the same"),
    "alone": (lambda images, z: torch.ones(len(z), 9), "does not use its latents"),
    "detached": (lambda images, z: images.detach(), "remove detach"),
    "bytes": (lambda images, z: images.mul(255).byte(), "return floats"),
    "complex": (lambda images, z: torch.fft.fft(images), "only real floats"),
}


@pytest.mark.parametrize("density", ["lash", "jbt", "polarity"])
@pytest.mark.parametrize("case", DERIVATIVES)
def test_images_without_a_derivative_are_an_error_that_says_why(case: str, density: str) -> None:
    part, message = DERIVATIVES[case]
    with pytest.raises(GeneratorError, match=message) as error:
        pgmkit.shatter(generator_of(Network(part)), latents=200, clusters=2, density=density)
    assert "'mine'" in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_left_behind_where_there_is_no_derivative(tmp_path: Path) -> None:
    generator = generator_of(Network(DERIVATIVES["rounded"][0]))
    with pytest.raises(GeneratorError, match="zero at all of 30 latents"):
        pgmkit.compute_spectrum(generator, latents=30, out=tmp_path / "out", cache=True)
    assert not list((tmp_path / "out").glob("*"))


def test_a_jacobian_that_is_zero_at_some_latents_is_told_with_their_share() -> None:
    generator = generator_of(Network(lambda images, z: images * (z[:, :1] > 0)))
    with pytest.warns(PgmkitWarning, match=r"zero at \d+ of 100 latents \(\d+\.\d%\)"):
        spectrum = pgmkit.compute_spectrum(generator, latents=100)
    zero = (spectrum.singular_values == 0).all(dim=1)
    assert torch.equal(zero, spectrum.latents[:, 0] <= 0)


class Same:
    """Weighs some latents alike."""

    def log_weights(self, spectrum: pgmkit.Spectrum) -> Tensor:
        return torch.arange(len(spectrum)).clamp(min=50).double()


def test_ties_that_decide_what_is_removed_are_told() -> None:
    spectrum = pgmkit.compute_spectrum(generator_of(Network()), latents=100)
    with pytest.warns(PgmkitWarning, match="'Same' gives 20 of the 20 removed latents the same"):
        select(Same(), spectrum, remove=0.2, seed=0)
    select(Same(), spectrum, remove=0.51, seed=0)  # a cut beside the ties is none of theirs
    select(build("density-estimators", "none"), spectrum, remove=0.2, seed=0)


def test_estimators_are_called_by_their_class() -> None:
    class Short:
        def log_weights(self, spectrum: pgmkit.Spectrum) -> Tensor:
            return torch.zeros(3)

    spectrum = pgmkit.compute_spectrum(generator_of(Network()), latents=10)
    with pytest.raises(PluginError, match="the density-estimator 'Short' returns"):
        select(Short(), spectrum, remove=0.2, seed=0)


def with_weight(value: float) -> Network:
    module = Network()
    with torch.no_grad():
        module.first.weight[0, 0] = value
    return module


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(GeneratorError, match=r"are among the weights first\.weight; fetch"):
        pgmkit.compute_spectrum(generator_of(with_weight(math.nan)), latents=20)
    with pytest.raises(GeneratorError, match=r"not finite at any of 20 .* first\.weight"):
        pgmkit.compute_spectrum(generator_of(with_weight(math.inf)), latents=20)


def test_latents_that_are_not_finite_are_told_also_where_more_go_than_were_to() -> None:
    def pole(images: Tensor, z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 0, images * math.inf, images)

    with pytest.warns(PgmkitWarning) as said:
        pgmkit.shatter(generator_of(Network(pole)), latents=200, clusters=2, sampler="kmeans-gmm")
    messages = [str(warning.message) for warning in said]
    assert any("not finite at" in message for message in messages)
    assert any("more than remove=0.2 asks for" in message for message in messages)


def meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(4, 9)


@pytest.mark.parametrize(
    ("module", "message"),
    [(meta, "weight .* meta device"), (lambda: nn.LazyLinear(9), "run it on")],
)
def test_a_module_without_weights_is_refused(module: Any, message: str) -> None:
    with pytest.raises(GeneratorError, match=message):
        generator_of(module())


class Unfinished(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        (lambda images, z: torch.tensor(images.tolist()), "remove detach, .data"),
        (lambda images, z: torch.from_numpy(images.numpy()), "numpy"),
        (lambda images, z: Unfinished.apply(images), "give its custom autograd.Function"),
    ],
)
def test_the_advice_is_that_for_the_cause(part: Callable[..., Tensor], advice: str) -> None:
    with pytest.raises(GeneratorError, match=advice):
        pgmkit.compute_spectrum(generator_of(Network(part)), latents=4)
