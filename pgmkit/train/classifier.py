"""Training of the evaluation classifier."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit import defaults, files
from pgmkit.config import component_table, make_settings
from pgmkit.contracts import class_logits_of, num_classes_of
from pgmkit.errors import DataError, ParameterError
from pgmkit.images import ImageSource, is_number, load_images, require_labels
from pgmkit.images.rows import Images
from pgmkit.learning import Batch, Clock, ranks
from pgmkit.learning.checkpoints import Part
from pgmkit.loading.folders import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE
from pgmkit.loading.saving import CARD_FILE, terms
from pgmkit.loading.weights import serialise
from pgmkit.plugins import build
from pgmkit.seeds import random_generator
from pgmkit.train.card import model_card
from pgmkit.train.optimizer import Adam
from pgmkit.train.settings import TrainSettings


def prepare_classifier(
    settings: TrainSettings, device: torch.device
) -> tuple[Images, "ClassifierTask"]:
    """Returns the training images and the task of a config; `model` is what is trained.

    Raises:
        ParameterError: a setting is unknown or outside its range.
        DataError: the images cannot be read, have no labels, or do not fit the network.
    """
    optimizer = make_settings(Adam, settings.optimizer, "optimizer")
    count = check_classifier(settings.model, settings.card.get("classes"))
    images, test = _labelled(settings)
    classes = settings.card.get("classes") or _names(images, count)
    if classes is not None:
        images = images.numbered_as(classes, "the classifier")
        test = test.numbered_as(classes, "the classifier")
    task = ClassifierTask(
        settings.model, optimizer, test, classes=classes, seed=settings.seed, device=device
    )
    task.check(images)
    return images, task


def check_classifier(model: Mapping[str, Any], classes: Any) -> int:
    """Checks what a classifier is built from, and returns its number of classes.

    Raises:
        ParameterError: a parameter is unknown or outside its range, or there are not as many
            different names as classes.
    """
    with torch.device("meta"):
        known = _built(model)[-1]
    if classes is None:
        return known
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        raise ParameterError(f"card.classes must be a list of names, not {classes!r:.60}")
    if len(set(classes)) < len(classes):
        raise ParameterError(f"card.classes names a class twice: {', '.join(classes)}")
    if len(classes) != known:
        raise ParameterError(
            f"card.classes names {len(classes)} classes, and model.num_classes is "
            f"{known}; make them equal"
        )
    return known


def _built(model: Mapping[str, Any]) -> tuple[nn.Module, str, dict[str, Any], int]:
    """Returns an untrained network, its name, its arguments and how many classes it has."""
    model_args = component_table("model", model, defaults.CLASSIFIER)
    name = model_args.pop("name")
    network: nn.Module = build("classifiers", name, **model_args)
    return network, name, model_args, num_classes_of(network, name)


class ClassifierTask:
    """One cross-entropy step per batch, measured by the accuracy on the test split.

    Args:
        model: `name` of a classifier of a plugin, and its parameters.
        optimizer: its settings.
        test: labelled test images.
        classes: names of the classes in order, or None for their numbers.
        seed: of the initial weights.
        device: where it is trained.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        optimizer: Adam,
        test: ImageSource,
        *,
        classes: Sequence[str] | None = None,
        seed: int,
        device: torch.device,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, self.name, self.model_args, self.num_classes = _built(model)
        self.classes = classes
        self.network = network.to(device)
        self.settings, self.optimizer = optimizer, optimizer.build(self.network)
        self.test = test
        self.device = device
        self.parts: dict[str, Part] = {"network": self.network, "optimizer": self.optimizer}

    def check(self, source: ImageSource) -> None:
        """Raises DataError unless images and labels of both splits fit the network."""
        self.network.eval()  # a batch norm takes a single image for nothing else
        for part in (source, self.test):
            labels, channels = require_labels(part), part.image.shape[0]
            classes = self.num_classes
            wanted = getattr(self.network, "image_channels", channels)
            if channels != wanted:
                raise DataError(
                    f"the images in {part.name} have {channels} channels, and the classifier "
                    f"takes {wanted}; set model.image_channels"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise DataError(
                    f"the labels in {part.name} go from {low} to {high}, and the classifier "
                    f"knows 0 to {classes - 1}; set model.num_classes"
                )
            with torch.no_grad():
                first = part.batch(torch.arange(1)).to(self.device)
                class_logits_of(self.network, first, self.num_classes, self.name)
        self.network.train()

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one step takes."""
        return 1

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        """Learns from one labelled batch."""
        self.settings.schedule(self.optimizer, clock)
        batch = next(batches)
        assert batch.labels is not None
        logits = self.network(batch.images.to(self.device))
        loss = functional.cross_entropy(logits, batch.labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        ranks.average_gradients(self.network.parameters())
        self.optimizer.step()
        return {"cross_entropy": loss.detach()}

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        """Returns the share of test images that are classified correctly."""
        return {"test_accuracy": self.test_accuracy()}

    @torch.no_grad()
    def test_accuracy(self) -> float:
        """Returns the share of test images that are classified correctly."""
        truth = require_labels(self.test)
        self.network.eval()
        correct = 0
        for index in torch.arange(len(self.test)).split(1000):
            logits = self.network(self.test.batch(index).to(self.device))
            correct += int((logits.argmax(dim=1).cpu() == truth[index]).sum())
        self.network.train()
        return correct / len(self.test)

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the classifier as a Hub folder with a model card."""
        measured = {"test_accuracy": self.test_accuracy()}
        config = {
            "format_version": FORMAT_VERSION,
            "architecture": self.name,
            "model_args": self.model_args,
            **({"classes": list(self.classes)} if self.classes else {}),
            **terms(record.get("card", {})),
            "measured": measured,
            "provenance": {"training": record},
        }
        with files.replaced_folder(folder) as fresh:
            weights = serialise(self.network.state_dict())
            files.write_bytes(fresh / WEIGHTS_FILE, weights)
            files.write_json(fresh / CONFIG_FILE, config)
            text = model_card({**record, "measured": measured}, "image-classification")
            files.write_text(fresh / CARD_FILE, text)


def _labelled(settings: TrainSettings) -> tuple[Images, Images]:
    """Returns the images that a classifier is trained and tested on."""
    images = load_images(settings.data, split="train", size=settings.image_size)
    require_labels(images)
    if settings.test_fraction is None:
        return images, load_images(settings.data, split="test", size=settings.image_size)
    count = round(settings.test_fraction * len(images))
    if not 0 < count < len(images):
        raise ParameterError(
            f"test_fraction is a share of the {len(images)} images above 0 and below 1, such as "
            f"0.1, not {settings.test_fraction}"
        )
    random = random_generator(settings.seed, "test split")
    order = torch.randperm(len(images), generator=random)
    return images.subset(order[count:]), images.subset(order[:count])


def _names(images: ImageSource, num_classes: int) -> list[str] | None:
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
        f"{images.name} has {len(images.classes)} classes, and model.num_classes is "
        f"{num_classes}; set it to {len(images.classes)}, or name all of them in card.classes"
    )
