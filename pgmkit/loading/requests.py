"""Requests to the Hub: each ends in an answer, or soon in a fault that says what it is.

Left to itself, the Hub's client waits for minutes where nobody answers, and prints each of its
tries with the address in it. Nothing here imports torch.
"""

import contextlib
import contextvars
import email.utils
import importlib
import logging
import os
import queue
import re
import socket
import ssl
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pgmkit.errors import LoadError, PgmkitWarning, first_line

ANSWER_SECONDS = 8.0
"""How long an answer may take to begin; the variable HF_HUB_ETAG_TIMEOUT sets another time."""

COMMIT_SECONDS = 60.0
"""How long the Hub may take over a commit, or over an answer to one."""

STALL_SECONDS = 30.0
"""A transfer ends in a fault where fewer than `STALL_BYTES` came in this time.

The variable HF_HUB_DOWNLOAD_TIMEOUT sets another time.
"""

STALL_BYTES = 32 * 1024

PAUSES = (1.0, 2.0)
"""Seconds before a question is asked again that met a hiccup, as long as time is left."""

PATIENCE = 5.0
"""The longest wait, in seconds, that a Hub may ask for and is granted."""

_CHUNK = 1 << 20
_LOGGERS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
_HICCUPS = (500, 502, 503, 504)
_ALONE = threading.RLock()
_TOKENS = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}")
_PASSWORDS = re.compile(r"//[^/\s@]+@")


