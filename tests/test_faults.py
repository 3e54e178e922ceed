"""Faults: killed and interrupted runs, damaged files, full disks, broken generators."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import Forked, forked, run_forked
from tiny import (
    LATENT_DIM,
    TRAIN_CONFIG,
    Finished,
    begin_run_like,
    contents,
    every_file,
    run_pgmkit,
    write_tiny_generator,
    write_tiny_images,
)
from torch import Tensor, nn

import pgmkit
from pgmkit.errors import GeneratorError, PgmkitWarning

BLOCKS = 90
SHATTER = ("--clusters", 3, "--latents", 2 * BLOCKS, "--set", "spectrum.block_size=2")
SHATTER += ("--sampler", "kmeans-gmm", "--no-cache")
TIMEOUT = 120
pytestmark = pytest.mark.usefixtures("one_thread")

LIMITED = """
import resource
from pgmkit.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
main()
"""
STOPPED = "stopped: run the same command again to continue where it was\n"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_generator(folder / "tiny")
    write_tiny_images(folder / "noise.npz")
    (folder / "train.toml").write_text(TRAIN_CONFIG)
    return folder


@pytest.fixture(scope="module")
def shatter(inputs: Path) -> tuple[object, ...]:
    """The command whose runs are disturbed, up to its output folder."""
    return ("shatter", f"local-dir:{inputs / 'tiny'}", *SHATTER, "-q", "-o")


@pytest.fixture(scope="module")
def train(inputs: Path) -> tuple[object, ...]:
    return ("train", inputs / "train.toml", "--data", inputs / "noise.npz", "-o")


@pytest.fixture(scope="module")
def shattered(shatter: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves when nothing disturbs it."""
    out = tmp_path_factory.mktemp("shattered") / "out"
    assert run_pgmkit(*shatter, out).code == 0
    assert len(contents(out)) > BLOCKS
    return out


