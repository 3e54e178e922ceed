"""A Hugging Face Hub for tests: 127.0.0.1, a free port, everything in memory.

It answers what `huggingface_hub` asks in order to list and download files, to create repositories
and to commit to them, large files through LFS, with the status codes and headers of the real Hub.
It also plays a Hub, or a network, that is out of order.
"""

import base64
import functools
import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import close_session, constants

_LICENSES = ("apache-2.0", "cc-by-4.0", "mit", "other", "unknown")
_LARGE = 10_000_000
_certificates = functools.cache(ssl.create_default_context)  # take 20 ms to read
_ALWAYS_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".png", ".npz")


@dataclass
class Repository:
    """One model repository.

    Args:
        private: whether only requests with the right token see it.
        gated: whether its terms were not accepted yet.
        commits: files by commit.
        refs: commit by branch or tag.
    """

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str) -> str:
        """Makes `files` the whole contents of `ref` and returns the commit."""
        digest = hashlib.sha1(repr((self.refs.get(ref), sorted(files.items()))).encode())
        commit = digest.hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit

    def find_commit(self, revision: str) -> str | None:
        """Returns the commit of a branch, a tag or a commit."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass(frozen=True)
class Request:
    """What a client asked for, and the token that it sent."""

    method: str
    path: str
    token: str | None


class HubServer:
    """Serves while the `with` block runs.

    Attributes:
        token: may see and write everything.
        reader: a token that may see everything and write nothing.
        objects: the contents of large files that were uploaded, by SHA-256.
        repositories: by "org/name".
        requests: all that came, in order.
        failure: a status that answers every request, to play a broken Hub.
        failure_headers: what goes with `failure`.
        failures: how many requests fail so before all is well; None is no end.
        hangs_up: whether connections are closed without an answer.
        fault: gets a request first, and returns whether it has dealt with it.
        send_body: writes the body of an answer.
        page: how many files a page of a listing holds.
        stopped: set when the server stops, for those who wait.
    """

    def __init__(self, token: str = "hf_right") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.failure: int | None = None
        self.failure_headers: dict[str, str] = {}
        self.failures: int | None = None
        self.reader = "hf_reader"
        self.objects: dict[str, bytes] = {}
        self.page = 1000
        self.hangs_up = False
        self.fault: Callable[[Handler], bool] | None = None
        self.send_body: Callable[[Handler, bytes], None] = lambda to, body: to.send(body)
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.hub = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """The endpoint; it stays the same after `stop`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(
        self,
        name: str,
        files: Mapping[str, bytes] | Path,
        *,
        ref: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commits files, or those of a folder, to a new or existing repository.

        Returns:
            The commit, as the Hub names it.
        """
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in files.rglob("*")
                if path.is_file()
            }
        repository = self.repositories.setdefault(name, Repository(private, gated))
        return repository.commit(files, ref)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Returns the files of a repository."""
        repository = self.repositories[name]
        return repository.commits[repository.refs.get(revision, revision)]

    def downloads(self) -> list[str]:
        """Returns the paths of all files whose contents went out, in order."""
        return [r.path for r in self.requests if r.method == "GET" and "/resolve/" in r.path]

    def stop(self) -> None:
        """Takes the server down: from now on connections are refused."""
        self.stopped.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Does to the client what HF_ENDPOINT and HF_HOME do before it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "agents.json"), False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(ssl, "create_default_context", _certificates)
    # An upload starts a library of its own, which reads the environment and keeps logs.
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_XET_CACHE", str(home / "xet"))
    close_session()


