"""Tiny models, data and runs of the command line that the tests share."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pgmkit
from pgmkit.cli import main
from pgmkit.errors import SamplingError
from pgmkit.loading.saving import save_generator, write_generator
from pgmkit.plugins import build, installed

LATENT_DIM = 4
MODEL_ARGS = {"latent_dim": LATENT_DIM, "channels": [8, 4, 4]}

TRAIN_CONFIG = """
task = "gan"
epochs = 40
batch_size = 8
image_size = 16

[model]
backbone = "dcgan"
backbone_args = { channels = [8, 4] }
latent = { dim = 4 }
"""

STEPS, STOPPED_AT = 8, 5
STOP_LEARNING = f"""
import signal
import pgmkit_plugins.features.contrastive as features
from pgmkit.cli import main

steps, loss = [], features.contrastive_loss

def interrupted(*arguments):
    steps.append(0)
    if len(steps) == {STOPPED_AT}:
        signal.raise_signal(signal.SIGINT)
    return loss(*arguments)

features.contrastive_loss = interrupted
main()
"""
"""The command line, stopped by Ctrl-C in the fifth of eight steps of contrastive learning."""


@dataclass(frozen=True)
class Finished:
    """What a run of the command line left behind; a signal that ended it is a negative code."""

    code: int
    stdout: str
    stderr: str


def write_tiny_generator(folder: Path) -> str:
    """Writes an untrained DCGAN, 4 latents to 1×32×32, and returns its reference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build("generator-loaders", "dcgan", **MODEL_ARGS)
    generator = pgmkit.Generator(
        module,
        latent=pgmkit.LatentSpec(LATENT_DIM),
        image=pgmkit.ImageSpec((1, 32, 32)),
        name="tiny",
        architecture="dcgan",
        model_args=MODEL_ARGS,
    )
    write_generator(folder, generator)
    return f"local-dir:{folder}"


def write_tiny_gan(folder: Path, seed: int = 0) -> str:
    """Writes an untrained DCGAN of 3×8×8 images with its discriminator; returns its reference."""
    model_args = {"latent_dim": LATENT_DIM, "channels": [8], "image_channels": 3}
    backbone = build("backbones", "dcgan", **model_args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, discriminator = backbone.generator(), backbone.discriminator()
    generator = pgmkit.Generator(
        module,
        latent=pgmkit.LatentSpec(LATENT_DIM),
        image=pgmkit.ImageSpec((3, 8, 8)),
        name="tiny",
        architecture="dcgan",
        model_args=model_args,
    )
    samples = generator.images(generator.sample_latents(4, seed=0))
    save_generator(folder, generator, card="", samples=samples, discriminator=discriminator)
    return f"local-dir:{folder}"


def write_tiny_images(path: Path, count: int = 32, size: int = 16) -> Path:
    """Writes labelled noise, a training and a test split, as .npz."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size), dtype=np.uint8)
    labels = np.arange(count) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return path


def write_tiny_classifier(folder: Path, image_size: int = 8) -> str:
    """Writes an untrained classifier that looks at few pixels, and returns its reference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build("classifiers", "lash-classifier", image_size=image_size)
    config = {"architecture": "lash-classifier", "model_args": {"image_size": image_size}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return f"local-dir:{folder}"


def run_pgmkit(*arguments: object) -> Finished:
    """Runs the command line in this process, as the console script does."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv = ["pgmkit", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        warnings.catch_warnings(),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        warnings.simplefilter("default")
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Finished(code, stdout.getvalue(), stderr.getvalue())


def command(*arguments: object) -> list[str]:
    """Returns the command line of the console script that stands beside this Python."""
    script = Path(sys.executable).with_name("pgmkit")
    inline = [sys.executable, "-c", "from pgmkit.cli import main; main()"]
    return [*([str(script)] if script.exists() else inline), *map(str, arguments)]


def environment(**more: str) -> Mapping[str, str]:
    """Returns the environment of a subprocess: one thread, as the tests themselves have."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}


def begun(words: Sequence[str], **more: str) -> subprocess.Popen[str]:
    """Starts a subprocess."""
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file of a result that must not depend on how it came about."""
    names = ("config.json", "model.safetensors", "sampler.json", "sampler.safetensors")
    paths = [folder / name for name in (*names, "samples.png", "README.md", "run.json")]
    paths += sorted((folder / "spectrum").iterdir())
    paths += sorted((folder / "clusters").iterdir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def begin_like(whole: Path, out: Path) -> Path:
    """Begins a spectrum as another was begun, with no block done, and returns its folder.

    How Jacobians are computed comes from a timed trial and is on record from then on; two runs
    that are begun apart need not agree on it, and then differ in the last bits.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((whole / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "blocks": {}}, indent=2) + "\n")
    return out


def begin_run_like(whole: Path, out: Path) -> None:
    """Begins a shattering as another was begun; see `begin_like`."""
    begin_like(whole / "spectrum", out / "spectrum")
    shutil.copy(whole / "run.json", out)


def every_file(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns time of change and size of every file below a folder."""
    stats = {str(p.relative_to(folder)): p.stat() for p in folder.rglob("*") if p.is_file()}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def copied(folder: Path, to: Path) -> Path:
    """Copies a result, to damage the copy."""
    shutil.copytree(folder, to)
    return to


def install(site: Path, distribution: str, code: str, module: str = "") -> None:
    """Lays down a distribution as pip would: a module and its metadata with an entry point."""
    module = module or distribution.replace("-", "_")
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
    (site / f"{module}.py").write_text(code.replace("MODULE", module))
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pgmkit.plugins]\nmain = {module}\n")
    installed.cache_clear()


def let_no_sample_of_cluster_1_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes cluster 1 of every shattered generator one that cannot be sampled."""
    sample = pgmkit.ShatteredGenerator.sample_latents

    def rarely(
        self: pgmkit.ShatteredGenerator, n: int, cluster: int | None = None, seed: int = 0
    ) -> torch.Tensor:
        if cluster == 1:
            raise SamplingError("took 0 of 80 proposals")
        return sample(self, n, cluster, seed)

    monkeypatch.setattr(pgmkit.ShatteredGenerator, "sample_latents", rarely)
