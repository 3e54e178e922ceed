"""One component under check, and what its checks find."""

import contextlib
import functools
import inspect
import os
import random
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import SkipTest

import numpy as np
import torch

from pgmkit import contracts
from pgmkit.components import Component, RegisteredComponent
from pgmkit.errors import (
    EngineError,
    ParameterError,
    PgmkitError,
    PluginError,
    first_line,
    shortened,
)
from pgmkit.plugins import installed
from pgmkit.priors import LatentSpec

_Made = TypeVar("_Made")
IMAGE = (3, 8, 8)
"""Shape of the images that components are tried on, where nobody says another."""


@dataclass(frozen=True)
class Case:
    """A component with parameters, to be built as often as its checks need.

    Args:
        component: what builds it.
        parameters: of it.
        image: shape, (C, H, W) or (d,), of the images that it is tried on.
        latent: the prior that a generator loader is tried on; None takes what its parameters say.
    """

    component: RegisteredComponent
    parameters: Mapping[str, Any] = field(default_factory=dict)
    image: tuple[int, ...] = IMAGE
    latent: LatentSpec | None = None
    _kept: dict[str, tuple[Any, BaseException | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return self.component.qualified_name + (f"({shortened(given, 60)})" if given else "")

    @property
    def kind(self) -> str:
        """One of `pgmkit.components.KINDS`."""
        return self.component.kind

    def factory(self) -> Any:
        """Returns what builds it; raises SkipTest where a distribution that it needs is missing."""
        missing = self.component.missing()
        if missing:
            raise SkipTest(f"it needs {', '.join(missing)}, which is not installed")
        return self.component.resolve()

    def build(self) -> Any:
        """Builds it and checks its methods, or raises SkipTest where it cannot be built here."""
        signature = inspect.signature(self.factory())
        needed = [
            name
            for name, part in signature.parameters.items()
            if part.default is part.empty
            and part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)
            and name not in self.parameters
        ]
        if needed:
            raise SkipTest(f"it needs to be told {', '.join(needed)}; give them as parameters")
        try:
            built = self.component.build(**self.parameters)
        except EngineError as error:
            raise SkipTest(f"it cannot run here: {first_line(error)}") from error
        except ParameterError as error:
            if self.parameters:
                raise
            raise SkipTest(f"it needs to be told parameters: {first_line(error)}") from error
        contracts.check(self.kind, built)
        return built

    def built(self) -> Any:
        """Returns one that is not changed; raises SkipTest where `is_built` fails."""
        with needs("is_built"):
            return self.once("built", self.build)

    def once(self, name: str, make: Callable[[], _Made]) -> _Made:
        """Returns what was made under a name before, or makes it; an error is kept, too."""
        if name not in self._kept:
            try:
                self._kept[name] = make(), None
            except (Exception, SystemExit) as error:
                self._kept[name] = None, error
        made, failure = self._kept[name]
        if failure is not None:
            raise failure
        found: _Made = made
        return found

    def require(self, holds: bool, otherwise: str) -> None:
        """Raises PluginError, which says what is wrong with the component, unless all is well."""
        if not holds:
            raise PluginError(f"the {self.component.called} {otherwise}")


Check = Callable[[Case], None]
"""Raises an error that says what is wrong, or SkipTest with the reason why it cannot be tried."""


class _Given(RegisteredComponent):
    """A factory that no plugin offers."""

    def __init__(self, kind: str, factory: Callable[..., Any]) -> None:
        super().__init__(Component("own", "its:factory"), kind, "")
        object.__setattr__(self, "_factory", factory)

    @property
    def qualified_name(self) -> str:
        """The name of the class or function."""
        own: Any = vars(self)["_factory"]
        own = own.func if isinstance(own, functools.partial) else own
        return getattr(own, "__name__", None) or getattr(own, "name", None) or repr(own)

    def resolve(self) -> Any:
        """Returns the factory."""
        return vars(self)["_factory"]


def is_offered(component: RegisteredComponent) -> bool:
    """Returns whether a plugin offers it, rather than a test that gave its factory."""
    return not isinstance(component, _Given)


def case_of(
    kind: str,
    component: Any,
    *,
    image: tuple[int, ...] = IMAGE,
    latent: LatentSpec | int | None = None,
) -> Case:
    """Returns what is to be checked.

    Args:
        kind: one of `pgmkit.components.KINDS`.
        component: a name, a table of name and parameters, or a factory, such as a class. Parameters
            that are not given are those of the component's `trial`, or its own defaults.
        image: see `Case`.
        latent: also the number of dimensions of a normal prior.

    Raises:
        UnknownNameError: no plugin offers it.
        ParameterError: it is none of these.
    """
    latent = LatentSpec(latent) if isinstance(latent, int) else latent
    parameters: dict[str, Any] = {}
    if isinstance(component, Mapping):
        parameters = dict(component)
        component = parameters.pop("name", None)
    if isinstance(component, str):
        component = installed().find(kind, component)
    elif _is_factory(component) or (kind == "commands" and callable(component)):
        component = _Given(kind, component)
    if not isinstance(component, RegisteredComponent):
        raise ParameterError(
            f"a component to check is a name, a table with a name, or a factory such as a class, "
            f"not {component!r:.60}"
        )
    return Case(component, {**component.component.trial, **parameters}, image, latent)


def _is_factory(value: Any) -> bool:
    return (
        inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)
    )


