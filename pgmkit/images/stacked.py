"""Three grey images as the channels of one, such as Stacked MNIST with its 1,000 modes."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pgmkit.errors import DataError
from pgmkit.images.rows import Images, sha256
from pgmkit.images.source import ImageSource, ImageSpec, require_labels
from pgmkit.seeds import random_generator

_COUNTS = {"train": 128_000, "test": 26_000}
_MOST = 100_000_000
_CHANNELS = 3


def parse_stacked(reference: str) -> tuple[str, Mapping[str, int]]:
    """Returns what the grey images of "stacked:REFERENCE:n=128000:seed=0" are, and the numbers.

    Raises:
        DataError: a number is outside its range, or no images are named.
    """
    source, values = reference.partition(":")[2], dict[str, int]()
    while match := re.search(r":(n|seed)=([0-9]{1,9})$", source):
        source, values[match[1]] = source[: match.start()], int(match[2])
    if not source or not 1 <= values.get("n", 1) <= _MOST:
        raise DataError(
            f"{reference!r} names no stacked images; it is stacked:IMAGES with :n=NUMBER from 1 "
            "and :seed=NUMBER behind, such as stacked:mnist.npz:n=50000:seed=1"
        )
    return source, values


class StackedImages(Images):
    """Draws three grey images for each colour image, one for each channel.

    Its label is the number that the three labels are the digits of, the first channel's the first:
    of ten classes, 100·a + 10·b + c. Without n there are 128,000 to train on, as in PacGAN (Lin et
    al. 2018), and 26,000 to test with.

    Args:
        source: grey images with labels.
        split: "train" or "test", of which the source is.
        count: how many; None is as above.
        seed: of what is drawn.

    Raises:
        DataError: the images are in colour, or have no labels.
    """

    def __init__(self, source: Images, split: str, count: int | None, seed: int) -> None:
        shape = source.image.shape
        if source.image.is_points or shape[0] != 1:
            raise DataError(
                f"what is stacked must be grey images, and those of {source.name} are not"
            )
        random = random_generator(seed, "stacked", split)
        count = _COUNTS[split] if count is None else count
        drawn = torch.randint(len(source), (count, _CHANNELS), generator=random)
        labels = require_labels(source)
        base = int(labels.max()) + 1
        digits = labels[drawn] * base ** torch.arange(_CHANNELS - 1, -1, -1)
        name = f"stacked:{source.name}"
        super().__init__(_StackedRows(source, drawn), digits.sum(dim=1), name=name)


class _StackedRows:
    def __init__(self, source: ImageSource, drawn: Tensor) -> None:
        self.image = ImageSpec((_CHANNELS, *source.image.shape[1:]))
        self.device = torch.device("cpu")
        self._source, self._drawn = source, drawn

    def __len__(self) -> int:
        return len(self._drawn)

    def read(self, index: Tensor) -> Tensor:
        """Returns float32 (B, 3, H, W) in [-1, 1]."""
        drawn = self._drawn[index]
        grey: Tensor = self._source.batch(drawn.flatten())
        return grey.reshape(*drawn.shape, *grey.shape[2:])

    def digest(self) -> str:
        """Returns the checksum of the grey images and of what was drawn of them."""
        content = str(self._source.summary()["sha256"]).encode()
        return sha256([content, self._drawn.numpy().tobytes()])
