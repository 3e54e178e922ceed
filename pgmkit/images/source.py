"""Where images come from, batch by batch: what every source of them has in common."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pgmkit.errors import DataError, ParameterError
from pgmkit.images.labels import is_number, strangers_said
from pgmkit.machine import check_memory

BATCH = 256
"""How many images are looked at at once, where nobody says otherwise."""

_BYTES = 8
"""For each value of an image that is read: as a byte, in float32, and on the way to it."""


@dataclass(frozen=True)
class ImageSpec:
    """The images that a generator makes, or the points of a toy.

    Args:
        shape: (C, H, W); (d,) for points. One channel is grey, two are grey and alpha, three RGB
            and four RGB and alpha.
        range: lowest and highest value, such as (-1, 1) after tanh. Pictures of points show this
            part of the plane.

    Raises:
        ParameterError: a value is outside its range.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, tuple | list) else self.shape
        if (
            not isinstance(shape, tuple)
            or len(shape) not in (1, 3)
            or not all(map(_is_side, shape))
        ):
            raise ParameterError(
                f"image.shape must be (C, H, W), or (d,) for points, each a whole number from 1, "
                f"not {shape!r:.60}"
            )
        if not _is_range(self.range):
            raise ParameterError(
                f"image.range must be (lowest, highest), such as (-1, 1), not {self.range!r:.60}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "range", (float(self.range[0]), float(self.range[1])))

    @property
    def is_points(self) -> bool:
        """Whether these are points (d,), of which pictures show the first two coordinates."""
        return len(self.shape) == 1

    def __str__(self) -> str:
        if self.is_points:
            return f"points of {self.shape[0]} coordinates"
        return f"{'×'.join(map(str, self.shape))} images"


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_range(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    numbers = all(
        isinstance(bound, int | float) and abs(bound) <= sys.float_info.max for bound in value
    )
    return numbers and value[0] < value[1]


@runtime_checkable
class ImageSource(Protocol):
    """Images in order, of one shape, that need not lie in memory: files, points, or G(z)."""

    @property
    def name(self) -> str:
        """Where they came from, for logs, cards and messages."""

    @property
    def image(self) -> ImageSpec:
        """Shape, (C, H, W) or (d,), and range of what `batch` returns; (-1, 1) for images."""

    @property
    def device(self) -> torch.device:
        """Where `batch` puts them, and where networks that look at them belong."""

    @property
    def labels(self) -> Tensor | None:
        """Class numbers (n,), int64, for scores and for the eye alone; None without any."""

    @property
    def classes(self) -> Mapping[int, str] | None:
        """Names by class number; None where they are but numbers."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def batch(self, index: Tensor) -> Tensor:
        """Returns the images with these numbers (B,), float32 (B, C, H, W), without gradients."""

    def subset(self, index: Tensor) -> Self:
        """Returns the source of these images (m,) alone, in this order; nothing is copied."""

    def summary(self) -> dict[str, Any]:
        """Returns plain values that tell these images from others.

        "source" is the name, "shape" (n, C, H, W), and "sha256" stands for the images alone;
        "labels", for classes and their names, is only there where they are.
        """


@runtime_checkable
class Moves(ImageSource, Protocol):
    """Images that come from latents, so that they can move a little along the prior."""

    def moved(self, step: float, random: torch.Generator) -> Self:
        """Returns the images of latents that move by a step in [0, 1] within their prior.

        At 1 nothing is left of where they were: the images are new ones.
        """


def require_labels(source: ImageSource) -> Tensor:
    """Returns the labels of a source.

    Raises:
        DataError: there are none.
    """
    if source.labels is None:
        raise DataError(
            f"{source.name} has no labels, so no classifier can be trained on it; sort the "
            "images into one folder per class, or add an array of labels"
        )
    return source.labels


def labels_among(source: ImageSource, names: Sequence[str], whose: str) -> Tensor | None:
    """Returns the labels of a source as places in `names`, from 0; None if it has none.

    The names of the classes decide. Labels without names stay as they are, and so do those
    whose names are numbers, such as folders 0 to 9, unless `names` are numbers too.

    Args:
        source: the images.
        names: of all classes in order.
        whose: what they are the classes of, for messages.

    Raises:
        DataError: an image is of a class that is not among them.
    """
    labels, classes = source.labels, source.classes
    if labels is None or classes is None:
        return labels
    places = {_plain(name): place for place, name in enumerate(names)}
    numbers, where = labels.unique(return_inverse=True)
    held = [classes[number] for number in numbers.tolist()]
    strangers = [name for name in held if _plain(name) not in places]
    if not strangers:
        return torch.tensor([places[_plain(name)] for name in held])[where]
    if all(map(is_number, held)) and not any(map(is_number, names)):
        return labels
    raise DataError(strangers_said(strangers, names, source.name, whose))


def _plain(name: str) -> str:
    """Returns a name, a number without its leading zeros."""
    return str(int(name)) if is_number(name) else name


def check_batch(source: ImageSource, size: int = BATCH) -> None:
    """Raises ParameterError if there is not enough memory for so many images of a source."""
    count, shape = min(size, len(source)), source.image.shape
    check_memory(
        _BYTES * count * math.prod(shape),
        f"{count} images of the shape {shape}",
        "make them smaller (--size)",
    )


def batches(source: ImageSource, size: int = BATCH) -> Iterator[Tensor]:
    """Yields all images of a source in order, at most `size` at a time.

    Raises:
        ParameterError: there is not enough memory for so many.
    """
    check_batch(source, size)
    for index in torch.arange(len(source)).split(size):
        yield source.batch(index)
