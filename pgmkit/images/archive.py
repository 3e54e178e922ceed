"""Zip and tar archives of pictures, read in place; nothing in them becomes a file."""

import bz2
import gzip
import io
import lzma
import mmap
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NoReturn

from pgmkit import files
from pgmkit.errors import DataError, PgmkitError, first_line
from pgmkit.images.folder import in_order, is_picture
from pgmkit.images.unpacked import forget, mapped, unpacked

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_LARGEST = 2**28
_MOST_COMPRESSED = 200
_FREE = 2**24
_BLOCK = 2**20
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OverflowError,
)


class Archive:
    """A zip or tar archive, by its content, as a tree of files; see `pgmkit.images.folder.Tree`.

    One folder that holds all pictures, as archives of a folder have it, is not part of their names.
    A tar that is compressed as a whole is unpacked once, into the cache or a temporary file.

    Raises:
        DataError: it is damaged, or holds what no archive of pictures does: paths that lead out
            of it, links, two files of one name, pictures that become unduly large.
    """

    def __init__(self, path: Path) -> None:
        self.root = path
        self._members: dict[str, Any] = {}
        self._above = ""
        found: Iterator[tuple[str, Any]]
        with _reading(path):
            with path.open("rb") as file:
                start = file.read(5)
            if start.startswith(b"PK"):
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
                found = self._of_zip(self._zip)
            else:
                self._zip, self._tar = None, _opened_tar(path, start)
                found = self._of_tar(self._tar)
            for name, member in found:
                if name in self._members:
                    self._refuse(name, "twice")
                self._members[name] = member
        tops = {name.partition("/")[0] for name in self._members}
        if len(tops) == 1 and all("/" in name for name in self._members):
            self._above = f"{tops.pop()}/"

    def has(self, folder: str) -> bool:
        """Returns whether there is a picture in a folder of this name at the top."""
        start = f"{self._above}{folder}/"
        return any(name.startswith(start) for name in self._members)

    def pictures(self, folder: str) -> list[str]:
        """Returns the names of all pictures below a folder; see `Tree.pictures`."""
        start = f"{self._above}{folder}/" if folder else self._above
        found = (name for name in self._members if name.startswith(start))
        return in_order(name.removeprefix(self._above) for name in found)

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for reading."""
        member = self._members[self._above + name]
        if self._zip is not None:
            with self._zip.open(member) as file:
                yield file
        else:
            yield io.BufferedReader(_Window(self._tar, *member))
            forget(self._tar)

    def digest(self, names: list[str]) -> str:
        """Returns the SHA-256 of the whole archive, whatever the names."""
        return files.sha256(self.root)

    def _of_zip(self, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                self._refuse(member.filename, "which is a link or no regular file")
            name = self._checked(member.filename, member.file_size)
            if name and not member.is_dir():
                if member.file_size > _MOST_COMPRESSED * member.compress_size + _FREE:
                    self._refuse_bomb(member.filename)
                if member.flag_bits & 1:
                    self._refuse(member.filename, "which is encrypted")
                yield name, member

    def _of_tar(self, pages: mmap.mmap) -> Iterator[tuple[str, tuple[int, int]]]:
        with tarfile.open(fileobj=pages, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number % 1000 == 0:
                    forget(pages)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    self._refuse(member.name, "which is a link or no regular file")
                name = self._checked(member.name, member.size)
                if name and member.isreg():
                    yield name, (member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            end: int = archive.offset
        if pages[end : end + tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends before its end")  # which tarfile takes as it is

    def _checked(self, name: str, size: int) -> str | None:
        """Returns the path of a picture, "/" between its parts; None for anything else."""
        path = PureWindowsPath(name)  # which takes "/" and "\\", and knows drives
        if path.anchor or ".." in path.parts:
            self._refuse(name, "a path that leads out of it")
        if any(part.startswith(".") for part in path.parts) or not is_picture(path.name):
            return None
        if size > _LARGEST:
            self._refuse_bomb(name)
        return path.as_posix()

    def _refuse_bomb(self, name: str) -> NoReturn:
        self._refuse(name, "which becomes unduly large when it is unpacked")

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise DataError(
            f"{self.root} holds {name[:200]!r}, {why}; make the archive again without it"
        )


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, pages: mmap.mmap, start: int, size: int) -> None:
        self._pages, self._start, self._size, self._at = pages, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        first = self._start + self._at
        buffer[:count] = self._pages[first : first + count]
        self._at += count
        return count


def _opened_tar(path: Path, start: bytes) -> mmap.mmap:
    """Returns a tar whose first bytes are `start`, mapped and not compressed."""
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        return mapped(path.open("rb"))
    most = _MOST_COMPRESSED * path.stat().st_size + _FREE
    size = 0
    with opener(path, "rb") as packed:
        while block := packed.read(_BLOCK):
            size += len(block)
            if size > most:
                raise DataError(
                    f"{path} becomes more than {_MOST_COMPRESSED} times as large when it is "
                    "unpacked, as pictures never do; make the archive again"
                )

    def write(target: IO[bytes]) -> None:
        with opener(path, "rb") as packed:
            shutil.copyfileobj(packed, target, _BLOCK)

    return unpacked(path, "tar", size, write)[0]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except PgmkitError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        raise _damaged(path, error) from error
    except _BROKEN as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no zip or tar archive, or a damaged one: {first_line(error)}; make it again"
    )