@contextlib.contextmanager
def needs(check: str) -> Iterator[None]:
    """Skips what cannot be tried since another check fails, which is named."""
    try:
        yield
    except SkipTest:
        raise
    except (Exception, SystemExit) as error:
        raise SkipTest(f"{check} fails") from error


@contextlib.contextmanager
def global_chance(seed: int) -> Iterator[Callable[[], bool]]:
    """Seeds the global generators of torch, numpy and Python until the block ends.

    Yields:
        What tells whether none of them was used since.
    """
    kept = _states()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    before = _states()
    try:
        yield lambda: all(map(_equal, before, _states()))
    finally:
        torch.random.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _states() -> tuple[Any, Any, Any]:
    return torch.random.get_rng_state(), np.random.get_state(), random.getstate()


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.equal(right)
    return all(map(np.array_equal, left, right))


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Args:
        check: its name.
        status: "passed", "failed" or "skipped".
        reason: why it failed or was skipped, in one line; else "".
    """

    check: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What all checks of a component found.

    Args:
        kind: of the component.
        name: of the component.
        outcomes: of all checks in their order.
    """

    kind: str
    name: str
    outcomes: tuple[Outcome, ...]

    def with_status(self, status: str) -> list[Outcome]:
        """Returns those that ended so."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    def counts(self) -> dict[str, int]:
        """Returns how many checks were run, and how many of them passed, failed and were skipped.

        A check that was skipped was not run.
        """
        counts = {name: len(self.with_status(name)) for name in ("passed", "failed", "skipped")}
        return {"run": counts["passed"] + counts["failed"], **counts}

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}: {told(self.counts())}"


def told(counts: Mapping[str, int]) -> str:
    """Returns counts as a text, such as "14 run, 14 passed, 0 failed, 1 skipped"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def run(case: Case, checks: tuple[Check, ...]) -> Report:
    """Runs checks one after the other; an error of one keeps no other from running.

    With `PGMKIT_DEBUG=1` in the environment tracebacks of those that fail are on stderr.
    """
    outcomes = []
    for check in checks:
        try:
            quietly(check)(case)
            outcome = Outcome(check.__name__, "passed")
        except SkipTest as skipped:
            outcome = Outcome(check.__name__, "skipped", _line(str(skipped)))
        except (Exception, SystemExit) as error:
            said = f"the {case.component.called} raises {type(error).__name__}: {first_line(error)}"
            reason = str(error) if isinstance(error, PgmkitError) else said
            outcome = Outcome(check.__name__, "failed", _line(reason))
            if os.environ.get("PGMKIT_DEBUG") == "1":
                traceback.print_exception(error)
        outcomes.append(outcome)
    return Report(case.kind, case.component.qualified_name, tuple(outcomes))


def quietly(check: Check) -> Check:
    """Returns a check that prints to stderr, does not warn, and always has the same chance."""
    seed = zlib.crc32(check.__name__.encode())

    @functools.wraps(check)
    def quiet(case: Case) -> None:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sys.stderr),
            global_chance(seed),
        ):
            warnings.simplefilter("ignore")
            check(case)

    return quiet


def _line(text: str) -> str:
    return shortened(" ".join(text.split()), 500)
