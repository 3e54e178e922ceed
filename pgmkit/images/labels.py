"""Labels of any form as class numbers, and class numbers for names."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgmkit.errors import DataError, listed, nearest_names

_LONGEST_NUMBER = 9
_MOST_NAMED = 3


def is_number(name: str) -> bool:
    """Returns whether a class is called by a number, such as "7" or "07"."""
    return name.isascii() and name.isdecimal() and len(name) <= _LONGEST_NUMBER


def number_names(names: Iterable[str], where: str) -> dict[str, int]:
    """Returns the class number of each name.

    Numbers stand for themselves. Other names are numbered from 0 in natural order, in which the
    numbers within them count: a2 comes before a10.

    Raises:
        DataError: two names are one number.
    """
    ordered = sorted(set(names), key=_natural)
    if not all(map(is_number, ordered)):
        return {name: place for place, name in enumerate(ordered)}
    numbers = {name: int(name) for name in ordered}
    if len(set(numbers.values())) < len(numbers):
        raise DataError(
            f"two classes of {where} are the same number: {', '.join(ordered)}; rename one"
        )
    return numbers


def as_labels(labels: Any, count: int, where: str) -> tuple[Tensor, dict[int, str] | None]:
    """Turns an array of labels into class numbers (N,) and, where they were names, the names.

    Args:
        labels: numbers or names, (N,) or (N, 1), or one-hot rows (N, classes). Floats must be
            whole numbers.
        count: N.
        where: what holds them, for messages.

    Raises:
        DataError: they are something else.
    """
    found = labels
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    elif _is_one_hot(found):
        found = found.argmax(axis=1)
    if found.shape != (count,) or not (found.dtype.kind in "biuU" or _is_whole(found)):
        raise DataError(
            f"the labels in {where} are {labels.dtype} of shape {labels.shape}; they must be "
            f"{count} whole numbers or names, one per image, or as many one-hot rows"
        )
    if found.dtype.kind == "U":
        numbers = number_names(found.tolist(), where)
        classes = {number: name for name, number in numbers.items()}
        return torch.tensor([numbers[name] for name in found.tolist()]), classes
    return torch.from_numpy(found.astype(np.int64)), None


def strangers_said(strangers: Sequence[str], names: Sequence[str], source: str, whose: str) -> str:
    """Returns what to say of classes of `source` that are not among the `names` of `whose`."""
    said = listed([*map(repr, strangers)], _MOST_NAMED)
    near = nearest_names(strangers[0], names)
    asked = near if near.startswith("did you mean") else f"{near}."
    called = "class" if len(strangers) == 1 else "classes"
    return (
        f"{source} has the {called} {said}, which {whose} does not know; {asked} Name the "
        "classes of the images as it does"
    )


def _is_one_hot(labels: Any) -> bool:
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())


def _is_whole(labels: Any) -> bool:
    if labels.dtype.kind != "f":
        return False
    return bool((np.isfinite(labels) & (labels == np.round(labels)) & (abs(labels) < 2**53)).all())


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
