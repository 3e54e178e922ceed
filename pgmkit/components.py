"""Components: the named methods that plugins offer.

A component is a frozen record; the code behind it is imported only when the component is built, so
listing what is installed costs no import of torch.
"""

import contextlib
import copy
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from pgmkit.config import fits, mismatch
from pgmkit.errors import (
    ParameterError,
    PgmkitError,
    PluginError,
    first_line,
    nearest_names,
    shortened,
)

OWN_DISTRIBUTION = "pgmkit"

KINDS = {
    "density-estimators": "pgmkit_density_estimators",
    "features": "pgmkit_features",
    "partitioners": "pgmkit_partitioners",
    "mappers": "pgmkit_mappers",
    "cluster-samplers": "pgmkit_cluster_samplers",
    "backbones": "pgmkit_backbones",
    "generator-loaders": "pgmkit_generator_loaders",
    "classifiers": "pgmkit_classifiers",
    "engines": "pgmkit_engines",
    "commands": "pgmkit_commands",
}
"""The kinds of component, each with the name of its hook."""


def singular(kind: str) -> str:
    """Returns what one component of a kind is called; features are always several."""
    return kind if kind == "features" else kind[:-1]


_TYPES_BY_NAME = {"bool": bool, "int": int, "float": float, "str": str}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")


@dataclass(frozen=True)
class Component:
    """One named method.

    Args:
        name: lower-case name, unique within its kind; what users write.
        factory: "module:attribute" of the callable that builds it.
        summary: one line for listings.
        requires: distributions it needs beside pgmkit's own, such as "onnx2pytorch", or extras of
            its own distribution, such as "pgmkit[ray]".
        citation: the paper that it comes from.
        trial: parameters that make it small and quick, with which its checks build it.

    Raises:
        ParameterError: the name or the factory is not of that form.
    """

    name: str
    factory: str
    summary: str = ""
    requires: tuple[str, ...] = ()
    citation: str = ""
    trial: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ParameterError(
                f"a component's name is lower-case letters, digits, '.', '-' and '_', "
                f"not {self.name!r}"
            )
        if not isinstance(self.factory, str) or self.factory.count(":") != 1:
            raise ParameterError(
                f"the factory of component {self.name!r} is written 'module:attribute', "
                f"not {self.factory!r}"
            )


@dataclass(frozen=True)
class RegisteredComponent:
    """A component together with where it came from.

    Args:
        component: the record that the plugin returned.
        kind: one of `KINDS`.
        plugin: the plugin's full name, "distribution:entry-point".
    """

    component: Component
    kind: str
    plugin: str

    @property
    def name(self) -> str:
        """The short name, as users write it."""
        return self.component.name

    @property
    def distribution(self) -> str:
        """The installed distribution that owns the plugin."""
        return self.plugin.partition(":")[0]

    @property
    def qualified_name(self) -> str:
        """The name with its distribution in front, which is never ambiguous."""
        return f"{self.distribution}:{self.name}"

    def is_named(self, name: str) -> bool:
        """Whether `name` is its short or its qualified name."""
        return name in (self.name, self.qualified_name)

    @property
    def called(self) -> str:
        """The name as it stands in messages, with kind and distribution."""
        return f"{singular(self.kind)} {self.qualified_name!r}"

    def missing(self) -> list[str]:
        """Returns the distributions that it needs and that are not installed."""
        return [name for name in self.component.requires if not _is_installed(name)]

    def resolve(self) -> Any:
        """Imports and returns the factory itself; what is printed meanwhile goes to stderr.

        Raises:
            PluginError: a needed distribution is missing, or the factory cannot be imported.
        """
        missing = self.missing()
        if missing:
            raise PluginError(
                f"{self.qualified_name} needs {', '.join(missing)}; run: "
                f"pip install {' '.join(missing)}"
            )
        module_name, _, attribute = self.component.factory.partition(":")
        try:
            with stdout_to_stderr():
                factory = importlib.import_module(module_name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.qualified_name} cannot be imported from {self.component.factory!r}: "
                f"{type(error).__name__}: {first_line(error)}; mend, reinstall or "
                f"disable the plugin {self.plugin!r}"
            ) from error
        return factory

    def build(self, **parameters: Any) -> Any:
        """Calls the factory.

        Raises:
            ParameterError: the factory has no such parameter, needs one that is not given, or
                cannot take a value.
            PluginError: see `resolve`; or the factory fails.
        """
        factory = self.resolve()
        arguments = check_parameters(factory, parameters, f"{singular(self.kind)} {self.name!r}")
        with speaking_for(self.called, "when it was built"), stdout_to_stderr():
            built = factory(**parameters)
        if built is None or isinstance(built, bool | int | float | str):
            raise PluginError(f"the {self.called} is built as {built!r:.60}, which is no object")
        _remember(built, self, arguments)
        return built


