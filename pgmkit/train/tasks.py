"""What can be trained: one entry for each kind of task."""

from collections.abc import Callable
from typing import Protocol

import torch

from pgmkit.images.rows import Images
from pgmkit.learning import Exports, Measures, Task
from pgmkit.train.classifier import prepare_classifier
from pgmkit.train.gan import prepare_gan
from pgmkit.train.settings import TrainSettings


class TrainTask(Task, Measures, Exports, Protocol):
    """A task of `pgmkit train`.

    Attributes:
        device: where it is trained.
        batches_per_step: how many batches of images one step takes.
    """

    device: torch.device

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one step takes."""


TASKS: dict[str, Callable[[TrainSettings, torch.device], tuple[Images, TrainTask]]] = {
    "gan": prepare_gan,
    "classifier": prepare_classifier,
}
"""Returns the training images and the task; what needs no images is checked before them."""
