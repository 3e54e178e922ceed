"""`pgmkit plugins`."""

from dataclasses import asdict

import click

from pgmkit.cli.output import json_option, print_json, print_table
from pgmkit.plugins import installed


@click.group()
def plugins() -> None:
    """List the installed plugins."""


@plugins.command("ls")
@json_option
def list_plugins(as_json: bool) -> None:
    """List plugins, what they offer, and why any of them failed."""
    records = installed().records
    if as_json:
        print_json([asdict(record) for record in records])
        return
    rows = [
        (r.name, r.version, r.status, r.error or ", ".join(r.components) or "-") for r in records
    ]
    print_table(rows, ("plugin", "version", "status", "components"))