def command_of(component: RegisteredComponent) -> Any:
    """Returns the `click.Command` that a component of the kind `commands` names.

    Raises:
        PluginError: it cannot be imported, or is something else.
    """
    import click

    found = component.resolve()
    if not isinstance(found, click.Command):
        raise PluginError(f"the {component.called} is no click.Command but {found!r:.60}")
    return found


_built: dict[int, tuple[Any, RegisteredComponent, dict[str, Any]]] = {}
"""Where components came from, by the number of the object, with a reference to it."""


def _remember(built: Any, component: RegisteredComponent, arguments: dict[str, Any]) -> None:
    key = id(built)
    try:
        reference: Any = weakref.ref(built, lambda _: _built.pop(key, None))
    except TypeError:  # such as one with slots; it is kept, so that its number stays its own
        reference = built
    _built[key] = (reference, component, arguments)


def copied(component: Any) -> Any:
    """Returns a deep copy, which came from where the component, and all in it, did."""
    copies: dict[int, Any] = {}
    copy.deepcopy(component, copies)
    for key, (_, record, arguments) in list(_built.items()):
        if key in copies:
            _remember(copies[key], record, arguments)
    return copies[id(component)]


def origin_of(component: Any) -> RegisteredComponent | None:
    """Returns the record that an object was built from; None for an object of one's own."""
    return _built[id(component)][1] if id(component) in _built else None


def components_of(component: Any) -> list[Any]:
    """Returns the components that one was built with."""
    values = [getattr(component, name, None) for name in arguments_of(component)]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if origin_of(part) is not None]


def name_of(component: Any) -> str:
    """Returns the qualified name of what was built by name, and the class of any other object."""
    origin = origin_of(component)
    kind = component if inspect.isclass(component) else type(component)
    return kind.__name__ if origin is None else origin.qualified_name


def arguments_of(component: Any) -> Mapping[str, Any]:
    """Returns what a component was built with, and the defaults; nothing for one of one's own."""
    return _built[id(component)][2] if id(component) in _built else {}


def called(kind: str, component: Any) -> str:
    """Returns what a component is called in messages: its kind and its name."""
    return f"{singular(kind)} {name_of(component)!r}"


def parameters_of(component: Any) -> dict[str, Any]:
    """Returns the parameters of a component as plain values, for records.

    They are what its `get_params()` says or, without one, the arguments that it was built with and
    the defaults of the others. Of an object of one's own without `get_params` they are its
    attributes of the names of the arguments.
    """
    if hasattr(component, "get_params"):
        with speaking_for(repr(name_of(component)), "in get_params"):
            return dict(_plain(component.get_params()))
    if origin_of(component) is not None:
        return dict(_plain(arguments_of(component)))
    return {
        name: _plain(getattr(component, name, "not told"))
        for name, parameter in inspect.signature(type(component).__init__).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name != "self"
    }


