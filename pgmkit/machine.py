"""The machine that numbers are made on, and its devices."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from pgmkit.errors import ParameterError


def machine() -> str:
    """Returns processor, cores, accelerator and Python version."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor}, {available_cores()} cores{accelerator}, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Lets tensor operations and fits of this process use at most so many threads.

    Sums over several threads differ in their last bits from run to run, and whatever is trained
    makes more of that; with one thread they do not.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count):
            yield
    finally:
        torch.set_num_threads(before)


def check_device(name: str) -> torch.device:
    """Returns the device called `name`, such as "cpu" or "cuda:1".

    Raises:
        ParameterError: there is none on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ParameterError(
            f"the device {name!r} cannot be used here; cpu always can ({reason})"
        ) from error
    return device


@contextmanager
def full_float32() -> Iterator[None]:
    """Keeps an accelerator from rounding float32 to TF32, which has 10 bits and not 23."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def available_memory() -> int | None:
    """Returns how many bytes this process may still take; None where that is not known."""
    amounts = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        amounts.append(int(found.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # of a container
        control = Path("/sys/fs/cgroup")
        limit = int((control / "memory.max").read_text())
        amounts.append(limit - int((control / "memory.current").read_text()))
    return max(0, min(amounts)) if amounts else None


def seconds_for(function: Callable[[], object], device: torch.device) -> float:
    """Returns how long a call takes, with all that it starts on a device."""
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory, of the machine or an accelerator, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
