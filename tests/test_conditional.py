"""Conditional generators: what is drawn, one partition and all of them, and their folders."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from tiny import Finished, copied, install, run_pgmkit
from torch import Tensor, nn

import pgmkit
from pgmkit import ConditionalGenerator, FittedPartitioner
from pgmkit.errors import (
    GeneratorError,
    LoadError,
    ParameterError,
    PgmkitNote,
    PgmkitWarning,
    UnknownNameError,
)
from pgmkit.images import ArrayImages
from pgmkit.loading.cards import conditional_card
from pgmkit.loading.saving import write_generator
from pgmkit.plugins import installed
from pgmkit.spectrum.jacobian import JacobianSpectra

LEVELS = torch.tensor([-0.6, 0.0, 0.6])
STEP = 0.3
MASSES = (0.5, 0.3, 0.2)
ARGUMENTS = {"num_partitions": 3, "latent_dim": 2}


class Levels(nn.Module):
    """Grey images whose mean is the level of their partition and 0.3 times the first latent."""

    def __init__(self, num_partitions: int | None = None, latent_dim: int = 2) -> None:
        super().__init__()
        count = num_partitions or 1
        self.level = nn.Embedding(count, 1)
        self.gain = nn.Embedding(count, 1)
        self.linear = nn.Linear(latent_dim, 16, bias=False)
        columns = [torch.ones(16), torch.ones(16) - 2 * (torch.arange(16) % 2)]
        columns += [torch.zeros(16)] * (latent_dim - 2)
        with torch.no_grad():
            self.level.weight.copy_(LEVELS[torch.arange(count) % 3, None])
            self.gain.weight.copy_(torch.arange(1.0, count + 1)[:, None])
            self.linear.weight.copy_(STEP * torch.stack(columns[:latent_dim], dim=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        # The second latent moves the pattern, by more in later partitions, and not the mean.
        pattern = self.linear(z) - STEP * z[:, :1]
        x = self.level(y) + STEP * z[:, :1] + self.gain(y) * pattern
        return x.reshape(len(z), 1, 4, 4)


class ByMean:
    """Finds the level that is nearest to the mean of an image; of no plugin."""

    num_partitions = 3

    def fit(self, source: object, *, seed: int) -> None: ...

    def logits(self, x: Tensor) -> Tensor:
        return -(x.flatten(1).mean(dim=1, keepdim=True) - LEVELS).abs()


IMAGE = pgmkit.ImageSpec((1, 4, 4), (-4.0, 4.0))
WIDE = pgmkit.ImageSpec((1, 4, 4))


class Wide(ByMean):
    """The same of images that were scaled from [-4, 4] to [-1, 1]."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(4 * x)


def partitioner() -> FittedPartitioner:
    return FittedPartitioner(Wide(), WIDE, [5, 3, 2])


def conditional(**changes: Any) -> ConditionalGenerator:
    values: dict[str, Any] = {
        "module": Levels(**ARGUMENTS),
        "latent": pgmkit.LatentSpec(2),
        "image": IMAGE,
        "masses": MASSES,
        "name": "levels",
        **changes,
    }
    return ConditionalGenerator(**values)


PLUGIN = """
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_generator_loaders():
    return [Component("levels", "test_conditional:Levels", "grey levels")]
"""


@pytest.fixture
def offered(site: Path) -> Iterator[None]:
    """A distribution that offers the network."""
    install(site, "acme-levels", PLUGIN)
    installed.cache_clear()
    yield
    installed.cache_clear()


def found_parts() -> FittedPartitioner:
    """Returns the parts of flat images, by k-means, numbered as the levels are."""
    random = torch.Generator().manual_seed(0)
    x = LEVELS.repeat(20)[:, None, None, None] / 4
    x = x + 0.01 * torch.randn(60, 1, 4, 4, generator=random)
    fitted = pgmkit.fit_partitioner("kmeans", ArrayImages(x, value_range=(-1, 1)), partitions=3)
    order = fitted.assign((LEVELS / 4)[:, None, None, None].expand(3, 1, 4, 4))
    fitted.partitioner.centers_ = fitted.partitioner.centers_[order]
    return fitted


def saved_to(folder: Path, **changes: Any) -> ConditionalGenerator:
    """Returns one of an installed network that was saved to a folder."""
    model = conditional(architecture="levels", model_args=ARGUMENTS, **changes)
    model.save_pretrained(folder)
    return model


# Drawing


