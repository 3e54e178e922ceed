"""How the commands print: JSON and tables."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pgmkit.errors import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Prints left-aligned columns on stdout; a cell is one line, and a terminal obeys none."""
    lines = [[re.sub(r"\s*[\n\r\t]\s*", " ", cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(printable("  ".join(cells).rstrip()))


def scores_line(protocol: str, scores: Mapping[str, Any]) -> str:
    """Returns the scores of one protocol, a `ClusterScores` as a mapping, on one line."""
    return (
        f"{protocol}: AMI {scores['adjusted_mutual_information']:.4f}, NMI "
        f"{scores['normalized_mutual_information']:.4f}, V-measure {scores['v_measure']:.4f}, "
        f"homogeneity {scores['homogeneity']:.4f}, completeness {scores['completeness']:.4f}, "
        f"purity {scores['overall_purity']:.4f}, class entropy {scores['class_entropy']:.3f} nats "
        f"and {scores['mean_cluster_entropy']:.3f} within clusters"
    )
