"""GANs that are conditional on parts of their images, and guided to them."""

import csv
import importlib.util
import json
import signal
import sys
import time
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_pgmkit, write_tiny_classifier, write_tiny_images
from torch import Tensor, nn

import pgmkit
from pgmkit import pictures
from pgmkit.config import apply_overrides
from pgmkit.errors import DataError, ParameterError, PluginError
from pgmkit.evaluate.extractors import load_extractor
from pgmkit.evaluate.fidelity_scores import Moments, frechet_distance
from pgmkit.evaluate.reference_images import features_of
from pgmkit.images import ArrayImages, load_images
from pgmkit.jobs.train import Job, prepare
from pgmkit.learning import learn
from pgmkit.learning.batches import Batch
from pgmkit.learning.clock import Clock, clock_at
from pgmkit.learning.trial import trying
from pgmkit.loading.discriminators import load_discriminator
from pgmkit.partition import fit_partitioner
from pgmkit.partition.fitted import build_partitioner
from pgmkit.train.gan import GANTask
from pgmkit.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, STOPPED_AT = 12, 7
POINTS = "points:ring:n=400"
CONFIG = f"""
task = "gan"
steps = {STEPS}
batch_size = 20
save_steps = 5
measure_steps = 6

[model]
backbone = "mlp-2d"
backbone_args = {{ width = 16, depth = 2 }}
latent = {{ dim = 2 }}
discriminator_steps = 2
ema = 0.9
loss = "hinge"
partitioner = {{ name = "kmeans", features = "pixels", num_starts = 1 }}
partitions = 4
"""


def job(*overrides: str, data: object = POINTS) -> Job:
    values = apply_overrides(tomllib.loads(CONFIG), overrides)
    return prepare({**values, "data": str(data), "device": "cpu"})


def conditioned(*overrides: str) -> tuple[Job, GANTask]:
    """A job whose task knows the parts of its images."""
    made = job(*overrides)
    assert isinstance(made.task, GANTask)
    made.task.condition(fit_partitioner(made.task.partitioner, made.source), made.source)
    return made, made.task


