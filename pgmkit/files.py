"""Files that are either whole or absent: atomic writing, checksums, and folders with one writer."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pgmkit.errors import LoadError, OutputError, in_words, shortened

CONTINUES = "run the same command again to continue where it was"
"""The note on what ends a run whose folder is held: an exception's `__notes__` have it."""

_TEMPORARY = ".pgmkit-tmp-"
_unfinished: set[Path] = set()

_LARGEST_JSON = 64 * 2**20
_DEEPEST = 100
TOO_DEEP = f"is nested more than {_DEEPEST} levels deep, and nothing in pgmkit is; make it flat"
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file that takes the place of `path` when all went well; it is synced before.

    So a file is never seen half-written.

    Raises:
        OutputError: the disk is full or the place is not writable.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        _unfinished.add(temporary)  # before it is there, since a signal may come in between
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {shortened(str(path))}: {remedied(error)}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            _unfinished.discard(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically; see `replaced_file`."""
    with replaced_file(path) as file:
        file.write(data)


def remedied(error: OSError) -> str:
    """Returns what went wrong in writing, and what to do."""
    return f"{in_words(error)}; {_REMEDIES.get(error.errno or 0, 'choose another place')}"


def remove(path: Path) -> None:
    """Removes a file if it is there.

    Raises:
        OutputError: it cannot be removed, or is no file in a folder.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {remedied(error)}") from error


def remove_unfinished() -> None:
    """Removes what this process was writing when it was told to end at once."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Reads a JSON object; `where` is the folder or reference that it belongs to, for messages.

    Raises:
        LoadError: it cannot be read or is no JSON object.
    """
    what = f"the {path.name} of {where}"
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_JSON + 1)
    except OSError as error:
        raise LoadError(
            f"{what} cannot be read: {in_words(error)}; make it readable, or fetch it again"
        ) from error
    value = parse_json(data, what)
    if not isinstance(value, dict):
        raise LoadError(f"{what} must be a JSON object, not {value!r:.60}")
    return value


def parse_json(data: bytes | str, what: str) -> Any:
    """Parses JSON, UTF-8, that may come from anybody: what is too large or too deep is refused.

    Raises:
        LoadError: it is not JSON, or is beyond what any file of pgmkit has.
    """
    if len(data) > _LARGEST_JSON:
        raise LoadError(
            f"{what} is larger than {_LARGEST_JSON // 2**20} MiB, which no file that pgmkit "
            "understands is; fetch it again"
        )
    try:
        value = json.loads(data)
    except RecursionError:
        raise LoadError(f"{what} {TOO_DEEP}") from None
    except ValueError as error:
        raise LoadError(f"{what} is not valid JSON: {error}; fetch or write it again") from error
    if is_too_deep(value):
        raise LoadError(f"{what} {TOO_DEEP}")
    return value


def is_too_deep(value: Any) -> bool:
    """Returns whether lists and tables stand in each other too deep to go through them."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            part
            for parent in level
            for part in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def single_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with the process, also when it is killed.

    Temporary files that a killed process left in it are removed. What ends the run early bears the
    note `CONTINUES`.

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise OutputError(f"cannot write to {shortened(str(folder))}: {remedied(error)}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"{folder} is in use by another pgmkit process; wait for it or choose another "
                "output folder"
            ) from error
        for left in [*folder.glob(f"{_TEMPORARY}*"), *folder.glob(f"*/{_TEMPORARY}*")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        try:
            yield
        except (KeyboardInterrupt, OutputError) as stop:
            if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__cause__, OSError):
                stop.add_note(CONTINUES)
            raise


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` when all went well.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_TEMPORARY))
    except OSError as error:
        raise OutputError(
            f"cannot write to {shortened(str(folder.parent))}: {remedied(error)}"
        ) from error
    _unfinished.add(fresh)
    try:
        yield fresh
        fresh.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _unfinished.discard(fresh)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
