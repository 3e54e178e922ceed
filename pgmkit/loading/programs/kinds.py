"""Files that are whole programs: telling what a file is, and reading programs as data.

Nothing from a file is executed. What that means for each kind:

* safetensors and ONNX are data: names, numbers, and for ONNX a graph of operators.
* torch checkpoints are pickles, which could call anything; they are read by torch's weights-only
  reader.
* TorchScript archives hold code that `torch.jit.load` compiles, runs in part at once, and lets use
  any operator of torch, those that write files included; `torchscript` walks through it with
  operators from a list instead.
* torch.export archives hold a graph in JSON; `torch.export.load` evaluates shapes as Python and
  unpickles sample inputs, and whatever weights are said to be pickled, without restriction.
  `exported` reads graph and weights alone.
"""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from torch import nn

from pgmkit.errors import LoadError
from pgmkit.loading.programs.exported import load_exported
from pgmkit.loading.programs.onnx import load_onnx, self_contained
from pgmkit.loading.programs.torchscript import load_torchscript

LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "torchscript": load_torchscript,
    "exported": load_exported,
    "onnx": load_onnx,
}
"""What reads each kind of program."""

_PK = b"PK\x03\x04"
_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "git-lfs-pointer"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch-legacy"),  # torch.save's magic number
    (b"\x89HDF\r\n\x1a\n", "tensorflow"),
    (b"\x93NUMPY", "npy"),
    (b"\x80", "pickle"),
)
_TENSORFLOW_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # how a checkpoint's .index ends
_LONGEST_HEADER = 100_000_000  # of a safetensors file

_DESCRIPTIONS = {
    "safetensors": "is a safetensors file",
    "torch-zip": "is a torch checkpoint",
    "torch-legacy": "is a torch checkpoint",
    "torchscript": "is a TorchScript program",
    "exported": "is a program of torch.export",
    "onnx": "is an ONNX program",
    "git-lfs-pointer": (
        "is a Git LFS pointer and not the file itself; run git lfs pull where it was cloned"
    ),
    "html": "is a web page; on the Hub, take the file's resolve/ address instead of blob/",
    "npz": (
        "is an .npz archive of NumPy arrays; write them as tensors with "
        "safetensors.numpy.save_file(dict(numpy.load('file.npz')), 'model.safetensors')"
    ),
    "npy": "is one NumPy array and no set of named weights",
    "tensorflow": (
        "is of TensorFlow or Keras, which pgmkit does not read; convert the weights to "
        "safetensors with the names of a torch module"
    ),
    "pickle": (
        "is a pickle of Python objects, and loading it would run code; where it was made, save "
        "the weights alone: safetensors.torch.save_file(module.state_dict(), 'model.safetensors')"
    ),
    "zip": "is a zip archive that is none of torch's; unpack it, and name the file in it",
    "truncated-zip": "is cut off: its directory, at the end, is missing; fetch it again",
    "empty": "is empty; fetch it again",
    "unknown": "is of no kind that pgmkit knows; it reads safetensors and torch checkpoints",
}


def kind_of_file(path: Path) -> str:
    """Returns what a file is by its content, of which nothing is run.

    Returns:
        "safetensors"; "torch-zip" and "torch-legacy" (`torch.save`, since 1.6 and before);
        "torchscript", "exported" and "onnx" (programs); "git-lfs-pointer"; "html"; "npz", "npy";
        "tensorflow" (HDF5, Keras, checkpoints, saved models, TFLite); "pickle"; "zip",
        "truncated-zip"; "empty"; "unknown".

    Raises:
        LoadError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return _kind(file)
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read ({error.strerror or error}); check that it is there and that "
            "you may read it"
        ) from error


def describe_kind(kind: str) -> str:
    """Returns what to say of a kind after the file's name: what it is, and what to do."""
    return _DESCRIPTIONS[kind]


def load_program(path: Path) -> nn.Module:
    """Reads a file that is a whole program as a module.

    Returns:
        A module in eval mode that maps latents, flat or of the shape that the program takes, to
        whatever the program returns.

    Raises:
        LoadError: it is no program, is damaged, or does what pgmkit does not run from a file.
    """
    kind = kind_of_file(path)
    if kind not in LOADERS:
        raise LoadError(f"{path} is no program: it {describe_kind(kind)}")
    return LOADERS[kind](path)


def program_bytes(path: Path) -> bytes:
    """Returns what to save of a program: one file that needs none beside it.

    Raises:
        LoadError: it cannot be read; or it is ONNX with weights beside it, and damaged or too
            large for one file.
    """
    if kind_of_file(path) == "onnx":
        return self_contained(path)
    return path.read_bytes()


def _kind(file: BinaryIO) -> str:
    start = file.read(512)
    size = file.seek(0, 2)
    if not size:
        return "empty"
    if start.startswith(_PK):
        return _kind_of_zip(file)
    for begin, kind in _STARTS:
        if start.startswith(begin):
            return kind
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--")):
        return "html"
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < _LONGEST_HEADER:
        return "safetensors"
    if start[4:8] == b"TFL3":
        return "tensorflow"
    file.seek(max(0, size - 8))
    if file.read() == _TENSORFLOW_INDEX:
        return "tensorflow"
    return _kind_of_protobuf(file, size)


def _kind_of_zip(file: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return "truncated-zip"
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return "torchscript"
    if inside & {"archive_format"} or "serialized_exported_program.json" in names:
        return "exported"
    if "data.pkl" in inside:
        return "torch-zip"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "tensorflow" if "model.weights.h5" in names else "zip"


def _kind_of_protobuf(file: BinaryIO, size: int) -> str:
    """Tells ONNX models and TensorFlow's saved models by the numbers of their fields."""
    fields: list[int] = []
    file.seek(0)
    while file.tell() < size and len(fields) < 1000:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        length = _varint(file)
        if wire not in (0, 2) or not 0 < number < 30 or length < 0:
            return "unknown"
        fields.append(number)
        if wire == 2:
            file.seek(length, 1)
    if fields[0] == 1 and 7 in fields:  # ir_version, graph
        return "onnx"
    return "tensorflow" if fields[0] == 1 and set(fields) == {1, 2} else "unknown"


def _varint(file: BinaryIO) -> int:
    """Returns a number of protobuf's variable length; -1 where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return -1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return -1
