"""Folders that hold a spectrum: on a disk, or behind a URL such as `s3://bucket/run`."""

import contextlib
from pathlib import Path
from typing import Any, Protocol

import fsspec

from pgmkit import files
from pgmkit.errors import OutputError, ParameterError


class Folder(Protocol):
    """A flat set of named files, each whole or absent; can be pickled."""

    def names(self) -> set[str]:
        """Returns the names of all files; none if there is no such folder."""

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes, or None if it is missing or cannot be read."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole or raises OutputError."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other coordinators out, or raises OutputError."""


class LocalFolder:
    """A folder on a disk of this machine, or on one that is mounted there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        """Returns the names of all files; none if there is no such folder."""
        return {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes, or None if it is missing or cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole or raises OutputError; see `pgmkit.files.write_bytes`."""
        files.write_bytes(self.path / name, data)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes out; see `pgmkit.files.single_writer`."""
        return files.single_writer(self.path)


class UrlFolder:
    """A folder that fsspec opens.

    There are no locks behind most URLs. Two runs at once do no harm there: they write the same
    bytes, and what one of them leaves unfinished does not certify itself.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._filesystem()

    def __str__(self) -> str:
        return self.url

    def names(self) -> set[str]:
        """Returns the names of all files; none if there is no such folder."""
        system, root = self._filesystem()
        system.invalidate_cache()
        try:
            return {path.rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False)}
        except FileNotFoundError:
            return set()

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes, or None if it is missing or cannot be read."""
        system, root = self._filesystem()
        try:
            return bytes(system.cat_file(f"{root}/{name}"))
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file in one piece, which object stores show whole or not at all."""
        system, root = self._filesystem()
        try:
            system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/{name}", data)
        except Exception as error:  # each storage service has errors of its own
            raise OutputError(
                f"cannot write {self.url}/{name}: {error}; mend that, then run the same command "
                "again to continue"
            ) from error

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Holds nothing; see above."""
        return contextlib.nullcontext()

    def _filesystem(self) -> tuple[Any, str]:
        try:
            system, root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ParameterError(f"cannot open {self.url}: {error}") from error
        return system, str(root)


def folder_at(place: Path | str) -> Folder:
    """Returns the folder at a path or URL; nothing is created.

    Raises:
        ParameterError: nothing that is installed opens such a URL.
    """
    text = str(place)
    if text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    return UrlFolder(text) if "://" in text else LocalFolder(Path(place))
