"""Generators, the forms of what goes in and comes out, and image specs."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pgmkit
from pgmkit import pictures
from pgmkit.errors import GeneratorError, ParameterError, PgmkitWarning
from pgmkit.evaluate.diagnostics import diagnose
from pgmkit.evaluate.report import describe, write_report
from pgmkit.spectrum.jacobian import JacobianSpectra


@pytest.mark.parametrize(
    "arguments",
    [
        ((32, 32),),
        ((1, 0, 4),),
        (32,) * 2,
        (("1", 4, 4),),
        ((1, 4, 4), (1, 1)),
        ((1, 4, 4), (0, 1, 2)),
        ((1, 4, 4), ("0", "1")),
        ((1, 4, 4), (0, math.inf)),
        ((1, 4, 4), (0, 10**400)),
        ((1, 4, 4), 1.0),
    ],
)
def test_an_image_spec_outside_its_range_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ParameterError, match="image"):
        pgmkit.ImageSpec(*arguments)  # type: ignore[arg-type]


def generator_of(module: nn.Module) -> pgmkit.Generator:
    return pgmkit.Generator(
        module, latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 2, 2)), name="mine"
    )


def test_more_latents_than_memory_holds_are_refused() -> None:
    with pytest.raises(ParameterError, match="10,000,000,000,000 latents of 2 dimensions need"):
        generator_of(nn.Linear(2, 4)).sample_latents(10**13, seed=0)


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
        ((torch.zeros(2, 5), None), r"tuple \(0: \(2, 5\), 1: NoneType\), in which nothing fits"),
        ({"x": torch.zeros(2, 4), "y": torch.zeros(2, 1, 2, 2)}, "2 fit the image spec"),
        ("images", "returns a str"),
        (torch.zeros(2, 5), "image spec"),
        (torch.zeros(2, 4, 1), "image spec"),
        (torch.zeros(1, 8), "image spec"),
        (torch.full((2, 4), math.nan), "not finite"),
    ],
)
def test_a_generator_that_breaks_the_contract_is_named(value: object, message: str) -> None:
    with pytest.raises(GeneratorError, match=message) as error:
        generator_of(Returns(value)).check()
    assert "'mine'" in str(error.value)


def test_a_module_that_wants_other_latents_gets_them_and_it_is_said() -> None:
    generator = generator_of(nn.Sequential(nn.ConvTranspose2d(2, 1, 2), nn.Tanh()))
    with pytest.warns(PgmkitWarning, match=r"takes \(2, 1, 1\) each.*shape=\(2, 1, 1\)"):
        generator.check()
    assert generator.latent == pgmkit.LatentSpec(2, shape=(2, 1, 1))
    z = generator.sample_latents(3, seed=0)
    assert torch.equal(generator(z), generator.module(z[:, :, None, None]))
    generator.check()  # without another warning


def test_a_module_that_wants_latents_of_a_shape_that_is_said_gets_them() -> None:
    module = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Tanh())
    spec = pgmkit.LatentSpec(shape=(2, 2, 2))
    generator = pgmkit.Generator(module, spec, pgmkit.ImageSpec((1, 2, 2)))
    generator.check()
    z = generator.sample_latents(3, seed=0)
    assert z.shape == (3, 8)
    assert torch.equal(generator(z), module(z.view(3, 2, 2, 2)))


def test_a_module_that_fails_on_both_forms_says_why_and_what_to_do() -> None:
    generator = generator_of(nn.Sequential(nn.ConvTranspose2d(5, 1, 2)))
    with pytest.raises(GeneratorError, match=r"nor of \(2, 2, 1, 1\).*LatentSpec\(shape="):
        generator.check()
    assert generator.latent.shape == ()


@dataclass
class Decoded:
    sample: Tensor
    mean: Tensor


HEIGHT, WIDTH = 4, 3


def tensors(flat: Tensor) -> tuple[Tensor, Tensor]:
    return flat.view(-1, 3, HEIGHT, WIDTH), flat[:, :5]


FORMS: dict[str, Callable[[Tensor], object]] = {
    "channels first": lambda flat: tensors(flat)[0],
    "channels last": lambda flat: tensors(flat)[0].permute(0, 2, 3, 1),
    "flat": lambda flat: flat,
    "a tuple": lambda flat: tensors(flat),
    "a list": lambda flat: [None, *tensors(flat)],
    "a dict": lambda flat: {"mean": flat[:, :5], "sample": tensors(flat)[0], "loss": None},
    "a dataclass": lambda flat: Decoded(*tensors(flat)),
    "an object": lambda flat: SimpleNamespace(sample=flat, mean=flat[:, :5]),
}


class Formed(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(5, 3 * HEIGHT * WIDTH)
        self.form = form

    def forward(self, z: Tensor) -> object:
        return FORMS[self.form](torch.tanh(self.layer(z)))


@pytest.mark.parametrize("form", FORMS)
def test_images_and_spectra_are_the_same_in_every_form(form: str) -> None:
    """Against autograd in float64 on what the layers put out, before it is given a form."""
    spec = pgmkit.LatentSpec(5), pgmkit.ImageSpec((3, HEIGHT, WIDTH))
    generator = pgmkit.Generator(Formed(form), *spec)
    generator.check()
    z = generator.sample_latents(2, seed=0)
    flat = torch.tanh(generator.module.layer(z))  # type: ignore[operator]
    assert torch.equal(generator(z), flat.view(2, 3, HEIGHT, WIDTH))
    jacobians = JacobianSpectra(generator)
    assert jacobians.plan.mode == "layers"
    found = jacobians.compute(z)["singular_values"]
    layer = Formed(form).layer.double()
    for latent, values in zip(z.double(), found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: torch.tanh(layer(x)), latent)
        torch.testing.assert_close(values, torch.linalg.svdvals(jacobian), rtol=1e-5, atol=0)


def test_images_whose_sides_are_swapped_are_not_taken_for_images() -> None:
    module = nn.Sequential(nn.Linear(5, 36), nn.Unflatten(1, (3, WIDTH, HEIGHT)))
    generator = pgmkit.Generator(module, pgmkit.LatentSpec(5), pgmkit.ImageSpec((3, HEIGHT, WIDTH)))
    with pytest.raises(GeneratorError, match=r"returns shape \(2, 3, 3, 4\)"):
        generator.check()


def test_grey_images_may_come_without_a_channel() -> None:
    module = nn.Sequential(nn.Linear(2, 6), nn.Unflatten(1, (2, 3)))
    generator = pgmkit.Generator(module, pgmkit.LatentSpec(2), pgmkit.ImageSpec((1, 2, 3)))
    z = torch.ones(5, 2)
    assert torch.equal(generator(z)[:, 0], module(z))


# Ranges


class Scaled(nn.Module):
    """Uniform noise of a latent, over a range."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, z: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * torch.special.ndtr(z)


