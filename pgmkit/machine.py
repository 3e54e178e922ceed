"""The machine that numbers are made on, and its devices."""

import contextlib
import ctypes
import functools
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from pgmkit.errors import ParameterError, first_line, shortened

_LITTLE = 2**20
"""Bytes that are there without asking, which takes 0.2 ms; batches are checked all the time."""


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


def available_memory() -> int | None:
    """Returns how many bytes this process can still take, as far as the system says.

    The least of what is free, of what the control group has left, and of the limit that a shell
    has set (`ulimit -v`); None where the system says nothing.
    """
    found = [*_free_memory(), *_left_in_control_group()]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit - _address_space())
    return max(0, min(found)) if found else None


def check_memory(num_bytes: int, what: str, remedy: str) -> None:
    """Checks that there is memory for something before it is taken.

    Args:
        num_bytes: an estimate of what is needed at the same time.
        what: what needs it, as the subject of a sentence in the plural.
        remedy: what to do if there is not enough, as an imperative.

    Raises:
        ParameterError: there is not enough.
    """
    if num_bytes <= _LITTLE:
        return
    available = available_memory()
    if available is not None and num_bytes > available:
        raise ParameterError(
            f"{what} need about {_gigabytes(num_bytes)} of memory, and {_gigabytes(available)} "
            f"are free; {remedy}"
        )


def check_disk(num_bytes: int, path: Path, what: str) -> None:
    """Checks that there is room on a disk for something before it is written.

    Args:
        num_bytes: an estimate of its size.
        path: where it is to go; it need not exist.
        what: what needs it, as the subject of a sentence in the plural.

    Raises:
        ParameterError: there is not enough.
    """
    whole = path.absolute()
    existing = next(place for place in (whole, *whole.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise ParameterError(
            f"{what} need about {_gigabytes(num_bytes)} of disk space, and {_gigabytes(free)} are "
            f"free at {existing}; ask for fewer, or choose another place"
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def _free_memory() -> list[int]:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return [int(line.split()[1]) * 1024]
    with contextlib.suppress(ValueError, OSError):
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return []


def _left_in_control_group() -> list[int]:
    """Returns what containers leave; pages of files are given back and count as free."""
    root = "/sys/fs/cgroup"
    for limit, usage, cached in (
        ("memory.max", "memory.current", "file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_cache"),
    ):
        allowed, used = ("".join(_lines(f"{root}/{name}")) for name in (limit, usage))
        if allowed.isdigit() and used.isdigit():
            folder = limit.rpartition("/")[0]
            statistics = dict(line.split() for line in _lines(f"{root}/{folder}/memory.stat"))
            return [int(allowed) - int(used) + int(statistics.get(cached, 0))]
    return []


def _address_space() -> int:
    pages = "".join(_lines("/proc/self/statm")).split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


@contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """Lets tensor operations and fits of this process use at most so many threads.

    Sums over several threads differ in their last bits from run to run, and whatever is trained
    makes more of that; with one thread they do not.
    """
    with tensor_threads(count), _libraries(len(sys.modules)).limit(limits=count):
        yield


@functools.lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """Returns the libraries with threads, which takes milliseconds; more come with more modules."""
    return ThreadpoolController()


@contextmanager
def tensor_threads(count: int) -> Iterator[None]:
    """Does what `thread_limit` does for tensor operations alone, at no cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_device(name: torch.device | str) -> torch.device:
    """Returns the device called `name`: "cpu", "cuda:1", or "auto" for the best that is here.

    The best is CUDA, then MPS, then the CPU.

    Raises:
        ParameterError: there is none on this machine.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else name)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shortened(first_line(error), 120)
        raise ParameterError(
            f"the device {str(name)!r} cannot be used here; cpu always can ({reason})"
        ) from error
    return device


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a tensor on a device; one that goes to CUDA is not waited for.

    A copy of memory that is not pinned waits for all that CUDA was asked to do before.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, dtype or tensor.dtype)
    return tensor.pin_memory().to(device, dtype or tensor.dtype, non_blocking=True)


def free_device_memory(device: torch.device) -> int | None:
    """Returns how many bytes an accelerator can still give this process; None if it is not said.

    What torch holds there and does not use counts as free.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@contextmanager
def full_float32() -> Iterator[None]:
    """Keeps an accelerator from rounding float32 to TF32, which has 10 bits and not 23."""
    with _tf32(False):
        yield


@contextmanager
def rounded_to_tf32() -> Iterator[None]:
    """Lets an accelerator round the factors of products in float32 to TF32."""
    with _tf32(True):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def has_tf32(device: torch.device) -> bool:
    """Returns whether a device has arithmetic in TF32: NVIDIA's, from Ampere on."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def fetched(values: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Begins to copy values to the CPU.

    Returns:
        The copy, and what waits until it is whole.
    """
    if values.device.type != "cuda":
        return values.cpu(), lambda: None
    copy = values.to("cpu", non_blocking=True)  # into memory that the device writes to by itself
    whole = torch.cuda.Event(blocking=True)
    whole.record(torch.cuda.current_stream(values.device))
    return copy, whole.synchronize


def seconds_for(function: Callable[[], object], device: torch.device) -> float:
    """Returns how long a call takes, with all that it starts on a device.

    One thread of the CPU is timed by what it does, whatever else keeps the core busy.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    started = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep freed memory of tensors for the next ones, where that is glibc.

    It gives large pieces back at once. Getting them again, page by page, takes a sixth of the time
    of what works through many of them, and threads wait for each other meanwhile.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC.values():
            mallopt(option, value)


_MALLOC = {
    "M_TRIM_THRESHOLD": (-1, 2**28),
    "M_MMAP_THRESHOLD": (-3, 2**28),
    "M_ARENA_MAX": (-8, 1),  # those of threads hold no large pieces
}
"""Options of malloc.h: from how many bytes on memory is given back or mapped; number of heaps."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory, of the machine or an accelerator, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("can't allocate memory", "STATUS_ALLOC_FAILED")
"""What torch says of the CPU's memory, and cuDNN, cuBLAS and cuSOLVER of a device's."""
