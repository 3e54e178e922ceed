"""What was computed for a page, kept within bounds."""

import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

_Value = TypeVar("_Value")
MOST = 2**29
"""Bytes, 512 MiB."""


class Kept:
    """Values by key; where they take too much, those go first that nobody asked for the longest.

    Args:
        most: bytes that all values may take. The last one stays, whatever it takes.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value], *, more: int = 0) -> _Value:
        """Returns the value of a key, made if it is not there.

        Args:
            key: of the value.
            make: returns it.
            more: bytes that it takes where nobody sees them.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return cast(_Value, self._values[key][0])
        value = make()
        with self._lock:
            self._values[key] = value, _bytes_of(value) + more
            self._values.move_to_end(key)
            while len(self._values) > 1 and self.num_bytes > self.most:
                self._values.popitem(last=False)
        return value

    @cached_property
    def folder(self) -> Path:
        """A folder for files, that goes with this."""
        folder = tempfile.mkdtemp(prefix="pgmkit-explore-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    @property
    def num_bytes(self) -> int:
        """What all values take."""
        return sum(size for _, size in self._values.values())


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    if is_dataclass(value):
        return sum(_bytes_of(getattr(value, field.name)) for field in fields(value))
    return 0