def scaled(made: tuple[float, float], declared: tuple[float, float]) -> pgmkit.Generator:
    image = pgmkit.ImageSpec((1, 4, 4), declared)
    return pgmkit.Generator(Scaled(*made), pgmkit.LatentSpec(16), image, name="scaled")


@pytest.mark.parametrize(
    ("made", "declared"),
    [
        ((0, 1), (-1, 1)),
        ((-1, 1), (0, 1)),
        ((0, 255), (-1, 1)),
        ((0, 255), (0, 1)),
        ((0, 1), (0, 255)),
        ((-1, 1), (0, 255)),
        ((-8, 4), (-1, 1)),
    ],
)
def test_a_range_that_images_do_not_have_is_said_with_the_right_one(
    made: tuple[float, float], declared: tuple[float, float]
) -> None:
    with pytest.warns(PgmkitWarning, match="declared range") as told:
        scaled(made, declared).check()
    assert len(told) == 1
    found = re.search(r"declare range \[(.*), (.*)\]: ImageSpec", str(told[0].message))
    assert found is not None
    assert [round(float(bound)) for bound in found.groups()] == list(made)


@pytest.mark.parametrize(
    ("made", "declared"),
    [
        ((-1, 1), (-1, 1)),
        ((0, 1), (0, 1)),
        ((0, 255), (0, 255)),
        ((-1.01, 1.01), (-1, 1)),  # as decoders without a tanh overshoot
        ((-0.01, 0.02), (-1, 1)),  # as before training
        ((-1, -0.5), (-1, 1)),
        ((0.2, 0.4), (0, 1)),
    ],
)
def test_a_range_that_images_may_have_is_not_complained_of(
    made: tuple[float, float], declared: tuple[float, float]
) -> None:
    scaled(made, declared).check()


# Points


def points_of() -> pgmkit.Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2), nn.Tanh())
    return pgmkit.Generator(module, pgmkit.LatentSpec(2), pgmkit.ImageSpec((2,)), name="plane")


