"""Images in arrays and tensors, in memory or mapped from a file."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgmkit.config import expect
from pgmkit.errors import DataError
from pgmkit.images.labels import as_labels
from pgmkit.images.pixels import (
    channels_first,
    channels_last,
    check_array,
    check_depth,
    fitted_array,
    narrowed,
    opaque,
)
from pgmkit.images.rows import Images, Rows, kept, sha256
from pgmkit.images.source import BATCH, ImageSpec

_FLOATS = "e f d"


class ArrayImages(Images):
    """Images in memory, or points in the plane; they are not copied.

    Args:
        images: an array of bytes, of 16 bits, or of floats in `value_range`, of shape (N, H, W),
            (N, H, W, C) or (N, C, H, W), or points (N, d). Two channels are grey and alpha, four
            are RGB and alpha, and lie on white. A tensor is (N, C, H, W), and its channels stay.
        labels: one for each, see `pgmkit.images.labels.as_labels`; None without any.
        classes: names by class number, where labels have names.
        name: where they came from.
        value_range: lowest and highest value of floats; of points, the part of the plane that
            pictures show.
        size: height and width; None leaves them.

    Raises:
        DataError: they are of another type or shape, or labels do not fit.
        ParameterError: they are no array.
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        classes: Mapping[int, str] | None = None,
        *,
        name: str = "the images",
        value_range: tuple[float, float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        rows: Rows
        expect(images, np.ndarray | Tensor, "images are an array or a tensor")
        if images.ndim == 2 and value_range is not None:
            rows = PointRows(torch.as_tensor(images), value_range)
        else:
            rows = ArrayRows(images, size, name, value_range=value_range).if_small_kept()
        if labels is not None:
            labels, named = as_labels(np.asarray(labels), len(rows), name)
            classes = named or classes
        super().__init__(rows, labels, classes, name=name)


class PointRows:
    """Points (N, d), as they are; pictures show a part of the plane."""

    device = torch.device("cpu")

    def __init__(self, points: Tensor, shown: tuple[float, float]) -> None:
        self.image = ImageSpec((points.shape[1],), shown)
        self.points = points.cpu().float()

    def __len__(self) -> int:
        return len(self.points)

    def read(self, index: Tensor) -> Tensor:
        """Returns points, float32 (B, d)."""
        return self.points[index]

    def digest(self) -> str:
        """Returns the checksum of all points."""
        return sha256([self.points.contiguous().numpy().tobytes()])


class ArrayRows:
    """Images of an array, in colour or grey and of one size.

    Args:
        array: see `ArrayImages`.
        size: height and width; None leaves them.
        where: what holds them, for messages.
        value_range: of floats.
        checksum: of the content, where it is known.
        forget: called after each access.

    Raises:
        DataError: it is of another type or shape.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        array: Any,
        size: tuple[int, int] | None,
        where: str,
        *,
        value_range: tuple[float, float] | None = None,
        checksum: str | None = None,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        is_exact = isinstance(array, Tensor)
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
        check_array(array, where, "B H" if value_range is None else f"B H {_FLOATS}")
        if is_exact and array.ndim != 4:
            raise DataError(
                f"the images in {where} are a tensor {array.shape}; it must be (N, C, H, W)"
            )
        self._array = array.transpose(0, 2, 3, 1) if is_exact else channels_last(array, where)
        self._where, self._size, self._forget = where, size, forget
        self._checksum = checksum
        self._range = value_range if array.dtype.char in _FLOATS else None
        self._has_alpha = not is_exact and self._range is None and self._array.shape[-1] in (2, 4)
        channels = self._array.shape[-1] - self._has_alpha
        self.image = ImageSpec((channels, *(size or self._array.shape[1:3])))
        if array.dtype.char == "H":
            check_depth(map(narrowed, self._blocks()), where)

    def if_small_kept(self) -> Rows:
        """Returns these rows, kept in memory where to read them is work and they are few."""
        is_work = self._size is not None or self._has_alpha or self._array.dtype.char == "H"
        return kept(self, 1 if self._range is None else 4) if is_work else self

    def __len__(self) -> int:
        return len(self._array)

    def read(self, index: Tensor) -> Tensor:
        """Returns bytes (B, C, H, W), or float32 in [-1, 1] where the array has floats."""
        part = self._array[index.numpy()]
        self._forget()
        if self._range is not None:
            low, high = self._range
            part = ((part.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
        elif part.dtype.char == "H":
            part = narrowed(part)
        if self._has_alpha:
            part = opaque(part, self._where, index.tolist())
        if self._size is not None:
            part = fitted_array(part, self._size)
        found = channels_first(part)
        # Where floats were made smaller, they may go beyond their range at edges.
        return found if self._range is None else (found * (2 / 255) - 1).clamp_(-1, 1)

    def digest(self) -> str:
        """Returns the checksum of all pixels, before any is changed."""
        if self._checksum is None:
            kind = f"{self._array.dtype} {self._array.shape} {self._range}".encode()
            blocks = (np.ascontiguousarray(block).tobytes() for block in self._blocks())
            self._checksum = sha256(itertools.chain([kind], blocks))
        return self._checksum

    def _blocks(self) -> Iterator[Any]:
        for start in range(0, len(self), BATCH):
            yield self._array[start : start + BATCH]
            self._forget()
