"""Settings: TOML files, overridden by `--set a.b=1`, checked against a dataclass."""

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

from pgmkit.errors import ParameterError, nearest_names

Settings = TypeVar("Settings")

_PLAIN_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    NoneType: "left out",
}


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        ParameterError: it is not there or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(
            f"cannot read the config file {path}: {error.strerror or error}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"the config file {path} is not valid TOML: {error}") from error


def apply_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns `config` with each "a.b=value" set; values are TOML, or else plain strings.

    Raises:
        ParameterError: an override has no "=", or goes through something that is not a table.

    Example:
        >>> apply_overrides({"optimizer": {"learning_rate": 0.001}}, ["optimizer.learning_rate=1"])
        {'optimizer': {'learning_rate': 1}}
    """
    result: dict[str, Any] = _plain(config)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise ParameterError(f"--set takes name=value, such as a.b=1, not {override!r}")
        table = result
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ParameterError(f"--set {override}: {key!r} is a value and has no parts")
        table[keys[-1]] = _plain(_parse_value(text.strip()))
    return result


def make_settings(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Builds the dataclass `cls` from a table.

    Raises:
        ParameterError: a key is unknown, a needed one is missing, or a value is of another type.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for key in values:
        if key not in known:
            raise ParameterError(f"{where} has no setting {key!r}; {nearest_names(key, known)}")
    for field in fields:
        needed = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if needed and field.name not in values:
            raise ParameterError(f"{where} needs the setting {field.name!r}")
    for field in fields:
        if field.name in values:
            _check_type(values[field.name], field.type, f"{field.name!r} in {where}")
    return cls(**values)


def component_table(name: str, value: Any, default: str) -> dict[str, Any]:
    """Returns a component's table; `density = "lash"` is short for one with that `name`.

    Args:
        name: of the setting.
        value: a name, or a table with parameters that may have a `name`.
        default: the component that a table without a name means.

    Raises:
        ParameterError: it is neither.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name", ""), str):
        return {"name": default, **value}
    raise ParameterError(f"{name} must be a name or a table with a name, not {value!r}")


def check_count(what: str, value: Any) -> None:
    """Raises ParameterError unless `value` is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ParameterError(f"{what} must be a whole number from 1, not {value!r}")


def _check_type(value: Any, annotation: Any, what: str) -> None:
    """Checks plain types; tables and lists are left to those who take them."""
    allowed = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if not all(kind in _PLAIN_TYPES for kind in allowed):
        return
    accepted = (*allowed, int) if float in allowed else allowed
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in allowed):
        called = " or ".join(_PLAIN_TYPES[kind] for kind in allowed)
        raise ParameterError(f"{what} must be {called}, not {value!r:.60}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _plain(value: Any) -> Any:
    """Returns a copy that JSON can hold; TOML's dates become strings."""
    return json.loads(json.dumps(value, default=str))
