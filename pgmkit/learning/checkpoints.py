"""Checkpoints: the state of everything that a loop moves, as safetensors with a JSON header.

Nothing is pickled. Tensors are written one after the other, as they lie in memory. Two generations
are kept, and a file counts if its digest is right.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pgmkit import files
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning, first_line
from pgmkit.learning import ranks

_GENERATIONS = 2
_PATTERN = "checkpoint-*.safetensors"
_BLANK = b"0" * 64
_LARGEST_HEADER = 100_000_000
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@runtime_checkable
class Stateful(Protocol):
    """What tells its state and takes it up again, as modules, optimizers and schedulers do."""

    def state_dict(self) -> Mapping[Any, Any]:
        """Returns numbers, text and tensors in nested dictionaries, lists and tuples."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Takes up what `state_dict` returned."""


Part = Stateful | dict[str, Any] | Tensor
"""One thing that a checkpoint holds; dictionaries and tensors are filled in place."""


@dataclass(frozen=True)
class Saved:
    """What was read from a checkpoint.

    Args:
        header: plain values beside the state.
        state: of all parts, with a mark in the place of each tensor.
        tensors: by name.
    """

    header: dict[str, Any]
    state: Any
    tensors: dict[str, Tensor]

    def give(self, parts: Mapping[str, Part]) -> None:
        """Gives every part its state.

        Raises:
            LoadError: the state is that of other parts.
        """
        try:
            states = _unpacked(self.state, self.tensors)
            if states.keys() != parts.keys():
                raise KeyError(f"it holds {', '.join(states)}")
            for name, part in parts.items():
                _load(part, states[name])
        except (RuntimeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise LoadError(
                f"the checkpoint does not fit what is trained: {first_line(error)}; use the "
                "version of the code that wrote it, or another folder"
            ) from error


class Checkpoints:
    """The checkpoints of one loop, whose identity tells what is trained from all else."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))

    def newest(self) -> Saved | None:
        """Returns the newest whole checkpoint of this task; None if there is none.

        Those of another task are set aside, with a warning. Where the newest is damaged, it gets
        another name and the one before is returned, with a warning.

        Raises:
            LoadError: all are damaged.
        """
        damaged: list[tuple[Path, LoadError]] = []
        for path in self._paths():
            try:
                saved = read(path)
            except LoadError as error:
                damaged.append((path, error))
                continue
            for other, reason in damaged:
                other.rename(other.with_name(f"damaged-{other.name}"))
                _warn(f"{reason}; going on from the one before, {path.name}")
            theirs = saved.header["identity"]
            if theirs == self.identity:
                return saved
            self._set_aside(theirs)
            return None
        if damaged:
            reasons = "; ".join(str(reason) for _, reason in damaged)
            raise LoadError(f"{reasons}; no other is left, so remove them and start again")
        return None

    def save(self, parts: Mapping[str, Part], header: Mapping[str, Any]) -> None:
        """Writes a checkpoint and removes all but the one before; the header has the `step`.

        Raises:
            OutputError: it cannot be written.
            ParameterError: a part has something in its state that no checkpoint can hold.
        """
        path = self.folder / f"checkpoint-{header['step']:09d}.safetensors"
        write(path, parts, {"identity": self.identity, **header})
        for old in self._paths()[_GENERATIONS:]:
            old.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def _set_aside(self, theirs: Mapping[str, Any]) -> None:
        number = 1
        while (aside := self.folder / f"set-aside-{number}").exists():
            number += 1
        aside.mkdir()
        for path in [*self._paths(), *self.folder.glob("*.csv")]:
            shutil.move(path, aside)
        mine = self.identity
        differing = [k for k in sorted({*theirs, *mine}) if theirs.get(k) != mine.get(k)]
        _warn(
            f"the checkpoints in {self.folder} are of something else (other "
            f"{', '.join(differing)}): they were moved to {aside.name}, and it starts anew"
        )


def write(path: Path, parts: Mapping[str, Part], header: Mapping[str, Any]) -> None:
    """Writes one checkpoint, one tensor after the other; see `Checkpoints.save`."""
    state, tensors = pack(parts)
    entries: dict[str, Any] = {
        "__metadata__": {
            "digest": _BLANK.decode(),
            "header": json.dumps(header),
            "state": json.dumps(state),
        }
    }
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256(head)
    with files.replaced_file(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            data = tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
        file.seek(8 + head.index(_BLANK))
        file.write(digest.hexdigest().encode())


def read(path: Path) -> Saved:
    """Reads a checkpoint.

    Raises:
        LoadError: it is damaged.
    """
    try:
        metadata = _checked(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return Saved(json.loads(metadata["header"]), json.loads(metadata["state"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"the checkpoint {path} is damaged ({first_line(error)})") from error


def synchronise(parts: Mapping[str, Part]) -> None:
    """Gives every part in all processes the state that it has in the coordinator."""
    if ranks.world_size() == 1:
        return
    state, tensors = pack(parts)
    like = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    state, like = ranks.decide(lambda: (state, like))
    if ranks.is_coordinator():
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    else:
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in like.items()}
    ranks.from_coordinator(list(tensors.values()))
    if not ranks.is_coordinator():
        Saved({}, state, tensors).give(parts)


def pack(parts: Mapping[str, Part]) -> tuple[Any, dict[str, Tensor]]:
    """Returns the state of all parts as what JSON can say, and the tensors in it by name.

    A tensor is turned so that its values lie in a row; a mark in its place says how to turn it
    back. Optimizers go through memory in the order in which weights lie there.

    Raises:
        ParameterError: there is something else in it than numbers, text, tensors, and
            dictionaries, lists and tuples of these.
    """
    tensors: dict[str, Tensor] = {}
    return _packed({name: _state(part) for name, part in parts.items()}, "", tensors), tensors


def _state(part: Part) -> Any:
    return part.state_dict() if isinstance(part, Stateful) else part


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in _TYPES:
            raise ParameterError(f"{name} is of type {value.dtype}, which no checkpoint can hold")
        order = _memory_order(value)
        tensors[name] = value.detach().permute(order)
        return {"tensor": name, "order": order}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        inside = f"{name}/" if name else ""
        return {"items": [[k, _packed(v, f"{inside}{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ParameterError(
        f"{name} is a {type(value).__name__}, and checkpoints hold numbers, text, tensors, and "
        "dictionaries, lists and tuples of these"
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        order = value["order"]
        return tensors[value["tensor"]].permute([order.index(dim) for dim in range(len(order))])
    if "items" in value:
        return {key: _unpacked(part, tensors) for key, part in value["items"]}
    (kind, parts), *_ = value.items()
    values = [_unpacked(part, tensors) for part in parts]
    return tuple(values) if kind == "tuple" else values


def _memory_order(tensor: Tensor) -> list[int]:
    """Returns the dimensions in the order in which they lie in memory, the slowest first."""
    dims, strides = list(range(tensor.dim())), tensor.stride()
    order = sorted(dims, key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() else dims


def _load(part: Part, state: Any) -> None:
    if isinstance(part, Stateful):
        part.load_state_dict(state)
    elif isinstance(part, Tensor):
        if state.shape != part.shape:
            raise ValueError(f"a tensor of shape {tuple(state.shape)} for {tuple(part.shape)}")
        with torch.no_grad():
            part.copy_(state)
    else:
        _fill(part, state)


def _fill(part: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Gives a dictionary the values of another; tensors of one shape stay where they are."""
    for name in [name for name in part if name not in state]:
        del part[name]
    for name, value in state.items():
        old = part.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            _fill(old, value)
        elif isinstance(old, Tensor) and isinstance(value, Tensor) and old.shape == value.shape:
            _load(old, value)
        else:
            part[name] = value


def _checked(path: Path) -> dict[str, str]:
    """Returns what stands in the header beside the tensors, if the digest is right."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError("its header is too large")
        head = file.read(size)
        metadata: dict[str, str] = json.loads(head)["__metadata__"]
        digest = hashlib.sha256(head.replace(metadata["digest"].encode(), _BLANK, 1))
        while chunk := file.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != metadata["digest"]:
        raise ValueError("its digest is another")
    return metadata


def _warn(text: str) -> None:
    warnings.warn(text, PgmkitWarning, stacklevel=2)
