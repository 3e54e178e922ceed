"""Model folders: where the files of a model come from, be it a disk or the Hub.

Nothing here imports torch, so that listings stay quick.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pgmkit import files
from pgmkit.errors import LoadError

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin", "model.pt", "model.pth")


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files come from.

    Args:
        reference: as the user wrote it.
        fetch: gives the local path of a file, or None if the folder has no such file.
        names: lists all files, sub-folders included, as paths with "/" relative to the folder.
        provenance: what pins the folder: its repository and revision on the Hub.
        sizes: gives the size in bytes of each file that `names` lists, by its path, without
            fetching any.
    """

    reference: str
    fetch: Callable[[str], Path | None]
    names: Callable[[], list[str]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sizes: Callable[[], Mapping[str, int]] = dict

    def path(self, name: str) -> Path:
        """Returns the local path of a file.

        Raises:
            LoadError: the folder has no such file.
        """
        path = self.fetch(name)
        if path is None:
            raise LoadError(f"{self.reference} has no file {name}; it is not a pgmkit model folder")
        return path

    def config(self) -> dict[str, Any]:
        """Returns the contents of `config.json`.

        Raises:
            LoadError: it is missing, not JSON, or of a newer format.
        """
        config = files.read_json(self.path(CONFIG_FILE), self.reference)
        version = config.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise LoadError(
                f"{self.reference} has format_version {version!r} and this pgmkit reads "
                f"{FORMAT_VERSION}; install another version of pgmkit"
            )
        return config

    def weights(self, config: Mapping[str, Any]) -> Path:
        """Returns the local path of the weights: `config["weights"]` or one of the usual names.

        Raises:
            LoadError: there are none, or `config` names a place outside of the folder.
        """
        if "weights" in config:
            name = config["weights"]
            if not isinstance(name, str) or not _is_inside(name):
                raise LoadError(
                    f"'weights' in {CONFIG_FILE} of {self.reference} must name a file in it, "
                    f"not {name!r:.60}"
                )
            return self.path(name)
        for name in _WEIGHT_FILES:
            path = self.fetch(name)
            if path is not None:
                return path
        raise LoadError(
            f"{self.reference} has no weights; it needs {WEIGHTS_FILE}, or 'weights' in its "
            f"{CONFIG_FILE} naming another file"
        )


def open_local_folder(path: Path, reference: str) -> ModelFolder:
    """Opens a folder on a disk.

    Raises:
        LoadError: it is not there.
    """
    if not path.is_dir():
        raise LoadError(f"there is no folder {path}; check the path of {reference!r}")

    def fetch(name: str) -> Path | None:
        return path / name if (path / name).is_file() else None

    def sizes() -> dict[str, int]:
        found = (file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in found}

    return ModelFolder(reference, fetch, lambda: sorted(sizes()), sizes=sizes)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
