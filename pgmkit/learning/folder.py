"""The folder in which the loops of a run keep what they have."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from pgmkit.errors import ParameterError

_folder: ContextVar[Path | None] = ContextVar("pgmkit_learning_folder", default=None)


@contextlib.contextmanager
def keeping(folder: Path | str) -> Iterator[None]:
    """Lets every loop that runs in the block keep its checkpoints in `folder/<its name>`.

    A loop that was stopped there continues, and one that is done gives back at once what it had.
    Whoever opens the block holds the folder (`pgmkit.files.single_writer`).

    Example:
        >>> with keeping("runs/faces/learning"):
        ...     print(folder_of("features"))
        runs/faces/learning/features
    """
    token = _folder.set(Path(folder))
    try:
        yield
    finally:
        _folder.reset(token)


def folder_of(name: str) -> Path | None:
    """Returns where the loop of this name keeps what it has; None if nothing is kept.

    Raises:
        ParameterError: the name is none that a folder can have.
    """
    if not name or name.startswith(".") or "/" in name:
        raise ParameterError(f"the name of a loop is that of a folder, and {name!r} is none")
    folder = _folder.get()
    return None if folder is None else folder / name