def _plain(value: Any) -> Any:
    """Returns what JSON can hold; objects are told as tables, or by the name of their class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = name_of(value)
    return name if origin_of(value) is None else {"name": name, **parameters_of(value)}


@contextmanager
def speaking_for(component: str, doing: str) -> Iterator[None]:
    """Turns whatever a component raises into one error that names it; expected errors stay.

    Args:
        component: kind and name, as messages call it.
        doing: what it did, such as "in fit".

    Raises:
        PluginError: the component failed.
    """
    try:
        yield
    except PgmkitError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"the {component} failed {doing}: {type(error).__name__}: {first_line(error)}; "
            "PGMKIT_DEBUG=1 shows where, so that its authors can mend it, or take another"
        ) from error


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what is printed to stderr, C code included, so that stdout holds data alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            sys.__stdout__.flush()  # type: ignore[union-attr]
            kept = os.dup(1)
            os.dup2(2, 1)
        except (OSError, AttributeError, ValueError):  # closed
            pass
        else:
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
        yield


@dataclass(frozen=True)
class Parameter:
    """What users may set of a component.

    Args:
        name: as they write it.
        kind: its type, as it is annotated; "" where it is not.
        default: the value without them; None also where it has to be given.
        needed: whether it has to be given.
        meaning: what the docstring of the factory says of it.
    """

    name: str
    kind: str
    default: Any
    needed: bool
    meaning: str


def parameters_taken_by(factory: Any) -> list[Parameter]:
    """Returns the parameters of a factory, in their order."""
    said = _said_of_arguments(inspect.getdoc(factory) or "")
    return [
        Parameter(
            name,
            _kind_of(part.annotation),
            None if part.default is part.empty else _plain(part.default),
            part.default is part.empty,
            said.get(name, ""),
        )
        for name, part in _signature(factory).parameters.items()
        if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)
    ]


def _kind_of(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return re.sub(r"\b(typing|collections\.abc)\.", "", inspect.formatannotation(annotation))


def _said_of_arguments(text: str) -> dict[str, str]:
    """Returns what a docstring in Google's style says of each argument, on one line."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, flags=re.MULTILINE)
    said: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section[1].rstrip() if section else ""):
        names, _, meaning = entry.strip().partition(":")
        said |= dict.fromkeys(re.split(r",\s*", names), " ".join(meaning.split()))
    return said


def _signature(factory: Any) -> inspect.Signature:
    try:
        return inspect.signature(factory, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):  # imported for type checkers only
        return inspect.signature(factory)


def check_parameters(factory: Any, parameters: dict[str, Any], what: str) -> dict[str, Any]:
    """Checks that `factory(**parameters)` has a fitting signature and values of annotated types.

    The annotations that count are those that `pgmkit.config.fits` knows.

    Returns:
        All arguments that it will have, defaults included.

    Raises:
        ParameterError: names the unknown or the missing parameter and the nearest known ones, or
            the value of another type.
    """
    signature = _signature(factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    known = {
        name: p
        for name, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for name, value in parameters.items():
        if name in known:
            _check_value(known[name], value, what)
        elif not takes_any:
            raise ParameterError(
                f"{what} has no parameter {shortened(name)!r}; {nearest_names(name, known)}"
            )
    try:
        bound = signature.bind(**parameters)
    except TypeError as error:
        raise ParameterError(f"{what}: {error}") from error
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            rest = arguments.pop(name, None)
            arguments |= rest if isinstance(rest, dict) else {}
    return arguments


def _check_value(parameter: inspect.Parameter, value: Any, what: str) -> None:
    default, annotation = parameter.default, parameter.annotation
    if isinstance(annotation, str):
        annotation = _TYPES_BY_NAME.get(annotation, Any)
    if annotation is parameter.empty:
        annotation = bool if isinstance(default, bool) else Any
    if default is None:  # many write `size: int = None`
        annotation = annotation | None if isinstance(annotation, type | UnionType) else annotation
    is_default = type(value) is type(default) and bool(value == default)
    if not fits(value, annotation) and not is_default:
        raise ParameterError(f"{what} takes {parameter.name} = {mismatch(value, annotation)}")


def _is_installed(requirement: str) -> bool:
    """Returns whether "distribution" is there, or all that "distribution[extra]" asks for."""
    match = _REQUIREMENT.match(requirement)
    if match is None:
        return False
    distribution, extras = match[1], re.split(r"[\s,]+", match[2] or "")
    try:
        needed = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(
        _is_installed(line)
        for extra in filter(None, extras)
        for line in needed
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", line)
    )
