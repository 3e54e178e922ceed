"""Folders of pictures, and archives that are like folders."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol

import torch
from PIL import Image

from pgmkit.errors import DataError
from pgmkit.images.decoding import opened_picture, picture_rows, regular
from pgmkit.images.labels import number_names, strangers_said
from pgmkit.images.rows import Images, looked_into, sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Tree(Protocol):
    """Files in folders, on disk or in an archive.

    Attributes:
        root: where they lie; what is in it is called root/name in messages.
    """

    root: Path

    def has(self, folder: str) -> bool:
        """Returns whether there is a folder of this name at the top."""

    def pictures(self, folder: str) -> list[str]:
        """Returns the names of all pictures below a folder at the top, "" for all, from the root.

        Hidden files, and those in hidden folders, are none.
        """

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Returns a file that is open for reading."""

    def digest(self, names: list[str]) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for files of these names."""


def load_tree(tree: Tree, split: str, size: tuple[int, int] | None) -> Images:
    """Opens pictures, with one class for each sub-folder; see `pgmkit.images.load_images`."""
    root = tree.root
    train = "train" if tree.has("train") else ""
    folder = train if split == "train" else split
    if folder and not tree.has(folder):
        raise DataError(f"{root} has no folder {split!r} with images that were not trained on")
    names = tree.pictures(folder)
    where = str(root / folder)
    if not names:
        raise DataError(f"there are no images in {where}; it may hold {', '.join(SUFFIXES)}")
    classes = _classes(names, folder)
    labels, numbers = None, {}
    if classes is not None:
        learned = classes
        if folder != train:
            learned = _classes(tree.pictures(train), train) or classes
        numbers = number_names(learned, str(root / train))
        strangers = sorted({*classes} - {*numbers})
        if strangers:
            raise DataError(strangers_said(strangers, list(numbers), where, str(root / train)))
        labels = torch.tensor([numbers[name] for name in classes])
    rows = picture_rows(_Files(tree, names), size, where)
    named = {number: name for name, number in numbers.items()} or None
    return Images(rows, labels, named, name=root.name or str(root))


class _Files:
    """Pictures of a tree by number."""

    def __init__(self, tree: Tree, names: list[str]) -> None:
        self._tree = tree
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, place: int) -> str:
        return str(self._tree.root / self._names[place])

    def opened(self, place: int) -> AbstractContextManager[Image.Image]:
        return opened_picture(self._tree.stream(self._names[place]), self.name(place))

    def digest(self) -> str:
        return self._tree.digest(self._names)


class Folder:
    """A folder on disk; see `Tree`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, folder: str) -> bool:
        """Returns whether there is a folder of this name at the top."""
        return (self.root / folder).is_dir()

    def pictures(self, folder: str) -> list[str]:
        """Returns the names of all pictures below a folder; see `Tree.pictures`.

        Links to folders are followed, but into no folder twice.
        """
        above = f"{self.root}/"
        return in_order(name.removeprefix(above) for name in _walked(self.root / folder))

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for reading."""
        path = regular(self.root / name)
        with path.open("rb") as file:
            yield file

    def digest(self, names: list[str]) -> str:
        """Returns a SHA-256 of names, sizes and, as far as `looked_into` says, content."""
        sizes = [(self.root / name).stat().st_size for name in names]
        listed = json.dumps([names, sizes]).encode()
        places = looked_into(len(names), sum(sizes))
        content = ((self.root / names[place]).read_bytes() for place in places)
        return sha256(itertools.chain([listed], content))


def _classes(names: list[str], folder: str) -> list[str] | None:
    """Returns the class of each picture; None if one of them lies in no sub-folder."""
    depth = 1 if folder else 0
    parts = [Path(name).parts[depth:] for name in names]
    return [part[0] for part in parts] if all(len(part) > 1 for part in parts) else None


def is_picture(name: str) -> bool:
    """Returns whether a file of this name may be a picture."""
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts paths by their parts."""
    return sorted(names, key=lambda name: name.replace("/", "\0"))


def _walked(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    entered = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(place).stat()
        key = (status.st_dev, status.st_ino)
        if key in entered:
            folders.clear()
            continue
        entered.add(key)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (f"{place}/{name}" for name in names if is_picture(name))
