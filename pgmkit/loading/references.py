"""References to model folders: a name from the registry, a local folder, a Hub repository.

Nothing here imports torch, so that listings stay quick.
"""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pgmkit.errors import LoadError, UnknownNameError
from pgmkit.loading import hub
from pgmkit.loading.folders import CONFIG_FILE, WEIGHT_SUFFIXES, ModelFolder, open_local_folder

_HUB = "hf-hub:"
_LOCAL = "local-dir:"


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
            where it is called like one of the registry), or "hf-hub:org/name[@revision]".
        what: what is looked for, "generator" or "classifier".

    Raises:
        UnknownNameError: no registry entry has the name.
        LoadError: the folder, repository or revision is not there, or the Hub is out of reach.
    """
    if reference.startswith(_HUB):
        return hub.open_repository(reference.removeprefix(_HUB), reference)
    if reference.startswith(_LOCAL):
        return _open_path(Path(reference.removeprefix(_LOCAL)).expanduser(), reference)
    names = list(registry_configs(what))
    if reference in names:
        folder = resources.files("pgmkit_registry").joinpath(reference)
        return open_local_folder(Path(str(folder)), reference)
    path = Path(reference).expanduser()
    if path.is_dir() or path.is_file():
        return _open_path(path, reference)
    if reference.startswith(("/", "./", "../", "~")) or reference.count("/") > 1:
        raise LoadError(f"there is no folder or file {path}; check the path of {reference!r}")
    if "/" in reference and path.suffix in WEIGHT_SUFFIXES:
        raise LoadError(f"there is no file {path}; check the path of {reference!r}")
    hint = "a reference is a registry name, a weight file, local-dir:/path or hf-hub:org/name"
    if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        hint = f"for a repository on the Hub write hf-hub:{reference}"
    raise UnknownNameError(what, reference, names, hint)


def _open_path(path: Path, reference: str) -> ModelFolder:
    """Opens a folder, or the folder of a weight file with that file chosen."""
    if not path.is_file():
        return open_local_folder(path, reference)
    return replace(open_local_folder(path.parent, reference), weights=path.name)


def reference_of(place: Path | str) -> str:
    """Returns the reference of a path or reference; a path is never a name of the registry."""
    return f"{_LOCAL}{place}" if isinstance(place, Path) else place
