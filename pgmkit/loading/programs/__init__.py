"""Files that are whole programs, read as data: nothing in them is executed.

`kinds` tells what a file is; `torchscript`, `exported` and `onnx` read one kind each; `operators`
lists what a program may do, and `archives` opens the zip files that torch writes.
"""

from pgmkit.loading.programs.exported import load_exported
from pgmkit.loading.programs.kinds import (
    LOADERS,
    describe_kind,
    kind_of_file,
    load_program,
    program_bytes,
)
from pgmkit.loading.programs.onnx import load_onnx
from pgmkit.loading.programs.torchscript import load_torchscript

__all__ = [
    "LOADERS",
    "describe_kind",
    "kind_of_file",
    "load_exported",
    "load_onnx",
    "load_program",
    "load_torchscript",
    "program_bytes",
]
