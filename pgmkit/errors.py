"""Every error that pgmkit raises on purpose.

Each message says what was wrong, with the value, and what to do about it. The command line prints
the message alone and exits with 1; `PGMKIT_DEBUG=1` adds the traceback.
"""

import difflib
from collections.abc import Iterable


class PgmkitError(Exception):
    """The root of all expected errors."""


class ParameterError(PgmkitError, ValueError):
    """A parameter is missing, unknown, or outside its range."""


class UnknownNameError(PgmkitError, LookupError):
    """A generator, component or other named thing does not exist."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        message = f"no {what} is called {name!r}; {nearest_names(name, known)}"
        super().__init__(f"{message} ({hint})" if hint else message)


class PluginError(PgmkitError):
    """A plugin cannot be loaded, or two plugins are at odds."""


class LoadError(PgmkitError):
    """A generator, a classifier or a result cannot be read from where it should be."""


class GeneratorError(PgmkitError):
    """A generator breaks its contract: wrong shapes, no tensor, or values that are not finite."""


class DataError(PgmkitError):
    """A data set cannot be read or does not fit."""


class OutputError(PgmkitError):
    """An output folder is in use, belongs to another run, or cannot be written."""


class SamplingError(PgmkitError):
    """Samples of the wanted kind are too rare to be found."""


class EngineError(PgmkitError):
    """Blocks of work cannot run where they were asked to."""


class PgmkitWarning(UserWarning):
    """Something is allowed but probably not what was wanted."""


class PgmkitNote(PgmkitWarning):
    """Something was found or guessed that nobody had said."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Returns the known names nearest to `name` as the end of a sentence, or all of them."""
    names = sorted(set(known))
    if not names:
        return "there are none"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there is {', '.join(map(repr, names))}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
