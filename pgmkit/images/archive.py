"""Images in `.npz` files."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pgmkit.errors import DataError, PgmkitError
from pgmkit.images.data import ImageData
from pgmkit.images.labels import as_labels
from pgmkit.images.pixels import from_array
from pgmkit.machine import check_memory

_IMAGE_KEYS = ("images", "image", "x", "data")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_SUFFIX = ".npy"


def load_npz(path: Path, split: str, size: tuple[int, int] | None) -> ImageData:
    """Loads images and labels from an `.npz` file; see `pgmkit.images.load_images`."""
    try:
        with zipfile.ZipFile(path) as archive:
            image_key, label_key = _keys(archive, split, path)
            images = _read(archive, image_key, path)
            labels = None if label_key is None else _read(archive, label_key, path)
    except PgmkitError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise DataError(
            f"{path} is no .npz file, or a damaged one: {error}; write it again with numpy.savez"
        ) from error
    pixels = from_array(images, size, str(path))
    if labels is None:
        return ImageData(pixels, None, path.name)
    numbers, classes = as_labels(labels, len(pixels), str(path))
    return ImageData(pixels, numbers, path.name, classes)


def _keys(archive: zipfile.ZipFile, split: str, path: Path) -> tuple[str, str | None]:
    """Returns the names of the arrays of images and of labels."""
    names = [name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)]
    whole = split == "train"
    image_key = _first(names, (f"x_{split}", *(_IMAGE_KEYS if whole else ())))
    if image_key is None:
        wanted = "'images' or 'x_train'" if whole else f"'x_{split}'"
        raise DataError(
            f"{path} holds {', '.join(names) or 'nothing'}; it needs an array called {wanted}"
        )
    return image_key, _first(names, (f"y_{split}", *(_LABEL_KEYS if whole else ())))


def _read(archive: zipfile.ZipFile, key: str, path: Path) -> Any:
    """Reads one array, after a look at what its header says that it needs."""
    info = archive.getinfo(key + _SUFFIX)
    with archive.open(info) as file:
        shape, dtype = _header(file)
    what = f"the array {key!r} of {path}"
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which are never loaded; save numbers")
    needed = math.prod(shape) * dtype.itemsize
    if needed > info.file_size:
        raise DataError(
            f"{what} is said to have the shape {shape}, {needed:,} bytes, and the file holds "
            f"{info.file_size:,}; it is damaged, so write it again"
        )
    # Twice, because bytes are put into another order or size next to what was read.
    check_memory(2 * needed, f"the images in {path}, of shape {shape},", "make them fewer")
    with archive.open(info) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"its arrays are of version {version} of numpy's format")
    return shape, dtype


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)