@pytest.fixture(scope="module", autouse=True)
def _few_points() -> Iterator[None]:
    """Shows and measures a tenth of the points, of which pictures are drawn sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgmkit.train.samples._POINTS", 1_000)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "rings"
    job().run(out)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_conditional_gan_is_trained_written_and_loaded(trained: Path) -> None:
    loaded = pgmkit.load(f"local-dir:{trained / 'model'}", device="cpu")
    assert isinstance(loaded, pgmkit.ConditionalGenerator)
    fitted = pgmkit.load_partitioner(trained / "partitioner")
    assert loaded.name == "rings"
    assert loaded.masses == pytest.approx([size / 400 for size in fitted.sizes])
    assert loaded.partitioner is not None
    assert loaded.sample(5, partition=3).shape == (5, 2)
    (*_, last) = rows(trained / "partitions.csv")
    assert last.pop("step") == str(STEPS)
    for share, count in zip(loaded.provenance["acceptance"], last.values(), strict=True):
        assert share * 100 <= float(count) <= share * 400  # of 1,000 samples about 250 each
    average = load_file(trained / f"checkpoint-{STEPS:09d}.safetensors")
    weights = loaded.module.state_dict()
    assert {n for n in average if n.startswith("average/")} == {f"average/{n}" for n in weights}
    for name, value in weights.items():
        assert torch.equal(average[f"average/{name}"], value)
        assert name.endswith("tracked") or not torch.equal(average[f"generator/{name}"], value)
    judge = load_discriminator(f"local-dir:{trained / 'model'}")
    assert judge.module(torch.zeros(3, 2), torch.arange(3)).shape == (3,)
    one = pgmkit.load_generator(f"local-dir:{trained / 'model'}", partition=3, device="cpu")
    z = one.sample_latents(5, seed=0)
    assert torch.equal(one.images(z), loaded(z, torch.full((5,), 3)))


def test_what_is_told_on_the_way_and_at_the_end(trained: Path) -> None:
    measured = rows(trained / "measurements.csv")
    assert [row["step"] for row in measured] == ["6", "12"]
    told = {"step", "epoch", "modes", "high quality", "reverse KL", "spread", "inside"}
    assert set(measured[0]) == told
    by_part = rows(trained / "partitions.csv")
    for row, parts in zip(measured, by_part, strict=True):
        assert row["step"] == parts.pop("step")
        assert float(row["inside"]) == sum(map(int, map(float, parts.values()))) / 1000
    assert sorted(p.name for p in (trained / "samples").iterdir()) == [
        "step-0000006.png",
        "step-0000012.png",
    ]
    page = (trained / "report.html").read_text()
    assert page.count("<img") == 3
    assert "partitioner/report.html" in page
    assert f"<td>inside</td><td>{measured[-1]['inside']}</td>" in page.replace(
        ' class="number"', ""
    )
    assert (trained / "partitioner" / "report.html").exists()


def run_until_stopped(made: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a training that gets a Ctrl-C on the way."""
    step = GANTask.step

    def stopping(task: GANTask, *given: Any) -> Any:
        if given[1].step == STOPPED_AT:
            signal.raise_signal(signal.SIGINT)
        return step(task, *given)

    with monkeypatch.context() as patched:
        patched.setattr(GANTask, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            made.run(out)


@pytest.mark.usefixtures("no_pages")
def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rings"
    run_until_stopped(job(), out, monkeypatch)
    assert not (out / "model").exists()
    fitted = (out / "partitioner" / "partitioner.json").stat().st_mtime_ns
    again = job()
    assert again.run(out) == out / "model"
    assert (out / "partitioner" / "partitioner.json").stat().st_mtime_ns == fitted
    for name in ("model/model.safetensors", "model/discriminator.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    for name in ("measurements.csv", "partitions.csv", f"samples/step-{STEPS:07d}.png"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


def test_the_guide_brings_samples_to_their_part() -> None:
    inside = {}
    for weight in (0, 10):
        guide = f"model.guide={{start={weight}, end={weight}}}"
        made, task = conditioned("steps=120", guide, "model.ema=0.5")
        made._learn()
        shown = task.samples.made(task.shown, task.conditions, task.device, 400, "judged")
        assert task.conditions is not None
        right = [task.conditions.fitted.assign(x) == y for x, y in shown]
        inside[weight] = float(torch.cat(right).float().mean())
    assert inside[10] > 0.8
    assert inside[0] < 0.6


def test_the_guide_is_the_sum_over_the_parts() -> None:
    made, task = conditioned()
    conditions = task.conditions
    assert conditions is not None
    k = conditions.fitted.num_partitions
    x, parts = made.source.batch(torch.arange(20)), torch.arange(20) % k
    one_by_one = [conditions.fitted.guide(x[i : i + 1], int(parts[i])) for i in range(20)]
    torch.testing.assert_close(conditions.pull(x, parts), torch.cat(one_by_one))
    assert conditions.pull(x, parts).max() > 0


def test_the_guide_in_training_does_not_wait_for_values(trained: Path) -> None:
    _, task = conditioned(f"model.partitioner=local-dir:{trained / 'partitioner'}")
    assert task.conditions is not None
    x, parts = torch.full((3, 2), torch.nan), torch.arange(3)
    assert task.conditions.pull(x, parts).isnan().all()
    with pytest.raises(PluginError, match="not finite"):
        task.conditions.fitted.guide(x, parts)


def batch_of(task: GANTask, made: Job, count: int = 200) -> Batch:
    index = torch.arange(count)
    return Batch(made.source.batch(index), None, index, count)


def test_parts_of_generated_images_are_drawn_as_often_or_taken_over() -> None:
    for labels in ("fresh", "reused"):
        made, task = conditioned(f"model.labels={labels}")
        assert task.conditions is not None
        task.conditions.masses = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
        _, parts = task._latents(batch_of(task, made), clock_at(0, 0, STEPS))
        assert parts is not None
        shares = parts.bincount(minlength=4) / 200
        if labels == "fresh":
            torch.testing.assert_close(shares.double(), task.conditions.masses, atol=0.1, rtol=0)
            assert shares[1] == 0
        else:
            assert torch.equal(parts, task.conditions.labels[:200])


def test_gradients_are_averaged_over_batches_and_what_is_judged_together_is_judged_alike() -> None:
    made, task = conditioned("model.accumulate=2")
    assert task.batches_per_step == 4
    assert task.is_joint

    def judged(batch: Batch) -> Tensor:
        given = task._latents(batch, clock_at(0, batch.size, STEPS))
        told = task._judge_both(batch.images, task._parts_of(batch), *given, None)
        return told["discriminator"]

    batches = [batch_of(task, made, 20), batch_of(task, made, 40)]
    found: list[list[Tensor]] = []
    losses = []
    for is_joint in (True, False):
        task.is_joint = is_joint
        for index in (0, 1):
            task.discriminator.zero_grad()
            for batch in batches if index else batches[:1]:
                losses.append(float(judged(batch)))
            found.append([p.grad for p in task.discriminator.parameters()])  # type: ignore[misc]
    first, both, alone, both_alone = found
    for one, other in ((first, alone), (both, both_alone)):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-7)
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)
    task.discriminator.zero_grad()
    judged(batches[1])
    for total, left, parameter in zip(both, first, task.discriminator.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(total, left + parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.accumulate=2"],
        ["model.precision=bfloat16"],
        ["model.loss={name='wasserstein', weight=1.0}"],
        ["model.guide={start=0, end=0}", "model.labels=reused"],
        [],
    ],
    ids=str,
)
def test_what_training_is_composed_of_goes_together(overrides: list[str]) -> None:
    made, task = conditioned(*overrides)
    before = [p.clone() for p in task.generator.parameters()]
    made._learn()
    assert all(p.dtype == torch.float32 for p in task.generator.parameters())
    moved = [
        not torch.equal(p, q) for p, q in zip(before, task.generator.parameters(), strict=True)
    ]
    assert all(moved)
    assert ("guide" in task_losses(task, made)) == ("model.labels=reused" not in overrides)


