"""The Hugging Face Hub: files of repositories, and pushing."""

from pathlib import Path

from pgmkit.errors import LoadError, first_line
from pgmkit.loading.folders import CONFIG_FILE, ModelFolder


def open_repository(name: str, reference: str) -> ModelFolder:
    """Opens a repository of the Hub; files are fetched when they are asked for.

    Args:
        name: "org/name" or "org/name@revision".
        reference: as the user wrote it, for messages.

    Raises:
        LoadError: repository or revision is not there, or the Hub is out of reach.
    """
    from huggingface_hub import (
        _CACHED_NO_EXIST,
        HfApi,
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

    repository, _, revision = name.partition("@")
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

    def names() -> list[str]:
        return sorted(HfApi().list_repo_files(repository, revision=pinned["revision"]))

    return ModelFolder(reference, fetch, names, pinned)


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a model folder to the Hub and returns its address.

    Args:
        folder: a folder that `save_pretrained` or `pgmkit train` wrote.
        repository: "org/name"; it is created if it is not there.
        private: whether a new repository is private.

    Raises:
        LoadError: the Hub is out of reach, or refuses.
    """
    from huggingface_hub import HfApi

    # HTTPError is of the HTTP library that the Hub's client uses, which changed more than once.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repository, ignore_patterns=["spectrum/*", ".*"]
        )
    except (HTTPError, OSError) as error:
        raise LoadError(
            f"cannot push to {repository!r}: {first_line(error)}; check the name, the network "
            "and your token (hf auth login)"
        ) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LoadError(f"cannot push to {repository!r}: {reason}") from error
    return f"{api.endpoint}/{repository}"
