"""`pgmkit components`."""

import click

from pgmkit.cli.output import json_option, print_json, print_table
from pgmkit.components import KINDS, RegisteredComponent
from pgmkit.plugins import list_components


@click.group()
def components() -> None:
    """List the installed methods."""


@components.command("ls")
@click.argument("kind", required=False)
@json_option
def list_all(kind: str | None, as_json: bool) -> None:
    """List components, of all kinds or of one KIND such as density-estimators."""
    kinds = list(KINDS) if kind is None else [kind]
    found = [component for each in kinds for component in list_components(each)]
    if as_json:
        print_json(
            [
                {
                    "kind": c.kind,
                    "name": c.name,
                    "plugin": c.plugin,
                    "factory": c.component.factory,
                    "summary": c.component.summary,
                    "requires": list(c.component.requires),
                    "citation": c.component.citation,
                }
                for c in found
            ]
        )
        return
    rows = [(c.kind, _written(c), c.plugin, c.component.summary) for c in found]
    print_table(rows, ("kind", "name", "plugin", "summary"))


def _written(component: RegisteredComponent) -> str:
    """Returns the shortest name that means this component and no other."""
    named = [c for c in list_components(component.kind) if c.name == component.name]
    return component.name if component is named[0] else component.qualified_name