@pytest.fixture(scope="module")
def trained(train: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    assert run_pgmkit(*train, out).code == 0
    return out


def wait_for(path: Path, process: Forked) -> None:
    """Waits until a running process has written a file."""
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, process.finished(0)
        assert time.monotonic() < deadline, f"no {path} after {TIMEOUT} s"
        time.sleep(0.002)


def killed_in_the_middle(words: tuple[object, ...], out: Path, sign: Path) -> Finished:
    """Kills a run once `sign` is there, and returns what a second run met before that.

    The first run is held still meanwhile, so that it cannot end before it is killed.
    """
    with forked("-m", "pgmkit", *words, out) as process:
        wait_for(sign, process)
        process.send_signal(signal.SIGSTOP)
        second = run_pgmkit(*words, out)
        process.send_signal(signal.SIGKILL)
        assert process.finished(TIMEOUT).code == -signal.SIGKILL
    return second


def num_blocks(out: Path) -> int:
    return len(list((out / "spectrum").glob("block-*.safetensors")))


def test_a_killed_run_continues_to_the_same_bytes(
    shatter: tuple[object, ...], shattered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begin_run_like(shattered, out)
    first_block = out / "spectrum" / "block-000000.safetensors"
    second = killed_in_the_middle(shatter, out, first_block)
    assert 0 < num_blocks(out) < BLOCKS
    assert not (out / "sampler.json").exists()
    written = first_block.stat().st_mtime_ns

    # A second process while the first one held the folder.
    assert second.code == 1
    assert second.stdout == ""
    assert second.stderr.startswith("error: ")
    assert "is in use by another pgmkit process" in second.stderr

    assert run_pgmkit(*shatter, out).code == 0
    assert first_block.stat().st_mtime_ns == written
    assert contents(out) == contents(shattered)
    assert every_file(out).keys() == every_file(shattered).keys()


def test_ctrl_c_stops_a_run_with_one_line_and_it_continues_to_the_same_bytes(
    shatter: tuple[object, ...], shattered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    begin_run_like(shattered, out)
    with forked("-m", "pgmkit", *shatter, out) as process:
        wait_for(out / "spectrum" / "block-000000.safetensors", process)
        process.send_signal(signal.SIGINT)
        assert process.finished(TIMEOUT) == Finished(1, "", STOPPED)
    assert 0 < num_blocks(out) < BLOCKS
    assert run_pgmkit(*shatter, out).code == 0
    assert contents(out) == contents(shattered)


def test_a_full_disk_is_one_line_and_with_space_the_run_ends_in_the_same_bytes(
    shatter: tuple[object, ...], shattered: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the full disk: the manifest outgrows it."""
    out = tmp_path / "out"
    begin_run_like(shattered, out)
    full = run_forked("-c", LIMITED, *shatter, out)
    assert full.code == 1
    assert full.stdout == ""
    assert full.stderr.startswith(f"error: cannot write {out / 'spectrum' / 'manifest.json'}: ")
    assert full.stderr.count("\n") == 1
    assert num_blocks(out) == BLOCKS
    assert not list(out.rglob(".*tmp*"))
    before = every_file(out / "spectrum")
    assert run_pgmkit(*shatter, out).code == 0
    after = every_file(out / "spectrum")
    assert {name: after[name] for name in before if name.startswith("block-")} == {
        name: stat for name, stat in before.items() if name.startswith("block-")
    }
    assert contents(out) == contents(shattered)


def test_a_disk_that_fills_up_in_the_middle_costs_no_finished_block(
    shatter: tuple[object, ...],
    shattered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    begin_run_like(shattered, out)
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        stopped = run_pgmkit(*shatter, out)
    assert stopped.code == 1
    assert stopped.stderr.startswith(f"error: cannot write {out / 'spectrum' / 'block-'}")
    assert "No space left on device" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    before = every_file(out / "spectrum")
    assert 10 < num_blocks(out) < BLOCKS
    assert run_pgmkit(*shatter, out).code == 0
    after = every_file(out / "spectrum")
    assert all(after[name] == before[name] for name in before if name.startswith("block-"))
    assert contents(out) == contents(shattered)


def test_damaged_blocks_are_computed_again_and_whole_ones_are_not(
    shatter: tuple[object, ...], shattered: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(shattered, tmp_path / "out")
    for name in ("report.html", "report.json", "sampler.json", "sampler.safetensors"):
        (out / name).unlink()
    truncated, flipped, missing, whole = (
        out / "spectrum" / f"block-{block:06d}.safetensors" for block in (3, 50, 70, 71)
    )
    truncated.write_bytes(truncated.read_bytes()[:-9])
    damaged = bytearray(flipped.read_bytes())
    damaged[-1] ^= 0b0100_0000
    flipped.write_bytes(damaged)
    missing.unlink()
    before = whole.stat().st_mtime_ns
    assert run_pgmkit(*shatter, out).code == 0
    assert whole.stat().st_mtime_ns == before
    assert contents(out) == contents(shattered)


def test_running_a_complete_run_again_changes_no_file_and_prints_the_same(
    shatter: tuple[object, ...], tmp_path: Path, shattered: Path
) -> None:
    before = every_file(shattered)
    once, twice = run_pgmkit(*shatter, shattered), run_pgmkit(*shatter, shattered)
    assert once == twice
    assert once.code == 0
    assert "kept 144 of 180 latents" in once.stdout
    assert every_file(shattered) == before


def test_what_a_killed_write_left_is_cleared_away(
    shatter: tuple[object, ...], shattered: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(shattered, tmp_path / "out")
    (out / "report.html").unlink()
    for folder in (out, out / "spectrum", out / "clusters"):
        (folder / ".pgmkit-tmp-x1y2").write_bytes(b"half")
    assert run_pgmkit(*shatter, out).code == 0
    assert not list(out.rglob(".pgmkit-tmp-*"))


def model(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_killed_training_continues_to_the_same_bytes(
    train: tuple[object, ...], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    saving = (*train[:-1], "--set", "save_steps=20", "-o")
    second = killed_in_the_middle(saving, out, out / "checkpoint-000000020.safetensors")
    assert second.code == 1
    assert "is in use by another pgmkit process" in second.stderr
    assert not (out / "model").exists()
    again = run_pgmkit(*train, out)
    assert again.code == 0
    assert again.stderr.startswith("continues at step ")
    assert not again.stderr.startswith("continues at step 160 of 160")
    assert model(out) == model(trained)
    assert (out / "losses.csv").read_bytes() == (trained / "losses.csv").read_bytes()
    left = {name for name in every_file(out) if not name.startswith("checkpoint-")}
    assert left < every_file(trained).keys()
    assert len(list(out.glob("checkpoint-*"))) == 2


def test_ctrl_c_stops_a_training_with_one_line_and_it_continues_to_the_same_bytes(
    train: tuple[object, ...], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with forked("-m", "pgmkit", *train, out) as process:
        wait_for(out / "samples" / "step-0000004.png", process)
        process.send_signal(signal.SIGINT)
        stopped = process.finished(TIMEOUT)
    assert stopped.code == 1
    assert stopped.stdout == ""
    lines = stopped.stderr.splitlines(keepends=True)
    assert all(line.startswith("epoch ") for line in lines[:-1])
    assert lines[-1] == STOPPED
    assert not (out / "model").exists()
    assert run_pgmkit(*train, out).code == 0
    assert model(out) == model(trained)
    assert (out / "losses.csv").read_bytes() == (trained / "losses.csv").read_bytes()


def test_a_run_that_is_stopped_within_an_epoch_continues_from_that_step(
    train: tuple[object, ...], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgmkit.train.gan import GANTask

    out = tmp_path / "out"
    step, steps = GANTask.step, []

    def interrupted_step(self: GANTask, *arguments: object) -> dict[str, Tensor]:
        steps.append(len(steps))
        if len(steps) == 7:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(GANTask, "step", interrupted_step)
        assert run_pgmkit(*train, out).code == 128 + signal.SIGTERM
    assert run_pgmkit(*train, out).stderr.startswith("continues at step 7 of 160\n")
    assert model(out) == model(trained)


def test_training_again_when_all_is_done_changes_no_file(
    train: tuple[object, ...], trained: Path
) -> None:
    before = every_file(trained)
    assert run_pgmkit(*train, trained).stdout == f"{trained / 'model'}\n"
    assert every_file(trained) == before


def test_a_damaged_checkpoint_is_one_line(
    train: tuple[object, ...], trained: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    shutil.rmtree(out / "model")
    (checkpoint,) = out.glob("checkpoint-*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    damaged = run_pgmkit(*train, out)
    assert damaged.code == 1
    assert damaged.stderr.startswith(f"error: the checkpoint {checkpoint}")
    assert damaged.stderr.count("\n") == 1


class Linear(nn.Module):
    """A generator that is fine; the others break one thing about it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT_DIM, 16)

    def forward(self, z: Tensor) -> object:
        return torch.tanh(self.layer(z))


class ReturnsNoImages(Linear):
    def forward(self, z: Tensor) -> object:
        return self.layer(z)[:, :8], z


class ReturnsHalf(Linear):
    def forward(self, z: Tensor) -> object:
        return self.layer(z)[:, :8]


class ReturnsNaN(Linear):
    def forward(self, z: Tensor) -> object:
        return self.layer(z) / 0.0 * 0.0


class Detaches(Linear):
    def forward(self, z: Tensor) -> object:
        return torch.tanh(self.layer(z.detach()))


class DetachesInside(Linear):
    def forward(self, z: Tensor) -> object:
        return torch.tanh(self.layer(z).detach())


class GoesThroughNumpy(Linear):
    def forward(self, z: Tensor) -> object:
        return torch.tanh(torch.from_numpy(self.layer(z).numpy()))


class WithoutGradient(Linear):
    @torch.no_grad()
    def forward(self, z: Tensor) -> object:
        return torch.tanh(self.layer(z))


class WantsMaps(Linear):
    def forward(self, z: Tensor) -> object:
        return nn.functional.conv_transpose2d(z, torch.ones(1, 1, 3, 3))


def generator_of(module: nn.Module) -> pgmkit.Generator:
    return pgmkit.Generator(
        module, latent=pgmkit.LatentSpec(LATENT_DIM), image=pgmkit.ImageSpec((1, 4, 4))
    )


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (ReturnsNoImages, r"returns a tuple \(0: \(2, 8\), 1: \(2, 4\)\)"),
        (ReturnsHalf, r"returns shape \(2, 8\)"),
        (ReturnsNaN, "values that are not finite"),
        (Detaches, "cannot be differentiated"),
        (DetachesInside, "cannot be differentiated"),
        (GoesThroughNumpy, "cannot be differentiated"),
        (WantsMaps, r"cannot run on latents of shape \(2, 4\)"),
    ],
)
def test_a_broken_generator_is_refused_before_anything_is_written(
    module: type[nn.Module], said: str, tmp_path: Path
) -> None:
    generator = generator_of(module())
    with pytest.raises(GeneratorError, match=said):
        pgmkit.shatter(generator, clusters=2, latents=50, spectrum={"out": tmp_path / "spectrum"})
    assert not (tmp_path / "spectrum").exists()


def test_no_grad_inside_a_generator_does_no_harm() -> None:
    torch.manual_seed(0)
    plain, without = Linear(), WithoutGradient()
    without.load_state_dict(plain.state_dict())
    expected = pgmkit.compute_spectrum(generator_of(plain), latents=20)
    found = pgmkit.compute_spectrum(generator_of(without), latents=20)
    assert expected.singular_values.min() > 0
    torch.testing.assert_close(found.singular_values, expected.singular_values, rtol=1e-5, atol=0)


def test_no_module_hides_a_public_name_once_it_is_imported() -> None:
    """A submodule that is imported becomes an attribute of its package."""
    package = Path(str(pgmkit.__file__)).parent
    modules = {path.stem for path in package.iterdir()}
    assert "generator" in modules
    assert not modules & set(pgmkit.__all__)


@pytest.mark.parametrize("shape", [(5, LATENT_DIM - 1), (LATENT_DIM,), (5, LATENT_DIM, 1, 1)])
def test_latents_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    generator = generator_of(Linear())
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 4\), not"):
        generator(torch.zeros(shape))
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 4\), not"):
        pgmkit.compute_spectrum(generator, latents=torch.zeros(shape))
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 4\), not"):
        generator.log_prior(torch.zeros(shape))
    shattered = pgmkit.shatter(generator, sampler="kmeans-gmm", clusters=2, latents=50)
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 4\), not"):
        shattered.predict(torch.zeros(shape))


