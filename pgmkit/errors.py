"""Every error that pgmkit raises on purpose.

Each message says what was wrong, with the value, and what to do about it. The command line prints
the message alone and exits with 1; `PGMKIT_DEBUG=1` adds the traceback.
"""

import difflib
from collections.abc import Iterable, Sequence

_MOST_NAMES = 20
_MOST_OF_A_NAME = 200


class PgmkitError(Exception):
    """The root of all expected errors."""


class ParameterError(PgmkitError, ValueError):
    """A parameter is missing, unknown, or outside its range."""


class UnknownNameError(PgmkitError, LookupError):
    """A generator, component or other named thing does not exist."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        message = f"no {what} is called {shortened(name)!r}; {nearest_names(name, known)}"
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
    """Returns the known names nearest to `name` as the end of a sentence, or all if they are few.

    Example:
        >>> nearest_names("lahs", ["jbt", "lash"])
        "did you mean 'lash'?"
    """
    names = sorted(set(known))
    if not names:
        return "there are none"
    near = difflib.get_close_matches(name[:_MOST_OF_A_NAME], names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    shown = ", ".join(map(repr, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"there is {shown}" if more <= 0 else f"there are {shown} and {more:,} more"


def listed(names: Sequence[str], most: int) -> str:
    """Returns names with commas between, the first few if they are many.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without the place in C++ that torch adds."""
    lines = str(error).strip().splitlines()
    return lines[0].partition("Exception raised from")[0] if lines else type(error).__name__


def shortened(text: str, length: int = 200) -> str:
    """Returns a text of at most about so many characters; what is left out is from its middle."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def in_words(error: OSError) -> str:
    """Returns what an error of the system says, without number and path."""
    return error.strerror or str(error) or type(error).__name__


def printable(text: str) -> str:
    r"""Returns a text whose control characters are written out, so that a terminal obeys none.

    Example:
        >>> printable("a title \x1b[2J")
        'a title \\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # Surrogates stand for bytes of a file name that are no UTF-8; they cannot be printed either.
    return character.encode("unicode_escape").decode("ascii")
