"""Files as memory, and what is compressed in them unpacked once so that any part can be read."""

import contextlib
import hashlib
import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pgmkit.cache import cache_entry, kept_file, publish_file
from pgmkit.machine import check_disk


def mapped(file: IO[bytes]) -> mmap.mmap:
    """Returns the bytes of a file, which are read when they are looked at, and closes it.

    Raises:
        ValueError: it is empty.
    """
    with file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def forget(pages: mmap.mmap) -> None:
    """Gives back the memory of what was looked at; the system keeps pages as long as it likes."""
    pages.madvise(mmap.MADV_DONTNEED)


def unpacked(
    path: Path, part: str, num_bytes: int, write: Callable[[IO[bytes]], None]
) -> tuple[mmap.mmap, str]:
    """Returns what is compressed in a file, mapped, and its SHA-256.

    It is kept in the cache, as long as the other file is not changed. What is larger than the cache
    goes into a temporary file without a name, which ends when nobody reads it any more.

    Raises:
        ParameterError: there is not enough disk space.
    """
    status = path.stat()
    settings = {
        "path": str(path.resolve()),
        "size": status.st_size,
        "changed": status.st_mtime_ns,
        "part": part,
    }
    entry = cache_entry("unpacked", settings)
    found = kept_file(entry)
    if found is None:
        publish_file(entry, write, num_bytes, what=f"unpacked {path.name}")
        found = kept_file(entry)
    with contextlib.suppress(OSError):  # somebody else may clear the cache
        if found is not None:
            return mapped(found[0].open("rb")), found[1]
    check_disk(num_bytes, Path(tempfile.gettempdir()), f"the unpacked contents of {path}")
    file = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed once it is mapped
    write(file)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return mapped(file), digest