def task_losses(task: GANTask, made: Job) -> set[str]:
    told = task.step(iter([batch_of(task, made, 20)] * 8), clock_at(0, 0, STEPS))
    assert all(torch.isfinite(torch.as_tensor(value)) for value in told.values())
    return set(told)


def test_networks_are_compiled_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    job("model.compile=true")
    assert compiled == ["MLPGenerator", "MLPDiscriminator"]


@pytest.mark.usefixtures("no_pages")
def test_fid_is_that_of_the_features_it_names(tmp_path: Path) -> None:
    classifier = write_tiny_classifier(tmp_path / "classifier", image_size=8)
    write_tiny_images(tmp_path / "images.npz", count=60, size=32)
    made = job(
        "model.backbone=dcgan",
        "model.backbone_args={channels=[8, 4, 4]}",
        f"model.fidelity={{features='classifier:{classifier}', samples=30}}",
        data=tmp_path / "images.npz",
    )
    out = tmp_path / "out"
    made.run(out)
    told = float(rows(out / "measurements.csv")[-1]["FID"])
    task = made.task
    assert isinstance(task, GANTask)
    found = task.samples.made(task.shown, task.conditions, task.device, 30, "fidelity")
    images = pictures.to_uint8(torch.cat([x for x, _ in found]), (-1.0, 1.0))
    extractor = load_extractor(f"classifier:{classifier}", "cpu")
    source = load_images(str(tmp_path / "images.npz"))
    expected = frechet_distance(
        Moments.of(extractor.features(images)), Moments.of(features_of(source, extractor))
    )
    assert told == pytest.approx(expected, rel=1e-4)
    assert (out / "model" / "samples.png").stat().st_size > 500


@pytest.mark.usefixtures("no_pages")
def test_the_same_numbers_go_to_tensorboard_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "out" / "tensorboard")
            assert purge_step == 1

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, step))

        def flush(self) -> None:
            told.append(("flush", 0))

    module = types.ModuleType("torch.utils.tensorboard")
    vars(module)["SummaryWriter"] = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: name == "tensorboard" or find(name, *a)
    )
    job().run(tmp_path / "out")
    assert {("inside", 6), ("inside", 12), ("flush", 0)} <= {*told}


