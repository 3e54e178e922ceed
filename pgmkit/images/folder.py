"""Folders of pictures."""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from pgmkit.errors import DataError, first_line
from pgmkit.images.data import ImageData
from pgmkit.images.labels import number_names, strangers_said
from pgmkit.images.pixels import stacked

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def load_folder(root: Path, split: str, size: tuple[int, int] | None) -> ImageData:
    """Loads pictures, with one class for each sub-folder; see `pgmkit.images.load_images`."""
    train = root / "train" if (root / "train").is_dir() else root
    folder = train if split == "train" else root / split
    if not folder.is_dir():
        raise DataError(f"{root} has no folder {split!r} with images that were not trained on")
    paths = sorted(_pictures(folder))
    if not paths:
        raise DataError(f"there are no images in {folder}; it may hold {', '.join(_SUFFIXES)}")
    images = stacked(_opened(paths), len(paths), size, str(folder))
    name = root.name or str(root)
    classes = _classes(paths, folder)
    if classes is None:
        return ImageData(images, None, name)
    learned = classes if folder == train else _classes(list(_pictures(train)), train) or classes
    numbers = number_names(learned, str(train))
    strangers = sorted({*classes} - {*numbers})
    if strangers:
        raise DataError(strangers_said(strangers, list(numbers), str(folder), str(train)))
    labels = torch.tensor([numbers[name] for name in classes])
    return ImageData(images, labels, name, {number: name for name, number in numbers.items()})


def read_picture(path: Path | str) -> Image.Image:
    """Reads a picture whole, as it is; of several in one file the first.

    Raises:
        DataError: it cannot be read, or is no picture.
    """
    picture = None
    try:
        if stat.S_ISREG(Path(path).stat().st_mode):  # reading another kind may never end
            picture = _decoded(path)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own limit
        raise DataError(
            f"{path} has more than the {most:,} pixels that are read; make it smaller or remove it"
        ) from error
    except OSError as error:
        if error.errno is None:
            raise _no_picture(path, error) from error
        raise DataError(f"{path} cannot be read: {error.strerror}; mend or remove it") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise _no_picture(path, error) from error
    if picture is None:
        raise DataError(f"{path} is no regular file; remove it")
    return picture


def _decoded(path: Path | str) -> Image.Image:
    with warnings.catch_warnings():
        # Twice what is warned of is refused; between lie pictures that are merely large.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            picture.load()
            return picture


def _no_picture(path: Path | str, error: Exception) -> DataError:
    reason = "its content is of no known kind" if "identify" in str(error) else first_line(error)
    return DataError(f"{path} cannot be read as an image: {reason}; mend or remove it")


def _opened(paths: Sequence[Path]) -> Iterator[tuple[str, Image.Image]]:
    for path in paths:
        yield str(path), read_picture(path)


def _classes(paths: Sequence[Path], folder: Path) -> list[str] | None:
    """Returns the class of each picture; None if one of them lies in no sub-folder."""
    parts = [path.relative_to(folder).parts for path in paths]
    return [part[0] for part in parts] if all(len(part) > 1 for part in parts) else None


def _pictures(folder: Path) -> Iterator[Path]:
    """Yields all pictures below a folder; hidden files and folders are none.

    Links to folders are followed, but into no folder twice.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    entered = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(place).stat()
        key = (status.st_dev, status.st_ino)
        if key in entered:
            folders.clear()
            continue
        entered.add(key)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                yield Path(place, name)