def test_images_are_those_of_the_partition_and_of_the_generators_own_latents() -> None:
    model = conditional()
    drawn = model.draw(300, 2, seed=4)
    assert torch.equal(drawn.latents, model.partition(2).sample_latents(300, seed=4))
    z = drawn.latents
    signs = 1 - 2.0 * (torch.arange(16) % 2)
    exact = 0.6 + STEP * z[:, :1] + 3 * STEP * z[:, 1:] * signs
    assert torch.allclose(drawn.images.flatten(1), exact, atol=1e-6)
    assert torch.equal(drawn.images, model.sample(300, 2, seed=4))
    assert (drawn.partitions == 2).all()
    assert drawn.acceptance is None


def test_partitions_are_mixed_by_their_masses() -> None:
    drawn = conditional(masses=(0.7, 0.0, 0.3)).draw(4000)
    counts = drawn.partitions.bincount(minlength=3)
    assert counts[1] == 0
    # Four standard deviations of a binomial count.
    assert abs(int(counts[0]) - 2800) < 4 * math.sqrt(4000 * 0.7 * 0.3)
    assert torch.equal(drawn.images, conditional()(drawn.latents, drawn.partitions))


@pytest.mark.parametrize("partition", [None, 1])
@pytest.mark.parametrize("options", [{}, {"redraws": 3}, {"truncation": 0.8}])
def test_fewer_samples_are_the_first_of_more(partition: int | None, options: Any) -> None:
    model = conditional(partitioner=partitioner())
    whole = model.draw(300, partition, seed=2, **options)
    for n in (1, 17, 256, 257):
        few = model.draw(n, partition, seed=2, **options)
        assert torch.equal(few.latents, whole.latents[:n])
        assert torch.equal(few.partitions, whole.partitions[:n])
        assert torch.allclose(few.images, whole.images[:n], atol=1e-6)
    other = model.draw(300, partition, seed=3, **options)
    assert not torch.equal(other.latents, whole.latents)


def test_what_the_partitioner_finds_elsewhere_is_drawn_again() -> None:
    model = conditional(partitioner=partitioner(), masses=(0.25, 0.75, 0.0))
    once, drawn = model.draw(3000), model.draw(3000, redraws=20)
    # An image is in the middle partition where |z₁| < 1, and in the first where z₁ < 1.
    first, middle = (drawn.latents[drawn.partitions == y, 0] for y in (0, 1))
    assert first.max() < 1
    assert middle.abs().max() < 1
    assert drawn.inside is not None
    assert drawn.inside.all()
    share = drawn.acceptance
    assert share is not None
    assert share[:2].tolist() == pytest.approx([0.8413, 0.6827], abs=0.03)
    assert share[2].isnan()
    stay = torch.where(drawn.partitions == 0, once.latents[:, 0], once.latents[:, 0].abs()) < 1
    assert torch.equal(drawn.latents[stay], once.latents[stay])
    # What is left is normal within its bounds: its variance is that of a truncated normal.
    assert float(middle.var()) == pytest.approx(1 - 2 * 0.24197 / 0.68269, abs=0.03)


def test_what_is_still_outside_is_kept() -> None:
    drawn = conditional(partitioner=partitioner()).draw(3000, 1, redraws=1)
    assert drawn.inside is not None
    assert torch.equal(drawn.inside, drawn.latents[:, 0].abs() < 1)
    outside = 1 - float(drawn.inside.double().mean())
    assert outside == pytest.approx(0.3173**2, abs=0.02)
    assert drawn.tries is not None
    assert drawn.tries.tolist() == pytest.approx([0, 3000 * 1.3173, 0], abs=120)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, (0.5, 2.0))])
def test_truncated_latents_are_normal_within_their_bounds(mean: float, std: Any) -> None:
    model = conditional(latent=pgmkit.LatentSpec(2, mean=mean, std=std))
    z = (model.draw(4000, truncation=1.0).latents - mean) / torch.tensor(std)
    assert z.abs().max() <= 1 + 1e-6
    assert z.var(dim=0).tolist() == pytest.approx([1 - 2 * 0.24197 / 0.68269] * 2, abs=0.02)


