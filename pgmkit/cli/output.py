"""How the commands print: JSON and tables."""

import json
from collections.abc import Sequence
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Prints left-aligned columns on stdout."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
