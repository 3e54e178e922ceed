"""Files as memory, and what is compressed in them unpacked once so that any part can be read."""

import hashlib
import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pgmkit import files
from pgmkit.cache import cache_entry, mark_used, publish
from pgmkit.machine import check_disk

_FILE = "unpacked"
_DIGEST = "unpacked.sha256"


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
    if (found := _opened(entry)) is not None:
        mark_used(entry)
        return found

    def put(folder: Path) -> None:
        with (folder / _FILE).open("xb") as file:
            write(file)
        files.write_text(folder / _DIGEST, files.sha256(folder / _FILE))

    publish(entry, put, num_bytes, what=f"unpacked {path.name}")
    if (found := _opened(entry)) is not None:
        return found
    check_disk(num_bytes, Path(tempfile.gettempdir()), f"the unpacked contents of {path}")
    file = tempfile.TemporaryFile()  # noqa: SIM115  # it is closed once it is mapped
    write(file)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return mapped(file), digest


def _opened(entry: Path) -> tuple[mmap.mmap, str] | None:
    """Returns what lies in the cache; None if it is not there or not whole."""
    try:
        digest = (entry / _DIGEST).read_text()
        if files.sha256(entry / _FILE) == digest:
            return mapped((entry / _FILE).open("rb")), digest
    except OSError:
        pass
    return None
