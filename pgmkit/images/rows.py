"""What all sources of pgmkit share: an order, labels, subsets, and what is kept in memory."""

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from pgmkit import machine
from pgmkit.images.source import BATCH, ImageSpec, labels_among

KEPT = 256 * 2**20
"""Images that took work to make are kept in memory if all of them need no more bytes than this."""

SPREAD = 1000
_WHOLE = 2**30
_CPU = torch.device("cpu")


class Rows(Protocol):
    """Images by number, as they lie or are made somewhere.

    Attributes:
        image: what a source of them is like.
        device: where they are made.
    """

    image: ImageSpec
    device: torch.device

    def __len__(self) -> int:
        """Returns how many there are."""

    def read(self, index: Tensor) -> Tensor:
        """Returns new tensors: bytes (B, C, H, W), or float32 in the range of `image`."""

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for all of them."""


class Images:
    """A source of images, see `ImageSource`.

    Args:
        rows: where they are.
        labels: class numbers (n,), or None.
        classes: names by class number, where labels have names.
        name: where they came from, for logs and cards.
    """

    def __init__(
        self,
        rows: Rows,
        labels: Tensor | None = None,
        classes: Mapping[int, str] | None = None,
        *,
        name: str,
    ) -> None:
        self.name = name
        self.labels = labels
        self.classes = classes
        self.device = rows.device
        self._rows = rows
        self._index: Tensor | None = None

    @property
    def image(self) -> ImageSpec:
        """What the images are like."""
        return self._rows.image

    def __len__(self) -> int:
        return len(self._rows) if self._index is None else len(self._index)

    def batch(self, index: Tensor) -> Tensor:
        """Returns the images with these numbers (B,), float32 (B, C, H, W) in [-1, 1]."""
        index = index.cpu()
        found = self._rows.read(index if self._index is None else self._index[index])
        found = machine.sent(found, self.device)
        return found.float().mul_(2 / 255).add_(-1) if found.dtype == torch.uint8 else found

    def subset(self, index: Tensor) -> Self:
        """Returns the source of these images (m,) alone, in this order; nothing is copied."""
        index = index.cpu()
        return self._with(
            _index=index if self._index is None else self._index[index],
            labels=None if self.labels is None else self.labels[index],
        )

    def to(self, device: torch.device | str) -> Self:
        """Returns the same images, put on another device."""
        return self._with(device=torch.device(device))

    def kept_on(self, device: torch.device) -> Self:
        """Returns the same images on a device, which keeps them once they were read.

        It does so on CUDA alone, and if all of them fit into a quarter of the memory that is free.
        """
        free = machine.free_device_memory(device)
        if free is not None and len(self):
            each = self._rows.read(torch.zeros(1, dtype=torch.int64)).nbytes
            if each * len(self._rows) <= free // 4:
                return self._with(device=device, _rows=KeptRows(self._rows, device))
        return self.to(device)

    def numbered_as(self, names: Sequence[str], whose: str) -> Self:
        """Returns the same images with labels that are places in `names`; see `labels_among`."""
        labels = labels_among(self, names, whose)
        if labels is self.labels:
            return self
        return self._with(labels=labels, classes=dict(enumerate(names)))

    def summary(self) -> dict[str, object]:
        """Returns what tells these images from others; see `ImageSource.summary`.

        The checksum is one of all pixels for what lies in memory, and of the whole file or array
        for an archive or an `.npz` file. Of folders and of data sets of torchvision it covers names
        and sizes or the number of images, and the content of all if that is under 1 GiB, else of
        1,000 that are spread evenly.
        """
        content = self._rows.digest()
        if self._index is not None:
            content = sha256([content.encode(), self._index.numpy().tobytes()])
        found: dict[str, object] = {
            "source": self.name,
            "shape": [len(self), *self.image.shape],
            "sha256": content,
        }
        if self.labels is not None:
            named = json.dumps(sorted((self.classes or {}).items())).encode()
            found["labels"] = sha256([self.labels.numpy().tobytes(), named])
        return found

    def _with(self, **values: object) -> Self:
        changed = copy.copy(self)
        vars(changed).update(values)
        return changed


class KeptRows:
    """Rows that are read once, some hundred in order at a time, and then are in memory.

    Args:
        rows: where they are read.
        device: in whose memory.
    """

    def __init__(self, rows: Rows, device: torch.device = _CPU) -> None:
        self.image = rows.image
        self.device = rows.device
        self._source, self._where = rows, device
        self._known = torch.zeros(-(-len(rows) // BATCH), dtype=torch.bool)
        self._kept = torch.empty(0)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: Tensor) -> Tensor:
        """Returns the rows with these numbers."""
        index = torch.where(index < 0, index + len(self), index)
        blocks = index.div(BATCH, rounding_mode="floor").unique()
        for block in blocks[~self._known[blocks]].tolist():
            places = torch.arange(block * BATCH, min((block + 1) * BATCH, len(self)))
            found = machine.sent(self._source.read(places), self._where)
            if not len(self._kept):
                self._kept = found.new_empty(len(self), *found.shape[1:])
            self._kept[places[0] : places[-1] + 1] = found
            self._known[block] = True
        return self._kept[machine.sent(index, self._where)]

    def digest(self) -> str:
        """Returns the checksum of what they are read from."""
        return self._source.digest()


def kept(rows: Rows, bytes_per_value: int = 1) -> Rows:
    """Returns rows that are kept in memory once they were read, if they are small enough."""
    free = machine.available_memory()
    limit = KEPT if free is None else min(KEPT, free // 2)
    size = len(rows) * math.prod(rows.image.shape) * bytes_per_value
    return KeptRows(rows) if size <= limit else rows


def looked_into(count: int, num_bytes: int) -> list[int]:
    """Returns which of `count` things a checksum covers: all, or 1,000 where they are large."""
    if num_bytes < _WHOLE or count <= SPREAD:
        return list(range(count))
    return [count * place // SPREAD for place in range(SPREAD)]


def sha256(parts: Iterable[bytes]) -> str:
    """Returns the SHA-256 of bytes one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
