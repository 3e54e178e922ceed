"""Settings: TOML files, overridden by `--set a.b=1`, checked against a dataclass."""

import dataclasses
import json
import numbers
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pgmkit.errors import ParameterError, in_words, nearest_names, shortened
from pgmkit.files import TOO_DEEP, is_too_deep

Settings = TypeVar("Settings")

IMAGES = (
    "an .npz file, a folder of images, a zip or tar archive of one, torchvision:NAME:ROOT, "
    "points:ring or points:grid, or stacked:IMAGES"
)
"""What images are read from; see `pgmkit.images.load_images`."""

_PLAIN_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    NoneType: "nothing",
}
_LISTS = (list, tuple, Sequence)
_TABLES = (dict, Mapping)
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_LARGEST_TOML = 2**20


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ParameterError: it is not there or not TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_TOML + 1)
    except OSError as error:
        raise ParameterError(
            f"cannot read the config file {shortened(str(path))}: {in_words(error)}; check the path"
        ) from error
    if len(text) > _LARGEST_TOML:
        raise ParameterError(f"the config file {path} is larger than 1 MiB; give a TOML file")
    try:
        values = tomllib.loads(text.decode())
    except RecursionError:
        raise ParameterError(f"the config file {path} {TOO_DEEP}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"the config file {path} is not valid TOML: {error}") from error
    if is_too_deep(values):
        raise ParameterError(f"the config file {path} {TOO_DEEP}")
    return values


def apply_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns `config` with each "a.b=value" set; values are TOML, or else plain strings.

    The words True, False and None mean what they mean in Python. A name that gets a part, such as
    a method its parameter, becomes a table with that `name`.

    Raises:
        ParameterError: an override has no "=", or goes through something that is not a table, or
            its value is neither TOML nor a word.

    Example:
        >>> apply_overrides({"optimizer": {"learning_rate": 0.001}}, ["optimizer.learning_rate=1"])
        {'optimizer': {'learning_rate': 1}}
    """
    result: dict[str, Any] = _plain(config)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ParameterError(
                f"--set takes name=value, such as a.b=1, not {shortened(override)!r}"
            )
        table = result
        for key in keys[:-1]:
            if isinstance(table.get(key), str):
                table[key] = {"name": table[key]}
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ParameterError(
                    f"--set {shortened(override)}: {key!r} is a value and has no parts"
                )
        table[keys[-1]] = _plain(_parse_value(text.strip(), dotted.strip()))
    return result


def with_names(values: Mapping[str, Any], **defaults: str) -> dict[str, Any]:
    """Returns settings whose tables name a method: the default one, where they name none.

    Example:
        >>> with_names({"density": {"null": "drop"}, "seed": 1}, density="lash", engine="local")
        {'density': {'name': 'lash', 'null': 'drop'}, 'seed': 1}
    """
    named = {
        name: {"name": default, **values[name]}
        for name, default in defaults.items()
        if isinstance(values.get(name), Mapping)
    }
    return {**values, **named}


def make_settings(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Builds the dataclass `cls` from a table.

    Raises:
        ParameterError: a key is unknown, a needed one is missing, or a value is of another type.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    check_known(values, [field.name for field in fields], where)
    for field in fields:
        needed = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if needed and field.name not in values:
            raise ParameterError(f"{where} needs the setting {field.name!r}")
    annotations = get_type_hints(cls)
    for name, value in values.items():
        if not fits(value, annotations[name]):
            raise ParameterError(
                f"{name!r} in {where} must be {mismatch(value, annotations[name])}"
            )
    return cls(**values)


def check_known(values: Iterable[str], known: Sequence[str], where: str) -> None:
    """Raises ParameterError if one of the names of settings is not known."""
    for key in values:
        if key not in known:
            raise ParameterError(f"{where} has no setting {key!r}; {nearest_names(key, known)}")


def component_table(name: str, value: Any, default: str) -> dict[str, Any]:
    """Returns a table with a `name`, the default one without; `density = "lash"` is short for one.

    Raises:
        ParameterError: it is neither.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name", ""), str):
        return {"name": default, **value}
    raise ParameterError(f"{name} must be a name or a table with a name, not {value!r}")


def in_toml(value: Any) -> str:
    """Returns a plain value as TOML on one line, as `--set` takes it.

    Example:
        >>> in_toml({"name": "kmeans", "features": ["pca"], "flip": True})
        '{ name = "kmeans", features = ["pca"], flip = true }'
    """
    if isinstance(value, Mapping):
        parts = [f"{key} = {in_toml(part)}" for key, part in value.items() if part is not None]
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    return json.dumps(value) if value is not None else "nothing"


def check_count(what: str, value: Any) -> None:
    """Raises ParameterError unless `value` is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ParameterError(f"{what} must be a whole number from 1, not {value!r}")


def expect(value: Any, kind: Any, wanted: str) -> None:
    """Raises ParameterError unless `value` is of a type.

    Args:
        value: what was given.
        kind: as `isinstance` takes it.
        wanted: the sentence that says what is wanted, and how to get it.
    """
    if not isinstance(value, kind):
        raise ParameterError(f"{wanted}, not {type(value).__name__}")


def check_seed(value: Any) -> None:
    """Raises ParameterError unless `value` is a whole number from 0 to 2⁶³ - 1."""
    if not fits(value, int) or not 0 <= value < 2**63:
        raise ParameterError(f"a seed must be a whole number in [0, 2**63), not {value!r:.60}")


def fits(value: Any, annotation: Any) -> bool:
    """Returns whether a value is of an annotated type.

    Known are bool, int, float, str, None, Literal, and unions, lists, tuples and mappings of these;
    whatever else is annotated takes any value. A whole number is a number, and true is neither.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (None, NoneType):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):
        kind = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if (origin or annotation) in _LISTS:
        return isinstance(value, list | tuple) and _items_fit(value, origin, parts)
    if (origin or annotation) in _TABLES:
        inner = parts[1] if parts else Any
        return isinstance(value, Mapping) and all(fits(part, inner) for part in value.values())
    return True


