"""Checks of engines: that they run each block once, and change nothing."""

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from pgmkit import engines
from pgmkit.contracts import blocks_by
from pgmkit.errors import EngineError, PluginError, first_line
from pgmkit.testing.case import Case, needs

_BLOCKS = range(7)
_SECONDS = 0.005


class _Work:
    """Makes a tensor of a block, on the CPU, and can be pickled."""

    device_type = "cpu"

    def __call__(self, block: int) -> dict[str, Tensor]:
        return {"block": torch.full((3,), block), "root": torch.tensor(float(block)).sqrt()}


class _OfTheWorkError(Exception):
    """What a block raises."""


class _Failing(_Work):
    def __call__(self, block: int) -> dict[str, Tensor]:
        if block == 3:
            raise _OfTheWorkError("block 3")
        return super().__call__(block)


class _Crowd(_Work):
    """Returns how many blocks this process runs at the same time."""

    _lock = threading.Lock()
    _running = 0

    def __call__(self, block: int) -> dict[str, Tensor]:
        with _Crowd._lock:
            _Crowd._running += 1
        time.sleep(_SECONDS)
        with _Crowd._lock:
            count = _Crowd._running
            _Crowd._running -= 1
        return {"count": torch.tensor(count)}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Crowd, ()


def each_block_is_yielded_once(case: Case) -> None:
    """It yields every block once, with what the function returns for it, in any order."""
    _blocks(case)


def results_are_not_changed(case: Case) -> None:
    """What it yields for a block is what the function returns, to the last bit."""
    with needs("each_block_is_yielded_once"):
        found = _blocks(case)
    for block, result in found.items():
        wanted = _Work()(block)
        case.require(
            isinstance(result, dict)
            and result.keys() == wanted.keys()
            and all(result[name].equal(value) for name, value in wanted.items()),
            f"yields for block {block} what the function does not return for it",
        )


def no_blocks_are_no_error(case: Case) -> None:
    """Of no blocks it yields nothing."""
    with needs("each_block_is_yielded_once"):
        _blocks(case)
    _run(case, _Work(), blocks=())


def blocks_can_come_one_at_a_time(case: Case) -> None:
    """With parallel=False a process runs one block at a time."""
    with needs("results_are_not_changed"):
        results_are_not_changed(case)
    found = _run(case, _Crowd(), parallel=False)
    most = max(int(result["count"]) for result in found.values())
    case.require(most == 1, f"runs {most} blocks at a time in one process with parallel=False")


def errors_of_the_work_stay(case: Case) -> None:
    """What the function raises ends the rest, and is raised as it is."""
    with needs("each_block_is_yielded_once"):
        _blocks(case)
    try:
        _run(case, _Failing())
    except PluginError as error:
        case.require(
            isinstance(error.__cause__, _OfTheWorkError),
            f"raises another error than the function does: {error}",
        )
        return
    case.require(False, "yields something for a block of which the function raises an error")


def processes_agree(case: Case) -> None:
    """`coordinator` is true or false, and `decide` returns what the function does, or its error."""
    engine = case.built()
    if not hasattr(engine, "decide") and not hasattr(engine, "coordinator"):
        raise SkipTest("it has no coordinator and decide, so one process runs the command")
    case.require(
        isinstance(getattr(engine, "coordinator", True), bool), "has a coordinator that is no bool"
    )
    case.require(
        engines.decide(engine, lambda: 7) == 7,
        "has a decide that does not return what the function does",
    )
    try:
        engines.decide(engine, lambda: _Failing()(3))
    except _OfTheWorkError:
        return
    case.require(False, "has a decide that does not raise what the function does")


def threads_are_counted(case: Case) -> None:
    """`threads`, for tensor operations of a worker, is a whole number from 1."""
    threads = getattr(case.built(), "threads", None)
    if threads is None:
        raise SkipTest("it has no threads, so workers have as many as this process")
    case.require(
        type(threads) is int and threads >= 1,
        f"has threads = {threads!r:.40}; it must be a whole number from 1",
    )


def _blocks(case: Case) -> dict[int, Any]:
    """Returns what it yields for all blocks; an engine may take long to start, so it runs once."""
    return case.once("blocks", lambda: _run(case, _Work()))


def _run(
    case: Case,
    function: Callable[[int], Any],
    *,
    blocks: Sequence[int] = _BLOCKS,
    parallel: bool = True,
) -> dict[int, Any]:
    with needs("is_built"):
        engine = case.built()
    pickle.dumps(function)
    try:
        return dict(blocks_by(engine, function, list(blocks), parallel=parallel))
    except EngineError as error:
        raise SkipTest(f"it cannot run here: {first_line(error)}") from error
