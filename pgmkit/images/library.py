"""Data sets of torchvision by name."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from pgmkit.config import apply_overrides
from pgmkit.errors import DataError, first_line, nearest_names
from pgmkit.images.decoding import closed, open_picture, picture_rows
from pgmkit.images.labels import is_number
from pgmkit.images.rows import Images, looked_into, sha256

_NOT_FOR_USERS = {
    "self",
    "root",
    "transform",
    "target_transform",
    "transforms",
    "download",
    "loader",
    "is_valid_file",
    "extensions",
}
_NO_PICTURES = {"VisionDataset", "DatasetFolder"}
_PARTS = ("train", "split", "background", "classes", "version", "image_set")
"""Parameters that say which part of the data is meant, in the order of their weight."""


@dataclass(frozen=True)
class DataSet:
    """A data set as a source names it: its class, its folder, and parameters, given and taken."""

    name: str
    factory: Callable[..., Any]
    root: str
    values: dict[str, Any]
    parameters: dict[str, inspect.Parameter]


def find_data_set(source: str) -> DataSet:
    """Finds what "torchvision:NAME:ROOT:parameter=value" names, and reads nothing.

    Raises:
        DataError: there is no such data set, or it has no such parameter or needs another.
    """
    _, name, *rest = source.split(":", 2)
    known = _known()
    if name not in known:
        raise DataError(
            f"torchvision has no data set of images called {name!r}; {_near(name, list(known))}"
        )
    root, values = _root_and_values(rest[0] if rest else "")
    if not root:
        raise DataError(
            f"{source!r} does not say where the data lie; write torchvision:{name}:ROOT, with the "
            "folder that holds them"
        )
    factory = known[name]
    found = DataSet(name, factory, root, values, _parameters(factory))
    _check_values(found)
    return found


def load_torchvision(source: str, split: str, size: tuple[int, int] | None) -> Images:
    """Opens a data set of torchvision; see `pgmkit.images.load_images`."""
    wanted = find_data_set(source)
    named = f"torchvision:{wanted.name}"
    try:
        data_set = wanted.factory(**_arguments(wanted, split))
        count = len(data_set)
    except DataError:
        raise
    except Exception as error:  # of the files, or of what torchvision needs to read them
        raise DataError(_not_read(wanted, error)) from error
    if not count:
        raise DataError(f"{named} holds no images in {wanted.root}")
    items = _Items(data_set, count, named)
    rows = picture_rows(items, size, named)
    labels = items.labels
    if not all(isinstance(label, int) for label in labels):
        return Images(rows, name=named)
    numbers = torch.tensor(labels)
    names = _class_names(data_set, numbers)
    if names is not None and all(map(is_number, names)):
        numbers = torch.tensor([int(names[number]) for number in numbers.tolist()])
        names = [str(number) for number in range(int(numbers.max()) + 1)]
    classes = None if names is None else dict(enumerate(names))
    return Images(rows, numbers, classes, name=named)


def _known() -> dict[str, Callable[..., Any]]:
    from torchvision import datasets

    found = {name: getattr(datasets, name) for name in datasets.__all__}
    return {
        name: factory
        for name, factory in found.items()
        if inspect.isclass(factory) and name not in _NO_PICTURES
    }


def _near(name: str, known: list[str]) -> str:
    """Returns the nearest names, whatever their case, or a few that are well known."""
    same = [other for other in known if other.lower() == name.lower()]
    near = f"did you mean {same[0]!r}?" if same else nearest_names(name, known)
    if near.startswith("did you mean"):
        return near
    return "there are MNIST, CIFAR10, CelebA, ImageFolder and others, as torchvision.datasets has"


def _root_and_values(text: str) -> tuple[str, dict[str, Any]]:
    """Parts "ROOT:a=1:b=2"; the root may hold colons."""
    values: dict[str, Any] = {}
    while match := re.fullmatch(r"(.*):(\w+)=([^:]*)", text, re.DOTALL):
        text, name, value = match.groups()
        values = apply_overrides(values, [f"{name}={value}"])
    return text, values


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class, with those of its parents where it hands them on."""
    found: dict[str, inspect.Parameter] = {}
    for parent in inspect.getmro(factory):  # type: ignore[arg-type]
        if "__init__" not in vars(parent):
            continue
        given = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
        handed_on = any(p.kind is p.VAR_KEYWORD for p in given.values())
        for name, parameter in given.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
        if not handed_on:
            break
    return found