class Fault(Exception):  # noqa: N818
    """Why a request got no answer.

    Args:
        reason: what the Hub does or is, a sentence without its subject.
        advice: what to try.
        passing: whether the same question may well be answered a moment later.
        pause: the seconds that the Hub asks to wait, if it says so.

    Attributes:
        where: the address that was asked, without its path.
    """

    def __init__(
        self, reason: str, advice: str, *, passing: bool = False, pause: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.passing = passing
        self.pause = pause
        self.where = endpoint()

    def __str__(self) -> str:
        return f"{self.where} {self.reason}; {self.advice}"


def endpoint() -> str:
    """Returns the address of the Hub without a user or password that may stand in it."""
    parts = urlsplit(str(client_constants().ENDPOINT))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def why_unreachable(seconds: float) -> str:
    """Returns why the Hub gives no answer within so many seconds, in one line; "" if it does."""
    constants = client_constants()
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import get_session

    def ask() -> Any:
        return get_session().head(constants.ENDPOINT, timeout=seconds, follow_redirects=False)

    try:
        fault = _fault_of_status(_within(time.monotonic() + seconds, seconds, ask))
    except (Fault, http_library().HTTPError, http_library().InvalidURL) as error:
        fault = error if isinstance(error, Fault) else fault_of(error)
    return "" if fault is None else f"{fault.where} {fault.reason}"


def without_secrets(text: str) -> str:
    """Returns a text without the passwords in its addresses and without tokens."""
    return _PASSWORDS.sub("//", _TOKENS.sub(r"\1_...", text))


def scrubbed(text: str) -> str:
    """Returns a foreign text on one line, without passwords, tokens and control characters."""
    line = without_secrets(" ".join(text.split()))
    return "".join(character for character in line if character.isprintable())[:300]


def holds_token(text: str) -> bool:
    """Tells whether something in a text looks like a token of the Hub."""
    return _TOKENS.search(text) is not None


def client_constants() -> Any:
    """Returns the settings of the Hub's client, which it reads from the environment.

    Raises:
        LoadError: a variable of the environment is none that it can read.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise LoadError(
            f"one of the variables HF_HUB_... of the environment is not valid: {first_line(error)}"
        ) from error
    return constants


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Gives the requests of the Hub's client deadlines, and keeps it silent.

    Files go over plain HTTP meanwhile, since hf_xet has a network of its own, without deadlines.
    One thread at a time.

    Raises:
        Fault: from within, if a request got no answer.
    """
    constants = client_constants()
    from huggingface_hub import get_session

    with _ALONE, contextlib.ExitStack() as changed:
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            changed.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        for name, value in (("HF_HUB_DISABLE_XET", True), ("DOWNLOAD_CHUNK_SIZE", _CHUNK)):
            changed.callback(setattr, constants, name, getattr(constants, name))
            setattr(constants, name, value)
        if "@" in constants.ENDPOINT:  # progress bars are called by addresses
            _without_bars(changed)
        client = get_session()
        client.send = _Guard(client.send).send  # type: ignore[method-assign]
        changed.callback(vars(client).pop, "send")
        yield


def _without_bars(changed: contextlib.ExitStack) -> None:
    utils: Any = importlib.import_module("huggingface_hub.utils")
    if not utils.are_progress_bars_disabled():
        utils.disable_progress_bars()
        changed.callback(utils.enable_progress_bars)


_OF_NO_USE = "/api/agent-harnesses"
"""What the client asks for its own statistics; a Hub that is silent would be waited for twice."""


class _Guard:
    """Sends requests with `send`, and watches what comes."""

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send
        self._library = http_library()
        self._since: float | None = None
        self._bytes = 0

    def send(self, request: Any, **options: Any) -> Any:
        """Returns the answer to a request; it may ask again after a hiccup."""
        if request.url.path == _OF_NO_USE:
            raise self._library.ConnectError("this is not asked", request=request)
        seconds = _answer_seconds(request)
        stall = _stall_seconds()
        patient = options.get("stream") or request.method == "PUT"
        request.extensions["timeout"] = {
            "connect": seconds,
            "pool": seconds,
            "read": stall if patient else seconds,
            "write": stall,
        }
        if request.method == "PUT":
            return self._put(request, options)
        deadline = time.monotonic() + seconds
        pauses = iter(PAUSES)
        while True:
            try:
                response = _within(deadline, seconds, lambda: self._send(request, **options))
                fault = _fault_of_status(response)
                if fault is None:
                    return self._watched(response) if options.get("stream") else response
                response.close()
            except self._library.HTTPError as error:
                if "Range" in request.headers:
                    raise  # the middle of a file; the client goes on from there a few times
                fault = fault_of(error)
            if request.url.host:
                fault.where = f"{request.url.scheme}://{request.url.netloc.decode()}"
            pause = next(pauses, None)
            if fault.pause is not None and pause is not None and fault.pause <= PATIENCE:
                line = f"{fault.where} {fault.reason}; waiting"
                warnings.warn(line, PgmkitWarning, stacklevel=2)
                pause = fault.pause
                deadline += pause
            elif not fault.passing or request.method not in ("GET", "HEAD"):
                raise fault
            if pause is None or time.monotonic() + pause > deadline:
                raise fault
            time.sleep(pause)

    def _put(self, request: Any, options: dict[str, Any]) -> Any:
        """Sends the contents of a file; what is cut on the way, the client sends again."""
        try:
            return self._send(request, **options)
        except (self._library.TimeoutException, self._library.ConnectError) as error:
            fault = fault_of(error)
            fault.where = f"{request.url.scheme}://{request.url.netloc.decode()}"
            raise fault from None

    def _watched(self, response: Any) -> Any:
        response.iter_raw = _Watched(self, response.iter_raw)
        self._since = self._since or time.monotonic()
        return response

    def count(self, num_bytes: int) -> None:
        """Notes that bytes came; raises `Fault` if they are too few for the time."""
        self._bytes += num_bytes
        now = time.monotonic()
        if self._since is None or self._bytes >= STALL_BYTES:
            self._since, self._bytes = now, 0
        elif now - self._since > _stall_seconds():
            raise _stalled()


class _Watched:
    """What `iter_raw` of a response yields, as long as it comes quickly enough."""

    def __init__(self, guard: _Guard, iter_raw: Callable[..., Iterator[bytes]]) -> None:
        self._guard = guard
        self._iter_raw = iter_raw

    def __call__(self, chunk_size: int | None = None) -> Iterator[bytes]:
        library = http_library()
        try:
            for chunk in self._iter_raw(chunk_size):
                self._guard.count(len(chunk))
                yield chunk
        except library.ReadTimeout:
            raise _stalled() from None
        except library.ReadError as error:
            # A cut like any other, after which the client goes on where it was.
            raise library.RemoteProtocolError(str(error)) from error


def http_library() -> Any:
    """Returns the HTTP library of the Hub's client, which changed more than once."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return sys.modules[HTTPError.__module__.partition(".")[0]]


def fault_of(error: BaseException) -> Fault:
    """Returns what an error of the HTTP library means."""
    check = "check the network and HF_ENDPOINT"
    causes = list(_chain(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Fault(
            "has a name that is not known", "there is no network, or HF_ENDPOINT is misspelt"
        )
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Fault(
            f"has a certificate that is not trusted ({scrubbed(str(error))})",
            "if the network has a proxy of its own, name its certificates in SSL_CERT_FILE",
        )
    kind = type(error).__name__
    if kind == "ProxyError":
        return Fault(
            f"is behind a proxy that refuses ({scrubbed(str(error))})", "check HTTPS_PROXY"
        )
    if kind == "TooManyRedirects":
        return Fault("redirects in a circle", "check HF_ENDPOINT")
    if kind in ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL"):
        return Fault("is no address", "check HF_ENDPOINT, which begins with https://")
    if kind in ("ConnectTimeout", "PoolTimeout", "ReadTimeout", "WriteTimeout"):
        return Fault("cannot be reached (no answer in time)", check)
    if kind == "ConnectError":
        said = [e.strerror for e in causes if isinstance(e, OSError) and e.strerror]
        return Fault(f"cannot be reached ({scrubbed([*said, str(error)][0]).lower()})", check)
    return Fault("closed the connection without an answer", check, passing=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fault_of_status(response: Any) -> Fault | None:
    """Returns the fault of a Hub that has no time or is out of order; other answers are answers."""
    status = response.status_code
    if status == 429:
        pause = _asked_pause(response.headers)
        when = "later" if pause is None else f"in {pause:.0f} s"
        return Fault(
            f"got too many requests from here (HTTP 429) and asks to come again {when}",
            f"run the same command again {when}; with a token (hf auth login) more are allowed",
            pause=pause,
        )
    if status == 408 or status >= 500:
        return Fault(
            f"is out of order (HTTP {status})",
            "try again later, and check HF_ENDPOINT if it is set",
            passing=status in _HICCUPS,
        )
    return None


def _asked_pause(headers: Any) -> float | None:
    """Returns the seconds of Retry-After, which may be a date, or of the Hub's own RateLimit."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        with contextlib.suppress(ValueError, TypeError):
            moment = email.utils.parsedate_to_datetime(value)
            return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    found = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(found[1]) if found else None


def _within(deadline: float, seconds: float, call: Callable[[], Any]) -> Any:
    """Returns what `call` returns, unless it takes too long; nobody waits for it then.

    The deadline also covers what no timeout of a socket does: the look-up of a name, and an answer
    that comes byte by byte.
    """
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.put((context.run(call), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = outcome.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise Fault(
            f"cannot be reached (no answer within {seconds:g} s)",
            "check the network and HF_ENDPOINT; HF_HUB_ETAG_TIMEOUT=60 waits longer",
        ) from None
    if error is not None:
        raise error
    return value


def _answer_seconds(request: Any) -> float:
    seconds = ANSWER_SECONDS
    if os.environ.get("HF_HUB_ETAG_TIMEOUT"):
        seconds = float(client_constants().HF_HUB_ETAG_TIMEOUT)
    if "/commit/" in request.url.path and request.method == "POST":
        seconds = max(seconds, COMMIT_SECONDS)
    return seconds


def _stall_seconds() -> float:
    if os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT"):
        return float(client_constants().HF_HUB_DOWNLOAD_TIMEOUT)
    return STALL_SECONDS


def _stalled() -> Fault:
    seconds = _stall_seconds()
    return Fault(
        f"sent less than {STALL_BYTES // 1024} KiB in {seconds:g} s",
        "check the network and run the same command again; HF_HUB_DOWNLOAD_TIMEOUT=300 waits "
        "longer",
    )
