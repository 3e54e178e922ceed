"""Weak networks and broken caches: each fault is said as what it is, and soon."""

import email.utils
import hashlib
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hub_server import Handler, HubServer, use_hub
from huggingface_hub import constants, get_session
from tiny import begun

from pgmkit.errors import LoadError, PgmkitWarning
from pgmkit.loading import requests
from pgmkit.loading.folders import ModelFolder, open_local_folder
from pgmkit.loading.hub import Address, open_repository, parse_address, push_folder

WEIGHTS = bytes(range(256)) * 800  # 200 KiB; nobody reads it as weights
FILES = {"config.json": b'{"name": "tiny"}', "model.safetensors": WEIGHTS, "sub/notes.txt": b"hi"}

OPEN = """
from pgmkit.cli import main
import click

@click.command()
def fetch():
    from pgmkit.loading.hub import open_repository
    folder = open_repository("org/tiny", "hf-hub:org/tiny")
    click.echo(len(folder.path("model.safetensors").read_bytes()))

main(fetch)
"""
"""What a process of its own does, with the messages and exit codes of the command line."""


def open_tiny() -> ModelFolder:
    return open_repository("org/tiny", "hf-hub:org/tiny")


def fetch_weights() -> bytes:
    return open_tiny().path("model.safetensors").read_bytes()


def refusal(call: Callable[[], Any] = fetch_weights) -> str:
    """Returns what is said where `call` fails, which is one line."""
    with pytest.raises(LoadError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_alone(server: HubServer, home: Path, **environment: str) -> "subprocess.Popen[str]":
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), **environment}
    return begun([sys.executable, "-c", OPEN], **variables)


def is_weights(handler: Handler) -> bool:
    return handler.command == "GET" and "model.safetensors" in handler.path


# Out of reach


def test_a_refused_connection_is_said_at_once_with_the_way_to_work_offline(
    server: HubServer,
) -> None:
    server.stop()
    started = time.monotonic()
    message = refusal()
    assert time.monotonic() - started < 5
    assert f"{server.url} cannot be reached (connection refused)" in message
    assert "local-dir:/path" in message
    assert "HF_HUB_OFFLINE=1" in message


def test_the_command_line_says_one_line_within_ten_seconds(
    server: HubServer, tmp_path: Path
) -> None:
    server.stop()
    started = time.monotonic()
    run = run_alone(server, tmp_path)
    _, said = run.communicate()
    assert time.monotonic() - started < 10
    assert run.returncode == 1
    assert len(said.splitlines()) == 1
    assert said.startswith("error: cannot fetch config.json of hf-hub:org/tiny")


def test_a_name_that_nobody_knows_is_no_network_or_misspelt(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unknown(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    use_hub(monkeypatch, "http://hub.invalid", tmp_path / "home")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "http://hub.invalid has a name that is not known" in refusal()


def test_a_look_up_without_end_ends(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_hub(monkeypatch, "http://hub.invalid", tmp_path / "home")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: server.stopped.wait() and [])
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.2)
    assert "http://hub.invalid cannot be reached (no answer within 0.2 s)" in refusal()


def silent(handler: Handler) -> bool:
    handler.server.hub.stopped.wait()
    return True


def dripping(handler: Handler) -> bool:
    handler.drip(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n" * 100, seconds=0.02)
    return True


@pytest.mark.parametrize("fault", [silent, dripping])
def test_a_hub_that_does_not_answer_in_time_is_not_waited_for(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Handler], bool]
) -> None:
    server.fault = fault
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    assert f"{server.url} cannot be reached (no answer within 0.3 s)" in refusal()
    assert time.monotonic() - started < 3