def _check_values(wanted: DataSet) -> None:
    settable = [
        name
        for name in wanted.parameters
        if name not in _NOT_FOR_USERS and not name.startswith("_")
    ]
    for name in wanted.values:
        if name not in settable:
            raise DataError(
                f"torchvision:{wanted.name} has no parameter {name!r} to set; "
                f"{nearest_names(name, settable)}"
            )
    for name in settable:
        needed = wanted.parameters[name].default is inspect.Parameter.empty
        # The part of the data is not asked for where it is what `split` of pgmkit says.
        if needed and name not in wanted.values:
            choices = getattr(wanted.factory, "splits", None)
            listed = f", one of {', '.join(choices)}" if name == "split" and choices else ""
            raise DataError(
                f"torchvision:{wanted.name} needs its {name}{listed}; write "
                f"torchvision:{wanted.name}:{wanted.root}:{name}=VALUE"
            )


def _arguments(wanted: DataSet, split: str) -> dict[str, Any]:
    """Returns all arguments: those that were given, the part of the data, and how to read files."""
    arguments = dict(wanted.values)
    if "root" in wanted.parameters:
        arguments["root"] = wanted.root
    if "download" in wanted.parameters:
        arguments["download"] = False
    if "loader" in wanted.parameters:
        arguments["loader"] = open_picture  # theirs drops what is transparent or 16 bits deep
    part = next((name for name in _PARTS if name in wanted.parameters), None)
    if part is not None and part not in arguments:
        arguments[part] = _part(wanted.parameters[part], split)
    elif split == "test":
        said = "has no test split" if part is None else f"is asked for {part}={arguments[part]}"
        raise DataError(
            f"torchvision:{wanted.name} {said}, so there are no images that were not trained on; "
            "set test_fraction, or give the source of the test images and split train"
        )
    return arguments


def _part(parameter: inspect.Parameter, split: str) -> Any:
    """Returns the value that means the training or the test images."""
    default = parameter.default
    if isinstance(default, bool):  # train, or the background set of Omniglot
        return split == "train"
    if split == "train" and isinstance(default, str) and "train" in default:
        return default
    return split


def _not_read(wanted: DataSet, error: Exception) -> str:
    said = first_line(error)
    if "download" in said:
        return (
            f"torchvision finds no {wanted.name} in {wanted.root}; check the folder, or fetch it "
            f"with torchvision.datasets.{wanted.name}({wanted.root!r}, download=True)"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"torchvision:{wanted.name} needs a package that is not installed: {said}"
    return f"torchvision:{wanted.name} cannot be read from {wanted.root}: {said}"


class _Items:
    """Pictures of a data set by number.

    Attributes:
        labels: of those that were opened; None is none.
    """

    def __init__(self, data_set: Any, count: int, named: str) -> None:
        self._data_set = data_set
        self._named = named
        self.labels: list[int | None] = [None] * count

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, place: int) -> str:
        return f"image {place} of {self._named}"

    @contextmanager
    def opened(self, place: int) -> Iterator[Image.Image]:
        try:
            item = self._data_set[place]
        except DataError:
            raise
        except Exception as error:  # of a file that is missing or damaged
            raise DataError(f"{self.name(place)} cannot be read: {first_line(error)}") from error
        picture, label = (*item, None)[:2] if isinstance(item, tuple) else (item, None)
        if not isinstance(picture, Image.Image):
            raise DataError(
                f"{self._named} holds {type(picture).__name__} and no pictures, so it cannot be "
                "read"
            )
        self.labels[place] = _label(label)
        try:
            yield picture
        finally:
            closed(picture)

    def digest(self) -> str:
        """Returns a SHA-256 of the number of images and, of those `looked_into`, all pixels."""

        def content() -> Iterator[bytes]:
            yield str(len(self)).encode()
            with self.opened(0) as picture:
                first = picture.width * picture.height * len(picture.getbands())
            for place in looked_into(len(self), len(self) * first):
                with self.opened(place) as picture:
                    yield f"{picture.mode} {picture.size}".encode() + picture.tobytes()

        return sha256(content())


def _label(label: Any) -> int | None:
    """Returns a class number; None for attributes, boxes, texts and whatever else there is."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic):
        label = label.item() if getattr(label, "ndim", 0) == 0 else None
    return int(label) if isinstance(label, int) else None


def _class_names(data_set: Any, numbers: torch.Tensor) -> list[str] | None:
    """Returns the names of classes that were numbered by their names; those of MNIST are not."""
    from torchvision import datasets

    names = getattr(data_set, "classes", None)
    if isinstance(data_set, datasets.MNIST) or not isinstance(names, list | tuple):
        return None
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    if int(numbers.min()) < 0 or int(numbers.max()) >= len(names):
        return None
    return list(names)
