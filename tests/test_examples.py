"""The training configs in examples/: each can be trained, shown by a dry run on little data."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from pgmkit.config import apply_overrides, read_toml
from pgmkit.images.rows import Images
from pgmkit.jobs.train import Job, prepare
from pgmkit.learning.clock import clock_at
from pgmkit.partition.fitted import build_partitioner
from pgmkit.train.conditions import Guide
from pgmkit.train.gan import GANTask

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    path.stem: read_toml(path)
    for path in sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))
    if "task" in read_toml(path)
}
GUIDED = [name for name in CONFIGS if name.endswith("-pgmgan")]
NARROW = {
    "dcgan": ["model.backbone_args.channels=[4, 4, 4]"],
    "mlp-2d": ["model.backbone_args.width=8"],
    "sngan-32": ["model.backbone_args.width=4"],
    "sngan-48": ["model.backbone_args.width=2"],
    "biggan-128": ["model.backbone_args.width=2", "model.discriminator_steps=1"],
}
"""What makes a backbone small."""
FEW_PARTS = [
    "model.partitioner={name='kmeans', features='pixels', num_starts=1}",
    "model.partitions=2",
]


def data_for(name: str, folder: Path) -> str:
    """Writes 40 images of noise, half of them brighter, as the config `name` takes them."""
    if name.startswith(("ring", "grid")):
        return f"points:{name.partition('-')[0]}:n=400"
    sides = {"stl10": 48, "imagenet": 128, "cifar10": 32, "faces": 32}
    side = sides.get(name.partition("-")[0], 28)
    random = np.random.default_rng(0)
    shape = (40, side, side) if side == 28 else (40, side, side, 3)
    labels = np.arange(40) % CONFIGS[name]["model"].get("num_classes", 2)
    images = random.integers(0, 120, shape).astype(np.uint8)
    images[::2] += 120
    np.savez(folder / "data.npz", images=images, label=labels)
    return str(folder / "data.npz")


@pytest.fixture(autouse=True)
def _memory_is_told_from_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step takes is told from two, as ever."""
    activations = Job._activations

    def in_one_step(job: Job, source: Images, batch_size: int) -> int:
        with mock.patch("pgmkit.learning.trial._STEPS", 1):
            return activations(job, source, batch_size)

    monkeypatch.setattr(Job, "_activations", in_one_step)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_example_can_be_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name]
    overrides = [*NARROW.get(config["model"].get("backbone"), []), "device=cpu"]
    if not name.startswith(("ring", "grid")):
        overrides += ["batch_size=4", *(FEW_PARTS if name in GUIDED else [])]
    if config["model"].get("name") == "residual-classifier":
        overrides.append("model.width=2")
    if config["task"] == "classifier":
        overrides += ["test_fraction=0.2"]
    data = data_for(name, tmp_path)
    job = prepare({**apply_overrides(config, overrides), "data": data})
    assert job.steps >= config.get("steps", 1)
    estimate = job.estimate()
    assert estimate.memory["weights"] >= 4 * sum(job.sizes.values())
    assert estimate.memory["optimizer"] > 2 * estimate.memory["gradients"] > 0
    assert estimate.memory["activations"] > 0
    assert estimate.seconds > 0
    if name == "imagenet-pgmgan":
        assert estimate.batch_size == 2  # of 4, whose memory it tells
        monkeypatch.setattr("pgmkit.learning.loop.batch_of_trial", lambda size, shape: size)
        whole = job._activations(job.source, 4)
        assert estimate.memory["activations"] == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("name", GUIDED)
def test_an_example_is_guided_as_the_authors_code_unless_it_says_otherwise(name: str) -> None:
    model = CONFIGS[name]["model"]
    guide, k = Guide(**model["guide"]), model.get("partitions", 500)
    first, last = (guide.weight(clock_at(0, step, 10**6), k) for step in (0, 10**6 - 1))
    chosen = {"ring-pgmgan": (6, 1e-4), "grid-pgmgan": (6, 1e-4), "mnist-pgmgan": (0.1, 1e-5)}
    assert (first, last) == pytest.approx(chosen.get(name, (6 / k, 1e-4 / k)))
    if not str(model["partitioner"]).startswith("local-dir:"):
        assert build_partitioner(model["partitioner"], k).num_partitions == k


def test_a_dry_run_of_large_batches_tries_small_ones(tmp_path: Path) -> None:
    overrides = [*NARROW["sngan-32"], *FEW_PARTS, "batch_size=30", "device=cpu"]
    values = apply_overrides(CONFIGS["cifar10-pgmgan"], [*overrides, "model.accumulate=8"])
    job = prepare({**values, "data": data_for("cifar10-pgmgan", tmp_path)})
    assert isinstance(job.task, GANTask)
    assert job.task.batches_per_step == 32
    estimate = job.estimate()
    assert estimate.batch_size == 20
    assert job.task.batches_per_step == 32
    conditions = job.task.conditions
    assert conditions is not None
    few: Any = conditions.source
    kept = {size: job._activations(few, size) for size in (6, 20)}
    line = kept[20] + (30 - 20) / (20 - 6) * (kept[20] - kept[6])
    assert estimate.memory["activations"] == pytest.approx(line, rel=1e-3)
