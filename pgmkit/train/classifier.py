"""Training of the evaluation classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pgmkit import files
from pgmkit.errors import DataError, ParameterError
from pgmkit.evaluate.classifier import ARCHITECTURE, build_classifier
from pgmkit.images import ImageData
from pgmkit.loading.folders import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE
from pgmkit.loading.saving import CARD_FILE, terms
from pgmkit.loading.weights import serialise
from pgmkit.train.card import model_card
from pgmkit.train.checkpoint import Part
from pgmkit.train.optimizer import Adam


def check_classifier(model_args: Mapping[str, Any], classes: Any) -> int:
    """Checks what a classifier is built from, and returns its number of classes.

    Args:
        model_args: parameters of `LASHClassifier`.
        classes: names of the classes in order, or None.

    Raises:
        ParameterError: a parameter is unknown or outside its range, or there are not as many
            different names as classes.
    """
    with torch.device("meta"):
        network = build_classifier(model_args)
    if classes is None:
        return network.num_classes
    if not isinstance(classes, list | tuple) or not all(isinstance(c, str) for c in classes):
        raise ParameterError(f"card.classes must be a list of names, not {classes!r:.60}")
    if len(set(classes)) < len(classes):
        raise ParameterError(f"card.classes names a class twice: {', '.join(classes)}")
    if len(classes) != network.num_classes:
        raise ParameterError(
            f"card.classes names {len(classes)} classes, and model.num_classes is "
            f"{network.num_classes}; make them equal"
        )
    return network.num_classes


class ClassifierTask:
    """One cross-entropy step per batch; accuracy on the test split after each epoch.

    Args:
        model_args: parameters of `LASHClassifier`.
        optimizer: its settings.
        test: labelled test images.
        classes: names of the classes in order, or None for their numbers.
        seed: of the initial weights.
        device: where it is trained.
    """

    def __init__(
        self,
        model_args: Mapping[str, Any],
        optimizer: Adam,
        test: ImageData,
        *,
        classes: Sequence[str] | None = None,
        seed: int,
        device: torch.device,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_classifier(model_args)
        self.classes = classes
        self.model_args = dict(model_args)
        self.network = network.to(device)
        self.optimizer = optimizer.build(self.network)
        self.test = test
        self.device = device
        self.parts: dict[str, Part] = {"network": self.network, "optimizer": self.optimizer}

    def check(self, data: ImageData) -> None:
        """Raises DataError unless images and labels of both splits fit the network."""
        for part in (data, self.test):
            labels = part.require_labels()
            channels, classes = part.images.shape[1], self.network.num_classes
            if channels != self.network.image_channels:
                raise DataError(
                    f"the images in {part.source} have {channels} channels, and the classifier "
                    f"takes {self.network.image_channels}; set model.image_channels"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise DataError(
                    f"the labels in {part.source} go from {low} to {high}, and the classifier "
                    f"knows 0 to {classes - 1}; set model.num_classes"
                )
            with torch.no_grad():
                self.network(part.batch(torch.arange(1)).to(self.device))

    def step(
        self, images: Tensor, labels: Tensor | None, random: torch.Generator
    ) -> dict[str, float]:
        """Learns from one labelled batch."""
        assert labels is not None
        logits = self.network(images.to(self.device))
        loss = functional.cross_entropy(logits, labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"cross_entropy": loss.item()}

    def end_epoch(self, epoch: int, folder: Path) -> dict[str, float]:
        """Returns the share of test images that are classified correctly."""
        return {"test_accuracy": self.test_accuracy()}

    @torch.no_grad()
    def test_accuracy(self) -> float:
        """Returns the share of test images that are classified correctly."""
        truth = self.test.require_labels()
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
            "architecture": ARCHITECTURE,
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