def test_points_are_drawn_again_as_they_are() -> None:
    class Points(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return z + 5.0 * y[:, None]

    class BySum(ByMean):
        num_partitions = 2

        def logits(self, x: Tensor) -> Tensor:
            return torch.stack([4 - x[:, 0], x[:, 0]], dim=1)

    spec = pgmkit.ImageSpec((2,), (-3.0, 8.0))
    model = ConditionalGenerator(
        Points(),
        pgmkit.LatentSpec(2),
        spec,
        [0.5, 0.5],
        partitioner=FittedPartitioner(BySum(), pgmkit.ImageSpec((2,)), [1, 1]),
    )
    drawn = model.draw(500, redraws=20)
    assert torch.equal(drawn.partitions, (drawn.images[:, 0] > 2).long())
    model.check()


# One partition, and the whole


@pytest.mark.parametrize(
    ("count", "dim"), [(1, 3), (2, 1), (3, 2), (7, 2), (1000, 128), (1000, 2), (40, 1)]
)
def test_means_of_the_whole_are_far_apart(count: int, dim: int) -> None:
    module = Levels(count, max(2, dim))
    prior = pgmkit.LatentSpec(dim, mean=0.25, std=0.5)
    model = conditional(module=module, latent=prior, masses=[1 / count] * count)
    whole = model.whole()
    assert whole.latent.dim == dim
    means = torch.tensor(whole.latent.means, dtype=torch.float64).expand(count, dim)
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist") / 0.5
    apart.fill_diagonal_(math.inf)
    width = int((means != means[0]).any(dim=0).sum())
    # Half the way to the next along each of so many coordinates, to both sides.
    chance = 2 * max(1, width) * math.erfc(float(apart.min()) / 2 / math.sqrt(2)) / 2
    assert chance < 1e-12
    assert (means.mean(dim=0) - 0.25).abs().max() < 8 * 0.5
    assert means.abs().max() <= 8 * max(1, round(count ** (1 / min(dim, 10))) + 1)


def test_latents_of_the_whole_tell_partition_and_latents() -> None:
    prior = pgmkit.LatentSpec(2, mean=(0.5, -1.0), std=(0.5, 2.0))
    model = conditional(latent=prior, masses=(0.4, 0.0, 0.6))
    whole = model.whole()
    assert len(whole.latent.means) == 2  # a partition of mass 0 has no component
    z = whole.sample_latents(2000, seed=0)
    moves = torch.tensor(whole.latent.means) - torch.tensor(prior.mean)
    own = (z[:, None] - moves - torch.tensor(prior.mean)).div(torch.tensor(prior.std))
    nearest = own.square().sum(dim=2).argmin(dim=1)
    inner, y = z - moves[nearest], nearest * 2
    assert torch.allclose(whole(z), model(inner, y), atol=1e-6)
    assert float((y == 0).double().mean()) == pytest.approx(0.4, abs=0.05)
    assert inner.mean(dim=0).tolist() == pytest.approx([0.5, -1.0], abs=0.2)
    exact = prior.log_prior(inner) + torch.tensor([0.4, 0.6]).double().log()[nearest]
    assert torch.allclose(whole.log_prior(z), exact, atol=1e-5)  # latents are float32


def test_a_mixture_is_normal_along_coordinates_that_its_components_share() -> None:
    means = ((-3.0, 1.0, 0.5), (3.0, -2.0, 0.5))
    mixture = pgmkit.LatentSpec(3, "mixture", means=means, stds=(2.0, 2.0), weights=(0.3, 0.7))
    z = mixture.sample(50, torch.Generator().manual_seed(0)).double()
    each = torch.stack(
        [torch.distributions.Normal(torch.tensor(m).double(), 2.0).log_prob(z) for m in means]
    ).sum(dim=2)
    exact = (each + torch.tensor([[0.3], [0.7]]).log()).logsumexp(dim=0)
    assert torch.allclose(mixture.log_prior(z), exact, atol=1e-6)
    x = mixture.to_normal(z)
    assert torch.allclose(x[:, 2], (z[:, 2] - 0.5) / 2)
    assert torch.allclose(mixture.from_normal(x).double(), z, atol=1e-5)


def exact_values(partition: int) -> list[float]:
    """Returns the singular values of the Jacobian: its columns are orthogonal, of 16 values."""
    return sorted([4 * STEP, 4 * STEP * (partition + 1)], reverse=True)


def test_spectra_of_partitions_and_of_the_whole_have_their_closed_forms() -> None:
    model = conditional()
    for number in range(3):
        spectrum = pgmkit.compute_spectrum(model.partition(number), latents=8)
        expected = torch.tensor(exact_values(number)).double().expand(8, 2)
        assert torch.allclose(spectrum.singular_values.double(), expected, rtol=1e-5)
    whole = model.whole()
    spectrum = pgmkit.compute_spectrum(whole, latents=64)
    means = torch.tensor(whole.latent.means)
    nearest = (spectrum.latents[:, None] - means).square().sum(dim=2).argmin(dim=1)
    assert len(nearest.unique()) == 3
    expected = torch.tensor([exact_values(y) for y in nearest.tolist()]).double()
    assert torch.allclose(spectrum.singular_values.double(), expected, rtol=1e-5)


class Normed(nn.Module):
    """Conditional batch norm between transposed convolutions, as in SN-GAN and BigGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4 * 4 * 4)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.gain, self.bias = nn.Embedding(5, 4), nn.Embedding(5, 4)
        self.last = nn.ConvTranspose2d(4, 1, 4, 2, 1)
        with torch.no_grad():
            self.bias.weight.abs_()  # so that no image is dead

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.norm(self.first(z.flatten(1)).reshape(-1, 4, 4, 4))
        x = x * self.gain(y)[:, :, None, None] + self.bias(y)[:, :, None, None]
        return self.last(x.relu()).tanh()


@pytest.mark.parametrize("shape", [(), (6, 1, 1)])
def test_jacobians_go_by_rules_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = ConditionalGenerator(
        Normed(), pgmkit.LatentSpec(6, shape=shape), pgmkit.ImageSpec((1, 8, 8)), [0.2] * 5
    )
    for generator in (model.partition(3), model.whole()):
        plan = JacobianSpectra(generator).plan
        assert plan.generic == []
        spectrum = pgmkit.compute_spectrum(generator, latents=6)

        def flat(z: Tensor, generator: pgmkit.Generator = generator) -> Tensor:
            return generator(z[None]).flatten()

        for z, values in zip(spectrum.latents, spectrum.singular_values, strict=True):
            exact = torch.linalg.svdvals(torch.autograd.functional.jacobian(flat, z))
            assert torch.allclose(values.float(), exact, rtol=1e-3, atol=1e-5)


def test_the_shape_that_a_network_takes_latents_in_is_found() -> None:
    class Columns(Levels):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            assert z.shape[1:] == (2, 1, 1)
            return super().forward(z.flatten(1), y)

    model = conditional(module=Columns(**ARGUMENTS))
    with pytest.warns(PgmkitWarning, match=r"takes \(2, 1, 1\) each"):
        model.check()
    assert model.latent.shape == model.whole().latent.shape == (2, 1, 1)
    assert torch.equal(model.sample(5, 1), conditional().sample(5, 1))
    assert model.whole()(model.whole().sample_latents(4, 0)).shape == (4, 1, 4, 4)


# Folders


def one_line(finished: Finished) -> str:
    """Returns the error of a run of the command line."""
    assert finished.code in (1, 2), finished
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.stderr.splitlines()[-1]


@pytest.mark.usefixtures("offered")
def test_what_is_saved_loads_as_it_was(tmp_path: Path) -> None:
    facts = {"license": "MIT", "acceptance": [0.9, None, 0.5], "steps": 7}
    model = saved_to(tmp_path / "one", partitioner=found_parts(), provenance=facts)
    back = pgmkit.load(tmp_path / "one", device="cpu")
    assert isinstance(back, ConditionalGenerator)
    assert repr(back) == repr(model)
    assert back.masses == MASSES
    assert torch.equal(back.sample(40, redraws=5), model.sample(40, redraws=5))
    assert back.whole().fingerprint() == model.whole().fingerprint()
    back.save_pretrained(tmp_path / "two")
    names = ["model.safetensors", "conditional.json", "samples.png"]
    names += [f"partitioner/{name}" for name in ("partitioner.json", "partitioner.safetensors")]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "conditional.json").read_text()) == {
        "format_version": 1,
        "masses": list(MASSES),
        "partitioner": True,
    }
    card = (tmp_path / "one" / "README.md").read_text()
    assert "| 0 | 50.00% | 90.0% |\n| 1 | 30.00% | - |\n| 2 | 20.00% | 50.0% |" in card
    assert "# levels, of 3 partitions" in card
    assert "| steps | 7 |" in card
    assert "\nlicense: mit\n" in card


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("params", [{}, {"num_partitions": 3}])
def test_the_card_names_the_partitioner_whatever_its_parameters(params: dict[str, Any]) -> None:
    network = pgmkit.Generator(Levels(**ARGUMENTS), pgmkit.LatentSpec(2), IMAGE)
    table = {"name": "pgmkit:random", "params": params}
    assert "tells them, `random`, is in" in conditional_card(network, MASSES, table, None)


def test_of_many_partitions_sixteen_are_shown(tmp_path: Path) -> None:
    from PIL import Image

    arguments = {"num_partitions": 40}
    model = conditional(
        module=Levels(**arguments),
        masses=[1 / 40] * 40,
        architecture="levels",
        model_args=arguments,
    )
    model.save_pretrained(tmp_path)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.height == 2 * 16 * (4 + 2)


def test_a_partitioner_that_cannot_be_saved_is_left_out(tmp_path: Path) -> None:
    model = conditional(partitioner=partitioner())
    with pytest.warns(PgmkitWarning, match="'levels' cannot be saved and is left out"):
        model.save_pretrained(tmp_path)
    back = ConditionalGenerator.from_pretrained(
        tmp_path, architecture=Levels, model_args=ARGUMENTS, device="cpu"
    )
    assert back.partitioner is None
    assert torch.equal(back.sample(3, 1), model.sample(3, 1))
    with pytest.raises(LoadError, match="test_conditional:Levels, which no plugin offers"):
        pgmkit.load(tmp_path)


@pytest.mark.usefixtures("offered")
def test_one_partition_is_loaded_shattered_saved_and_sampled(tmp_path: Path) -> None:
    model = saved_to(tmp_path / "conditional")
    reference = f"local-dir:{tmp_path / 'conditional'}"
    one = pgmkit.load_generator(reference, partition=1, device="cpu")
    assert one.name == "levels, partition 1"
    assert one.fingerprint() == model.partition(1).fingerprint()
    assert one.fingerprint() != model.partition(2).fingerprint()
    assert torch.equal(one.images(one.sample_latents(9, 0)), model.sample(9, 1))
    loaded = pgmkit.load(reference, partition=1, device="cpu")
    assert isinstance(loaded, pgmkit.Generator)
    assert loaded.fingerprint() == one.fingerprint()
    write_generator(tmp_path / "one", one)
    again = pgmkit.load_generator(f"local-dir:{tmp_path / 'one'}", device="cpu")
    assert again.fingerprint() == one.fingerprint()
    assert "notes" not in again.provenance
    shattered = pgmkit.shatter(one, partitioner="kmeans", mapper="prior", clusters=2, latents=80)
    shattered.save_pretrained(tmp_path / "shattered")
    back = pgmkit.load(tmp_path / "shattered", device="cpu")
    assert isinstance(back, pgmkit.ShatteredGenerator)
    assert back.generator.fingerprint() == one.fingerprint()
    assert torch.equal(back.sample(6, cluster=1), shattered.sample(6, cluster=1))


@pytest.mark.usefixtures("offered")
def test_the_whole_is_loaded_with_a_note_and_shattered(tmp_path: Path) -> None:
    prior = pgmkit.LatentSpec(2, mean=(0.5, -0.5), std=(0.5, 1.0))
    model = saved_to(tmp_path / "conditional", masses=(0.4, 0.0, 0.6), latent=prior)
    reference = f"local-dir:{tmp_path / 'conditional'}"
    with pytest.warns(PgmkitNote, match="taken as a whole.*3 partitions.*--partition 0"):
        whole = pgmkit.load_generator(reference, device="cpu")
    assert whole.fingerprint() == model.whole().fingerprint()
    write_generator(tmp_path / "whole", whole)
    again = pgmkit.load_generator(f"local-dir:{tmp_path / 'whole'}", device="cpu")
    assert again.fingerprint() == whole.fingerprint()
    out = tmp_path / "shattered"
    words = ("--clusters", 2, "--latents", 80, "--partitioner", "kmeans", "--mapper", "prior")
    finished = run_pgmkit("shatter", reference, "-o", out, *words, "--device", "cpu")
    assert finished.code == 0, finished.stderr
    back = pgmkit.load(out, device="cpu")
    assert isinstance(back, pgmkit.ShatteredGenerator)
    assert back.generator.fingerprint() == whole.fingerprint()
    means = torch.tensor(whole.latent.means)
    for cluster in range(2):
        z = back.sample_latents(50, cluster)
        away = (z[:, None] - means).div(torch.tensor(prior.std)).square().sum(dim=2).sqrt()
        assert away.amin(dim=1).max() < 6


@pytest.mark.usefixtures("offered")
def test_weights_of_other_precision_make_the_same_whole_when_loaded(tmp_path: Path) -> None:
    model = saved_to(tmp_path, module=Levels(**ARGUMENTS).double())
    with pytest.warns(PgmkitNote):
        back = pgmkit.load_generator(f"local-dir:{tmp_path}", device="cpu")
    assert back.dtype == torch.float64
    assert back.fingerprint() == model.whole().fingerprint()


@pytest.mark.usefixtures("offered")
def test_a_repository_of_the_hub_is_a_folder_like_any(server: HubServer, tmp_path: Path) -> None:
    model = saved_to(tmp_path / "own", partitioner=found_parts())
    server.add("me/levels", tmp_path / "own")
    loaded = pgmkit.load("hf-hub:me/levels", device="cpu")
    assert isinstance(loaded, ConditionalGenerator)
    assert torch.equal(loaded.sample(20, redraws=3), model.sample(20, redraws=3))
    assert loaded.provenance["repo"] == "me/levels"
    one = pgmkit.load_generator("hf-hub:me/levels", partition=2, device="cpu")
    assert one.fingerprint() == model.partition(2).fingerprint()


@pytest.mark.usefixtures("offered")
def test_it_is_pushed_with_its_partitioner(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)
    saved_to(tmp_path / "own", partitioner=found_parts(), provenance={"data": str(tmp_path)})
    finished = run_pgmkit("generators", "push", f"local-dir:{tmp_path / 'own'}", "me/levels")
    assert finished.code == 0, finished.stderr
    held = server.files("me/levels")
    assert {"conditional.json", "partitioner/partitioner.json", "samples.png"} <= held.keys()
    card = held["README.md"].decode()
    assert "pgmkit shatter hf-hub:me/levels --partition 2 -o shattered" in card
    assert str(tmp_path) not in card + held["config.json"].decode()


# The command line


@pytest.mark.usefixtures("offered")
def test_the_command_line_samples_partitions(tmp_path: Path) -> None:
    model = saved_to(tmp_path / "own", partitioner=found_parts())
    own = f"local-dir:{tmp_path / 'own'}"
    out = tmp_path / "images.npz"
    words = ("--partition", 1, "--truncation", 1.5, "--redraws", 20, "-n", 100, "--seed", 3)
    finished = run_pgmkit("sample", own, *words, "-o", out)
    assert finished.code == 0, finished.stderr
    drawn = model.draw(100, 1, seed=3, truncation=1.5, redraws=20)
    with np.load(out) as held:
        assert np.array_equal(held["latents"], drawn.latents.numpy())
        assert held["partitions"].tolist() == [1] * 100
    assert drawn.acceptance is not None
    assert drawn.tries is not None
    share, tries = float(drawn.acceptance[1]), int(drawn.tries.sum())
    assert f"acceptance {share:.1%}: 100 of {tries} images were in their" in finished.stdout
    mixed = run_pgmkit("sample", own, "-n", 50, "--json", "-o", tmp_path / "grid.png")
    told = json.loads(mixed.stdout)
    assert told["partition"] is None
    assert told["acceptance"] is None
    some = run_pgmkit(
        *("sample", own, "-n", 5, "--partition", 0, "--redraws", 2, "--json"),
        *("-o", tmp_path / "some.png"),
    )
    assert json.loads(some.stdout)["acceptance"][1:] == [None, None]
    info = run_pgmkit("info", own)
    assert "3, with masses from 0.2 to 0.5" in info.stdout
    assert json.loads(run_pgmkit("info", own, "--json").stdout)["masses"] == [*MASSES]
    inspected = run_pgmkit("generators", "inspect", own, "--partition", 0)
    assert inspected.code == 0
    assert f"pgmkit shatter {own} --partition 0 -o shattered" in inspected.stdout
    table = tmp_path / "generator.toml"
    table.write_text(f'source = "{own}"\npartition = 2\n')
    spectrum = run_pgmkit(
        "spectrum", "compute", "--generator", table, "-o", tmp_path / "s", "--latents", 5
    )
    assert spectrum.code == 0, spectrum.stderr
    values = pgmkit.spectrum.load_spectrum(tmp_path / "s").singular_values
    assert values[0].tolist() == pytest.approx(exact_values(2), rel=1e-5)


@pytest.mark.usefixtures("offered")
def test_options_are_refused_where_they_do_not_apply(tmp_path: Path) -> None:
    saved_to(tmp_path / "own")
    own = f"local-dir:{tmp_path / 'own'}"
    for words, said in (
        ((own, "--cluster", 0), "conditional and has no clusters; take --partition instead, or"),
        ((own, "--redraws", 3), "'levels' has no partitioner to draw again by"),
        ((own, "--partition", 3), "there is no partition 3; the partitions are 0 to 2"),
        ((own, "--partition", -1), "there is no partition -1"),
        ((own, "--truncation", -1), "truncation must be a number of standard deviations"),
        ((own, "--latent", 2), "a conditional generator, whose folder says its latent"),
        (("mnist-dcgan", "--partition", 0), "not conditional, and --partition is for what is"),
        (("mnist-dcgan", "--truncation", 1), "not conditional, and --truncation is for what is"),
    ):
        assert said in one_line(run_pgmkit("sample", *words, "-o", tmp_path / "x.png")), words
    for words, said in (
        (("shatter", own, "--partition", 5), "there is no partition 5"),
        (
            ("shatter", "mnist-dcgan", "--partition", 5),
            "is not conditional, so it has no partition",
        ),
        (("spectrum", "compute", own, "--partition", -2), "partition must be a whole number"),
        (("audit", own), "is conditional, and Theorem 1 is about one partition at a time"),
        (("evaluate", own), "is a generator without clusters"),
    ):
        out = () if words[0] in ("audit", "evaluate") else ("-o", tmp_path / "never")
        assert said in one_line(run_pgmkit(*words, *out)), words
    audited = run_pgmkit("audit", own, "--partition", 0, "--latents", 8)
    assert audited.code == 0, audited.stderr


# Bad inputs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masses": (0.5, 0.4)}, "masses are numbers from 0 that sum to 1, not"),
        ({"masses": (1.5, -0.5, 0.0)}, "masses are numbers from 0 that sum to 1, not"),
        ({"masses": (math.nan, 0.5, 0.5)}, "masses are numbers from 0 that sum to 1, not"),
        ({"masses": ()}, "masses are numbers, one for each partition, not"),
        ({"masses": "abc"}, "masses are numbers, one for each partition, not 'abc'"),
        ({"model_args": {"num_partitions": 4}}, "num_partitions among model_args is 4; give one"),
        ({"architecture": "levels"}, "3 partitions, and num_partitions among model_args is None"),
        (
            {"masses": (0.5, 0.5), "partitioner": partitioner()},
            "masses of 2 partitions, and the partitioner has 3; give one mass for each",
        ),
        ({"partitioner": ByMean()}, "a partitioner is a FittedPartitioner or None"),
        ({"image": pgmkit.ImageSpec((1, 2, 8)), "partitioner": partitioner()}, "was fitted to"),
        ({"module": len}, "a generator wraps a torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        conditional(**changes)


def test_what_cannot_be_drawn_is_told() -> None:
    model = conditional(partitioner=partitioner())
    uniform = conditional(latent=pgmkit.LatentSpec(2, "uniform"))
    parts = conditional(latent=pgmkit.LatentSpec(parts=[{"dim": 1}, {"dim": 1}]))
    half = conditional(module=Levels(**ARGUMENTS).half())
    calls: dict[str, Callable[[], Any]] = {
        "no partition 3; the partitions are 0 to 2": lambda: model.sample(2, 3),
        "no partition True": lambda: model.sample(2, True),
        "no partition 7": lambda: model.partition(7),
        "the number of samples must be a whole number": lambda: model.sample(0),
        "redraws must be a whole number from 0, not -1": lambda: model.sample(2, redraws=-1),
        "'levels' has no partitioner to draw again by": lambda: uniform.sample(2, redraws=1),
        "standard deviations from 1e-05, not 0": lambda: model.sample(2, truncation=0),
        "standard deviations from 1e-05, not inf": lambda: model.sample(2, truncation=math.inf),
        "for normal priors, and that of 'levels' is 2 uniform; leave": lambda: uniform.sample(
            2, truncation=1.0
        ),
        "truncation is for normal priors": lambda: parts.sample(2, truncation=1.0),
        "where the prior is normal, and it is 2 uniform; take one partition": uniform.whole,
        "where the prior is normal": parts.whole,
        "too coarse for latents that tell the partition; take one": half.whole,
        "2 latents need as many partitions, int64": lambda: model(
            torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)
        ),
        "there is no partition 4": lambda: model(torch.zeros(1, 2), torch.tensor([4])),
    }
    for said, call in calls.items():
        with pytest.raises(ParameterError, match=said):
            call()
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 2\), not \(1, 3\)"):
        model(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(GeneratorError, match="'levels, partition 0' cannot run on latents"):
        conditional(module=nn.Linear(2, 16)).check()


def describe(**changes: Any) -> Callable[[Path], None]:
    """Returns what changes `conditional.json`."""

    def change(folder: Path) -> None:
        path = folder / "conditional.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def configure(**changes: Any) -> Callable[[Path], None]:
    """Returns what changes `config.json`."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def cut(name: str) -> Callable[[Path], None]:
    """Returns what cuts a file off."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


def of_other_parts(folder: Path) -> None:
    path = folder / "partitioner" / "partitioner.safetensors"
    save_file({name: value[:2].clone() for name, value in load_file(path).items()}, path)


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "masses of words": (describe(masses=["a"]), "masses are numbers, one for each partition"),
    "no masses": (describe(masses=None), "masses are numbers, one for each partition, not None"),
    "masses beyond 1": (describe(masses=[1, 1, 1]), "masses are numbers from 0 that sum to 1"),
    "infinite masses": (describe(masses=[math.inf, 0, 0]), "masses are numbers from 0"),
    "masses of others": (describe(masses=[0.5, 0.5]), "has masses of 2 partitions, and num_part"),
    "a newer format": (describe(format_version=2), "has format_version 2"),
    "cut off": (cut("conditional.json"), "conditional.json of .* is not valid JSON"),
    "a list": (lambda f: (f / "conditional.json").write_text("[1]") and None, "must be a JSON obj"),
    "cut weights": (cut("model.safetensors"), "truncated or damaged"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "do not fit Levels: missing: gain",
    ),
    "more partitions than weights": (
        configure(model_args={"num_partitions": 10**12}),
        "num_partitions is 1000000000000; save the generator again|ask for a network|cannot be",
    ),
    "partitions of no number": (configure(model_args={"num_partitions": "x"}), "num_partitions"),
    "another network": (
        configure(architecture="dcgan", model_args={"latent_dim": 2}),
        "do not fit DCGANGenerator",
    ),
    "no number": (configure(model_args={}), "do not fit Levels: of another shape: gain"),
    "an unknown network": (configure(architecture="levls"), "levls"),
    "code of its own": (configure(architecture="os:system"), "os:system"),
    "cut partitioner": (cut("partitioner/partitioner.json"), "is not valid JSON"),
    "no partitioner": (
        lambda f: (f / "partitioner" / "partitioner.json").unlink(),
        "holds no partitioner",
    ),
    "a partitioner of other parts": (of_other_parts, "fit the partitioner again"),
    "images of another shape": (configure(image={"shape": [1, 2, 2]}), "was fitted to images of"),
}


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional") / "whole"
    saved_to(folder, partitioner=found_parts())
    return folder


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_folders_are_told_in_one_line(what: str, undamaged: Path, tmp_path: Path) -> None:
    damage, said = DAMAGED[what]
    folder = copied(undamaged, tmp_path / "damaged")
    damage(folder)
    with pytest.raises((LoadError, ParameterError, UnknownNameError), match=said) as caught:
        pgmkit.load(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    if "partitioner" not in what and "images" not in what:  # which one partition does without
        with pytest.raises((LoadError, ParameterError, UnknownNameError), match=said):
            pgmkit.load_generator(f"local-dir:{folder}", partition=1, device="cpu")


@pytest.mark.usefixtures("offered")
def test_a_folder_that_was_not_finished_is_told(tmp_path: Path) -> None:
    saved_to(tmp_path)
    (tmp_path / "conditional.json").unlink()
    with pytest.raises(LoadError, match=r"is conditional and not whole: it has no conditional.jso"):
        pgmkit.load(tmp_path, device="cpu")
    with pytest.raises(LoadError, match=r"holds no conditional generator: it has no conditional."):
        ConditionalGenerator.from_pretrained("mnist-dcgan")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"partition": 3}, "there is no partition 3; the partitions are 0 to 2"),
        ({"partition": -1}, "there is no partition -1"),
        ({"model_args": {}}, "needs num_partitions among its model_args"),
        ({"model_args": {"num_partitions": True}}, "needs num_partitions among its model_args"),
        ({"model_args": {"num_partitions": 10**12}}, "ask for a network|cannot be built"),
        ({"architecture": "os:system"}, "os:system"),
        ({"architecture": "one-partition"}, "num_partitions"),
        ({"architecture": ["a"]}, "architecture"),
    ],
)
def test_a_hostile_folder_of_one_partition_is_told(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = conditional(architecture="levels", model_args=ARGUMENTS)
    write_generator(tmp_path, model.partition(1))
    config = json.loads((tmp_path / "config.json").read_text())
    configure(model_args={**config["model_args"], **arguments})(tmp_path)
    with pytest.raises((LoadError, ParameterError, UnknownNameError), match=said) as caught:
        pgmkit.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"partitions": []}, "the number of partitions must be a whole number from 1"),
        ({"partitions": [0, 0]}, "partitions must differ"),
        ({"partitions": [0, 9]}, "there is no partition 9"),
        ({"std": 0.0}, "latent.std must be above 0"),
        ({"mean": [1.0]}, "latent.mean has 1 numbers"),
        ({"latent_dim": 5}, "dimensions, and its latent_dim is 5"),
    ],
)
def test_a_hostile_folder_of_all_partitions_is_told(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = conditional(architecture="levels", model_args=ARGUMENTS)
    write_generator(tmp_path, model.whole())
    config = json.loads((tmp_path / "config.json").read_text())
    configure(model_args={**config["model_args"], **arguments})(tmp_path)
    with pytest.raises((LoadError, ParameterError), match=said) as caught:
        pgmkit.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
