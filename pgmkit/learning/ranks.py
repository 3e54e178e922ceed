"""Several processes that train one model: those that torchrun started.

Outside torchrun there is one process, and nothing here does anything. Under it all processes run
the same program. They join when the first loop begins (`join`): over gloo on the CPU and NCCL on
CUDA, where each process takes the device of its `LOCAL_RANK`. The process of rank 0 is the
coordinator: it alone takes folders, saves, logs and prints, and the others ask it (`decide`).

Each takes its share of a joint batch (`share`) and learns from the gradients of all
(`average_gradients`), so that weights stay the same everywhere and are those that one process with
the joint batch would have, up to rounding. A module wrapped in DistributedDataParallel does the
same while it goes backward; a task may use either.

A batch norm takes the statistics of a process's own share, as under DistributedDataParallel, unless
its network was given to `share_statistics`: then it takes those of the joint batch, on any device.
"""

import atexit
import contextlib
import functools
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pgmkit.errors import EngineError, first_line

Result = TypeVar("Result")

_is_alone: ContextVar[bool] = ContextVar("pgmkit_alone", default=False)


def is_launched() -> bool:
    """Returns whether torchrun started this process; those that it started itself do not count."""
    return (
        dist.is_available()
        and dist.is_torchelastic_launched()
        and multiprocessing.parent_process() is None
    )


def join() -> None:
    """Joins the other processes of torchrun, if there are any; all have to do it."""
    if _is_alone.get() or not is_launched() or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Its default arguments keep the group that there is when it is imported, and optimizers import
    # it. A group that is kept never ends its threads, and they may abort a process that ends.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_leave)


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if _is_together() else 0


def world_size() -> int:
    """Returns how many processes train one model."""
    return dist.get_world_size() if _is_together() else 1


def is_coordinator() -> bool:
    """Returns whether this process takes folders, saves, logs and prints."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Lets a process work without the others until the block ends, as if it were the only one.

    What one process does while others wait for it, or have ended, must stand in such a block.
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def decide(function: Callable[[], Result]) -> Result:
    """Returns `function()` of the coordinator in all processes; its error is raised in all."""
    join()
    if world_size() == 1:
        return function()
    answer: list[tuple[Result | None, Exception | None]] = [(None, None)]
    if is_coordinator():
        with alone():
            try:
                answer = [(function(), None)]
            except Exception as error:
                answer = [(None, error)]
    with _in_touch():
        dist.broadcast_object_list(answer, src=0)
    value, failure = answer[0]
    if failure is not None:
        raise failure
    return cast(Result, value)


def share(joint: Tensor) -> Tensor:
    """Returns this process's part of a joint batch (B, ...): every `world_size()`-th of it."""
    return joint[rank() :: world_size()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each parameter the mean of its gradients in all processes.

    The same parameters must have gradients everywhere. It stands between `backward` and the step
    of the optimizer.
    """
    if world_size() > 1:
        _average([p.grad for p in parameters if p.grad is not None])


def share_statistics(network: nn.Module) -> None:
    """Lets all batch norms of a network, in training, take the statistics of the joint batch.

    All processes then go forward and backward through it equally often, with equal shares. Alone,
    nothing changes.
    """
    if world_size() > 1:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                vars(module)["forward"] = functools.partial(_jointly_normalised, module)


def _jointly_normalised(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        plain: Tensor = type(norm).forward(norm, x)
        return plain
    from torch.distributed.nn.functional import all_reduce

    axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
    wide = x.float()
    with _in_touch():
        mean = all_reduce(wide.mean(axes)) / world_size()
        apart = wide - mean.reshape(shape)
        variance = all_reduce(apart.square().mean(axes)) / world_size()
    if norm.track_running_stats:
        _follow(norm, mean, variance, world_size() * x.numel() // x.shape[1])
    normal: Tensor = (apart * (variance + norm.eps).rsqrt().reshape(shape)).to(x.dtype)
    if norm.affine:
        normal = normal * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return normal


@torch.no_grad()
def _follow(
    norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, count: int
) -> None:
    """Moves the running statistics of a norm as it does itself."""
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    unbiased = variance * (count / max(count - 1, 1))
    for kept, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        assert kept is not None
        kept.lerp_(now.to(kept.dtype), share)


def average(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the means over all processes of numbers by name."""
    if world_size() == 1:
        return dict(values)
    means = torch.tensor(list(values.values()), dtype=torch.float64)
    _average([means])
    return dict(zip(values, means.tolist(), strict=True))


def largest(number: int) -> int:
    """Returns the largest of the numbers that the processes give."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    with _in_touch():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def from_coordinator(tensors: Sequence[Tensor]) -> None:
    """Fills tensors, which have the same shapes and types everywhere, with the coordinator's."""
    with _in_touch():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _average(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by their means over all processes, those of one type in one message."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for group in alike.values():
        joint = torch.cat([tensor.reshape(-1) for tensor in group])
        with _in_touch():
            dist.all_reduce(joint)
        joint /= world_size()
        sizes = [tensor.numel() for tensor in group]
        for tensor, part in zip(group, joint.split(sizes), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _is_together() -> bool:
    return dist.is_available() and dist.is_initialized() and not _is_alone.get()


@contextlib.contextmanager
def _in_touch() -> Iterator[None]:
    """Says in words that another process has ended.

    Raises:
        EngineError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        raise EngineError(
            f"another process of this run has ended ({first_line(error)}); see what it said, and "
            "run the same command again"
        ) from error


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
