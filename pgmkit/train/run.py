"""From a config to a training run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pgmkit import runs
from pgmkit.config import make_settings
from pgmkit.errors import DataError, ParameterError, UnknownNameError
from pgmkit.images import ImageData, check_source, is_number, load_images
from pgmkit.machine import check_device
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator
from pgmkit.train.classifier import ClassifierTask, check_classifier
from pgmkit.train.gan import GANSettings, GANTask
from pgmkit.train.loop import Task, train
from pgmkit.train.optimizer import Adam

_TASKS = ("gan", "classifier")


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
    if settings.task not in _TASKS:
        raise UnknownNameError("training task", settings.task, _TASKS)
    if settings.test_fraction is not None and settings.task != "classifier":
        raise ParameterError(
            f"test_fraction is for classifiers, and the task is {settings.task!r}; leave it out"
        )
    check_source(data)
    runs.check_folder(out)
    images, task = _prepared(settings, data, check_device(device))
    if len(images) < settings.batch_size:
        raise DataError(
            f"{data} holds {len(images)} images, fewer than one batch of {settings.batch_size}; "
            "lower batch_size"
        )
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


def _prepared(settings: TrainSettings, data: str, device: torch.device) -> tuple[ImageData, Task]:
    """Returns the training images and the task; what needs no images is checked before them."""
    optimizer = make_settings(Adam, settings.optimizer, "optimizer")
    if settings.task == "gan":
        task = GANTask(_gan_settings(settings, optimizer), seed=settings.seed, device=device)
        return load_images(data, size=settings.image_size), task
    num_classes = check_classifier(settings.model, settings.card.get("classes"))
    images, test = _labelled(settings, data)
    classes = settings.card.get("classes") or _names(images, num_classes)
    if classes is not None:
        images = images.numbered_as(classes, "the classifier")
        test = test.numbered_as(classes, "the classifier")
    return images, ClassifierTask(
        settings.model, optimizer, test, classes=classes, seed=settings.seed, device=device
    )


def _gan_settings(settings: TrainSettings, optimizer: Adam) -> GANSettings:
    model = dict(settings.model)
    if "latent" in model:
        model["latent"] = make_settings(LatentSpec, model["latent"], "model.latent")
    return make_settings(GANSettings, {**model, "optimizer": optimizer}, "model")


def _labelled(settings: TrainSettings, data: str) -> tuple[ImageData, ImageData]:
    """Returns the images that a classifier is trained and tested on."""
    images = load_images(data, split="train", size=settings.image_size)
    images.require_labels()
    if settings.test_fraction is not None:
        return _split(images, settings.test_fraction, settings.seed)
    return images, load_images(data, split="test", size=settings.image_size)


def _names(images: ImageData, num_classes: int) -> list[str] | None:
    """Returns the names of all classes in order, where the images have them.

    Raises:
        DataError: they have names for another number of classes.
    """
    if images.classes is None:
        return None
    if set(images.classes) == set(range(num_classes)):
        return [images.classes[number] for number in range(num_classes)]
    if all(map(is_number, images.classes.values())):
        return None
    raise DataError(
        f"{images.source} has {len(images.classes)} classes, and model.num_classes is "
        f"{num_classes}; set it to {len(images.classes)}, or name all of them in card.classes"
    )