def mismatch(value: Any, annotation: Any) -> str:
    """Returns what a value ought to be and is not, as the end of a sentence."""
    quoted = isinstance(value, str) and fits(_parse_value(value.lower(), ""), annotation)
    advice = "; write it without quotes" if quoted else ""
    if get_origin(annotation) is Literal and isinstance(value, str):
        words = [word for word in get_args(annotation) if isinstance(word, str)]
        advice = f"; {nearest_names(value, words)}"
    return f"{_called(annotation)}, not {shortened(repr(value), 60)}{advice}"


def _items_fit(items: Sequence[Any], origin: Any, parts: tuple[Any, ...]) -> bool:
    if not parts:
        return True
    if origin is not tuple or parts[-1] is Ellipsis:
        return all(fits(item, parts[0]) for item in items)
    return len(items) == len(parts) and all(map(fits, items, parts))


def _called(annotation: Any) -> str:
    """Returns what users call a type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is None:
        return "nothing"
    if annotation in _PLAIN_TYPES:
        return _PLAIN_TYPES[annotation]
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_called, parts)))
    if (origin or annotation) in _TABLES:
        return "a table"
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} ({', '.join(map(_called, parts))})"
    if parts and parts[0] is not Any:
        return f"a list, each part {_called(parts[0])}"
    return "a list"


def _parse_value(text: str, name: str) -> Any:
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ParameterError(f"--set {name} {TOO_DEEP}") from None
    if is_too_deep(value):
        raise ParameterError(f"--set {name} {TOO_DEEP}")
    return value


def _plain(value: Any) -> Any:
    """Returns a copy that JSON can hold; TOML's dates become strings."""
    return json.loads(json.dumps(value, default=str))