def test_points_in_the_plane_are_shattered_saved_and_loaded(tmp_path: Path) -> None:
    generator = points_of()
    assert "points of 2 coordinates" in repr(generator)
    shattered = pgmkit.shatter(generator, clusters=3, latents=300, partitioner="kmeans")
    points = shattered.sample(20, cluster=1)
    assert points.shape == (20, 2)
    shattered.save_pretrained(tmp_path)
    loaded = pgmkit.ShatteredGenerator.from_pretrained(
        tmp_path, architecture=lambda: points_of().module
    )
    assert loaded.generator.image == generator.image
    assert torch.equal(loaded.sample(20, cluster=1), points)
    with Image.open(tmp_path / "samples.png") as picture:
        assert np.array(picture).min() == 0
    page = write_report(tmp_path / "report", shattered, describe(shattered)).read_text()
    assert "points of 2 coordinates" in page
    assert 0 < diagnose(shattered, num_latents=100).return_rate.overall <= 1


@pytest.mark.parametrize(
    "partitioner", ["self-trained", {"name": "kmeans", "features": "contrastive"}]
)
def test_networks_that_look_at_images_refuse_points(partitioner: Any) -> None:
    with pytest.raises(ParameterError, match="looks at images, and these are points; choose"):
        pgmkit.shatter(points_of(), clusters=3, latents=100, partitioner=partitioner)


# Pictures


def test_points_are_drawn_where_they_are() -> None:
    points = torch.tensor([[-1.0, -1.0], [1.0, 0.0], [0.0, 5.0]])
    picture = pictures.grid(pictures.to_uint8(points, (-1.0, 1.0)))
    marks = {(255, 0), (127, 255), (0, 128)}  # row and column; what lies outside is on the edge
    assert picture.shape == (256, 256)
    assert all(picture[place] == 0 for place in marks)
    assert (picture == 0).sum() == 4 + 6 + 6


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_transparent_shows_a_checkerboard(channels: int) -> None:
    images = torch.full((1, channels, 8, 8), 0.5)
    images[:, -1, :, :4] = 1.0
    images[:, -1, :, 4:] = 0.0
    picture = pictures.grid(pictures.to_uint8(images, (0.0, 1.0)), border=0)
    picture = picture.reshape(8, 8, -1)
    assert picture.shape[2] == channels - 1
    assert (picture[:, :4] == 128).all()
    assert set(np.unique(picture[:, 4:])) == {204, 255}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_single_images_keep_all_their_channels(channels: int, mode: str, tmp_path: Path) -> None:
    images = torch.rand(2, channels, 5, 6, generator=torch.Generator().manual_seed(0))
    pictures.write_images(tmp_path / "all", images, (0.0, 1.0), latents=torch.zeros(2, 3))
    with Image.open(tmp_path / "all" / "1.png") as picture:
        assert picture.mode == mode
        pixels = torch.from_numpy(np.array(picture)).view(5, 6, channels).permute(2, 0, 1)
    assert torch.equal(pixels, pictures.to_uint8(images, (0.0, 1.0))[1])


def test_more_channels_than_a_picture_has_are_said() -> None:
    images = torch.zeros(2, 5, 4, 4, dtype=torch.uint8)
    with pytest.warns(PgmkitWarning, match=r"5 channels.*first three"):
        assert pictures.grid(images).shape[2] == 3


def test_points_are_written_as_they_are_or_in_one_picture(tmp_path: Path) -> None:
    points, latents = torch.rand(5, 2), torch.rand(5, 3)
    pictures.write_images(tmp_path / "a.npz", points, (0.0, 1.0), latents=latents)
    with np.load(tmp_path / "a.npz") as saved:
        assert np.array_equal(saved["points"], points.numpy())
    with pytest.raises(ParameterError, match=r"no pictures one by one; write them as a\.npz"):
        pictures.write_images(tmp_path / "a", points, (0.0, 1.0), latents=latents)


@pytest.mark.parametrize("dim", [1, 3, 7, 64])
@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated-normal", "categorical"])
def test_fewer_latents_are_the_first_of_more_and_few_more_are_drawn_than_needed(
    distribution: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pgmkit.LatentSpec(dim + 1, distribution)  # type: ignore[arg-type]
    generator = pgmkit.Generator(nn.Identity(), spec, pgmkit.ImageSpec((1, 1, dim + 1)))
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
        assert sum(counts) < count + (256 if distribution == "categorical" else 16)


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


def test_images_come_in_batches() -> None:
    generator = pgmkit.Generator(
        nn.Linear(2, 16), pgmkit.LatentSpec(2), pgmkit.ImageSpec((1, 4, 4))
    )
    latents = generator.sample_latents(10, seed=0)
    batches = list(generator.image_batches(latents, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert not any(batch.requires_grad for batch in batches)
    with pytest.raises(GeneratorError, match="latents"):
        next(generator.image_batches(latents[:, 1:]))