class _Server(ThreadingHTTPServer):
    hub: HubServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away."""


class _Answer(Exception):  # noqa: N818
    """Ends a request with an answer."""

    def __init__(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


def _json(value: Any, status: int = 200) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _refusal(status: int, code: str, message: str, **headers: str) -> _Answer:
    answer = _json({"error": message}, status)
    answer.headers |= {"X-Error-Message": message, **headers}
    if code:
        answer.headers["X-Error-Code"] = code
    return answer


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path: str, size: int) -> bool:
    return size > _LARGE or path.endswith(_ALWAYS_LARGE)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    # HTTP/1.0, the default, closes each connection, so that a stopped server is gone at once.
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def send(self, data: bytes) -> None:
        """Sends bytes at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def drip(self, data: bytes, seconds: float) -> None:
        """Sends byte by byte, with pauses, until the server stops."""
        for index in range(len(data)):
            if self.server.hub.stopped.wait(seconds):
                return
            self.send(data[index : index + 1])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _answer(self) -> None:
        hub = self.server.hub
        self.body = self._read_body()
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        self.token = token if scheme == "Bearer" else None
        hub.requests.append(Request(self.command, self.path, self.token))
        if hub.hangs_up or (hub.fault is not None and hub.fault(self)):
            return
        try:
            if hub.failure is not None and hub.failures != 0:
                hub.failures = None if hub.failures is None else hub.failures - 1
                raise _refusal(hub.failure, "", "the Hub is out of order", **hub.failure_headers)
            self._route(urlsplit(self.path).path.strip("/").split("/"))
        except _Answer as answer:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                hub.send_body(self, answer.body)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self, parts: list[str]) -> None:
        hub = self.server.hub
        if self.token not in (None, hub.token, hub.reader):
            raise _refusal(401, "", "Invalid credentials in Authorization header")
        match [self.command, *map(unquote, parts)]:
            case ["HEAD" | "GET", org, name, "resolve", revision, *path]:
                self._resolve(f"{org}/{name}", revision, "/".join(path))
            case ["POST", "api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["POST", "api", "validate-yaml"]:
                self._validate_card(json.loads(self.body)["content"])
            case ["GET", "api", "models", org, name, "revision", revision]:
                sha = self._commit_of(self._repository(f"{org}/{name}"), revision)
                raise _json({"id": f"{org}/{name}", "sha": sha})
            case ["GET", "api", "models", org, name, "tree", revision]:
                self._tree(f"{org}/{name}", revision)
            case ["POST", org, name, "info", "lfs", "objects", "batch"]:
                self._batch(f"{org}/{name.removesuffix('.git')}")
            case ["PUT", "storage", oid]:
                self._store(oid)
            case ["POST", "storage", "verify"]:
                self._verify(json.loads(self.body))
            case ["POST", "api", "models", org, name, "preupload", revision]:
                self._preupload(f"{org}/{name}", revision)
            case ["POST", "api", "models", org, name, "commit", revision]:
                self._commit(f"{org}/{name}", revision)
        raise _refusal(404, "", f"there is no {self.path}")

    def _repository(self, name: str) -> Repository:
        repository = self.server.hub.repositories.get(name)
        if repository is None or (repository.private and self.token is None):
            # The real Hub tells nobody without a token which private names exist.
            status = 401 if self.token is None else 404
            raise _refusal(status, "RepoNotFound", "Repository not found")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.find_commit(revision)
        if commit is None:
            raise _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository.gated:
            raise _refusal(
                401 if self.token is None else 403, "GatedRepo", f"Access to {name} is restricted"
            )
        commit = self._commit_of(repository, revision)
        content = repository.commits[commit].get(path)
        if content is None:
            raise _refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        headers = {"ETag": f'"{_git_oid(content)}"', "X-Repo-Commit": commit}
        if _is_large(path, len(content)):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        start = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if self.command == "GET" and start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            raise _Answer(206, content[int(start) :], headers)
        raise _Answer(200, content, headers)

    def _tree(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        files = sorted(repository.commits[self._commit_of(repository, revision)].items())
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.server.hub.page
        answer = _json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
                for path, content in files[start:end]
            ]
        )
        if end < len(files):
            path = f"{self.server.hub.url}{urlsplit(self.path).path}"
            answer.headers["Link"] = f'<{path}?recursive=True&cursor={end}>; rel="next"'
        raise answer

    def _batch(self, name: str) -> None:
        self._must_write()
        self._repository(name)
        hub = self.server.hub
        wanted = json.loads(self.body)
        actions = {"verify": {"href": f"{hub.url}/storage/verify"}}
        objects = [
            {"oid": each["oid"], "size": each["size"]}
            if each["oid"] in hub.objects
            else {
                **each,
                "actions": actions | {"upload": {"href": f"{hub.url}/storage/{each['oid']}"}},
            }
            for each in wanted["objects"]
        ]
        raise _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _refusal(400, "", "the contents have another SHA-256")
        self.server.hub.objects[oid] = self.body
        raise _Answer(200)

    def _verify(self, wanted: Mapping[str, Any]) -> None:
        if len(self.server.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise _refusal(404, "", "the object is not there")
        raise _Answer(200)

    def _must_write(self) -> None:
        if self.token is None:
            raise _refusal(401, "", "Invalid username or password.")
        if self.token == self.server.hub.reader:
            raise _refusal(403, "", "You don't have the rights to write here")

    def _create(self, wanted: Mapping[str, Any]) -> None:
        self._must_write()
        hub = self.server.hub
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in hub.repositories:
            answer = {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
            raise _json(answer, 409)
        hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        hub.repositories[name].commit({}, "main")
        raise _json({"url": f"{hub.url}/{name}", "name": name})

    def _validate_card(self, card: str) -> None:
        lines = card.splitlines()
        if lines[:1] != ["---"] or "---" not in lines[1:]:
            raise _json({"errors": [], "warnings": [{"message": "empty metadata"}]})
        metadata = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
        if metadata.get("license") not in _LICENSES:
            message = f'"license" must be one of {", ".join(_LICENSES)}'
            raise _json({"errors": [{"message": message}], "warnings": []}, 400)
        raise _json({"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str) -> None:
        self._must_write()
        repository = self._repository(name)
        there = repository.commits[self._commit_of(repository, revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(file["path"], there),
            }
            for file in json.loads(self.body)["files"]
        ]
        raise _json({"files": files})

    def _oid(self, path: str, there: Mapping[str, bytes]) -> str | None:
        """Returns the name under which the Hub keeps the contents of a file that is there."""
        content = there.get(path)
        if content is None:
            return None
        if _is_large(path, len(content)):
            return hashlib.sha256(content).hexdigest()
        return _git_oid(content)

    def _commit(self, name: str, revision: str) -> None:
        self._must_write()
        repository = self._repository(name)
        files = dict(repository.commits[self._commit_of(repository, revision)])
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.server.hub.objects[entry["value"]["oid"]]
            elif entry["key"] != "header":
                raise _refusal(400, "", f"this server does not know {entry['key']}")
        commit = repository.commit(files, revision)
        url = f"{self.server.hub.url}/{name}/commit/{commit}"
        raise _json({"commitUrl": url, "commitOid": commit})
