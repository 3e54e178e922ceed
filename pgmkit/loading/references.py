"""References to model folders: a name from the registry, a path, a Hub repository.

Nothing here imports torch, so that listings stay quick.
"""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from pgmkit.config import expect
from pgmkit.errors import LoadError, UnknownNameError
from pgmkit.loading import hub
from pgmkit.loading.folders import (
    CONFIG_FILE,
    WEIGHT_SUFFIXES,
    ModelFolder,
    open_local_folder,
    sub_folder,
)

_HUB = "hf-hub:"
_LOCAL = "local-dir:"
_FORMS = "a name of `pgmkit generators ls`, a weight file, a folder, or hf-hub:org/name[@revision]"


def registry_configs(what: str) -> dict[str, dict[str, Any]]:
    """Returns the configs of what ships with pgmkit, by name.

    Args:
        what: "generator" for those with a latent prior, "classifier" for the others.
    """
    configs = {}
    for folder in sorted(resources.files("pgmkit_registry").iterdir(), key=lambda f: f.name):
        if folder.joinpath(CONFIG_FILE).is_file():
            config = json.loads(folder.joinpath(CONFIG_FILE).read_text(encoding="utf-8"))
            if ("latent" in config) == (what == "generator"):
                configs[folder.name] = config
    return configs


def open_folder(reference: str, what: str = "generator") -> ModelFolder:
    """Finds the folder behind a reference; files are fetched when they are asked for.

    Args:
        reference: a name from the registry, a path of a folder or a weight file (after "local-dir:"
            where it is called like one of the registry), "hf-hub:org/name[@revision]", or the
            address of a repository or file on the Hub.
        what: what is looked for, "generator" or "classifier".

    Raises:
        UnknownNameError: no registry entry has the name.
        LoadError: the folder, repository or revision is not there, or the Hub is out of reach.
    """
    expect(reference, str, f"a reference is a text: {_FORMS}")
    hub.refuse_token(reference)
    if reference.startswith(_HUB):
        return hub.open_repository(reference.removeprefix(_HUB), reference)
    if reference.startswith(_LOCAL):
        return _open_path(_path_of(reference.removeprefix(_LOCAL), reference), reference)
    address = hub.parse_address(reference)
    if address is not None:
        return _open_address(address)
    names = list(registry_configs(what))
    if reference in names:
        folder = resources.files("pgmkit_registry").joinpath(reference)
        return open_local_folder(Path(str(folder)), reference)
    if "://" in reference:
        raise LoadError(
            f"{reference:.200} is an address that pgmkit loads nothing from; download the files "
            f"and give their path, or {_FORMS}"
        )
    path = _path_of(reference, reference)
    if _exists(path):
        return _open_path(path, reference)
    _check_no_path(reference, path)
    hint = f"a reference is {_FORMS}"
    other = "generator" if what == "classifier" else "classifier"
    if reference in registry_configs(other):
        hint = f"{reference} is a {other}"
    elif reference.count("/") == 1:
        hint = f"for a repository on the Hub write hf-hub:{reference}"
    raise UnknownNameError(what, reference, names, hint)


def reference_of(place: Path | str) -> str:
    """Returns the reference of a path or reference; a path is never a name of the registry."""
    return f"{_LOCAL}{place}" if isinstance(place, Path) else place


def _open_address(address: hub.Address) -> ModelFolder:
    """Opens the repository of an address, or a folder in it; one of a file has it chosen."""
    name = f"{address.name}@{address.revision}" if address.revision else address.name
    folder = hub.open_repository(name, f"{_HUB}{name}")
    if PurePosixPath(address.path).suffix in WEIGHT_SUFFIXES:
        return replace(folder, weights=address.path)
    return sub_folder(folder, address.path) if address.path else folder


def _path_of(text: str, reference: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise LoadError(
            f"{reference:.200} begins with ~, and there is no such home folder; write the whole "
            "path"
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds what no name can
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_no_path(reference: str, path: Path) -> None:
    """Raises LoadError if a reference can only be meant for a path, which is not there."""
    meant = reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1
    if meant or path.suffix in WEIGHT_SUFFIXES:
        raise LoadError(
            f"there is no folder or file {path!s:.200}; check the path of {reference!r:.200}"
        )


def _open_path(path: Path, reference: str) -> ModelFolder:
    """Opens a folder, or the folder of a weight file with that file chosen."""
    if not _is_file(path):
        return open_local_folder(path, reference)
    return replace(open_local_folder(path.parent, reference), weights=path.name)
