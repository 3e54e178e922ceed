"""Files of named tensors: read without running any code, and written.

A file may hold more than the weights of one network; `pgmkit.loading.checkpoints` finds those.
"""

import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pgmkit import files
from pgmkit.errors import LoadError, first_line, listed
from pgmkit.loading.programs import LOADERS, describe_kind, kind_of_file
from pgmkit.loading.programs.archives import check_claim, open_archive

INDEX_SUFFIX = ".index.json"
"""How the file ends that names the shards of weights in several files."""


class _Beside:
    """Stands for a value beside the weights of which nothing is needed, and builds nothing.

    NumPy's own classes would take from a file what to do with memory.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_BESIDE = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    *("numpy.dtype", "numpy.ndarray", *(f"numpy.dtypes.{name}" for name in np.dtypes.__all__)),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
)
"""What people keep beside weights, by the names under which pickles ask for it."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a file that holds nothing but named tensors.

    Raises:
        LoadError: see `read_checkpoint`; or there is something else in it.
    """
    loaded = read_checkpoint(path)
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise LoadError(f"{path} is not a flat dictionary of tensors but holds {told(loaded)}")
    return loaded


def read_checkpoint(path: Path) -> Any:
    """Reads what a weight file holds, without ever running code from it.

    Args:
        path: a safetensors file, a torch file, or the index of several such files.

    Returns:
        Tensors by name, or whatever plain containers hold them.

    Raises:
        LoadError: the file is damaged or not one of these, or reading it would run code.
    """
    if path.name.endswith(INDEX_SUFFIX):
        loaded = _read_shards(path)
    else:
        kind = _checked_kind(path)
        if kind in LOADERS:
            return dict(LOADERS[kind](path).state_dict())
        loaded = _read_safetensors(path) if kind == "safetensors" else _read_torch(path)
    _check_values(loaded, path)
    return loaded


def shards_of(index: Path) -> list[str]:
    """Returns the names of the files that the index of a sharded checkpoint names.

    Raises:
        LoadError: it is no such index, or names files elsewhere.
    """
    try:
        names = sorted(set(files.parse_json(index.read_bytes(), str(index))["weight_map"].values()))
    except (OSError, TypeError, KeyError, AttributeError) as error:
        raise LoadError(
            f"{index} is no index of a sharded checkpoint: it has no 'weight_map' of file names"
        ) from error
    if not all(
        isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and not name.endswith(INDEX_SUFFIX)
        for name in names
    ):
        raise LoadError(f"{index} names files outside of its folder; it was tampered with")
    return names


def told(loaded: Any) -> str:
    """Tells what a checkpoint holds, for messages: keys and what stands under them."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    return listed([f"{key!s:.60} ({_told_entry(v)})" for key, v in loaded.items()], 12) or "nothing"


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns named tensors as safetensors bytes, the same bytes for the same values."""
    plain = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in sorted(tensors.items())
    }
    return save(plain, dict(metadata) if metadata else None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields every tensor in nested dictionaries and lists, once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:  # a pickle can hold itself
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part


def _told_entry(value: Any) -> str:
    if isinstance(value, Tensor):
        return "×".join(map(str, value.shape)) or "one value"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    return "one value" if isinstance(value, _Beside) else type(value).__name__


def _checked_kind(path: Path) -> str:
    """Returns the kind of a weight file; what bears the name safetensors has to be it."""
    kind = kind_of_file(path)
    if path.suffix == ".safetensors" and kind in ("unknown", "pickle", "torch-zip", "torch-legacy"):
        return "safetensors"  # which says what is wrong with it
    if kind in ("safetensors", "torch-zip", "torch-legacy", "pickle", *LOADERS):
        return kind
    if kind == "unknown" and _globals_of(path):  # pickles of protocol 0 are plain text
        return "pickle"
    raise LoadError(f"{path} {describe_kind(kind)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    beside: list[Any] = [(_Beside, name) for name in _BESIDE]
    if zipfile.is_zipfile(path):
        with open_archive(path):
            pass  # which refuses one that grows as it is read
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(beside):
            warnings.simplefilter("ignore")  # of old pickles, and of TypedStorage
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        classes = _strange_classes(path)
        if not classes:
            raise _damaged(path, error) from error
        raise LoadError(
            f"{path} holds {', '.join(classes)}, and loading it would run code; where it was "
            "made, save the weights alone: "
            "safetensors.torch.save_file(module.state_dict(), 'model.safetensors')"
        ) from error
    except Exception as error:  # what damaged pickles lead to is not documented
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> LoadError:
    return LoadError(
        f"{path} is truncated or damaged ({first_line(error)}); fetch or save it again"
    )


def _strange_classes(path: Path) -> list[str]:
    """Names the classes and functions in a torch file that are no plain data."""
    own = [
        name
        for name in _globals_of(path)
        if name not in _BESIDE and not re.match(r"torch\.(?!nn\.(?!parameter))|collections\.", name)
    ]
    shown = [f"an object of {name}" for name in own[:3]]
    return [*shown, f"{len(own) - 3} other classes"] if len(own) > 3 else shown


def _globals_of(path: Path) -> list[str]:
    """Returns what pickles in a torch file ask to import, "module.name", without doing it."""
    found: dict[str, None] = {}
    with contextlib.suppress(Exception), _pickled(path) as stream:
        while True:  # the format before torch 1.6 is one pickle after the other
            texts: list[str] = []
            for operation, value, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "INST"):
                    found[str(value).replace(" ", ".")] = None
                elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
                    found[".".join(texts[-2:])] = None
                elif isinstance(value, str):
                    texts.append(value)
    return list(found)


@contextlib.contextmanager
def _pickled(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with archive.open(name) as member:
            yield member


def _read_shards(index: Path) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for name in shards_of(index):
        path = index.parent / name
        if not path.is_file():
            raise LoadError(f"{index} names the file {name}, which is not there; fetch it, too")
        merged |= read_weights(path)
    return merged


def _check_values(loaded: Any, path: Path) -> None:
    """Refuses tensors without values, and more of them than the file can hold.

    Raises:
        LoadError: there are such.
    """
    size = 0
    for tensor in tensors_in(loaded):
        if tensor.is_meta:
            raise LoadError(
                f"{path} holds tensors on the meta device, which have no values; save the weights "
                "again, after they were loaded"
            )
        size += tensor.numel() * tensor.element_size()
    if path.name.endswith(INDEX_SUFFIX):
        return
    check_claim(size, path)
