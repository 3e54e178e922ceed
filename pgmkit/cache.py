"""What took long to compute, kept for any later run that needs the same.

An entry is a folder, named by all that determines it. "spectra" holds ordinary spectrum folders,
"references" the features of reference images, "unpacked" images from compressed archives; whoever
reads an entry checks it. The cache is a convenience: whatever goes wrong with it is a warning.

`PGMKIT_CACHE` names the folder, ~/.cache/pgmkit by default or, without a home, one that is gone
after the run; `PGMKIT_CACHE_SIZE` bounds it, in GiB.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pgmkit import files
from pgmkit.errors import OutputError, ParameterError, PgmkitWarning

DEFAULT_SIZE = 2.0
"""GiB."""


Part = Literal["spectra", "references", "unpacked"]
_FILE = "content"
_DIGEST = "content.sha256"
PARTS: tuple[Part, ...] = ("spectra", "references", "unpacked")


@dataclass(frozen=True)
class Entry:
    """What the cache keeps under one name.

    Args:
        part: the kind of entry.
        folder: its place.
        size: in bytes.
        used: when it was used last, in seconds since 1970.
    """

    part: Part
    folder: Path
    size: int
    used: float


def entries() -> list[Entry]:
    """Returns all entries, those first that were used longest ago and go first.

    What a killed process left half-written is an entry like any other.
    """
    root, found = cache_root(), list[Entry]()
    for part in PARTS:
        for folder in (root / part).iterdir() if (root / part).is_dir() else ():
            with contextlib.suppress(OSError):  # such as one that goes meanwhile
                if folder.is_dir():
                    found.append(Entry(part, folder, _size(folder), folder.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def remove(gone: Iterable[Entry]) -> None:
    """Removes entries; a run that is using one computes what it needs again.

    Raises:
        OutputError: one cannot be removed.
    """
    with _alone(cache_root()):
        for entry in gone:
            try:
                shutil.rmtree(entry.folder)
            except OSError as error:
                raise OutputError(
                    f"cannot remove {entry.folder}: {files.remedied(error)}"
                ) from error


def cache_folder(part: Part) -> Path:
    """Returns the folder under which entries of one kind are kept; it may not exist yet."""
    return cache_root() / part


def cache_entry(part: Part, settings: Mapping[str, Any]) -> Path:
    """Returns the folder of the entry that these settings determine; it may not exist yet.

    Args:
        part: the kind of entry.
        settings: all that the result depends on, and not how or where it is computed.

    Raises:
        ParameterError: the size of the cache is no number.
    """
    cache_limit()
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return cache_folder(part) / key[:32]


def mark_used(entry: Path) -> None:
    """Makes an entry the last one to go."""
    try:
        os.utime(entry)
    except OSError:
        return  # a cache that is not ours to write; its owner sees to it


def publish(entry: Path, write: Callable[[Path], None], num_bytes: int, *, what: str) -> None:
    """Puts an entry into the cache, whole or not at all; a failure is a warning.

    Args:
        entry: its place.
        write: writes all its files into the folder that it is given.
        num_bytes: about how large it is; what exceeds the whole cache is left out.
        what: what it holds, for the warning.
    """
    limit = cache_limit()
    if num_bytes > limit:
        return
    root = cache_root()
    try:
        with _alone(root):
            _make_room(limit - num_bytes)
            with files.replaced_folder(entry) as fresh:
                write(fresh)
    except (OSError, OutputError) as error:
        warnings.warn(
            f"the {what} is complete but was not put into the cache {root}: {error}; set "
            "PGMKIT_CACHE to another folder or switch the cache off",
            PgmkitWarning,
            stacklevel=2,
        )


def kept_file(entry: Path) -> tuple[Path, str] | None:
    """Returns what `publish_file` put into an entry, and its SHA-256; None if it is not whole."""
    try:
        digest = (entry / _DIGEST).read_text()
        if files.sha256(entry / _FILE) != digest:
            return None
    except OSError:
        return None
    mark_used(entry)
    return entry / _FILE, digest


def publish_file(
    entry: Path, write: Callable[[IO[bytes]], object], num_bytes: int, *, what: str
) -> None:
    """Puts what `write` writes, and its checksum, into an entry; see `publish`."""

    def put(folder: Path) -> None:
        with (folder / _FILE).open("xb") as file:
            write(file)
        files.write_text(folder / _DIGEST, files.sha256(folder / _FILE))

    publish(entry, put, num_bytes, what=what)


def cache_root() -> Path:
    """Returns the folder of the cache; it may not exist yet."""
    if named := os.environ.get("PGMKIT_CACHE"):
        return Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "pgmkit"
    try:
        return Path.home() / ".cache" / "pgmkit"
    except RuntimeError:  # a user without a home, as in containers
        return _temporary_root()


@functools.cache
def _temporary_root() -> Path:
    """Returns a folder of this process alone, since what others put into one is not to be trusted.

    It goes when the process ends.
    """
    root = tempfile.TemporaryDirectory(prefix="pgmkit-cache-")
    atexit.register(root.cleanup)
    warnings.warn(
        "there is no home folder, so the cache ends with this run; set PGMKIT_CACHE to a folder "
        "that stays",
        PgmkitWarning,
        stacklevel=2,
    )
    return Path(root.name)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Waits until no other process changes the cache; readers need not, they verify."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(limit: float) -> None:
    """Removes entries, those used longest ago first, until the rest fits."""
    found = entries()
    excess = sum(entry.size for entry in found) - limit
    for entry in found:
        if excess <= 0:
            return
        shutil.rmtree(entry.folder, ignore_errors=True)
        excess -= entry.size


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.glob("*"))


def cache_limit() -> float:
    """Returns how many bytes the cache may hold.

    Raises:
        ParameterError: PGMKIT_CACHE_SIZE is no number.
    """
    text = os.environ.get("PGMKIT_CACHE_SIZE", str(DEFAULT_SIZE))
    try:
        return float(text) * 2**30
    except ValueError as error:
        raise ParameterError(
            f"PGMKIT_CACHE_SIZE is the size of the cache in GiB, such as 2 or 0.5, not {text!r}"
        ) from error
