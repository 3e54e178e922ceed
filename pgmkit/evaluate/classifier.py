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

from pgmkit.contracts import class_logits_of, num_classes_of
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning, first_line
from pgmkit.images import as_channels
from pgmkit.loading.building import build
from pgmkit.loading.checkpoints import candidates, fit
from pgmkit.loading.layouts import find_weights
from pgmkit.loading.references import open_folder
from pgmkit.loading.weights import read_checkpoint, serialise
from pgmkit.plugins import installed

_LARGEST_BORDER = 1.5
"""How many times as long as what a classifier sees images may be without a word."""


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    Args:
        module: maps images in [-1, 1] to logits; see `pgmkit.hookspecs.pgmkit_classifiers`.
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
            PluginError: the module fails on them.
        """
        low, high = value_range
        wanted = getattr(self.module, "image_channels", None)
        pixels = as_channels(images.float(), wanted, f"the classifier {self.name!r}")
        scaled = (pixels - low) / (high - low) * 2 - 1
        device = next(self.module.parameters()).device
        logits = [
            class_logits_of(self.module, batch.to(device), len(self.classes), self.name).cpu()
            for batch in scaled.split(512)
        ]
        return torch.cat(logits).argmax(dim=1)

    def check_images(self, shape: Sequence[int]) -> None:
        """Checks that images of shape (C, H, W) can be labelled, by labelling a black one.

        A classifier that sees but a small part of them, in the middle, is warned of.

        Raises:
            ParameterError: they cannot.
            PluginError: the module fails on them.
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
    """Loads a classifier; references are as for `pgmkit.load_generator`.

    Raises:
        UnknownNameError: no registry entry has the name.
        LoadError: files are missing or damaged, the folder holds something else, or no installed
            plugin offers its architecture.
    """
    folder = open_folder(reference, "classifier")
    config: dict[str, Any] = folder.config()
    chosen = config.get("architecture")
    if not isinstance(chosen, str) or not installed().offers("classifiers", chosen):
        known = ", ".join(component.name for component in installed().of_kind("classifiers"))
        raise LoadError(
            f"{reference} is no classifier: its architecture is {chosen!r}, and plugins offer "
            f"classifiers of {known}; install one that offers it"
        )
    path, _ = find_weights(folder, config.get("weights"))
    module = _module(chosen, config.get("model_args", {}), path, reference)
    measured = config.get("measured", {})
    if not isinstance(measured, dict):
        raise LoadError(f"'measured' in the config.json of {reference} must be a table")
    return Classifier(
        module.eval().requires_grad_(False),
        reference,
        _classes(config.get("classes"), num_classes_of(module, chosen), reference),
        measured,
    )


def _module(architecture: str, model_args: Any, weights: Path, reference: str) -> nn.Module:
    """Builds the network, no larger than its weights are, and loads them."""
    if not isinstance(model_args, dict):
        raise LoadError(f"'model_args' in the config.json of {reference} must be a table")
    steps = candidates(read_checkpoint(weights), str(weights))
    factory = installed().find("classifiers", architecture).resolve()
    try:
        module = build(factory, model_args, f"config.json of {reference}", steps[0].tensors)
    except ParameterError as error:
        raise LoadError(first_line(error)) from error
    fit(module, steps, reference)
    return module


def _classes(names: Any, count: int, reference: str) -> tuple[str, ...]:
    """Returns the names of all classes: those given, or their numbers."""
    if names is None:
        return tuple(map(str, range(count)))
    if not isinstance(names, list) or len(names) != count:
        raise LoadError(
            f"'classes' in the config.json of {reference} must be a list of {count} names, "
            f"not {names!r:.60}"
        )
    return tuple(map(str, names))
