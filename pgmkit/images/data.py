"""Images with their labels, and the names that the labels stand for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import DataError
from pgmkit.images.labels import is_number, strangers_said


@dataclass(frozen=True)
class ImageData:
    """Images in memory.

    Args:
        images: bytes (N, C, H, W).
        labels: class numbers (N,), or None.
        source: where they came from, for logs and cards.
        classes: names by class number, where labels have names; None where they are but numbers.
    """

    images: Tensor
    labels: Tensor | None
    source: str
    classes: Mapping[int, str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def require_labels(self) -> Tensor:
        """Returns the labels.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(
                f"{self.source} has no labels, so no classifier can be trained on it; sort the "
                "images into one folder per class, or add an array of labels"
            )
        return self.labels

    def numbered_as(self, names: Sequence[str], whose: str) -> "ImageData":
        """Returns the same images with labels that are places in `names`, from 0.

        The names of the classes decide. Labels without names stay as they are, and so do those
        whose names are numbers, such as folders 0 to 9, unless `names` are numbers too.

        Args:
            names: of all classes in order.
            whose: what they are the classes of, for messages.

        Raises:
            DataError: an image is of a class that is not among them.
        """
        if self.labels is None or self.classes is None:
            return self
        places = {_plain(name): place for place, name in enumerate(names)}
        held = [self.classes[number] for number in self.labels.unique().tolist()]
        strangers = [name for name in held if _plain(name) not in places]
        if strangers:
            if all(map(is_number, held)) and not any(map(is_number, names)):
                return self
            raise DataError(strangers_said(strangers, names, self.source, whose))
        numbers, where = self.labels.unique(return_inverse=True)
        moved = [places[_plain(self.classes[number])] for number in numbers.tolist()]
        labels = torch.tensor(moved)[where]
        return replace(self, labels=labels, classes=dict(enumerate(names)))

    def summary(self) -> dict[str, Any]:
        """Returns source, shape and checksum, which tell this data from other data."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        if self.classes is not None:
            digest.update(json.dumps(sorted(self.classes.items())).encode())
        shape = list(self.images.shape)
        return {"source": self.source, "shape": shape, "sha256": digest.hexdigest()}

    def batch(self, index: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """Returns the images `index` as float32 (B, C, H, W) in `value_range`."""
        low, high = value_range
        return self.images[index].float().mul_((high - low) / 255).add_(low)


def _plain(name: str) -> str:
    """Returns a name, a number without its leading zeros."""
    return str(int(name)) if is_number(name) else name
