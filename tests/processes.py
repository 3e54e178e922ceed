"""Processes of their own that start at once: they are forked from one that has imported torch."""

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.util import Finalize
from pathlib import Path
from unittest import mock

import pytest
import torch
from plain import draw_plainly
from tiny import Finished, children

FORKS = multiprocessing.get_context("forkserver")
_JOBS = ("ablate", "partition", "shatter", "train")
_IMPORTED = [f"pgmkit.{room}.{job}" for room in ("cli", "jobs") for job in _JOBS]
_IMPORTED += ["torch.distributed.run", "sklearn.cluster", "matplotlib.figure", "processes"]


@functools.cache
def serve() -> None:
    """Starts what processes are forked from; some Pythons do not hand it `sys.path`."""
    FORKS.set_forkserver_preload(_IMPORTED)
    here = str(Path(__file__).parent)
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join([here, *sys.path])):
        forkserver.ensure_running()


class Forked:
    """Python with arguments, as `subprocess.Popen([sys.executable, *words])` without the imports.

    What is read from the environment at import is that of the test's process.

    Args:
        words: `-m module`, `-c code` or a script, and its arguments.
        more: variables of the environment.
    """

    def __init__(self, *words: object, **more: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._told = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for path in self._told:
            path.touch()
        given = ([*map(str, words)], {**os.environ, **more}, Path.cwd(), self._told)
        serve()
        self._process = FORKS.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Returns the exit code, or None while it runs."""
        return self._process.exitcode

    def finished(self, timeout: float) -> Finished:
        """Waits for its end.

        Raises:
            subprocess.TimeoutExpired: it did not end within so many seconds.
        """
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        stdout, stderr = (path.read_text() for path in self._told)
        return Finished(code, stdout, stderr)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kills what is left of it."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


@contextmanager
def forked(*words: object, **more: str) -> Iterator[Forked]:
    """Starts a process as `Forked` does, and ends it."""
    process = Forked(*words, **more)
    try:
        yield process
    finally:
        process.end()


def run_forked(*words: object, timeout: float = 280, **more: str) -> Finished:
    """Runs a process as `Forked` does to its end."""
    with forked(*words, **more) as process:
        return process.finished(timeout)


def run_ranks(count: int, *words: object, timeout: float = 200) -> list[Finished]:
    """Runs as many processes as torchrun would start, without its own, to their ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
    }
    ranks = [Forked(*words, **common, RANK=str(n), LOCAL_RANK=str(n)) for n in range(count)]
    try:
        return [process.finished(timeout) for process in ranks]
    finally:
        for process in ranks:
            process.end()


@contextmanager
def torchrun(count: int, *words: object) -> Iterator[Forked]:
    """Starts a command under torchrun; ends what is left of it, whatever happens."""
    start = ["-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.05"]
    with forked(*start, "--nproc-per-node", count, *words, OMP_NUM_THREADS="1") as process:
        try:
            yield process
        finally:
            # Its workers are in sessions of their own.
            for left in children(process.pid) if process.poll() is None else []:
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)


def _run(
    words: Sequence[str], variables: Mapping[str, str], folder: Path, told: Sequence[Path]
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, path in enumerate(told, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    draw_plainly(pytest.MonkeyPatch())
    # It is to be one that stands alone, and ends as such.
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    Finalize(None, atexit._run_exitfuncs, exitpriority=0)
    first, *rest = words
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