def test_a_dry_run_tells_settings_sizes_and_time(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    words = ("train", tmp_path / "config.toml", "--data", POINTS, "--dry-run")
    dry = run_pgmkit(*words, "--set", "steps=2000")
    assert dry.code == 0, dry.stderr
    told = json.loads(dry.stdout)
    task = job().task
    assert isinstance(task, GANTask)
    sizes = {n: sum(p.numel() for p in getattr(task, n).parameters()) for n in told["parameters"]}
    assert told["parameters"] == sizes
    assert told["settings"]["model"]["partitions"] == 4
    assert 0.5 < told["seconds"]["training"] < 600
    assert told["shapes"] == {"image": [2], "latent": [2], "partitions": 4}
    networks = task.generator, task.discriminator
    buffers = [sum(b.nbytes for b in network.buffers()) for network in networks]
    weights = 4 * sum(sizes.values())
    moments = 2 * weights + 4 * sum(len(list(network.parameters())) for network in networks)
    total = told["bytes"].pop("total")
    activations = told["bytes"].pop("activations")
    assert told["bytes"] == {
        "weights": weights + sum(buffers),
        "gradients": weights,
        "optimizer": moments,
        "average": 4 * sizes["generator"] + buffers[0],
    }
    assert total == sum(told["bytes"].values()) + activations
    assert told["tried"].startswith("batches of 20 images of 20;")


def test_a_dry_run_tries_fewer_images_than_there_are_fitted_parts(tmp_path: Path) -> None:
    table = {"name": "kmeans", "features": "pixels", "num_starts": 1}
    fit_partitioner(table, load_images(POINTS), partitions=40).save_pretrained(tmp_path / "parts")
    parts = f"model.partitioner=local-dir:{tmp_path / 'parts'}"
    made = job(parts, "model.partitions=40", "batch_size=2")
    assert made.estimate().seconds > 0
    assert isinstance(made.task, GANTask)
    assert made.task.conditions is not None
    assert len(made.task.conditions.source) == 4


class Perceptron:
    """A linear layer of 64 with ReLU and one of 1, which is to be small on images of 3×32×32."""

    def __init__(self) -> None:
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters())
        self.parts = {"network": self.network, "optimizer": self.optimizer}

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        loss = self.network(next(batches).images).sum()
        loss.backward()
        return {"loss": loss.detach()}


@pytest.mark.parametrize("batch_size", [10, 100])
def test_what_autograd_keeps_is_counted_on_few_images_and_told_of_a_whole_batch(
    batch_size: int,
) -> None:
    values = {"task": "gan", "data": "none", "batch_size": batch_size, "steps": 50}
    images = ArrayImages(torch.zeros(200, 3, 32, 32, dtype=torch.uint8), name="black")
    task: Any = Perceptron()
    estimate = Job(TrainSettings(**values), images, task).estimate()
    assert estimate.batch_size == min(batch_size, 20)  # of 3,072 values each, 2¹⁶ in all
    # The images, and what ReLU returns, which the last layer keeps as well.
    assert estimate.memory["activations"] == 4 * batch_size * (3072 + 64)


def test_a_trial_of_small_batches_tells_the_time_of_large_ones() -> None:
    images = ArrayImages(torch.zeros(200, 3, 32, 32, dtype=torch.uint8), name="black")
    seen: list[int] = []

    class Sleeping(Perceptron):
        def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
            seen.append(len(next(batches).images))
            time.sleep(0.02)
            return {}

    with trying() as loops:
        learn(Sleeping(), steps=10, seed=0, name="tried", source=images, batch_size=100)
    assert seen == [20, 20]
    assert 0.02 + 9 * 5 * 0.02 <= loops.whole < 10 * 5 * 0.2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.discriminator_steps=0", "discriminator_steps must be .*0"),
        ("model.accumulate=0", "accumulate must be .*0"),
        ("model.labels=old", "labels.*'fresh'.*'reused'"),
        ("model.ema=1.0", "decay of an average .*1.0"),
        ("model.precision=float16", "precision.*'float16'"),
        ("model.guide={start=-1}", r"guide\.start must be at least 0, not -1"),
        ("model.backbone_args={num_partitions=3}", r"set model\.partitions"),
        ("model.fidelity={samples=30}", "fidelity is of images, and these are points"),
        ("model.partitions=500", "500 partitions need as many images, and there are 400"),
        ("batch_size=401", "fewer than one batch of 401"),
    ],
)
def test_a_setting_outside_its_range_is_named(override: str, said: str) -> None:
    with pytest.raises((ParameterError, DataError), match=said):
        job(override)


@pytest.mark.parametrize("name", ["partitions=3", "guide={start=1}", "labels=reused"])
def test_what_is_of_parts_needs_a_partitioner(name: str) -> None:
    values = tomllib.loads(CONFIG)
    for of_parts in ("partitioner", "partitions"):
        values["model"].pop(of_parts)
    values = apply_overrides({**values, "data": POINTS, "device": "cpu"}, [f"model.{name}"])
    with pytest.raises(ParameterError, match=rf"model\.{name.partition('=')[0]} .*no model\.part"):
        prepare(values)


