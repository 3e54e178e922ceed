"""Training: data, loop, checkpoints, export."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import run_pgmkit
from torch import Tensor, nn

import pgmkit
from pgmkit import progress
from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import DataError, OutputError, ParameterError, PgmkitError
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.images import load_images
from pgmkit.jobs.train import prepare
from pgmkit.learning import learn
from pgmkit.learning.batches import Batches
from pgmkit.learning.clock import clock_at
from pgmkit.loading.discriminators import load_discriminator
from pgmkit.train.gan import GANSettings, GANTask

EXAMPLES = Path(__file__).parent.parent / "examples"
FEW = ["epochs=1", "batch_size=50"]
TINY_GAN = [
    "epochs=2",
    "batch_size=8",
    "model.backbone_args.channels=[8, 4, 4]",
    "model.latent.dim=4",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares in the upper or lower half, as 28×28 bytes with labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    images = random.integers(0, 60, (400, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[14 * label + 3 : 14 * label + 11, 8:20] = 220
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(
        path, x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:]
    )
    return path


def run_training(config: dict[str, Any], data: str, out: Path) -> Path:
    model = prepare({**config, "data": data, "device": "cpu"}).run(out)
    assert model is not None
    return model


def gan_config(*overrides: str) -> dict[str, Any]:
    return apply_overrides(read_toml(EXAMPLES / "mnist-dcgan.toml"), [*TINY_GAN, *overrides])


def test_a_gan_is_trained_exported_and_loaded(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.shown():
        model = run_training(gan_config(), str(digits), tmp_path / "tiny")
    lines = capsys.readouterr().err.splitlines()
    generator = pgmkit.load_generator(f"local-dir:{model}")
    assert generator.latent.dim == 4
    assert generator.image.shape == (1, 32, 32)
    assert generator.provenance["license"] == "Apache-2.0"
    training = generator.provenance["training"]
    assert (training["seed"], training["steps"]) == (0, 2 * (300 // 8))
    assert "CC BY-SA 3.0" in (model / "README.md").read_text()
    assert load_discriminator(f"local-dir:{model}").shape == (1, 32, 32)
    epochs = [line.split(":")[0] for line in lines if line.startswith("epoch")]
    assert epochs == ["epoch 1/2", "epoch 2/2"]
    with (tmp_path / "tiny" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [50]
    assert float(rows[0]["discriminator"]) > 0
    grids = sorted(p.name for p in (tmp_path / "tiny" / "samples").iterdir())
    assert grids == ["step-0000037.png", "step-0000074.png"]


@pytest.mark.usefixtures("no_pages")
def test_training_moves_the_weights_and_the_seed_decides_them(digits: Path, tmp_path: Path) -> None:
    outputs = {}
    for name, overrides in {"a": [], "b": [], "other": ["seed=1"]}.items():
        model = run_training(gan_config(*FEW, *overrides), str(digits), tmp_path / name)
        outputs[name] = (model / "model.safetensors").read_bytes()
    assert outputs["a"] == outputs["b"] != outputs["other"]


def test_a_classifier_learns_and_is_loaded(digits: Path, tmp_path: Path) -> None:
    config = apply_overrides(
        read_toml(EXAMPLES / "mnist-classifier.toml"), ["epochs=2", "model.num_classes=2"]
    )
    model = run_training(config, str(digits), tmp_path)
    classifier = load_classifier(f"local-dir:{model}")
    assert classifier.measured["test_accuracy"] > 0.95
    test = load_images(str(digits), split="test", size=32)
    found = classifier.labels(test.batch(torch.arange(100)), (-1.0, 1.0))
    assert (found == test.labels).float().mean() == classifier.measured["test_accuracy"]


def test_the_shipped_classifier_states_its_accuracy() -> None:
    assert load_classifier("mnist-classifier").measured["test_accuracy"] >= 0.985


@pytest.mark.usefixtures("no_pages")
def test_a_run_does_not_continue_on_other_data(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_training(gan_config(*FEW), str(digits), out)
    other = dict(np.load(digits))
    other["x_train"] = other["x_train"][::-1]
    np.savez(tmp_path / "digits.npz", **other)
    with pytest.raises(OutputError, match="data"):
        run_training(gan_config(*FEW), str(tmp_path / "digits.npz"), out)


@pytest.mark.parametrize(
    "override",
    [
        "epochs=0",
        "batch_size=1",
        "optimizer.learning_rate=-1",
        "optimizer.betas=[0.5]",
        "optimizer.momentum=0.9",
        "optimizer.end_learning_rate=-1",
        "model.backbone_args.channels=[]",
        "model.latent.dim=0",
        "surprise=1",
        "steps=3",
        "measure_steps=0",
        "save_steps=0",
        "save_minutes=-1",
        "seed=-1",
        "seed=9223372036854775808",
        "model.discriminator_steps=0",
        "model.discriminator_optimizer.learning_rate=0",
    ],
)
def test_settings_outside_their_range_are_refused_before_training(
    override: str, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError):
        run_training(gan_config(override), str(digits), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_pages")
def test_length_is_counted_in_steps_of_the_generator_too(digits: Path, tmp_path: Path) -> None:
    config = gan_config("model.discriminator_steps=3", "snapshots=[1]")
    by_epochs = prepare({**config, "data": str(digits), "device": "cpu"})
    assert by_epochs.steps == 2 * (300 // 8) // 3 + 1
    del config["epochs"]
    out = tmp_path / "out"
    model = run_training({**config, "steps": 5, "measure_steps": 2}, str(digits), out)
    training = pgmkit.load_generator(f"local-dir:{model}").provenance["training"]
    assert training["steps"] == 5
    grids = sorted(path.name for path in (out / "samples").iterdir())
    assert grids == [f"step-{step:07d}.png" for step in (2, 4, 5)]
    assert [path.name for path in (out / "snapshots").iterdir()] == ["step-001"]
    del config["snapshots"]
    with pytest.raises(ParameterError, match="either epochs or steps"):
        run_training(config, str(digits), tmp_path / "neither")


def test_the_learning_rate_goes_to_its_end_on_a_straight_line(digits: Path) -> None:
    falls = gan_config(
        "optimizer.learning_rate=0.01",
        "optimizer.end_learning_rate=0.002",
        "model.discriminator_optimizer.learning_rate=0.01",
    )
    job = prepare({**falls, "data": str(digits), "device": "cpu"})
    assert isinstance(job.task, GANTask)
    batches = Batches(job.source, 8, 0)
    for step, rate in ((0, 0.01), (2, 0.006), (4, 0.002)):
        job.task.step(batches, clock_at(0, step, 5))
        assert job.task.generator_optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert job.task.discriminator_optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.usefixtures("no_pages")
def test_the_discriminator_may_have_an_optimizer_of_its_own(digits: Path, tmp_path: Path) -> None:
    own = "model.discriminator_optimizer.learning_rate=1e-30"
    values = {**gan_config(*FEW, own), "data": str(digits), "device": "cpu"}
    still, job = prepare(values), prepare(values)
    job.run(tmp_path)
    moved = {
        name: max(
            float((before - after).detach().abs().max())
            for before, after in zip(model.parameters(), job.models[name].parameters(), strict=True)
        )
        for name, model in still.models.items()
    }
    assert moved["discriminator"] < 1e-6 < 1e-3 < moved["generator"]
    kept = load_discriminator(f"local-dir:{tmp_path / 'model'}").module.state_dict()
    trained = job.models["discriminator"].state_dict()
    assert kept.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in kept.items())


class Forgetful(nn.Module):
    """Half of what it is given is dropped, by the global generator."""

    def __init__(self, inputs: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        dropped = nn.functional.dropout(z.flatten(1), 0.5, self.training)
        made: Tensor = self.layer(dropped).unflatten(1, self.shape)
        return made


def test_one_seed_gives_one_generator_with_dropout_too(digits: Path, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        values = {**gan_config("epochs=1", f"seed={seed}"), "data": str(digits), "device": "cpu"}
        job = prepare(values)
        task = job.task
        assert isinstance(task, GANTask)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generator, discriminator = Forgetful(4, (1, 32, 32)), Forgetful(1024, (1,))
        rate = task.settings.optimizer
        task.parts.clear()
        task.generator, task.generator_optimizer = generator, rate.build(generator)
        task.discriminator, task.discriminator_optimizer = discriminator, rate.build(discriminator)
        learn(task, steps=20, seed=seed, name="forgetful", source=job.source, batch_size=8)
        weights.append(generator.layer.weight.detach().numpy().tobytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_dry_run_prints_settings_and_sizes_and_writes_nothing(
    digits: Path, tmp_path: Path
) -> None:
    words = ["train", EXAMPLES / "mnist-dcgan.toml", "--data", digits, "--dry-run"]
    for override in TINY_GAN:
        words += ["--set", override]
    dry = run_pgmkit(*words)
    assert dry.code == 0, dry.stderr
    told = json.loads(dry.stdout)
    assert told["steps"] == 74
    assert 0 < told["seconds"]["training"] < 600
    assert told["settings"]["data"]["shape"] == [300, 1, 32, 32]
    module = GANTask(
        GANSettings(backbone_args={"channels": [8, 4, 4]}, latent=pgmkit.LatentSpec(4)),
        seed=0,
        device=torch.device("cpu"),
    )
    sizes = {n: sum(p.numel() for p in getattr(module, n).parameters()) for n in told["parameters"]}
    assert told["parameters"] == sizes
    assert list(sizes) == ["generator", "discriminator"]
    assert run_pgmkit(*words, "-o", tmp_path / "out").code == 0
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_than_the_generator_s_are_named(
    digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"\(1, 32, 32\).*\(1, 28, 28\)"):
        run_training(gan_config("image_size=28"), str(digits), tmp_path / "out")


def test_the_shipped_generator_is_what_its_example_says() -> None:
    generator = pgmkit.load_generator("mnist-dcgan")
    example = read_toml(EXAMPLES / "mnist-dcgan.toml")
    training = generator.provenance["training"]
    assert {key: training[key] for key in example} == json.loads(json.dumps(example))
    assert training["steps"] == 50 * (60_000 // 64)


def test_the_shipped_conditional_generator_is_what_its_example_says() -> None:
    model = pgmkit.load("mnist-pgmgan")
    example = read_toml(EXAMPLES / "mnist-pgmgan.toml")
    training = model.provenance["training"]
    assert {key: training[key] for key in example} == json.loads(json.dumps(example))
    folder = EXAMPLES.parent / "registry" / "mnist-pgmgan"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6


def test_each_part_of_the_shipped_conditional_generator_is_one_digit() -> None:
    model = pgmkit.load("mnist-pgmgan", device="cpu")
    assert isinstance(model, pgmkit.ConditionalGenerator)
    assert model.partitioner is not None
    judge, digits = load_classifier("mnist-classifier"), set()
    for part in range(10):
        images = model.sample(20, partition=part, seed=0)
        assert (model.partitioner.assign(images) == part).double().mean() > 0.9
        counts = judge.labels(images, model.image.range).bincount()
        assert counts.max() > 18
        digits.add(int(counts.argmax()))
    assert len(digits) == 10


@pytest.mark.usefixtures("no_pages")
def test_snapshots_are_exported_on_the_way_and_change_nothing(digits: Path, tmp_path: Path) -> None:
    few = gan_config("epochs=2", "batch_size=50")
    plain = run_training(few, str(digits), tmp_path / "plain")
    config = apply_overrides(few, ["snapshots=[1]"])
    model = run_training(config, str(digits), tmp_path / "run")
    snapshot = tmp_path / "run" / "snapshots" / "epoch-001"
    for name in ("model.safetensors", "discriminator.safetensors"):
        same = [(path / name).read_bytes() for path in (plain, model)]
        assert same[0] == same[1] != (snapshot / name).read_bytes()
    early, late = (
        pgmkit.load_generator(f"local-dir:{path}").provenance["training"]
        for path in (snapshot, model)
    )
    assert pgmkit.load_generator(f"local-dir:{snapshot}").name == "run-epoch-001"
    assert (early["epochs"], late["epochs"]) == (1, 2)
    assert early["steps"] * 2 == late["steps"]


@pytest.mark.parametrize("epochs", ["[0]", "[3]", "['last']"])
def test_a_snapshot_after_no_such_epoch_is_refused(
    digits: Path, tmp_path: Path, epochs: str
) -> None:
    config = gan_config("epochs=2", f"snapshots={epochs}")
    with pytest.raises(ParameterError, match=r"epochs from 1 to 2|each part a whole number"):
        run_training(config, str(digits), tmp_path / "run")


@pytest.mark.usefixtures("no_pages")
def test_a_classifier_may_be_tested_on_a_part_of_the_images(digits: Path, tmp_path: Path) -> None:
    data = np.load(digits)
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=data["x_train"], labels=data["y_train"])
    config = read_toml(EXAMPLES / "mnist-classifier.toml")
    settings = ["epochs=3", "model.num_classes=2", "test_fraction=0.2", "batch_size=8"]
    names = ["card.classes=['upper', 'lower']"]
    model = run_training(
        apply_overrides(config, settings + names), str(whole), tmp_path / "classifier"
    )
    classifier = load_classifier(f"local-dir:{model}")
    assert classifier.classes == ("upper", "lower")
    assert classifier.measured["test_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["epochs=1"], DataError, "x_test"),
        (["test_fraction=1.0"], ParameterError, "above 0 and below 1"),
        (
            ["test_fraction=0.1", "card.classes=['upper']"],
            ParameterError,
            "names 1 classes, and model.num_classes is 10",
        ),
    ],
)
def test_what_a_classifier_cannot_be_tested_on_is_refused(
    digits: Path, tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    data = np.load(digits)
    np.savez(tmp_path / "whole.npz", images=data["x_train"], labels=data["y_train"])
    config = apply_overrides(read_toml(EXAMPLES / "mnist-classifier.toml"), overrides)
    with pytest.raises(error, match=message):
        run_training(config, str(tmp_path / "whole.npz"), tmp_path / "out")


def sorted_digits(digits: Path, root: Path, names: tuple[str, str]) -> Path:
    """Writes some of the digits as pictures, into a folder for each class."""
    data = np.load(digits)
    for index in range(120):
        path = root / names[data["y_train"][index]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data["x_train"][index]).save(path)
    return root


TWO_CLASSES = ["epochs=4", "batch_size=8", "model.num_classes=2", "test_fraction=0.2"]


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize(
    ("names", "given", "classes"),
    [
        (("upper", "lower"), [], ("lower", "upper")),
        (("upper", "lower"), ["card.classes=['upper', 'lower']"], ("upper", "lower")),
        (("3", "8"), ["card.classes=['8', '3']"], ("8", "3")),
        (("0", "1"), ["card.classes=['top', 'bottom']"], ("top", "bottom")),
    ],
)
def test_a_classifier_knows_its_classes_by_the_names_of_folders(
    names: tuple[str, str], given: list[str], classes: tuple[str, ...], digits: Path, tmp_path: Path
) -> None:
    data = sorted_digits(digits, tmp_path / "data", names)
    config = apply_overrides(read_toml(EXAMPLES / "mnist-classifier.toml"), [*TWO_CLASSES, *given])
    classifier = load_classifier(f"local-dir:{run_training(config, str(data), tmp_path / 'run')}")
    assert classifier.classes == classes
    images = load_images(str(digits))
    assert images.labels is not None
    found = classifier.labels(images.batch(torch.arange(len(images))), (-1.0, 1.0))
    called = {"3": names, "0": ("top", "bottom")}.get(names[0], names)
    expected = torch.tensor([classes.index(name) for name in called])[images.labels]
    assert (found == expected).float().mean() > 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_classes=10"], "has 2 classes, and model.num_classes is 10; set it to 2"),
        (["card.classes=['uper', 'lower']"], "'upper', which the classifier does not know; did"),
        (["card.classes='upper'"], "card.classes must be a list of names"),
        (["card.classes=['upper', 'upper']"], "names a class twice"),
        (["model.image_channels=3"], "have 1 channels"),
        (["model.image_size=64"], "looks at 64×64 pixels"),
        (["model.colour=3"], "has no parameter 'colour'"),
        (["model.num_classes=1"], "num_classes must be at least 2"),
    ],
)
def test_classes_and_images_that_do_not_fit_are_refused_before_the_first_epoch(
    overrides: list[str], message: str, digits: Path, tmp_path: Path
) -> None:
    data = sorted_digits(digits, tmp_path / "data", ("upper", "lower"))
    config = apply_overrides(
        read_toml(EXAMPLES / "mnist-classifier.toml"), [*TWO_CLASSES, *overrides]
    )
    with pytest.raises(PgmkitError, match=message):
        run_training(config, str(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pages")
def test_one_hot_labels_are_learned(digits: Path, tmp_path: Path) -> None:
    data = np.load(digits)
    path = tmp_path / "one-hot.npz"
    np.savez(path, images=data["x_train"], labels=np.eye(2)[data["y_train"]])
    config = apply_overrides(read_toml(EXAMPLES / "mnist-classifier.toml"), TWO_CLASSES)
    classifier = load_classifier(f"local-dir:{run_training(config, str(path), tmp_path / 'run')}")
    found = classifier.labels(torch.from_numpy(data["x_test"])[:, None], (0.0, 255.0))
    assert (found.numpy() == data["y_test"]).mean() > 0.9


@pytest.mark.parametrize("part", ["measure", "export"])
def test_what_comes_after_the_epochs_is_tried_before_them(
    part: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GANTask, *arguments: Any) -> None:
        raise OutputError("no room for pictures")

    monkeypatch.setattr(GANTask, part, fail)
    monkeypatch.delattr(GANTask, "step")
    with pytest.raises(OutputError, match="no room"):
        run_training(gan_config(), str(digits), tmp_path / "run")


def test_settings_are_checked_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_text("not read")
    for overrides, said in (
        (["task='guess'"], "no training task is called 'guess'"),
        (["test_fraction=0.1"], "test_fraction is for classifiers"),
        (["optimizer.learning_rate=0"], "learning_rate"),
        (["model.backbone_args.channels=[]"], "channels"),
    ):
        with pytest.raises(PgmkitError, match=said):
            run_training(gan_config(*overrides), str(tmp_path / "damaged.npz"), tmp_path / "run")


def test_only_a_classifier_holds_images_back(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="test_fraction is for classifiers"):
        run_training(gan_config("test_fraction=0.1"), str(digits), tmp_path / "out")
