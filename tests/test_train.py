"""Training: data, loop, checkpoints, export."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pgmkit
from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import DataError, OutputError, ParameterError
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.images import load_images
from pgmkit.train.run import run_training

EXAMPLES = Path(__file__).parent.parent / "examples"
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


def gan_config(*overrides: str) -> dict[str, Any]:
    return apply_overrides(read_toml(EXAMPLES / "mnist-dcgan.toml"), [*TINY_GAN, *overrides])


def test_a_gan_is_trained_exported_and_loaded(digits: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    model = run_training(gan_config(), str(digits), tmp_path / "tiny", report=lines.append)
    generator = pgmkit.load_generator(f"local-dir:{model}")
    assert generator.latent.dim == 4
    assert generator.image.shape == (1, 32, 32)
    assert generator.provenance["license"] == "Apache-2.0"
    training = generator.provenance["training"]
    assert (training["seed"], training["steps"]) == (0, 2 * (300 // 8))
    assert "CC BY-SA 3.0" in (model / "README.md").read_text()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    with (tmp_path / "tiny" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [50]
    assert float(rows[0]["discriminator"]) > 0
    grids = sorted(p.name for p in (tmp_path / "tiny" / "samples").iterdir())
    assert grids == ["epoch-001.png", "epoch-002.png"]


def test_training_moves_the_weights_and_the_seed_decides_them(digits: Path, tmp_path: Path) -> None:
    outputs = {}
    for name, overrides in {"a": [], "b": [], "other": ["seed=1"]}.items():
        model = run_training(gan_config("epochs=1", *overrides), str(digits), tmp_path / name)
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
    found = classifier.labels(test.batch(torch.arange(100), (0.0, 1.0)), (0.0, 1.0))
    assert (found == test.labels).float().mean() == classifier.measured["test_accuracy"]


def test_the_shipped_classifier_states_its_accuracy() -> None:
    assert load_classifier("mnist-classifier").measured["test_accuracy"] >= 0.985


def test_small_images_are_padded_with_black_and_centred(digits: Path) -> None:
    plain, padded = load_images(str(digits)), load_images(str(digits), size=32)
    assert padded.images.shape == (300, 1, 32, 32)
    assert torch.equal(padded.images[:, :, 2:30, 2:30], plain.images)
    assert padded.images[:, :, :2].max() == 0
    batch = padded.batch(torch.tensor([0, 1]))
    assert batch.min() == -1.0
    assert batch.max() <= 1.0


def test_a_folder_of_images_gives_classes_by_sub_folder(tmp_path: Path) -> None:
    for index, (name, colour) in enumerate({"cat": (255, 0, 0), "dog": (0, 0, 255)}.items()):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40 + index, 30), colour).save(tmp_path / name / "one.png")
    data = load_images(str(tmp_path), size=16)
    assert data.images.shape == (2, 3, 16, 16)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    assert data.images[0, :, 8, 8].tolist() == [255, 0, 0]
    with pytest.raises(DataError, match="different shapes"):
        load_images(str(tmp_path))


def test_a_torchvision_data_set_is_read_by_name(tmp_path: Path) -> None:
    """MNIST's own files, written here."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for split in ("train", "t10k"):
        header = np.array([0x00000803, 2, 28, 28], dtype=">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x00000801, 2], dtype=">i4").tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes([7, 3]))
    data = load_images(f"torchvision:MNIST:{tmp_path}")
    assert data.labels is not None
    assert data.labels.tolist() == [7, 3]
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    with pytest.raises(DataError, match="torchvision"):
        load_images(f"torchvision:MNIST:{tmp_path / 'nothing'}")
    with pytest.raises(DataError, match="torchvision:NAME:ROOT"):
        load_images("torchvision:NoSuchSet:here")


def test_a_test_split_is_never_what_was_trained_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    assert len(load_images(str(tmp_path / "whole.npz"))) == 4
    with pytest.raises(DataError, match="x_test"):
        load_images(str(tmp_path / "whole.npz"), split="test")
    for path in ("train/a", "train/b", "train/c"):
        (tmp_path / "folder" / path).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "folder" / path / "one.png")
    with pytest.raises(DataError, match="no folder 'test'"):
        load_images(str(tmp_path / "folder"), split="test")
    (tmp_path / "folder" / "test" / "c").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "folder" / "test" / "c" / "one.png")
    labels = load_images(str(tmp_path / "folder"), split="test").labels
    assert labels is not None
    assert labels.tolist() == [2]


def test_a_run_does_not_continue_on_other_data(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_training(gan_config("epochs=1"), str(digits), out)
    other = dict(np.load(digits))
    other["x_train"] = other["x_train"][::-1]
    np.savez(tmp_path / "digits.npz", **other)
    with pytest.raises(OutputError, match="data"):
        run_training(gan_config("epochs=1"), str(tmp_path / "digits.npz"), out)


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.zeros((4, 8, 8), np.uint8)},
        {"images": np.zeros((4, 8, 8), np.float32)},
        {"images": np.zeros((8, 8), np.uint8)},
        {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, np.int64)},
        {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4, np.float32)},
        {"images": np.array([{}], dtype=object)},
    ],
)
def test_arrays_that_are_no_images_say_what_is_wanted(
    arrays: dict[str, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError):
        load_images(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize(
    "override",
    [
        "epochs=0",
        "batch_size=1",
        "optimizer.learning_rate=-1",
        "optimizer.betas=[0.5]",
        "optimizer.momentum=0.9",
        "model.backbone_args.channels=[]",
        "model.latent.dim=0",
        "surprise=1",
    ],
)
def test_settings_outside_their_range_are_refused_before_training(
    override: str, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError):
        run_training(gan_config(override), str(digits), tmp_path / "out")
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


def test_snapshots_are_exported_on_the_way_and_change_nothing(digits: Path, tmp_path: Path) -> None:
    plain = run_training(gan_config("epochs=2"), str(digits), tmp_path / "plain")
    config = gan_config("epochs=2", "snapshots=[1]")
    model = run_training(config, str(digits), tmp_path / "run")
    snapshot = tmp_path / "run" / "snapshots" / "epoch-001"
    same = [(path / "model.safetensors").read_bytes() for path in (plain, model)]
    assert same[0] == same[1] != (snapshot / "model.safetensors").read_bytes()
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


def test_only_a_classifier_holds_images_back(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="test_fraction is for classifiers"):
        run_training(gan_config("test_fraction=0.1"), str(digits), tmp_path / "out")
