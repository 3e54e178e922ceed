"""Images in `.npz` files, mapped into memory and never read whole."""

import functools
import hashlib
import math
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from pgmkit import progress
from pgmkit.errors import DataError, PgmkitError
from pgmkit.images.arrays import ArrayRows
from pgmkit.images.labels import as_labels
from pgmkit.images.rows import Images
from pgmkit.images.unpacked import forget, mapped, unpacked
from pgmkit.machine import check_memory

_IMAGE_KEYS = ("images", "image", "x", "data")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_SUFFIX = ".npy"
_BLOCK = 2**20


def load_npz(path: Path, split: str, size: tuple[int, int] | None) -> Images:
    """Opens images and labels of an `.npz` file; see `pgmkit.images.load_images`.

    Arrays that were saved without compression are mapped where they lie in the file. Others are
    unpacked once, into the cache or, beyond its size, into a temporary file, which is mapped.
    Either way all bytes are read once, to be compared with their checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            image_key, label_key = _keys(archive, split, path)
            labels = None if label_key is None else _read(archive, label_key, path)
            array, options = _mapped(archive, image_key, path)
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
    rows = ArrayRows(array, size, str(path), **options).if_small_kept()
    if labels is None:
        return Images(rows, name=path.name)
    numbers, classes = as_labels(labels, len(rows), str(path))
    return Images(rows, numbers, classes, name=path.name)


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
    shape, _, dtype, _ = _checked_header(archive, key, path)
    needed = math.prod(shape) * dtype.itemsize
    check_memory(needed, f"the labels in {path}, of shape {shape},", "make them fewer")
    with archive.open(key + _SUFFIX) as file:
        return npy.read_array(file, allow_pickle=False)


def _mapped(archive: zipfile.ZipFile, key: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """Returns an array that is read where it lies, with its checksum and how to forget pages."""
    shape, order, dtype, start = _checked_header(archive, key, path)
    info = archive.getinfo(key + _SUFFIX)
    if not math.prod(shape):
        return np.empty(shape, dtype), {}
    if info.compress_type == zipfile.ZIP_STORED:
        checksum = _checksum(archive, info, path)
        pages = mapped(path.open("rb"))
        name, extra = struct.unpack_from("<26xHH", pages, info.header_offset)
        start += info.header_offset + 30 + name + extra
    else:

        def write(target: IO[bytes]) -> None:
            with archive.open(info) as member:
                shutil.copyfileobj(member, target, _BLOCK)

        pages, checksum = unpacked(path, f"{key} {info.CRC}", info.file_size, write)
    flat = np.frombuffer(pages, dtype, math.prod(shape), start)
    options = {"checksum": checksum, "forget": functools.partial(forget, pages)}
    return flat.reshape(shape, order=order), options


def _checksum(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> str:
    """Reads an array once, by which zipfile compares it with its CRC."""
    digest = hashlib.sha256()
    blocks = -(-info.file_size // _BLOCK)
    with archive.open(info) as file, progress.phase(f"checking {path.name}", blocks, "MiB") as part:
        while block := file.read(_BLOCK):
            digest.update(block)
            part.advance()
    return digest.hexdigest()


def _checked_header(
    archive: zipfile.ZipFile, key: str, path: Path
) -> tuple[tuple[int, ...], Any, np.dtype[Any], int]:
    """Returns shape, order in memory, type and first byte of an array, if it can be true."""
    info = archive.getinfo(key + _SUFFIX)
    with archive.open(info) as file:
        shape, is_fortran, dtype = _header(file)
        start = file.tell()
    what = f"the array {key!r} of {path}"
    if dtype.hasobject:
        raise DataError(f"{what} holds Python objects, which are never loaded; save numbers")
    needed = math.prod(shape) * dtype.itemsize
    if needed > info.file_size - start:
        raise DataError(
            f"{what} is said to have the shape {shape}, {needed:,} bytes, and the file holds "
            f"{info.file_size:,}; it is damaged, so write it again"
        )
    return shape, "F" if is_fortran else "C", dtype, start


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"its arrays are of version {version} of numpy's format")


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)
