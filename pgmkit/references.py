"""References to model folders: a name from the registry, a local folder, a Hub repository.

Nothing here imports torch, so that listings stay quick.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from pgmkit.errors import LoadError, UnknownNameError

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin", "model.pt", "model.pth")
_HUB = "hf-hub:"
_LOCAL = "local-dir:"


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files come from.

    Args:
        reference: as the user wrote it.
        fetch: gives the local path of a file, or None if the folder has no such file.
        provenance: what pins the folder: its repository and revision on the Hub.
    """

    reference: str
    fetch: Callable[[str], Path | None]
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
        config = read_json(self.path(CONFIG_FILE), self.reference)
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
        reference: a name from the registry, "local-dir:/path", or "hf-hub:org/name[@revision]".
        what: what is looked for, "generator" or "classifier".

    Raises:
        UnknownNameError: no registry entry has the name.
        LoadError: the folder, repository or revision is not there, or the Hub is out of reach.
    """
    if reference.startswith(_HUB):
        return _open_hub_repository(reference)
    if reference.startswith(_LOCAL):
        return _open_local_folder(Path(reference.removeprefix(_LOCAL)).expanduser(), reference)
    names = list(registry_configs(what))
    if reference in names:
        folder = resources.files("pgmkit_registry").joinpath(reference)
        return _open_local_folder(Path(str(folder)), reference)
    hint = "a reference is a registry name, local-dir:/path or hf-hub:org/name"
    if Path(reference).expanduser().is_dir():
        hint = f"for the folder write local-dir:{reference}"
    elif reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        hint = f"for a repository on the Hub write hf-hub:{reference}"
    raise UnknownNameError(what, reference, names, hint)


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        LoadError: it cannot be read or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"the {path.name} of {where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"the {path.name} of {where} must be a JSON object, not {value!r:.60}")
    return value


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _open_local_folder(path: Path, reference: str) -> ModelFolder:
    if not path.is_dir():
        raise LoadError(f"there is no folder {path}; check the path of {reference!r}")

    def fetch(name: str) -> Path | None:
        return path / name if (path / name).is_file() else None

    return ModelFolder(reference, fetch)


def _open_hub_repository(reference: str) -> ModelFolder:
    from huggingface_hub import (
        _CACHED_NO_EXIST,
        constants,
        hf_hub_download,
        try_to_load_from_cache,
    )

    # HTTPError is of the HTTP library that the Hub's client uses, which changed more than once.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = reference.removeprefix(_HUB).partition("@")
    pinned = {"repo": repository, "revision": revision or "main"}

    def fetch(name: str) -> Path | None:
        revision = pinned["revision"]
        try:
            # After config.json the revision is a commit, and what it once lacked it always lacks.
            known = None
            if name != CONFIG_FILE:
                known = try_to_load_from_cache(repository, name, revision=revision)
            if known is _CACHED_NO_EXIST:
                return None
            return Path(hf_hub_download(repository, name, revision=revision))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            state = (
                "HF_HUB_OFFLINE is set and it is not in the cache"
                if constants.is_offline_mode()
                else f"{constants.ENDPOINT} cannot be reached and it is not in the cache"
            )
            raise LoadError(
                f"cannot fetch {name} of {reference}: {state}; check the network and HF_ENDPOINT, "
                "or use local-dir:/path"
            ) from error
        except EntryNotFoundError:
            return None
        except RevisionNotFoundError as error:
            raise LoadError(
                f"the repository {repository!r} has no revision {revision!r}; leave "
                "'@revision' out for its newest"
            ) from error
        except GatedRepoError as error:
            raise LoadError(
                f"the repository {repository!r} is gated; accept its terms on the Hub and log in "
                "with a token (hf auth login)"
            ) from error
        except RepositoryNotFoundError as error:
            raise LoadError(
                f"there is no repository {repository!r} on {constants.ENDPOINT}, or it is private; "
                "check the name, or log in with a token (hf auth login)"
            ) from error
        except HFValidationError as error:
            raise LoadError(
                f"{repository!r} is not a repository name; write hf-hub:org/name[@revision]"
            ) from error
        except (HTTPError, OSError) as error:
            raise LoadError(
                f"cannot fetch {name} of {reference} from {constants.ENDPOINT}: "
                f"{first_line(error)}; check the network, HF_ENDPOINT and your token "
                "(hf auth login)"
            ) from error

    config = fetch(CONFIG_FILE)
    if config is None:
        raise LoadError(
            f"{reference} has no file {CONFIG_FILE}; pgmkit needs 'architecture', 'latent' and "
            "'image' in it. Download the repository, add the file and use local-dir:/path"
        )
    # The cache keeps files under the commit they belong to; pin it, so that all files match.
    pinned["revision"] = config.parent.name
    return ModelFolder(reference, fetch, pinned)
