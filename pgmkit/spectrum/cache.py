"""Finished spectra that any later run of the same generator and latents can take up.

An entry is an ordinary spectrum folder, so it is checked on reading like any other, shard by shard.
The cache is a convenience: whatever goes wrong with it is a warning.

`PGMKIT_CACHE` names the folder, ~/.cache/pgmkit by default; `PGMKIT_CACHE_SIZE` bounds it, in GiB.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pgmkit import files
from pgmkit.errors import OutputError, ParameterError, PgmkitWarning
from pgmkit.spectrum.folders import LocalFolder

DEFAULT_SIZE = 2.0
"""GiB."""


def cache_folder() -> Path:
    """Returns the folder under which spectra are kept; it may not exist yet."""
    if named := os.environ.get("PGMKIT_CACHE"):
        return Path(named) / "spectra"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pgmkit" / "spectra"


def cache_entry(settings: Mapping[str, Any]) -> LocalFolder:
    """Returns the folder of the spectrum that these settings determine.

    Args:
        settings: generator, latents, block size and precision; not how or where it is computed.

    Raises:
        ParameterError: the size of the cache is no number.
    """
    _limit()
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return LocalFolder(cache_folder() / key[:32])


def mark_used(entry: LocalFolder) -> None:
    """Makes an entry the last one to go."""
    try:
        os.utime(entry.path)
    except OSError:
        return  # a cache that is not ours to write; its owner sees to it


def publish(entry: LocalFolder, write: Callable[[LocalFolder], None], num_bytes: int) -> None:
    """Puts a spectrum into the cache, whole or not at all; a failure is a warning.

    Args:
        entry: its place.
        write: writes all its files into the folder that it is given.
        num_bytes: about how large it is; what exceeds the whole cache is left out.
    """
    limit = _limit()
    if num_bytes > limit:
        return
    folder = entry.path.parent
    try:
        with _alone(folder):
            _make_room(folder, limit - num_bytes)
            with files.replaced_folder(entry.path) as fresh:
                write(LocalFolder(fresh))
    except (OSError, OutputError) as error:
        warnings.warn(
            f"the spectrum is complete but was not put into the cache {folder}: {error}; set "
            "PGMKIT_CACHE to another folder or switch the cache off",
            PgmkitWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process changes the cache; readers need not, they verify."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, limit: float) -> None:
    """Removes entries, those used longest ago first, until the rest fits.

    What a killed process left half-written is an entry like any other here.
    """
    entries = sorted((path for path in folder.iterdir() if path.is_dir()), key=_used)
    sizes = {entry: _size(entry) for entry in entries}
    excess = sum(sizes.values()) - limit
    for entry, size in sizes.items():
        if excess <= 0:
            return
        shutil.rmtree(entry, ignore_errors=True)
        excess -= size


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.glob("*"))


def _used(entry: Path) -> float:
    return entry.stat().st_mtime


def _limit() -> float:
    """Returns how many bytes the cache may hold."""
    text = os.environ.get("PGMKIT_CACHE_SIZE", str(DEFAULT_SIZE))
    try:
        return float(text) * 2**30
    except ValueError as error:
        raise ParameterError(
            f"PGMKIT_CACHE_SIZE is the size of the cache in GiB, such as 2 or 0.5, not {text!r}"
        ) from error
