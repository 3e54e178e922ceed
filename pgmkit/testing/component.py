"""Checks of any component: of its plugin's module, and of how it is built and recorded."""

import functools
import inspect
import json
import os
import subprocess
import sys
from unittest import SkipTest

from pgmkit.components import check_parameters
from pgmkit.errors import ParameterError
from pgmkit.plugins import installed
from pgmkit.states import table_of, why_not_built
from pgmkit.testing.case import Case, is_offered, needs

_MOST_SECONDS = 1.0
_MOST_LETTERS = 120
_NO_SUCH = "no_such_parameter"
_IMPORT = """
import contextlib, importlib, io, json, os, sys, time
import pgmkit
told = io.StringIO()
before = time.perf_counter()
with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
    importlib.import_module(sys.argv[1])
print(json.dumps([time.perf_counter() - before, "torch" in sys.modules, told.getvalue()]))
"""


def plugin_is_imported_quickly(case: Case) -> None:
    """The plugin's module, which every command imports, takes less than a second."""
    seconds, imports_torch, _ = _imported(case)
    if imports_torch:
        raise SkipTest("plugin_imports_no_torch fails")
    case.require(
        seconds < _MOST_SECONDS,
        f"is of a plugin whose module takes {seconds:.1f} s to import, and every command waits for "
        "it; import what is slow where the factory is, in another module",
    )


def plugin_imports_no_torch(case: Case) -> None:
    """The plugin's module imports no torch, so that listings take no time."""
    _, imports_torch, _ = _imported(case)
    case.require(
        not imports_torch,
        "is of a plugin whose module imports torch; import it where the factory is, in another "
        "module",
    )


def plugin_prints_nothing(case: Case) -> None:
    """The plugin's module prints nothing when it is imported."""
    _, _, printed = _imported(case)
    case.require(
        not printed, f"is of a plugin whose module prints {printed[:60]!r} where it is imported"
    )


def summary_is_one_line(case: Case) -> None:
    """The summary that listings show is one short line."""
    if not is_offered(case.component):
        raise SkipTest("no plugin offers it")
    summary = case.component.component.summary
    case.require(
        bool(summary.strip()) and "\n" not in summary and len(summary) <= _MOST_LETTERS,
        f"has the summary {summary[:60]!r}; it must be one line of at most {_MOST_LETTERS} letters",
    )


def is_built(case: Case) -> None:
    """The factory builds an object that has the methods of its kind (`pgmkit.contracts.check`)."""
    case.once("built", case.build)


def unknown_parameters_are_refused(case: Case) -> None:
    """A parameter that does not exist is an error, rather than ignored."""
    with needs("is_built"):
        factory = case.factory()
    try:
        check_parameters(factory, {**case.parameters, _NO_SUCH: 0}, "it")
    except ParameterError as error:
        if _NO_SUCH in str(error):
            return
        raise SkipTest("it needs to be told other parameters") from error
    try:
        case.component.build(**{**case.parameters, _NO_SUCH: 0})
    except ParameterError:
        return
    case.require(False, f"takes a parameter {_NO_SUCH!r}, as it would one that is misspelt")


def parameters_are_on_record(case: Case) -> None:
    """What records hold of it is plain, and builds the same again."""
    built = case.built()
    reason = why_not_built(built)
    if reason is not None:
        raise SkipTest(reason)
    table = table_of(built)
    json.dumps(table, allow_nan=False)
    again = table_of(case.component.build(**table["params"]))
    case.require(
        again == table,
        f"is on record with {table['params']!r:.80}, of which is built what has "
        f"{again['params']!r:.80}",
    )


def repr_is_a_text(case: Case) -> None:
    """Its repr can be printed."""
    case.require(bool(repr(case.built())), "has an empty repr")


def check_takes(case: Case, name: str) -> None:
    """Raises PluginError unless the factory takes a whole number of a name, with a default."""
    with needs("is_built"):
        factory = case.factory()
    parameter = inspect.signature(factory).parameters.get(name)
    case.require(
        parameter is not None and parameter.default is not parameter.empty,
        f"has a factory without {name}; it must take one, with a default for where no number is "
        "asked for",
    )
    check_parameters(factory, {**case.parameters, name: 2}, f"the {case.component.called}")


def _imported(case: Case) -> tuple[float, bool, str]:
    """Returns how many seconds the plugin's module took, if torch came with it, what it printed."""
    if not is_offered(case.component):
        raise SkipTest("no plugin offers it")
    records = {record.name: record for record in installed().records}
    module = records[case.component.plugin].module.partition(":")[0]
    return _measured(module, os.pathsep.join(filter(None, sys.path)))


@functools.cache
def _measured(module: str, path: str) -> tuple[float, bool, str]:
    environment = {**os.environ, "PYTHONPATH": path, "PGMKIT_STRICT_PLUGINS": "0"}
    finished = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _IMPORT, module],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    *printed, last = finished.stdout.splitlines() or ["", "[0, false, '']"]
    seconds, imports_torch, told = json.loads(last)
    return seconds, imports_torch, "\n".join([*printed, told, finished.stderr]).strip()
