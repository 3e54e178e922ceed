"""Looking at a generator before it is used, and batch-norm statistics."""

import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import run_pgmkit
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import PgmkitNote
from pgmkit.loading.batch_norm import drifts, recalibrate
from pgmkit.loading.inspection import observe
from pgmkit.plugins import build

DCGAN: dict[str, Any] = {"latent_dim": 10, "channels": [48, 24, 12]}


@pytest.fixture(scope="module")
def trained() -> pgmkit.Generator:
    """A small DCGAN whose norms remember what they saw."""
    torch.manual_seed(0)
    module = build("generator-loaders", "dcgan", **DCGAN)
    spec = pgmkit.ImageSpec((1, 32, 32))
    generator = pgmkit.Generator(module, pgmkit.LatentSpec(10), spec)
    recalibrate(generator)
    return generator


@pytest.fixture(scope="module")
def wild(trained: pgmkit.Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people publish it: two networks, names of their own, and no word of anything."""
    folder = tmp_path_factory.mktemp("wild")
    state = trained.module.state_dict()
    names = {name: name.replace("layers.", "module.main.") for name in state}
    torch.save({names[name]: value for name, value in state.items()}, folder / "netG.pth")
    torch.save({"main.0.weight": torch.zeros(64, 1, 4, 4)}, folder / "netD.pth")
    return folder


def test_what_inspect_suggests_shatters_a_lone_weight_file(
    trained: pgmkit.Generator, wild: Path, tmp_path: Path
) -> None:
    found = run_pgmkit("generators", "inspect", wild, "-o", tmp_path / "samples.png")
    assert found.code == 0
    for said in (
        f"netG.pth  {(wild / 'netG.pth').stat().st_size:,}",
        "main.0.weight  10×48×4×4",
        "activation ReLU: batch-norm statistics agree",
        "statistics of all 3 layers fit the prior",
        "each of the 10 latent dimensions changes the images",
    ):
        assert said in found.stdout, said
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 8 * 32
    (line,) = [line for line in found.stdout.splitlines() if "pgmkit shatter" in line]
    words = shlex.split(line)
    assert words[0] == "pgmkit"
    words[words.index("shattered")] = str(tmp_path / "out")
    done = run_pgmkit(*words[1:], "--latents", 120, "--sampler", "kmeans-gmm", "--clusters", 3)
    assert done.code == 0, done.stderr
    assert "note: prior normal: batch-norm statistics agree" in done.stderr
    shattered = pgmkit.load(tmp_path / "out")
    assert isinstance(shattered, pgmkit.ShatteredGenerator)
    z = shattered.generator.sample_latents(4, seed=0)
    assert torch.allclose(shattered.generator(z), trained(z))


def test_info_on_a_file_that_says_nothing_points_to_inspect(wild: Path) -> None:
    found = run_pgmkit("info", wild / "netG.pth")
    assert f"pgmkit generators inspect {wild / 'netG.pth'}" in found.stdout
    assert "inspect" not in run_pgmkit("info", "mnist-dcgan").stdout


def test_inspect_tells_in_json_what_it_tells_in_words(wild: Path) -> None:
    found = run_pgmkit("generators", "inspect", wild / "netG.pth", "--json")
    told = json.loads(found.stdout)
    assert told["weights"] == "netG.pth"
    assert {"name": "netD.pth", "size": (wild / "netD.pth").stat().st_size} in told["files"]
    assert len(told["tensors"]) == 19
    assert told["specs"]["image"]["shape"] == [1, 32, 32]
    assert not any(drift["is_far"] for drift in told["batch_norm"])
    assert told["problems"] == []


def test_what_stands_in_the_way_is_told_with_all_the_rest(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3, 5, 7)}, tmp_path / "netG.pth")
    found = run_pgmkit("generators", "inspect", tmp_path)
    assert found.code == 1
    assert "a.weight  3×5×7" in found.stdout
    assert "in the way" in found.stdout
    assert "Traceback" not in found.stderr


class Noisy(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + torch.rand(len(z), 1)


class Mixing(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z - z.mean(dim=0))


def ignoring() -> nn.Module:
    linear = nn.Linear(3, 16)
    with torch.no_grad():
        linear.weight[:, 1] = 0
    return linear


def collapsed() -> nn.Module:
    linear = nn.Linear(3, 16)
    nn.init.zeros_(linear.weight)
    return linear


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Noisy(3, 16), "there is chance inside"),
        (lambda: Mixing(3, 16), "depend on the others of their batch"),
        (ignoring, "1 of 3 latent dimensions change nothing: 1"),
        (collapsed, "64 of 64 images are the same as another"),
        (lambda: nn.Linear(3, 16), "each of the 3 latent dimensions changes the images"),
    ],
)
def test_what_images_depend_on_is_told(make: Callable[[], nn.Module], said: str) -> None:
    torch.manual_seed(0)
    spec = pgmkit.ImageSpec((1, 4, 4), (-3, 3))
    generator = pgmkit.Generator(make(), pgmkit.LatentSpec(3), spec)
    z = generator.sample_latents(64, seed=0)
    told = observe(generator, z, generator.images(z))
    assert any(said in line for line in told), told


def normed(scale: float = 1.0) -> tuple[pgmkit.Generator, nn.BatchNorm1d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(200)
    module = nn.Sequential(nn.Linear(4, 200), norm, nn.Linear(200, 16))
    linear = module[0]
    with torch.no_grad():  # then what goes into the norm is N(1, 4 scale²) in each channel
        linear.weight.copy_(nn.functional.normalize(linear.weight) * 2 * scale)
        linear.bias.fill_(1.0)
    spec = pgmkit.ImageSpec((1, 4, 4), (-9, 9))
    return pgmkit.Generator(module, pgmkit.LatentSpec(4), spec), norm


def test_statistics_that_fit_are_not_far_and_others_are() -> None:
    generator, norm = normed()
    norm.running_mean.fill_(1.0)  # type: ignore[union-attr]
    norm.running_var.fill_(4.0)  # type: ignore[union-attr]
    (fitting,) = drifts(generator, 2048)
    assert fitting.mean < 0.1
    assert fitting.std == pytest.approx(1, abs=0.05)
    assert not fitting.is_far
    norm.running_var.fill_(1.0)  # type: ignore[union-attr]
    (off,) = drifts(generator, 2048)
    assert off.std == pytest.approx(2, abs=0.1)
    assert off.is_far
    norm.running_mean.zero_()  # type: ignore[union-attr]
    assert "has never seen a batch" in str(drifts(generator)[0])


def test_recalibrated_statistics_are_those_of_the_prior() -> None:
    generator, norm = normed()
    (moved,) = recalibrate(generator, 4096)
    assert torch.allclose(norm.running_mean, torch.tensor(1.0), atol=0.2)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, torch.tensor(4.0), atol=0.5)  # type: ignore[arg-type]
    assert moved.mean == pytest.approx(1, abs=0.1)
    assert moved.std == pytest.approx(2, abs=0.1)
    assert not norm.training
    assert norm.momentum == 0.1
    assert not drifts(generator)[0].is_far


def test_recalibration_says_what_moved_and_is_never_done_unasked(
    wild: Path, tmp_path: Path
) -> None:
    state = torch.load(wild / "netG.pth", weights_only=True)
    state["module.main.1.running_var"].mul_(9)
    torch.save(state, tmp_path / "stale.pth")
    network = {"architecture": "dcgan", "model_args": DCGAN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stale = pgmkit.load_generator(str(tmp_path / "stale.pth"), **network)
    assert drifts(stale)[0].is_far
    with pytest.warns(PgmkitNote) as caught:
        mended = pgmkit.load_generator(str(tmp_path / "stale.pth"), **network, recalibrate=True)
    assert any("batch norm anew: layers.1" in str(warning.message) for warning in caught)
    assert not any(drift.is_far for drift in drifts(mended))
    assert mended.fingerprint() != stale.fingerprint()


def test_the_suggested_command_has_every_option_that_was_given(wild: Path) -> None:
    arguments = "{ latent_dim = 10, channels = [48, 24, 12] }"
    given = ["--architecture", "dcgan", "--latent", "uniform:10", "--image", "1x32x32:0,1"]
    given += ["--model-args", arguments, "--weights", "netG.pth"]
    found = run_pgmkit("generators", "inspect", wild, *given, "--recalibrate")
    (line,) = [line for line in found.stdout.splitlines() if "pgmkit shatter" in line]
    words = shlex.split(line)
    assert words[3:-2] == [*given, "--recalibrate"]


def test_inspect_takes_a_program_for_what_it_is(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    torch.jit.script(module).save(str(tmp_path / "g.pt"))
    found = run_pgmkit("generators", "inspect", tmp_path / "g.pt", "--latent", 3)
    assert found.code == 0, found.stdout
    assert "values in [0, 1]" in found.stdout
    (line,) = [line for line in found.stdout.splitlines() if "pgmkit shatter" in line]
    assert shlex.split(line)[3:-2] == ["--latent", "normal:3"]


def test_what_loading_warns_of_is_told(wild: Path, tmp_path: Path) -> None:
    weights = torch.load(wild / "netG.pth", weights_only=True)
    weights["module.main.7.bias"][3] = torch.inf
    torch.save(weights, tmp_path / "netG.pth")
    found = run_pgmkit("generators", "inspect", tmp_path)
    assert "among the weights layers.7.bias" in found.stdout
    ranged = run_pgmkit("generators", "inspect", wild, "--image", "1x32x32:0,255")
    assert "the declared range is [0, 255]" in ranged.stdout
    assert "image range [-1, 1]" not in ranged.stdout


def test_inferred_arguments_are_told_and_can_be_given_corrected(wild: Path) -> None:
    told = json.loads(run_pgmkit("generators", "inspect", wild, "--json").stdout)
    assert told["architecture"] == "dcgan"
    given = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in told["model_args"].items()) + "}"
    flags = ("--architecture", "dcgan", "--latent", "10", "--model-args", given)
    assert run_pgmkit("generators", "inspect", wild, *flags).code == 0
    both = run_pgmkit("generators", "inspect", wild, "--architecture", "auto", *flags[4:])
    assert "name the architecture that they are for, such as --architecture dcgan" in both.stdout
