"""Finds plugins, keeps broken ones apart, and knows where every component came from."""

import contextlib
import importlib.metadata
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from types import FrameType
from typing import Any, NoReturn

import pluggy

from pgmkit import hookspecs
from pgmkit.components import (
    KINDS,
    OWN_DISTRIBUTION,
    Component,
    RegisteredComponent,
    singular,
    stdout_to_stderr,
)
from pgmkit.errors import ParameterError, PluginError, UnknownNameError, nearest_names, shortened

_REFERENCES = ("local-dir:", "hf-hub:")
_REFERRED = ("partitioners", "features")
_ALARM_SECONDS = 3.0
_MOST_SECONDS = 30.0


@dataclass(frozen=True)
class PluginRecord:
    """One plugin that was found.

    Args:
        name: "distribution:entry-point".
        version: the distribution's version.
        module: the module that the entry point names.
        status: "loaded", "failed" or "disabled".
        error: why it failed, else "".
        components: "kind/name" of everything that it offers.
    """

    name: str
    version: str
    module: str
    status: str
    error: str = ""
    components: tuple[str, ...] = ()


class InstalledPlugins:
    """The plugins of this process and what they offer.

    Args:
        entry_points: the entry points to load, in any order.
        disabled: patterns of distributions or full plugin names that are not loaded.
        third_party: whether plugins of other distributions are loaded at all.
        strict: raise on a plugin that fails, instead of recording it.

    Raises:
        PluginError: a plugin failed and `strict` is on.
    """

    def __init__(
        self,
        entry_points: Iterable[importlib.metadata.EntryPoint],
        *,
        disabled: Sequence[str] = (),
        third_party: bool = True,
        strict: bool = False,
    ) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self.manager.add_hookspecs(hookspecs)
        self.components: list[RegisteredComponent] = []
        self.records = [
            self._load(entry_point, disabled, third_party)
            for entry_point in sorted(entry_points, key=_load_order)
        ]
        failed = [record for record in self.records if record.status == "failed"]
        if failed and strict:
            raise PluginError(
                f"the plugin {failed[0].name!r} failed: {failed[0].error}; mend or uninstall it, "
                f"or set PGMKIT_DISABLE_PLUGINS={failed[0].name}"
            )

    def of_kind(self, kind: str) -> list[RegisteredComponent]:
        """Returns the components of one kind, those of pgmkit first.

        Raises:
            UnknownNameError: there is no such kind.
        """
        if kind not in KINDS:
            raise UnknownNameError("kind of component", kind, KINDS)
        return [component for component in self.components if component.kind == kind]

    def offers(self, kind: str, name: str) -> bool:
        """Whether some component is called `name` or `distribution:name`."""
        return any(component.is_named(name) for component in self.of_kind(kind))

    def find(self, kind: str, name: str) -> RegisteredComponent:
        """Returns the component called `name` or `distribution:name`; pgmkit's own have the names.

        Raises:
            UnknownNameError: there is none; plugins that failed or are disabled are named, since
                one of them may be the one that offers it.
            PluginError: two plugins offer it, and pgmkit does not.
        """
        failed = [record.name for record in self.records if record.status == "failed"]
        disabled = [record.name for record in self.records if record.status == "disabled"]
        hint = ""
        if failed:
            hint = f"these plugins failed to load: {', '.join(failed)}; see pgmkit plugins ls"
        elif disabled:
            hint = f"these plugins are disabled: {', '.join(disabled)}; see PGMKIT_DISABLE_PLUGINS"
        offered = self.of_kind(kind)
        found = [c for c in offered if c.is_named(name)]
        # A plugin cannot change what a name of pgmkit means; its own has its distribution in front.
        found = [c for c in found if c.distribution == OWN_DISTRIBUTION] or found
        if not found:
            raise UnknownNameError(singular(kind), name, [c.name for c in offered], hint)
        if len(found) > 1:
            owners = sorted({c.plugin for c in found})
            choices = sorted({c.qualified_name for c in found})
            advice = f"disable one of them with PGMKIT_DISABLE_PLUGINS={owners[0]}"
            if len(choices) > 1:
                advice = f"write {' or '.join(map(repr, choices))}"
            raise PluginError(
                f"the {singular(kind)} {name!r} is offered by {' and by '.join(owners)}; {advice}"
            )
        return found[0]

    def _load(
        self,
        entry_point: importlib.metadata.EntryPoint,
        disabled: Sequence[str],
        third_party: bool,
    ) -> PluginRecord:
        distribution = _distribution(entry_point)
        name = f"{distribution}:{entry_point.name}"
        version = entry_point.dist.version if entry_point.dist else ""
        foreign = distribution != OWN_DISTRIBUTION
        if (foreign and not third_party) or any(
            fnmatchcase(name, pattern) or fnmatchcase(distribution, pattern) for pattern in disabled
        ):
            return PluginRecord(name, version, entry_point.value, "disabled")
        try:
            with _guarded(name) if foreign else contextlib.nullcontext():
                module = entry_point.load()
                _check_api_version(module)
                self._register(module, name)
                components = self._collect(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            message = f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 500)}"
            return PluginRecord(name, version, entry_point.value, "failed", message)
        self.components += components
        offered = tuple(f"{c.kind}/{c.name}" for c in components)
        return PluginRecord(name, version, entry_point.value, "loaded", components=offered)

    def _register(self, module: object, name: str) -> None:
        self.manager.register(module, name=name)
        for caller in self.manager.get_hookcallers(module) or ():
            if not caller.has_spec():
                raise PluginError(
                    f"implements the unknown hook {caller.name!r}; "
                    f"{nearest_names(caller.name, KINDS.values())}"
                )

    def _collect(self, plugin: str) -> list[RegisteredComponent]:
        """Calls each hook of one plugin alone, so that every component knows its owner."""
        others = [p for n, p in self.manager.list_name_plugin() if n != plugin]
        found = []
        for kind, hook in KINDS.items():
            caller = self.manager.subset_hook_caller(hook, remove_plugins=others)
            for offered in caller():
                for component in offered:
                    if not isinstance(component, Component):
                        raise PluginError(
                            f"{hook} returned {component!r}, which is not a pgmkit.Component"
                        )
                    found.append(RegisteredComponent(component, kind, plugin))
        names = [(c.kind, c.name) for c in found]
        for kind, name in names:
            if names.count((kind, name)) > 1:
                raise PluginError(f"offers {singular(kind)} {name!r} twice")
        return found


