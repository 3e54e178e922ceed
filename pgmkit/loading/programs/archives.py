"""The zip archives that torch writes, read record by record."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgmkit.errors import LoadError

_PACKED_BYTES = 64 * 2**20
"""torch packs code alone, so that archives hardly grow as they are read."""

_MOST_TIMES = 4
"""A file may claim so many times the bytes that it has: values can share storage, within reason."""


def check_claim(claimed: int, path: Path) -> None:
    """Refuses weights of many more bytes than their file has.

    Raises:
        LoadError: they are.
    """
    there = path.stat().st_size
    if claimed > _MOST_TIMES * there + 2**20:
        raise LoadError(
            f"{path} claims {claimed:,} bytes of weights and has {there:,}; it was tampered with"
        )


@dataclass(frozen=True)
class Archive:
    """An open archive of torch's: records under one folder, by their names in it."""

    names: list[str]
    _file: zipfile.ZipFile
    _folder: str

    def has(self, name: str) -> bool:
        """Returns whether there is such a record."""
        return name in self.names

    def size(self, name: str) -> int:
        """Returns the bytes of a record."""
        return self._file.getinfo(self._folder + name).file_size

    def read(self, name: str) -> bytes:
        """Returns a record.

        Raises:
            LoadError: there is none, or it is damaged.
        """
        if name not in self.names:
            raise LoadError(f"{self._file.filename} has no record {name}; save it again")
        try:
            return self._file.read(self._folder + name)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            # RuntimeError is of passwords, and of ways to pack that Python does not know.
            raise LoadError(
                f"the record {name} of {self._file.filename} is damaged ({error}); fetch or save "
                "the file again"
            ) from error


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens an archive.

    Raises:
        LoadError: it cannot be read, or is no archive of torch's.
    """
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise LoadError(
            f"{path} cannot be read as an archive ({error}); fetch or save it again"
        ) from error
    with file:
        entries = file.infolist()
        first, slash, _ = entries[0].filename.partition("/") if entries else ("", "", "")
        folder = f"{first}/" if slash else ""
        unpacked = sum(entry.file_size for entry in entries)
        grows = unpacked > path.stat().st_size + _PACKED_BYTES
        if grows or not all(e.filename.startswith(folder) for e in entries):
            raise LoadError(f"{path} is a zip file that torch did not write; fetch it again")
        yield Archive([e.filename.removeprefix(folder) for e in entries], file, folder)
