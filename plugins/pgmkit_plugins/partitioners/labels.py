"""The classes of labelled images, learned by a network: what no method without labels can beat."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.components import parameters_of
from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.images import ImageSource, preset, require_labels
from pgmkit.learning.encoder import check_images, check_training, image_bytes, looked_at
from pgmkit.learning.labeller import labeller_of, learn_labels
from pgmkit.partition import gathered_logits, one_part
from pgmkit.seeds import random_generator

_LEAST = 5
_MOST_HELD_OUT = 2_000
_POOL = 100_000


class Labels:
    """A network learns the labels of the images; its parts are the classes that it predicts.

    It is supervised, and stands in comparisons as their upper bound, not as one of the methods that
    see no labels. The network and how it learns are those of `self-trained`, from labels instead of
    parts that were found. A tenth of the images, at most 2,000, is held out; it learns from at most
    100,000 of the others.

    Part i is the i-th of the classes that the images have, by their numbers.

    Args:
        num_partitions: k, which must be the number of classes; None is that number.
        steps: of training, at least 1.
        batch_size: images per step, at least 4.
        strength: of the deformations, at least 0; see `pgmkit.images.deform`.
        width: channels of the network's first layer, at least 1.
        residual: whether the network has residual blocks, which photographs want; see
            `pgmkit.learning.encoder.Encoder`.
        deep: whether these are more, which wants an accelerator; see there.
        deformations: for what kind of images; see `pgmkit.images.preset`.
        learning_rate: the highest, above 0.

    Attributes:
        network_: images (B, C, 32, 32) in [-1, 1] to logits (B, k); None for a single class.
        training_accuracy_: share of the images it learned from that get their class, in [0, 1].
        held_out_accuracy_: the same of those held out.
    """

    needs_labels = True

    def __init__(
        self,
        num_partitions: int | None = None,
        steps: int = 1_000,
        batch_size: int = 128,
        strength: float = 0.5,
        width: int = 24,
        residual: bool = False,
        deep: bool = False,
        deformations: str = "auto",
        learning_rate: float = 2e-3,
    ) -> None:
        if num_partitions is not None:
            check_count("num_partitions", num_partitions)
        check_training(steps, batch_size, width, learning_rate, residual, deep)
        preset(deformations, channels=1).scaled(strength)  # which checks them
        if batch_size < 4:
            raise ParameterError(f"batch_size must be a whole number from 4, not {batch_size}")
        self.num_partitions = num_partitions or 1
        self.steps = steps
        self.batch_size = batch_size
        self.strength = strength
        self.width = width
        self.residual = residual
        self.deep = deep
        self.deformations = deformations
        self.learning_rate = learning_rate
        self.network_: nn.Sequential | None = None
        self._asked = num_partitions
        self._accuracies: dict[str, float] = {}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Learns the labels of all images but those held out.

        Raises:
            DataError: the images have no labels.
            ParameterError: another number of parts is asked for than there are classes, or there
                are too few images.
        """
        check_images(source.image, "the partitioner 'labels'")
        classes, labels = require_labels(source).unique(return_inverse=True)
        if self._asked not in (None, len(classes)):
            raise ParameterError(
                f"the images have {len(classes)} classes, and {self._asked} parts are asked for; "
                "leave the number out"
            )
        if len(source) < _LEAST:
            raise ParameterError(
                f"the partitioner 'labels' needs at least {_LEAST} images to learn from and to be "
                f"measured on, not {len(source)}; give it more"
            )
        self.num_partitions = len(classes)
        order = torch.randperm(len(source), generator=random_generator(seed, "held out"))
        num_held_out = min(max(len(source) // 10, 1), _MOST_HELD_OUT)
        held_out, learned = order[:num_held_out], order[num_held_out:][:_POOL]
        self.network_ = None
        if len(classes) > 1:
            self._learn(source, learned, labels[learned], seed)
        right = gathered_logits(self, source).argmax(dim=1) == labels
        self.training_accuracy_ = float(right[learned].double().mean())
        self.held_out_accuracy_ = float(right[held_out].double().mean())
        self._accuracies = {
            "training accuracy": round(self.training_accuracy_, 4),
            "held-out accuracy": round(self.held_out_accuracy_, 4),
        }

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the network, float32 (B, k)."""
        if self.network_ is None:
            return one_part(x)
        logits: Tensor = self.network_.to(x.device)(looked_at(x))
        return logits

    def findings(self) -> Mapping[str, Any]:
        """Returns that it is supervised and how often it is right; not the latter once loaded."""
        return {"supervised": True, **self._accuracies}

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights of the network."""
        return {} if self.network_ is None else self.network_.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.network_ = labeller_of(state) if state else None
        self.num_partitions = len(state["2.bias"]) if state else 1
        self._accuracies = {}

    def _learn(self, source: ImageSource, index: Tensor, labels: Tensor, seed: int) -> None:
        self.network_ = learn_labels(
            image_bytes(source.subset(index)),
            labels,
            self.num_partitions,
            device=source.device,
            steps=self.steps,
            batch_size=self.batch_size,
            width=self.width,
            residual=self.residual,
            deep=self.deep,
            deformations=preset(self.deformations, source.image.shape[0]).scaled(self.strength),
            learning_rate=self.learning_rate,
            seed=seed,
            name="labels",
            identity={"partitioner": parameters_of(self), "images": source.summary()},
        )
