"""The Hugging Face Hub: files of repositories, and pushing."""

import contextlib
import errno
import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pgmkit import files
from pgmkit.errors import LoadError, OutputError, PgmkitWarning
from pgmkit.loading.folders import CONFIG_FILE, ModelFolder
from pgmkit.loading.requests import (
    Fault,
    client_constants,
    endpoint,
    fault_of,
    guarded,
    holds_token,
    http_library,
    scrubbed,
)

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OTHER_KINDS = {"datasets": "a data set", "spaces": "a space", "collections": "a collection"}
_OFFLINE = (
    "to work offline, use local-dir:/path, or load it once where there is a network and then set "
    "HF_HUB_OFFLINE=1"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_FILES = 100_000
_HIDDEN = ("spectrum/*", ".*", "*/.*")


@dataclass(frozen=True)
class Address:
    """What an address of the Hub's website points at.

    Args:
        name: "org/name".
        revision: branch, tag or commit; None is the newest.
        path: a file or folder in the repository; "" is all of it.
    """

    name: str
    revision: str | None = None
    path: str = ""


def parse_address(text: str) -> Address | None:
    """Reads an address as the browser shows it; None if the text is no address of the Hub.

    Such as https://huggingface.co/org/name, with or without /tree/REVISION/folder,
    /blob/REVISION/file or /resolve/REVISION/file; the Hub may also be that of `HF_ENDPOINT`.

    Raises:
        LoadError: it is an address of the Hub, and none of a model.
    """
    stripped = text.strip()
    if not stripped.startswith(("https://", "http://")):
        host, slash, _ = stripped.partition("/")
        if host not in _HOSTS or not slash:
            return None
        stripped = f"https://{stripped}"
    parts = urlsplit(stripped)
    host = parts.netloc.rpartition("@")[2]
    if host not in (*_HOSTS, urlsplit(endpoint()).netloc):
        return None
    refuse_token(text)
    steps = [unquote(step) for step in parts.path.split("/") if step]
    if not steps or steps[0] in _OTHER_KINDS:
        what = _OTHER_KINDS.get(steps[0], "no model") if steps else "no model"
        raise LoadError(
            f"{scrubbed(text)} is the address of {what}; pgmkit loads models, whose address is "
            f"{endpoint()}/org/name"
        )
    name, rest = "/".join(steps[:2]), steps[2:]
    if len(rest) < 2 or rest[0] not in ("tree", "blob", "resolve", "raw", "commit"):
        return Address(name)
    # Two kinds of branches have slashes in their names: refs/pr/1 and refs/convert/parquet.
    count = 3 if rest[1] == "refs" and len(rest) > 3 else 1
    revision, path = "/".join(rest[1 : 1 + count]), "/".join(rest[1 + count :])
    return Address(name, None if revision == "main" else revision, path)


def refuse_token(reference: str) -> None:
    """Raises LoadError if a reference holds a token, which would end up in records and logs."""
    if holds_token(reference):
        raise LoadError(
            "there is a token in the reference, where records and logs would keep it; take it out "
            "and log in with it (hf auth login), or set HF_TOKEN"
        )


def open_repository(name: str, reference: str) -> ModelFolder:
    """Opens "org/name[@revision]" of the Hub; files are fetched when they are asked for.

    All files are of one commit, that which the revision had when the repository was opened. Without
    a network they come from the Hub's cache; `names` then lists what is known of the commit.

    Raises:
        LoadError: repository or revision is not there, or the Hub is out of reach.
    """
    refuse_token(reference)
    client_constants()
    repository, _, revision = name.partition("@")
    opened = _Repository(repository, reference, revision or "main")
    opened.pin()
    return ModelFolder(
        reference,
        opened.fetch,
        opened.sizes,
        {"repo": repository, "revision": opened.revision},
    )


class _Repository:
    """A repository of which one commit is read.

    Attributes:
        revision: as asked for, until `pin` makes it a commit.
        fault: why the Hub is no longer asked, but only its cache.
    """

    def __init__(self, name: str, reference: str, revision: str) -> None:
        self.name = name
        self.reference = reference
        self.revision = revision
        self.fault: Fault | None = None
        self._listing: dict[str, int] | None = None

    def pin(self) -> None:
        """Finds the commit, with the one request that looks for `config.json`."""
        path = self._fetch(CONFIG_FILE)
        commit = self.revision
        if path is not None:
            commit = path.parent.name
        elif not _COMMIT.fullmatch(commit):
            commit = self._cached_commit() or self._asked_commit()
        self.revision = commit

    def fetch(self, file: str) -> Path | None:
        """Returns the local path of a file; None if the commit has none of this name."""
        path = self._fetch(file)
        if path is None or _is_whole(path):
            return path
        if self._offline():
            raise LoadError(
                f"{path} in the Hub's cache is damaged: its checksum is not that of {file} in "
                f"{self.reference}; run the same command again where there is a network"
            )
        _forget(path)
        path = self._fetch(file)
        if path is not None and not _is_whole(path):
            _forget(path)
            raise LoadError(
                f"{file} of {self.reference} arrives damaged from {endpoint()}: its checksum is "
                "not the one that the Hub states; run the same command again, or download the "
                "repository elsewhere and use local-dir:/path"
            )
        return path

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of each file, by its path.

        A commit never changes, so it is asked for once and kept beside the files in the Hub's
        cache. Where it cannot be asked for, the files in the cache are all that is known, and a
        warning says so.
        """
        kept = self._folder() / ".pgmkit" / f"{self.revision}.json"
        if self._listing is None and kept.is_file():
            with contextlib.suppress(LoadError):
                self._listing = files.read_json(kept, self.reference)
        if self._listing is None and not self._offline():
            self._listing = self._asked_listing()
            with contextlib.suppress(OutputError):
                files.write_json(kept, self._listing)
        if self._listing is not None:
            return self._listing
        found = self._cached_files()
        why = "HF_HUB_OFFLINE is set" if self.fault is None else str(self.fault)
        warnings.warn(
            f"the files of {self.reference} cannot be listed ({why}); {len(found)} of them are in "
            "the cache, and there may be more",
            PgmkitWarning,
            stacklevel=2,
        )
        return found

    def _offline(self) -> bool:
        return self.fault is not None or client_constants().HF_HUB_OFFLINE

    def _fetch(self, file: str) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with _worded(f"cannot fetch {file} of {self.reference}", self.name, self.revision):
            pinned = _COMMIT.fullmatch(self.revision) is not None
            cached = try_to_load_from_cache(self.name, file, revision=self.revision)
            if (pinned or self._offline()) and cached is not None:
                return None if cached is _CACHED_NO_EXIST else Path(str(cached))
            if self._offline():
                self._check_known(file)
                return None
            try:
                with guarded():
                    return Path(hf_hub_download(self.name, file, revision=self.revision))
            except Fault as fault:
                self.fault = fault
                if cached is not None:
                    return None if cached is _CACHED_NO_EXIST else Path(str(cached))
                self._check_known(file)
                return None
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                self._note_commit(error)
                return None
            except OSError as error:
                # A cache that cannot be written cannot note what is not there.
                if isinstance(error.__context__, EntryNotFoundError):
                    self._note_commit(error.__context__)
                    return None
                raise

    def _check_known(self, file: str) -> None:
        """Returns if a file is known not to exist, and raises if it is only not in the cache."""
        if self._listing is None:
            kept = self._folder() / ".pgmkit" / f"{self._cached_commit()}.json"
            if kept.is_file():
                self._listing = files.read_json(kept, self.reference)
        if self._listing is not None and file not in self._listing:
            return
        if self.fault is not None:
            raise LoadError(
                f"cannot fetch {file} of {self.reference}, which is not in the cache: "
                f"{self.fault}; {_OFFLINE}"
            )
        raise LoadError(
            f"cannot fetch {file} of {self.reference}: HF_HUB_OFFLINE is set and it is not in the "
            "cache; unset HF_HUB_OFFLINE to download it, or use local-dir:/path"
        )

    def _note_commit(self, error: Any) -> None:
        commit = error.response.headers.get("X-Repo-Commit", "")
        if _COMMIT.fullmatch(commit):
            self.revision = commit

    def _asked_commit(self) -> str:
        from huggingface_hub import HfApi

        with _worded(f"cannot open {self.reference}", self.name, self.revision), guarded():
            found = HfApi().model_info(self.name, revision=self.revision).sha
        return found or self.revision

    def _asked_listing(self) -> dict[str, int] | None:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        action = f"cannot list the files of {self.reference}"
        with _worded(action, self.name, self.revision):
            try:
                with guarded():
                    tree = HfApi().list_repo_tree(self.name, recursive=True, revision=self.revision)
                    found = list(itertools.islice(tree, _MOST_FILES + 1))
            except Fault as fault:
                self.fault = fault
                return None
        if len(found) > _MOST_FILES:
            raise LoadError(
                f"{action}: there are more than {_MOST_FILES:,}; download those that you need and "
                "use local-dir:/path"
            )
        return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}

    def _folder(self) -> Path:
        return Path(client_constants().HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def _cached_commit(self) -> str | None:
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        path = self._folder() / "refs" / self.revision
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def _cached_files(self) -> dict[str, int]:
        snapshot = self._folder() / "snapshots" / self.revision
        found = (path for path in snapshot.rglob("*") if path.is_file())
        return {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in found}


def _is_whole(path: Path) -> bool:
    """Tells whether a file of the Hub's cache has the checksum under which it is stored there.

    That is the SHA-256 of large files, and the name that git gives to small ones.
    """
    stored = path.resolve()
    if stored.parent.name != "blobs":
        return True  # a cache without links keeps no checksums
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        return files.sha256(stored) == stored.name
    if _COMMIT.fullmatch(stored.name):
        content = stored.read_bytes()
        headers = (b"blob %d\0" % len(content), b"")  # some mirrors leave git's away
        digests = [hashlib.sha1(header + content, usedforsecurity=False) for header in headers]
        return stored.name in [digest.hexdigest() for digest in digests]
    return True


def _forget(path: Path) -> None:
    """Takes a file out of the Hub's cache."""
    for each in (path.resolve(), path):
        with contextlib.suppress(OSError):
            each.unlink()


@contextlib.contextmanager
def _worded(
    action: str, name: str, revision: str = "main", *, pushing: bool = False
) -> Iterator[None]:
    """Says what the Hub's client raises in one line, without passwords and tokens.

    Nothing is chained to the error, since the client's own words hold whole addresses.
    """
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        worded = _words(error, action, name, revision, pushing)
        if worded is None:
            raise
        raise LoadError(worded) from None


def _words(
    error: BaseException, action: str, name: str, revision: str, pushing: bool
) -> str | None:
    """Returns the line for an error; None if it is not one of the Hub's client."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    outer = error
    # The client wraps what happened to an upload, and to a question that its cache cannot answer.
    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__:
        error = error.__cause__
    answered = isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None
    if pushing and answered:
        return f"{action}: {_answer(error, *_of_push(name))}"
    if isinstance(error, Fault):
        return f"{action}: {error}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{action}: HF_HUB_OFFLINE is set; unset it, since this needs a network"
    if isinstance(error, HFValidationError):
        return f"{name!r} is not a repository name; write hf-hub:org/name[@revision]"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"the repository {name!r} has no revision {revision!r}; leave '@revision' out for its "
            "newest"
        )
    if isinstance(error, GatedRepoError):
        return (
            f"the repository {name!r} is gated; accept its terms on {endpoint()}/{name} and log in "
            "with a token (hf auth login)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no repository {name!r} on {endpoint()}, or it is private; check the name, "
            "or log in with a token (hf auth login)"
        )
    if answered:
        return f"{action}: {_answer(error, _OF_FETCH, 'check HF_ENDPOINT, or try again later')}"
    if type(error).__name__ == "FileMetadataError" or isinstance(error, json.JSONDecodeError):
        return (
            f"{action}: {endpoint()} answers, but not as a Hub does; perhaps the network "
            f"wants you to log in first (open {endpoint()} in a browser), or HF_ENDPOINT is wrong"
        )
    if isinstance(error, http_library().HTTPError) or type(error).__name__ == "InvalidURL":
        return f"{action}: {fault_of(error)}"
    if isinstance(error, OSError):
        return _disk_words(error, action)
    if isinstance(error, ValueError):
        return f"{action}: {scrubbed(str(error))}"
    if pushing and isinstance(outer, RuntimeError):
        return f"{action}: {scrubbed(str(outer))}; push it again"
    return None


_OF_FETCH = {
    401: "it asks for a token, and the one that you have, if any, is wrong or has expired; log "
    "in with a token (hf auth login), or correct HF_TOKEN",
    403: "access is refused; ask its owner for access, use a token that has it "
    "(hf auth login), or check whether the network blocks the Hub",
    404: "it knows no such address, so it is no Hub; check HF_ENDPOINT",
}
"""What helps against an answer, by its status."""


def _of_push(repository: str) -> tuple[dict[int, str], str]:
    """Returns what helps against the answers to a push, and against any other."""
    owner, write = repository.partition("/")[0], "a token that may write"
    known = {
        401: f"there is no token, or a wrong one; log in with {write} (hf auth login)",
        403: f"your token may not write to {owner!r}; use {write} (hf auth login), or push to a "
        "name of your own",
        404: f"{endpoint()} has no such repository for you; log in with {write} (hf auth login), "
        "and check HF_ENDPOINT",
        409: "somebody else changed it at the same time; push it again",
        413: "it is too large for this Hub; push a smaller generator",
    }
    return known, "correct what it says, or try again later"


def _answer(error: Any, known: Mapping[int, str], otherwise: str) -> str:
    status, said = error.response.status_code, scrubbed(error.server_message or "")
    said = f" ({said})" if said else ""
    return f"{endpoint()} answers HTTP {status}{said}: {known.get(status, otherwise)}"


def _disk_words(error: OSError, action: str) -> str:
    """Returns the line for what the disk, or the end of a download, refuses."""
    cache = client_constants().HF_HUB_CACHE
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{action}: there is no room for it in the Hub's cache {cache} ({error.strerror}); "
            "free some space, or set HF_HOME to a folder on another disk"
        )
    if error.errno is not None:
        return (
            f"{action}: the Hub's cache {cache} cannot be written ({error.strerror}); set HF_HOME "
            "to a folder that can"
        )
    return (
        f"{action}: it arrives damaged from {endpoint()} ({scrubbed(str(error))}); run the same "
        "command again"
    )


def check_push(repository: str) -> None:
    """Checks what a push needs before anything is computed for it.

    Raises:
        LoadError: the name is none of the form "org/name", or HF_HUB_OFFLINE is set.
    """
    offline = client_constants().HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    refuse_token(repository)
    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise LoadError(
            f"cannot push to {repository!r}: that is no name of a repository; write org/name, with "
            "letters, digits, '-', '_' and '.'"
        )
    if offline:
        raise LoadError(
            f"cannot push to {repository!r}: HF_HUB_OFFLINE is set; unset it, or save the model "
            "with save_pretrained and push it later"
        )


def push_folder(
    folder: Path, repository: str, *, private: bool = False, message: str | None = None
) -> str:
    """Uploads a model folder to "org/name" in one commit and returns its address.

    Hidden files and spectra stay behind. What the repository holds under other names stays there.

    Raises:
        LoadError: the Hub is out of reach, or refuses.
    """
    check_push(repository)
    from huggingface_hub import HfApi

    action = f"cannot push to {repository!r}"
    with (
        _worded(action, repository, pushing=True),
        guarded(),
        warnings.catch_warnings(),
    ):
        # The client uploads in a way that its HTTP library would like to see no more.
        warnings.simplefilter("ignore", DeprecationWarning)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            ignore_patterns=list(_HIDDEN),
            commit_message=message or "Upload with pgmkit",
        )
    return f"{endpoint()}/{repository}"
