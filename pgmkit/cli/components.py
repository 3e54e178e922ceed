"""`pgmkit components`."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from pgmkit.cli.completion import complete_components
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.components import KINDS, RegisteredComponent, command_of, parameters_taken_by
from pgmkit.errors import UnknownNameError, printable
from pgmkit.plugins import installed, list_components

_WIDTH = 96
_USE = {
    "density-estimators": "pgmkit shatter SOURCE -o OUT --density NAME "
    "--set density.PARAMETER=VALUE",
    "features": "pgmkit shatter SOURCE -o OUT --partitioner kmeans "
    "--set 'partitioner.features={name=\"NAME\", PARAMETER=VALUE}'",
    "partitioners": "pgmkit shatter SOURCE -o OUT --partitioner NAME "
    "--set partitioner.PARAMETER=VALUE",
    "mappers": "pgmkit shatter SOURCE -o OUT --mapper NAME --set mapper.PARAMETER=VALUE",
    "cluster-samplers": "pgmkit shatter SOURCE -o OUT --sampler NAME --set sampler.PARAMETER=VALUE",
    "backbones": "pgmkit train CONFIG.toml --data IMAGES -o OUT --set model.backbone=NAME "
    "--set model.backbone_args.PARAMETER=VALUE",
    "generator-loaders": "pgmkit shatter SOURCE -o OUT --architecture NAME "
    "--model-args '{PARAMETER=VALUE}'",
    "classifiers": "pgmkit train CONFIG.toml --data IMAGES -o OUT --set model.name=NAME "
    "--set model.PARAMETER=VALUE",
    "engines": "pgmkit shatter SOURCE -o OUT --engine NAME --set spectrum.engine.PARAMETER=VALUE",
    "commands": "pgmkit NAME --help",
}
"""How a component of each kind is used."""


@click.group(
    epilog=examples(
        "pgmkit components ls",
        "pgmkit components ls partitioners",
        "pgmkit components info lash",
    )
)
def components() -> None:
    """List and describe the installed methods."""


@components.command(
    "ls", epilog=examples("pgmkit components ls", "pgmkit components ls partitioners --json")
)
@click.argument("kind", required=False)
@json_option
def list_all(kind: str | None, as_json: bool) -> None:
    """List components, of all kinds or of one KIND such as density-estimators."""
    kinds = list(KINDS) if kind is None else [kind]
    found = [component for each in kinds for component in list_components(each)]
    if as_json:
        print_json([_record(component) for component in found])
        return
    rows = [(c.kind, _written(c), c.plugin, c.component.summary) for c in found]
    print_table(rows, ("kind", "name", "plugin", "summary"))


@components.command(
    "info",
    epilog=examples(
        "pgmkit components info lash",
        "pgmkit components info mappers/mixture",
        "pgmkit components info acme-halves:halves --json",
    ),
)
@click.argument("name", shell_complete=complete_components())
@json_option
def info(name: str, as_json: bool) -> None:
    """Tell about one component: its parameters with types and defaults, and where it comes from.

    NAME is as `pgmkit components ls` has it; where several kinds have it all are told of, or the
    one of kind/NAME.
    """
    found = _named(name)
    if as_json:
        print_json([{**_record(c), "parameters": _parameters(c)} for c in found])
        return
    for number, component in enumerate(found):
        if number:
            click.echo()
        _tell(component)


def _tell(component: RegisteredComponent) -> None:
    facts = component.component
    missing = component.missing()
    rows = [
        ("summary", facts.summary or "-"),
        ("plugin", component.plugin),
        ("code", facts.factory),
        ("citation", facts.citation or "-"),
    ]
    if facts.requires:
        absent = f"; not installed: {', '.join(missing)}" if missing else ""
        rows.append(("requires", f"{', '.join(facts.requires)}{absent}"))
    rows.append(("use", _USE[component.kind].replace("NAME", _written(component))))
    print_table(rows, (component.kind, component.qualified_name))
    if missing:
        return
    for parameter in _parameters(component):
        default = " (needed)" if parameter["needed"] else f" = {json.dumps(parameter['default'])}"
        click.echo(printable(f"\n{parameter['name']}: {parameter['kind'] or 'any'}{default}"))
        if parameter["meaning"]:
            lines = textwrap.wrap(printable(parameter["meaning"]), _WIDTH - 4)
            click.echo(textwrap.indent("\n".join(lines), "    "))


def _parameters(component: RegisteredComponent) -> list[dict[str, Any]]:
    if component.kind == "commands":
        command_of(component)
        return []
    return [asdict(parameter) for parameter in parameters_taken_by(component.resolve())]


def _record(component: RegisteredComponent) -> Mapping[str, Any]:
    facts = component.component
    return {
        "kind": component.kind,
        "name": component.name,
        "plugin": component.plugin,
        "factory": facts.factory,
        "summary": facts.summary,
        "requires": list(facts.requires),
        "citation": facts.citation,
    }


def _named(name: str) -> list[RegisteredComponent]:
    """Returns the components of a name, of any kind or of that before a slash.

    Raises:
        UnknownNameError: there is none.
        PluginError: two plugins offer it.
    """
    kind, slash, short = name.partition("/")
    plugins = installed()
    if slash:
        return [plugins.find(kind, short)]
    found = [plugins.find(kind, name) for kind in KINDS if plugins.offers(kind, name)]
    if not found:
        known = {component.name for component in plugins.components}
        raise UnknownNameError("component", name, known, "see pgmkit components ls")
    return found


def _written(component: RegisteredComponent) -> str:
    """Returns the shortest name that means this component and no other."""
    named = [c for c in list_components(component.kind) if c.name == component.name]
    return component.name if component is named[0] else component.qualified_name
