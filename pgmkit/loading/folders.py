"""Model folders: where the files of a model come from, be it a disk or the Hub.

Nothing here imports torch, so that listings stay quick.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from pgmkit import files
from pgmkit.errors import LoadError, in_words, listed, shortened

FORMAT_VERSION = 1
_MOST_FILES = 10_000
"""How many files of a folder on a disk are listed: it may be anything."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DISCRIMINATOR_FILE = "discriminator.safetensors"
PARTITIONER_CONFIG = "partitioner.json"
CONDITIONAL_CONFIG = "conditional.json"
PARTITIONER_FOLDER = "partitioner"
"""Where the partitioner of a conditional generator lies in its folder."""

WEIGHT_SUFFIXES = (
    *(".safetensors", ".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar", ".pt2", ".onnx"),
)


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files come from.

    Args:
        reference: as the user wrote it.
        fetch: gives the local path of a file, or None if the folder has no such file.
        sizes: gives the size in bytes of each file, sub-folders included, by its path with "/"
            relative to the folder, without fetching any.
        provenance: what pins the folder: its repository and revision on the Hub.
        weights: the weight file that the reference named; None if it named the whole folder.
    """

    reference: str
    fetch: Callable[[str], Path | None]
    sizes: Callable[[], Mapping[str, int]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def names(self) -> list[str]:
        """Returns the paths of all files, in order."""
        return sorted(self.sizes())

    def path(self, name: str) -> Path:
        """Returns the local path of a file.

        Raises:
            LoadError: the folder has no such file.
        """
        path = self.fetch(name)
        if path is None:
            held = listed(self.names(), 8) or "no files"
            raise LoadError(f"{self.reference} has no file {name}; it holds {held}")
        return path

    def config(self) -> dict[str, Any]:
        """Returns the contents of `config.json`; an empty dictionary if the folder has none.

        Raises:
            LoadError: it is not JSON, or of a newer format.
        """
        path = self.fetch(CONFIG_FILE)
        if path is None:
            return {}
        config = files.read_json(path, self.reference)
        check_version(config, self.reference)
        return config


def check_version(config: Mapping[str, Any], reference: str) -> None:
    """Raises LoadError if a config is of a newer format; without a version it is of this one."""
    version = config.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise LoadError(
            f"{reference} has format_version {version!r:.60} and this pgmkit reads "
            f"{FORMAT_VERSION}; install another version of pgmkit"
        )


def open_local_folder(path: Path, reference: str) -> ModelFolder:
    """Opens a folder on a disk.

    Raises:
        LoadError: it is not there, or may not be read.
    """
    with _readable(path):
        if not path.is_dir():
            raise LoadError(
                f"there is no folder {shortened(str(path))}; check the path of "
                f"{shortened(reference)!r}"
            )
        with os.scandir(path) as entries:
            next(entries, None)

    def fetch(name: str) -> Path | None:
        with _readable(path / name):
            return path / name if (path / name).is_file() else None

    def sizes() -> dict[str, int]:
        with _readable(path):
            return {
                file.relative_to(path).as_posix(): file.stat().st_size
                for file in islice(_files_below(path), _MOST_FILES)
            }

    return ModelFolder(reference, fetch, sizes)


def sub_folder(folder: ModelFolder, name: str) -> ModelFolder:
    """Returns the folder `name` inside of another."""
    start = f"{name.strip('/')}/"

    def sizes() -> dict[str, int]:
        found = folder.sizes().items()
        return {path.removeprefix(start): size for path, size in found if path.startswith(start)}

    return ModelFolder(
        folder.reference,
        lambda path: folder.fetch(start + path),
        sizes,
        {**folder.provenance, "folder": name},
    )


def _files_below(path: Path) -> Iterator[Path]:
    """Yields files, and those of folders that are not hidden; links to folders lead astray."""
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if Path(place, name).is_file())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says what keeps a file or folder from being read."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = in_words(error) if isinstance(error, OSError) else str(error)
        raise LoadError(
            f"{shortened(str(path))} cannot be read: {why}; check its name and that you may read it"
        ) from error


def is_inside(name: str) -> bool:
    """Whether a relative path stays inside of the folder that it starts from."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