@pytest.mark.usefixtures("no_pages")
def test_parts_without_a_gradient_guide_nothing_and_are_said_before_training(
    tmp_path: Path,
) -> None:
    voting = "model.partitioner={name='clusterer', clusterer='sklearn.cluster:KMeans'}"
    with pytest.raises(ParameterError, match="have no gradient, so they guide nothing"):
        job(voting).run(tmp_path / "guided")
    assert not (tmp_path / "guided" / "losses.csv").exists()
    assert job(voting, "model.guide={start=0, end=0}").run(tmp_path / "free") is not None


@pytest.mark.usefixtures("no_pages")
def test_parts_that_were_found_in_other_images_are_said(trained: Path, tmp_path: Path) -> None:
    write_tiny_images(tmp_path / "images.npz", count=60, size=32)
    images = ("model.backbone=dcgan", "model.backbone_args={channels=[8, 4, 4]}")
    reference = f"model.partitioner=local-dir:{trained / 'partitioner'}"
    with pytest.raises(ParameterError, match=r"fitted to images of \(2,\), and these are"):
        job(*images, reference, data=tmp_path / "images.npz")
    with pytest.raises(ParameterError, match="has 4 parts, and 5 are asked for"):
        job(reference, "model.partitions=5")
    made = job(reference)
    assert made.run(tmp_path / "out") is not None
    assert isinstance(made.task, GANTask)
    assert made.task.num_partitions == 4


def test_images_that_all_lie_in_one_part_are_an_error() -> None:
    made = job()
    task = made.task
    assert isinstance(task, GANTask)
    fitted = fit_partitioner(task.partitioner, made.source)
    one = made.source.subset((fitted.labels == 2).nonzero().flatten())
    with pytest.raises(DataError, match=r"all .* images lie in part 2"):
        task.condition(fitted, one)


RECLUSTERED = (
    "model.partitioner={name='kmeans', features='discriminator', num_starts=1}",
    "model.recluster_steps=5",
)


@pytest.mark.usefixtures("no_pages")
def test_parts_of_what_the_discriminator_sees_are_found_anew_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made, step = tmp_path / "whole", job(*RECLUSTERED), GANTask.step
    labels: dict[int, Tensor] = {}

    def watched(task: GANTask, *given: Any) -> Any:
        told = step(task, *given)
        assert task.conditions is not None
        assert "guide" not in told
        labels[given[1].step] = task.conditions.labels.clone()
        return told

    monkeypatch.setattr(GANTask, "step", watched)
    made.run(whole)
    changed = [n for n in range(1, STEPS) if not torch.equal(labels[n], labels[n - 1])]
    assert changed == [5, 10]
    for number in changed:  # of four groups that have nothing in common, one in four would stay
        assert (labels[number] == labels[number - 1]).float().mean() > 0.4
    loaded = pgmkit.load(f"local-dir:{whole / 'model'}", device="cpu")
    assert isinstance(loaded, pgmkit.ConditionalGenerator)
    assert loaded.partitioner is not None
    index = torch.arange(400)
    assert torch.equal(loaded.partitioner.assign(made.source.batch(index)), labels[STEPS - 1])

    run_until_stopped(job(*RECLUSTERED), tmp_path / "stopped", monkeypatch)
    job(*RECLUSTERED).run(tmp_path / "stopped")
    for name in ("model.safetensors", "partitioner/partitioner.safetensors"):
        assert (tmp_path / "stopped" / "model" / name).read_bytes() == (
            whole / "model" / name
        ).read_bytes()


def test_parts_are_found_anew_in_what_the_discriminator_sees_alone(trained: Path) -> None:
    with pytest.raises(ParameterError, match=r"recluster_steps is for parts of what the disc"):
        job("model.recluster_steps=5")
    with pytest.raises(ParameterError, match=r"are for a GAN in training, with model\.recluster"):
        fit_partitioner({"name": "kmeans", "features": "discriminator"}, job().source)
    features = {"name": "discriminator", "source": f"local-dir:{trained / 'model'}"}
    made = job(*RECLUSTERED)
    assert isinstance(made.task, GANTask)
    made.task.partitioner = build_partitioner({"name": "kmeans", "features": features}, 4)
    with pytest.raises(ParameterError, match=r"leave out source, or model\.recluster_steps"):
        made.task.condition_by_itself(made.source)