def test_a_rho_that_leaves_few_latents_warns_with_the_effective_sample_size() -> None:
    latents = torch.randn(400, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    spread = torch.linspace(-8, 8, 400, dtype=torch.float64)[:, None].expand(-1, LATENT_DIM)
    spectrum = pgmkit.Spectrum(
        latents, spread.exp(), pgmkit.LatentSpec(LATENT_DIM).log_prior(latents)
    )
    generator = generator_of(Linear())

    def shatter(rho: float) -> pgmkit.ShatteredGenerator:
        return pgmkit.shatter(
            generator,
            density={"name": "polarity", "rho": rho, "top_k": None},
            sampler="kmeans-gmm",
            clusters=2,
            spectrum=spectrum,
        )

    # The log-weights fall by |rho| · 4 · 16/399 from latent to latent: a geometric series in q.
    q = torch.tensor(-5 * 4 * 16 / 399).exp()
    expected = float((1 + q) / (1 - q))
    with pytest.warns(PgmkitWarning, match=f"effective sample size is {expected:.1f} of 400"):
        collapsed = shatter(-5)
    found = collapsed.origin.statistics["effective_sample_size"]
    assert found == pytest.approx(expected, rel=1e-5)
    # Warnings are errors in these tests, so this one gives none.
    assert shatter(-0.01).origin.statistics["effective_sample_size"] > 300
