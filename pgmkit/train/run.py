"""From a config to a training run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pgmkit.config import make_settings
from pgmkit.errors import DataError, ParameterError, UnknownNameError
from pgmkit.generator import LatentSpec
from pgmkit.images import ImageData, load_images
from pgmkit.machine import check_device
from pgmkit.seeds import random_generator
from pgmkit.train.classifier import ClassifierTask
from pgmkit.train.gan import GANSettings, GANTask
from pgmkit.train.loop import Task, train
from pgmkit.train.optimizer import Adam


@dataclass(frozen=True)
class TrainSettings:
    """A whole training config, as in `examples/mnist-dcgan.toml`.

    Args:
        task: "gan" or "classifier".
        epochs: passes over the data, at least 1.
        batch_size: images per step, at least 2.
        seed: of everything random.
        snapshots: epochs after which the model is exported too, each from 1 to `epochs`.
        test_fraction: share of the images, in (0, 1), that a classifier is tested on and not
            trained on; None where the data have a test split of their own.
        image_size: side to which images are padded or resized; None leaves them.
        model: settings of the task.
        optimizer: `learning_rate` and `betas`.
        card: what the model card says beside the recipe: title, data, data_license, license, paper.
    """

    task: str
    epochs: int
    batch_size: int
    seed: int = 0
    snapshots: Sequence[int] = ()
    test_fraction: float | None = None
    image_size: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def run_training(
    config: Mapping[str, Any],
    data: str,
    out: Path,
    *,
    device: str = "auto",
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Trains what `config` describes on `data` and returns the folder of the exported model.

    Args:
        config: see `TrainSettings`.
        data: see `pgmkit.images.load_images`.
        out: the output folder; a run that was stopped there continues.
        device: "cpu", "cuda:1", ...; "auto" is CUDA, then MPS, then the CPU.
        progress: whether to show a progress bar on stderr.
        report: takes one line of text per epoch.

    Raises:
        ParameterError: a setting is unknown or outside its range.
        DataError: the data cannot be read, or are fewer than one batch.
        OutputError: `out` is in use, or holds a run with other settings.
    """
    settings = make_settings(TrainSettings, config, "the training config")
    if settings.epochs < 1 or settings.batch_size < 2:
        raise ParameterError(
            f"epochs must be at least 1 and batch_size at least 2, not {settings.epochs} and "
            f"{settings.batch_size}"
        )
    if not all(isinstance(at, int) and 1 <= at <= settings.epochs for at in settings.snapshots):
        raise ParameterError(
            f"snapshots must be epochs from 1 to {settings.epochs}, not {list(settings.snapshots)}"
        )
    images = load_images(data, split="train", size=settings.image_size)
    if settings.test_fraction is not None and settings.task != "classifier":
        raise ParameterError(
            f"test_fraction is for classifiers, and the task is {settings.task!r}; leave it out"
        )
    if settings.task == "classifier":
        images.require_labels()
    test = None
    if settings.test_fraction is not None:
        images, test = _split(images, settings.test_fraction, settings.seed)
    elif settings.task == "classifier":
        test = load_images(data, split="test", size=settings.image_size)
    if len(images) < settings.batch_size:
        raise DataError(
            f"{data} holds {len(images)} images, fewer than one batch of {settings.batch_size}; "
            "lower batch_size"
        )
    task = _build_task(settings, images, test, check_device(device))
    train(
        task,
        images,
        out,
        {**asdict(settings), "data": images.summary()},
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        snapshots=settings.snapshots,
        progress=progress,
        report=report or (lambda line: None),
    )
    return out / "model"


def _split(images: ImageData, test_fraction: float, seed: int) -> tuple[ImageData, ImageData]:
    """Returns training and test images, parted by chance."""
    count = round(test_fraction * len(images))
    if not 0 < count < len(images):
        raise ParameterError(
            f"test_fraction is a share of the {len(images)} images above 0 and below 1, such as "
            f"0.1, not {test_fraction}"
        )
    order = torch.randperm(len(images), generator=random_generator(seed, "test split"))
    test, train = (
        replace(
            images,
            images=images.images[index],
            labels=None if images.labels is None else images.labels[index],
        )
        for index in (order[:count], order[count:])
    )
    return train, test


def _build_task(
    settings: TrainSettings, images: ImageData, test: ImageData | None, device: torch.device
) -> Task:
    optimizer = make_settings(Adam, settings.optimizer, "optimizer")
    if settings.task == "gan":
        model = dict(settings.model)
        if "latent" in model:
            model["latent"] = make_settings(LatentSpec, model["latent"], "model.latent")
        gan = make_settings(GANSettings, {**model, "optimizer": optimizer}, "model")
        return GANTask(gan, seed=settings.seed, device=device)
    if settings.task == "classifier":
        assert test is not None
        return ClassifierTask(
            settings.model,
            optimizer,
            test,
            classes=settings.card.get("classes"),
            seed=settings.seed,
            device=device,
        )
    raise UnknownNameError("training task", settings.task, ["gan", "classifier"])
