"""Pictures in files of any kind, mode and size, decoded when they are asked for."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from pgmkit import progress
from pgmkit.errors import DataError, first_line
from pgmkit.images.pixels import (
    channels_first,
    check_depth,
    fitted,
    is_colour,
    is_deep,
    plain,
    upright_size,
)
from pgmkit.images.rows import Rows, kept
from pgmkit.images.source import BATCH, ImageSpec


class Pictures(Protocol):
    """Pictures by number, wherever they lie."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def name(self, place: int) -> str:
        """Returns what one is called in messages."""

    def opened(self, place: int) -> AbstractContextManager[Image.Image]:
        """Returns a picture of which the header is known, and the rest while it is open."""

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for all of them."""


class PictureRows:
    """Pictures as bytes of one shape, in colour if one of them is.

    The headers of all are read at once. Each is turned upright, made 8 bits deep and opaque (see
    `plain`), and then fitted to `size` (see `fitted`).

    Args:
        pictures: at least one.
        size: height and width; None leaves them, and then they must be alike.
        where: what holds them, for messages.

    Raises:
        DataError: one cannot be told as bytes, or they differ in size.
    """

    device = torch.device("cpu")

    def __init__(self, pictures: Pictures, size: tuple[int, int] | None, where: str) -> None:
        self._pictures = pictures
        self._size = size
        extent, has_colour, deep = (0, 0), False, []
        for place in progress.track(
            range(len(pictures)), f"looking through {where}", len(pictures), "picture"
        ):
            with pictures.opened(place) as picture:
                found = upright_size(picture, pictures.name(place))
                has_colour = has_colour or is_colour(picture)
                if is_deep(picture):
                    deep.append(place)
            extent = extent if place else found
            if size is None and found != extent:
                raise DataError(
                    f"{pictures.name(place)} has {_shape(found)} pixels and {pictures.name(0)} has "
                    f"{_shape(extent)}; set image_size to make all images of one size"
                )
        self.image = ImageSpec((3 if has_colour else 1, *(size or extent)))
        check_depth((self._decoded(place) for place in deep), where)

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: Tensor) -> Tensor:
        """Returns bytes (B, C, H, W)."""
        shape = (*self.image.shape[1:], self.image.shape[0])
        found = np.empty((len(index), *shape), np.uint8)
        for row, place in zip(found, index.tolist(), strict=True):
            array = self._decoded(place)
            if array.shape[:2] != shape[:2] or array.shape[2:] > shape[2:]:
                raise DataError(
                    f"{self._pictures.name(place)} is another picture than its header says; mend "
                    "or remove it"
                )
            row[:] = array if array.ndim == 3 else array[..., None]
        return channels_first(found)

    def digest(self) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for all of them."""
        return self._pictures.digest()

    def _decoded(self, place: int) -> Any:
        name = self._pictures.name(place)
        with self._pictures.opened(place) as opened:
            with reading(name):
                opened.load()
            picture = plain(opened, name)
            return np.asarray(picture if self._size is None else fitted(picture, self._size))


def picture_rows(pictures: Pictures, size: tuple[int, int] | None, where: str) -> Rows:
    """Returns `PictureRows`; those that fit into memory are decoded here, once."""
    rows = kept(PictureRows(pictures, size, where))
    if not isinstance(rows, PictureRows):
        for index in torch.arange(len(rows)).split(BATCH):
            rows.read(index)
    return rows


def open_picture(path: Path | str) -> Image.Image:
    """Opens a picture, of which only the header is read; of several in one file the first.

    Raises:
        DataError: it cannot be read, or is no picture.
    """
    with reading(str(path)):
        return Image.open(regular(Path(path)))


def regular(path: Path) -> Path:
    """Returns a path that is safe to open.

    Raises:
        DataError: it is no regular file, and to read another kind may never end.
        OSError: it is not there, or may not be looked at.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is no regular file; remove it")
    return path


@contextmanager
def opened_picture(stream: AbstractContextManager[IO[bytes]], name: str) -> Iterator[Image.Image]:
    """Opens the picture in a stream; see `Pictures.opened`.

    Raises:
        DataError: it cannot be read, or is no picture.
    """
    with ExitStack() as stack:
        with reading(name):
            picture = Image.open(stack.enter_context(stream))
        yield picture


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Says of whatever goes wrong in reading a picture which one it was, and what to do."""
    try:
        with warnings.catch_warnings():
            # Twice what is warned of is refused; between lie pictures that are merely large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own limit
        raise DataError(
            f"{name} has more than the {most:,} pixels that are read; make it smaller or remove it"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise _no_picture(name, error) from error
        raise DataError(f"{name} cannot be read: {error.strerror}; mend or remove it") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise _no_picture(name, error) from error


def closed(picture: Image.Image) -> None:
    """Closes the file of a picture that was opened and not decoded."""
    if isinstance(picture, ImageFile.ImageFile):
        picture.close()


def _no_picture(name: str, error: Exception) -> DataError:
    reason = "its content is of no known kind" if "identify" in str(error) else first_line(error)
    return DataError(f"{name} cannot be read as an image: {reason}; mend or remove it")


def _shape(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