def test_the_time_for_an_answer_is_that_of_the_client_where_it_is_set(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requests.ANSWER_SECONDS < 10
    server.fault = silent
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    assert "no answer within 0.2 s" in refusal()


def test_the_cache_serves_while_the_hub_is_silent(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/tiny", FILES)
    fetch_weights()
    server.fault = silent
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.2)
    started = time.monotonic()
    assert fetch_weights() == WEIGHTS
    assert time.monotonic() - started < 2


def test_a_hub_that_does_not_answer_is_asked_once(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/tiny", FILES)
    fetch_weights()
    server.fault = silent
    monkeypatch.setattr(requests, "ANSWER_SECONDS", 0.2)
    folder = open_tiny()
    server.requests.clear()
    for name in ("sub/notes.txt", "other.pt", "another.pt"):
        assert f"cannot fetch {name}" in refusal(lambda name=name: folder.fetch(name))
    assert server.requests == []


# Answers that are none


def test_an_error_without_a_cause_is_told_from_an_unreachable_hub(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    said = {}
    for status in (403, 404):
        server.failure = status
        said[status] = refusal()
    assert "HTTP 403 (the Hub is out of order): access is refused" in said[403]
    assert "HTTP 404" in said[404]
    assert "it is no Hub; check HF_ENDPOINT" in said[404]
    assert not any("cannot be reached" in message for message in said.values())


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 599])
def test_a_hub_that_is_out_of_order_says_with_which_status(
    server: HubServer, no_pauses: list[float], status: int
) -> None:
    server.failure = status
    assert f"{server.url} is out of order (HTTP {status}); try again later" in refusal()
    assert len(server.requests) <= 3


@pytest.mark.parametrize("status", [500, 503])
def test_a_hiccup_is_asked_over(server: HubServer, no_pauses: list[float], status: int) -> None:
    server.add("org/tiny", FILES)
    server.failure, server.failures = status, 2
    assert fetch_weights() == WEIGHTS
    assert no_pauses == list(requests.PAUSES)


def test_a_long_wait_that_the_hub_asks_for_is_told_and_not_waited_for(
    server: HubServer, no_pauses: list[float]
) -> None:
    server.failure, server.failure_headers = 429, {"Retry-After": "300"}
    message = refusal()
    assert "too many requests from here (HTTP 429) and asks to come again in 300 s" in message
    assert "run the same command again in 300 s" in message
    assert no_pauses == []


def test_a_wait_may_be_asked_for_as_a_date_or_in_the_words_of_the_hub(
    server: HubServer, no_pauses: list[float]
) -> None:
    server.failure = 429
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    server.failure_headers = {"Retry-After": date}
    assert re.search(r"come again in (9\d|100) s", refusal())
    server.failure_headers = {"RateLimit": '"api";r=0;t=55'}
    assert "come again in 55 s" in refusal()
    server.failure_headers = {}
    assert "asks to come again later" in refusal()


def test_a_short_wait_is_granted_and_said(server: HubServer, no_pauses: list[float]) -> None:
    server.add("org/tiny", FILES)
    server.failure, server.failures, server.failure_headers = 429, 1, {"Retry-After": "3"}
    with pytest.warns(PgmkitWarning, match=r"HTTP 429\) and asks to come again in 3 s; waiting"):
        assert fetch_weights() == WEIGHTS
    assert no_pauses == [3.0]


def portal(handler: Handler) -> bool:
    handler.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n")
    if handler.command != "HEAD":
        handler.send(b"<html")
    return True


def portal_elsewhere(handler: Handler) -> bool:
    handler.send(b"HTTP/1.0 302 Found\r\nLocation: http://login.invalid/\r\n\r\n")
    return True


@pytest.mark.parametrize("fault", [portal, portal_elsewhere])
def test_a_login_page_of_the_network_is_no_hub(
    server: HubServer, fault: Callable[[Handler], bool]
) -> None:
    server.fault = fault
    message = refusal()
    assert f"{server.url} answers, but not as a Hub does" in message
    assert "log in" in message


def test_a_login_page_instead_of_a_listing_is_no_hub(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    folder = open_tiny()
    server.fault = portal
    assert "answers, but not as a Hub does" in refusal(folder.names)


@pytest.mark.parametrize("asked", ["HEAD", "GET"])
def test_a_circle_of_redirects_ends(server: HubServer, asked: str) -> None:
    server.add("org/tiny", FILES)

    def circle(handler: Handler) -> bool:
        if handler.command == asked:
            handler.send(f"HTTP/1.0 302 Found\r\nLocation: {handler.path}\r\n\r\n".encode())
        return handler.command == asked

    server.fault = circle
    assert f"{server.url} redirects in a circle; check HF_ENDPOINT" in refusal()


# Downloads


def test_a_cut_download_goes_on_where_it_was(server: HubServer, no_pauses: list[float]) -> None:
    server.add("org/tiny", FILES)
    cuts = [70_000, 90_000]
    ranges = []

    def cut(handler: Handler, body: bytes) -> None:
        if is_weights(handler):
            ranges.append(handler.headers.get("Range"))
            body = body[: cuts.pop(0)] if cuts else body
        handler.send(body)

    server.send_body = cut
    network_chunk = 1 << 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "_CHUNK", network_chunk)
        assert fetch_weights() == WEIGHTS
    assert ranges[0] is None
    assert ranges[1:] == [f"bytes={network_chunk}-", f"bytes={2 * network_chunk}-"]


def test_a_download_that_is_cut_again_and_again_ends(
    server: HubServer, no_pauses: list[float], tmp_path: Path
) -> None:
    server.add("org/tiny", FILES)
    server.send_body = lambda handler, body: handler.send(
        body[:10] if is_weights(handler) else body
    )
    assert f"{server.url} closed the connection" in refusal()
    assert list((tmp_path / "home").rglob("*.incomplete")) == []
    server.send_body = lambda handler, body: handler.send(body)
    assert fetch_weights() == WEIGHTS


def test_a_download_that_drips_is_ended(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.add("org/tiny", FILES)
    server.send_body = lambda handler, body: (
        handler.drip(body, 0.02) if is_weights(handler) else handler.send(body)
    )
    monkeypatch.setattr(requests, "STALL_SECONDS", 0.4)
    started = time.monotonic()
    assert f"{server.url} sent less than 32 KiB in 0.4 s" in refusal()
    assert time.monotonic() - started < 5
    assert list((tmp_path / "home").rglob("*.incomplete")) == []


def test_a_download_that_falls_silent_is_ended(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/tiny", FILES)

    def stop(handler: Handler, body: bytes) -> None:
        handler.send(body[:50_000] if is_weights(handler) else body)
        if is_weights(handler):
            server.stopped.wait()

    server.send_body = stop
    monkeypatch.setattr(requests, "STALL_SECONDS", 0.4)
    assert "sent less than 32 KiB in 0.4 s" in refusal()


def test_a_slow_but_steady_download_is_left_to_end(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/tiny", FILES)

    def slowly(handler: Handler, body: bytes) -> None:
        for start in range(0, len(body), 20_000):
            handler.send(body[start : start + 20_000])
            time.sleep(0.12 if is_weights(handler) else 0)

    server.send_body = slowly
    monkeypatch.setattr(requests, "STALL_SECONDS", 0.5)
    started = time.monotonic()
    assert fetch_weights() == WEIGHTS
    assert time.monotonic() - started > 2 * requests.STALL_SECONDS


@pytest.mark.parametrize("name", ["model.safetensors", "sub/notes.txt"])
def test_what_arrives_damaged_is_fetched_again(server: HubServer, name: str) -> None:
    server.add("org/tiny", FILES)
    damaged = [b"\0" * len(FILES[name])]

    def damage(handler: Handler, body: bytes) -> None:
        handler.send(damaged.pop() if name in handler.path and damaged else body)

    server.send_body = damage
    assert open_tiny().path(name).read_bytes() == FILES[name]
    assert damaged == []


def test_what_arrives_damaged_again_is_refused(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", FILES)
    server.send_body = lambda handler, body: handler.send(
        bytes(len(body)) if is_weights(handler) else body
    )
    assert "arrives damaged" in refusal()
    server.send_body = lambda handler, body: handler.send(body)
    assert fetch_weights() == WEIGHTS


def test_two_processes_that_download_at_once_both_get_the_file(
    server: HubServer, tmp_path: Path
) -> None:
    server.add("org/tiny", FILES)
    both = threading.Barrier(2)

    def together(handler: Handler) -> bool:
        if handler.command == "HEAD" and "config.json" in handler.path:
            both.wait(timeout=20)
        return False

    server.fault = together
    runs = [run_alone(server, tmp_path / "shared") for _ in range(2)]
    for run in runs:
        printed, said = run.communicate()
        assert (run.returncode, printed.strip()) == (0, str(len(WEIGHTS))), said
    blobs = list((tmp_path / "shared").rglob("blobs/*"))
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in blobs} >= {
        hashlib.sha256(WEIGHTS).hexdigest()
    }
    assert not any(path.name.endswith(".incomplete") for path in blobs)


def test_ctrl_c_in_a_download_leaves_no_broken_cache(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", FILES)
    begun = threading.Event()

    def drip(handler: Handler, body: bytes) -> None:
        if is_weights(handler):
            handler.send(body[:1000])
            begun.set()
            handler.drip(body[1000:], 0.05)
        else:
            handler.send(body)

    server.send_body = drip
    run = run_alone(server, tmp_path / "cache")
    assert begun.wait(20)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=10)
    assert run.returncode == 1
    assert "Traceback" not in said
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []
    server.send_body = lambda handler, body: handler.send(body)
    again = run_alone(server, tmp_path / "cache")
    assert again.communicate()[0].strip() == str(len(WEIGHTS))


# The cache


def test_a_disk_that_is_full_is_said_with_the_folder(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", FILES)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); {OPEN}"
    done = subprocess.run(
        [sys.executable, "-c", limited.replace("; \n", "\n")],
        env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "disk")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "error: cannot fetch model.safetensors of hf-hub:org/tiny: there is no room" in last
    assert f"{tmp_path / 'disk' / 'hub'} (File too large)" in last
    assert "HF_HOME" in last
    assert list((tmp_path / "disk").rglob("*.incomplete")) == []


def test_a_cache_that_cannot_be_written_is_named(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tiny", FILES)
    (tmp_path / "home").write_text("a file where the cache should be")
    message = refusal()
    assert f"the Hub's cache {tmp_path / 'home' / 'hub'} cannot be written" in message
    assert "set HF_HOME" in message


def test_a_damaged_file_in_the_cache_is_fetched_again(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    path = open_tiny().path("model.safetensors")
    for damage in (WEIGHTS[:-1], b"", bytes(len(WEIGHTS))):
        path.resolve().write_bytes(damage)
        assert fetch_weights() == WEIGHTS
    path.resolve().unlink()
    assert fetch_weights() == WEIGHTS


def test_a_damaged_file_in_the_cache_is_refused_offline(
    server: HubServer, offline: Callable[[], None]
) -> None:
    server.add("org/tiny", FILES)
    path = open_tiny().path("model.safetensors")
    path.resolve().write_bytes(bytes(len(WEIGHTS)))
    offline()
    message = refusal()
    assert f"{path} in the Hub's cache is damaged" in message
    assert path.exists()


# What a repository holds


def test_names_and_sizes_are_those_of_the_commit(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    server.page = 2
    folder = open_tiny()
    server.add("org/tiny", {"config.json": b"{}", "later.txt": b""})
    assert folder.names() == sorted(FILES)
    assert folder.sizes() == {name: len(content) for name, content in FILES.items()}
    assert server.downloads() == [server.downloads()[0]]


def test_a_commit_is_listed_once(server: HubServer, offline: Callable[[], None]) -> None:
    server.add("org/tiny", FILES)
    open_tiny().names()
    server.requests.clear()
    assert open_tiny().names() == sorted(FILES)
    assert [request.method for request in server.requests] == ["HEAD"]
    offline()
    folder = open_tiny()
    assert folder.names() == sorted(FILES)
    assert folder.fetch("other.pt") is None
    assert "HF_HUB_OFFLINE is set" in refusal(lambda: folder.fetch("sub/notes.txt"))


def test_offline_the_cache_is_all_that_is_known_and_that_is_said(
    server: HubServer, offline: Callable[[], None]
) -> None:
    server.add("org/tiny", FILES)
    fetch_weights()
    offline()
    with pytest.warns(PgmkitWarning, match=r"HF_HUB_OFFLINE is set\); 2 of them are in the cache"):
        found = open_tiny().sizes()
    assert found == {name: len(FILES[name]) for name in ("config.json", "model.safetensors")}


def test_a_listing_that_fails_says_why(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    folder = open_tiny()
    server.failure = 429
    with pytest.warns(PgmkitWarning, match=r"cannot be listed .*HTTP 429.*; 1 of them"):
        assert folder.names() == ["config.json"]


@pytest.mark.parametrize("revision", ["", "@v1", "@COMMIT"])
def test_a_repository_without_config_json_opens_and_is_pinned(
    server: HubServer, offline: Callable[[], None], revision: str
) -> None:
    commit = server.add("org/bare", {"netG.pth": b"weights"})
    server.repositories["org/bare"].refs["v1"] = commit
    name = "org/bare" + revision.replace("COMMIT", commit)
    folder = open_repository(name, f"hf-hub:{name}")
    server.add("org/bare", {"netG.pth": b"others"})
    assert folder.provenance == {"repo": "org/bare", "revision": commit}
    assert folder.fetch("config.json") is None
    assert folder.names() == ["netG.pth"]
    assert folder.path("netG.pth").read_bytes() == b"weights"
    offline()
    again = open_repository(name, f"hf-hub:{name}")
    assert again.provenance == folder.provenance
    assert again.fetch("config.json") is None
    assert again.path("netG.pth").read_bytes() == b"weights"


def test_a_config_json_costs_no_more_than_its_download(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    open_tiny()
    assert [request.method for request in server.requests] == ["HEAD", "GET"]


def test_a_local_folder_tells_sizes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "g.pt").write_bytes(b"12345")
    folder = open_local_folder(tmp_path, "local-dir:x")
    assert folder.sizes() == {"sub/g.pt": 5}
    assert folder.names() == ["sub/g.pt"]


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://huggingface.co/org/name", Address("org/name")),
        ("http://huggingface.co/org/na.me-v1.5/", Address("org/na.me-v1.5")),
        ("huggingface.co/org/name", Address("org/name")),
        ("https://hf.co/org/name?library=x#usage", Address("org/name")),
        ("https://huggingface.co/org/name/tree/main", Address("org/name")),
        ("https://huggingface.co/org/name/tree/v1/a/b", Address("org/name", "v1", "a/b")),
        ("https://huggingface.co/org/name/blob/main/G.pth", Address("org/name", None, "G.pth")),
        (
            "https://huggingface.co/org/name/resolve/abc/w/G%20x.pth?download=true",
            Address("org/name", "abc", "w/G x.pth"),
        ),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", Address("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/tree/refs/pr/1/a", Address("org/name", "refs/pr/1", "a")),
        ("https://huggingface.co/org/name/discussions", Address("org/name")),
        ("org/name", None),
        ("hf-hub:org/name", None),
        ("https://example.org/org/name", None),
        ("runs/huggingface.co", None),
    ],
)
def test_addresses_of_the_hub_are_read(text: str, address: Address | None) -> None:
    assert parse_address(text) == address


def test_an_address_of_a_mirror_is_read(server: HubServer) -> None:
    assert parse_address(f"{server.url}/org/name/tree/v1") == Address("org/name", "v1")


@pytest.mark.parametrize("text", ["https://huggingface.co/datasets/org/x", "https://hf.co/"])
def test_an_address_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(LoadError, match=r"is the address of .*; pgmkit loads models"):
        parse_address(text)


# Secrets


SECRET = "hf_" + "Abc123" * 5


@pytest.mark.parametrize(
    "call",
    [
        lambda: open_repository(f"org/tiny@{SECRET}", f"hf-hub:org/tiny@{SECRET}"),
        lambda: open_repository(f"{SECRET}/tiny", f"hf-hub:{SECRET}/tiny"),
        lambda: parse_address(f"https://user:{SECRET}@huggingface.co/org/tiny"),
        lambda: push_folder(Path(), f"me/{SECRET}"),
    ],
)
def test_a_token_in_a_reference_is_refused_and_not_repeated(
    server: HubServer, call: Callable[[], Any]
) -> None:
    message = refusal(call)
    assert "there is a token in the reference" in message
    assert SECRET not in message
    assert server.requests == []


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """Yields what all loggers say meanwhile."""
    everything, text = logging.getLogger(), io.StringIO()
    level, handler = everything.level, logging.StreamHandler(text)
    everything.addHandler(handler)
    everything.setLevel(logging.INFO)
    try:
        yield text
    finally:
        everything.setLevel(level)
        everything.removeHandler(handler)


@pytest.mark.parametrize("state", ["down", "503", "403", "portal", "missing", "well"])
def test_a_password_in_the_endpoint_is_never_shown(
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    no_pauses: list[float],
    state: str,
) -> None:
    server.add("org/tiny", FILES)
    use_hub(monkeypatch, server.url.replace("//", "//user:hunter2@"), tmp_path / "home")
    server.failure = {"503": 503, "403": 403}.get(state)
    server.fault = portal if state == "portal" else None
    if state == "down":
        server.stop()
    told = ""
    with logged() as log:
        try:
            name = "org/other" if state == "missing" else "org/tiny"
            open_repository(name, f"hf-hub:{name}").path("model.safetensors")
        except LoadError as error:
            told = "".join(traceback.format_exception(error))
    shown = capfd.readouterr()
    assert (server.url in told) == (state != "well")
    assert "hunter2" not in told + log.getvalue() + shown.out + shown.err


def test_the_client_is_as_it_was_afterwards(server: HubServer) -> None:
    server.add("org/tiny", FILES)
    loggers = [logging.getLogger(name).level for name in ("huggingface_hub", "httpx2")]
    before = (constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE, loggers)
    fetch_weights()
    loggers = [logging.getLogger(name).level for name in ("huggingface_hub", "httpx2")]
    assert (constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE, loggers) == before
    assert "send" not in vars(get_session())


def test_a_variable_of_the_client_that_is_no_number_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN],
        env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "soon"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: one of the variables HF_HUB_\.\.\. .*'soon'\n", done.stderr)
