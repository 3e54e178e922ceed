"""Classifiers that give class labels to generated images, for evaluation only."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.components import check_parameters
from pgmkit.config import check_count
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning, first_line
from pgmkit.images import as_channels
from pgmkit.loading.building import build
from pgmkit.loading.checkpoints import candidates, fit
from pgmkit.loading.layouts import find_weights
from pgmkit.loading.references import open_folder
from pgmkit.loading.weights import read_checkpoint, serialise

ARCHITECTURE = "lash-classifier"

_LARGEST_BORDER = 1.5
"""How many times as long as what a classifier sees images may be without a word."""


class LASHClassifier(nn.Module):
    """The evaluation classifier of the LASH paper (appendix A.2) for 28×28 images.

    Two convolutions (kernel 5, padding 2; 16 and 32 maps), each with ReLU and 2×2 max pooling, and
    a linear layer. Larger images lose their border, which undoes the padding from 28 to 32.

    Args:
        image_channels: C.
        num_classes: number of classes, at least 2.
        image_size: side of the square that is looked at, a multiple of 4.
    """

    def __init__(
        self, image_channels: int = 1, num_classes: int = 10, image_size: int = 28
    ) -> None:
        super().__init__()
        check_count("image_channels", image_channels)
        check_count("num_classes", num_classes)
        check_count("image_size", image_size)
        if image_size % 4:
            raise ParameterError(f"image_size must be a multiple of 4, not {image_size}")
        if num_classes < 2:
            raise ParameterError(f"num_classes must be at least 2, not {num_classes}")
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.image_size = image_size
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (image_size // 4) ** 2, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, num_classes) for images x (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.layers[-1](self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the last layer sees, (B, 2 · image_size²), for the same images."""
        height, width = x.shape[-2:]
        top, left = (height - self.image_size) // 2, (width - self.image_size) // 2
        if top < 0 or left < 0:
            raise ParameterError(
                f"the classifier looks at {self.image_size}×{self.image_size} pixels, and the "
                f"images have {height}×{width}"
            )
        x = x[..., top : top + self.image_size, left : left + self.image_size]
        features: Tensor = self.layers[:-1](x)
        return features


def build_classifier(model_args: Mapping[str, Any]) -> LASHClassifier:
    """Builds a classifier with untrained weights.

    Raises:
        ParameterError: a parameter is unknown or outside its range.
    """
    check_parameters(LASHClassifier, dict(model_args), "the classifier")
    return LASHClassifier(**model_args)


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    Args:
        module: maps images in [-1, 1] to logits.
        name: the reference it was loaded from.
        classes: names of the classes, in order.
        measured: what its card states, such as its test accuracy.
    """

    module: nn.Module
    name: str
    classes: tuple[str, ...]
    measured: Mapping[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def labels(self, images: Tensor, value_range: tuple[float, float]) -> Tensor:
        """Returns class numbers (N,) for images (N, C, H, W) in `value_range`.

        Grey and RGB are turned into each other as the module asks; see `pgmkit.images.as_channels`.

        Raises:
            ParameterError: they have other channels, or fewer pixels than the module looks at.
        """
        low, high = value_range
        wanted = getattr(self.module, "image_channels", None)
        pixels = as_channels(images.float(), wanted, f"the classifier {self.name!r}")
        scaled = (pixels - low) / (high - low) * 2 - 1
        device = next(self.module.parameters()).device
        logits = [self.module(batch.to(device)).cpu() for batch in scaled.split(512)]
        return torch.cat(logits).argmax(dim=1)

    def check_images(self, shape: Sequence[int]) -> None:
        """Checks that images of shape (C, H, W) can be labelled, by labelling a black one.

        A classifier that sees but a small part of them, in the middle, is warned of.

        Raises:
            ParameterError: they cannot.
        """
        self.labels(torch.zeros(1, *shape), (0.0, 1.0))
        seen = getattr(self.module, "image_size", None)
        if isinstance(seen, int) and max(shape[1:]) > _LARGEST_BORDER * seen:
            warnings.warn(
                f"the classifier {self.name!r} sees the middle {seen}×{seen} of the "
                f"{shape[1]}×{shape[2]} pixels of each image; its labels mean little unless it was "
                "trained so",
                PgmkitWarning,
                stacklevel=1,  # said once, whoever asks
            )

    def fingerprint(self) -> str:
        """Returns a SHA-256 over weights, layers and names of the classes, in hexadecimal."""
        digest = hashlib.sha256(json.dumps([repr(self.module), self.classes]).encode())
        digest.update(serialise(self.module.state_dict()))
        return digest.hexdigest()


def load_classifier(reference: str) -> Classifier:
    """Loads a classifier from the registry, a local folder or the Hub.

    Args:
        reference: as for `pgmkit.load_generator`.

    Raises:
        UnknownNameError: no registry entry has the name.
        LoadError: files are missing or damaged, or the folder holds something else.
    """
    folder = open_folder(reference, "classifier")
    config: dict[str, Any] = folder.config()
    if config.get("architecture") != ARCHITECTURE:
        raise LoadError(
            f"{reference} is no classifier: its architecture is {config.get('architecture')!r}, "
            f"not {ARCHITECTURE!r}"
        )
    path, _ = find_weights(folder, config.get("weights"))
    module = _module(config.get("model_args", {}), path, reference)
    measured = config.get("measured", {})
    if not isinstance(measured, dict):
        raise LoadError(f"'measured' in the config.json of {reference} must be a table")
    return Classifier(
        module.eval().requires_grad_(False),
        reference,
        _classes(config.get("classes"), module.num_classes, reference),
        measured,
    )


def _module(model_args: Any, weights: Path, reference: str) -> LASHClassifier:
    """Builds the network, no larger than its weights are, and loads them."""
    if not isinstance(model_args, dict):
        raise LoadError(f"'model_args' in the config.json of {reference} must be a table")
    steps = candidates(read_checkpoint(weights), str(weights))
    try:
        module = build(LASHClassifier, model_args, f"config.json of {reference}", steps[0].tensors)
    except ParameterError as error:
        raise LoadError(first_line(error)) from error
    fit(module, steps, reference)
    assert isinstance(module, LASHClassifier)
    return module


def _classes(names: Any, num_classes: int, reference: str) -> tuple[str, ...]:
    """Returns the names of all classes: those given, or their numbers."""
    if names is None:
        return tuple(map(str, range(num_classes)))
    if not isinstance(names, list) or len(names) != num_classes:
        raise LoadError(
            f"'classes' in the config.json of {reference} must be a list of {num_classes} names, "
            f"not {names!r:.60}"
        )
    return tuple(map(str, names))