_third_party = True


def disable_third_party_plugins() -> None:
    """Restricts this process to the plugins that come with pgmkit (`--no-plugins`)."""
    global _third_party
    _third_party = False
    installed.cache_clear()


@cache
def installed() -> InstalledPlugins:
    """Returns the plugins of this process, loading them on first use.

    `PGMKIT_DISABLE_PLUGINS` holds patterns, separated by commas, of distributions or
    "distribution:plugin" names to leave out. `PGMKIT_STRICT_PLUGINS=1` makes a failure an error.
    """
    disabled = os.environ.get("PGMKIT_DISABLE_PLUGINS", "")
    return InstalledPlugins(
        importlib.metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP),
        disabled=[pattern.strip() for pattern in disabled.split(",") if pattern.strip()],
        third_party=_third_party,
        strict=os.environ.get("PGMKIT_STRICT_PLUGINS") == "1",
    )


def list_components(kind: str) -> list[RegisteredComponent]:
    """Lists the installed components of one kind; nothing behind them is imported.

    Args:
        kind: one of `pgmkit.components.KINDS`, such as "partitioners".

    Raises:
        UnknownNameError: there is no such kind.

    Example:
        >>> [component.name for component in list_components("classifiers")]
        ['lash-classifier', 'residual-classifier']
    """
    return installed().of_kind(kind)


def build(kind: str, what: Any, /, **parameters: Any) -> Any:
    """Returns a component: the one that a name or a table names, or the object itself.

    Args:
        kind: one of the kinds of component.
        what: a name; a table with a `name` and parameters; or an object that keeps the contract of
            its kind, see `pgmkit.contracts`. Of partitioners also the reference of one that was
            fitted ("local-dir:...", "hf-hub:..."), and of features that of a partitioner which
            looks at them.
        **parameters: of the one that is built, where a table does not have them.

    Raises:
        UnknownNameError: no plugin offers it.
        ParameterError: a parameter is unknown, missing or outside its range, or is given for an
            object.
        PluginError: two plugins offer the name, its code cannot be imported, or what it builds does
            not keep the contract.

    Example:
        >>> build("density-estimators", {"name": "polarity", "rho": -0.2}).rho
        -0.2
    """
    from pgmkit.contracts import check

    if isinstance(what, str | Mapping):
        table = {**parameters, **({"name": what} if isinstance(what, str) else what)}
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise ParameterError(
                f"a table of {kind} needs a name, such as {{ name = ... }}, and is {what!r:.80}"
            )
        if kind in _REFERRED and name.startswith(_REFERENCES):
            table["source"], name = name, "fixed"
        component = installed().find(kind, name).build(**table)
    elif parameters:
        raise ParameterError(
            f"{', '.join(parameters)} cannot be given for a {singular(kind)} that is an object; "
            "set it on the object itself"
        )
    else:
        component = what
    check(kind, component)
    return component


@contextlib.contextmanager
def _guarded(plugin: str) -> Iterator[None]:
    """Runs code of a plugin that is being loaded such that it can break nothing but itself.

    What it prints goes to stderr. Where it ends the interpreter with `os._exit`, or takes too long,
    there is an error instead. A crash in C code cannot be kept apart.
    """
    with stdout_to_stderr(), _no_exit(), _time_limit(plugin):
        yield


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """Lets `os._exit` raise an error in this process, and do what it does in its children."""
    leave, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:
            leave(status)
        raise PluginError(f"ends the interpreter with os._exit({status}) where it is imported")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave


@contextlib.contextmanager
def _time_limit(plugin: str) -> Iterator[None]:
    """Says which plugin it is that stalls the start, and gives it up in the end.

    Only the main thread can be interrupted; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    started = time.monotonic()

    def alarm(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - started >= _MOST_SECONDS:
            raise PluginError(f"has been importing for more than {_MOST_SECONDS:g} s")
        print(
            f"the plugin {plugin} has been importing for {time.monotonic() - started:.0f} s and is "
            f"left out after {_MOST_SECONDS:g} s; to leave it out now press Ctrl-C and set "
            f"PGMKIT_DISABLE_PLUGINS={plugin}",
            file=sys.stderr,
            flush=True,
        )
        signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS - _ALARM_SECONDS)

    handler = signal.signal(signal.SIGALRM, alarm)
    left, every = signal.setitimer(signal.ITIMER_REAL, _ALARM_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's, such as that of a test
            signal.setitimer(signal.ITIMER_REAL, left, every)


def _load_order(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    distribution = _distribution(entry_point)
    return distribution != OWN_DISTRIBUTION, distribution, entry_point.name


def _distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    return entry_point.dist.name.lower() if entry_point.dist else "unknown"


def _check_api_version(module: object) -> None:
    version = getattr(module, "PGMKIT_API_VERSION", hookspecs.API_VERSION)
    if version != hookspecs.API_VERSION:
        raise PluginError(
            f"is written for plugin API {version}, and this pgmkit has {hookspecs.API_VERSION}; "
            "install matching versions"
        )
