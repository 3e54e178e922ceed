"""How the commands print: JSON, tables, what stands before messages, examples of their use."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pgmkit.errors import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def examples(*lines: str) -> str:
    """Returns what stands last in the help of a command: how it is called."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def print_message(called: str, text: str) -> None:
    """Prints an "error", a "warning" or a "note" on stderr, after that word.

    The word is in colour on a terminal, unless NO_COLOR is set or the terminal is a dumb one.
    """
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    word = f"{called}:" if is_plain else click.style(f"{called}:", fg=_COLOURS[called], bold=True)
    click.echo(f"{word} {text}", err=True)


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


def in_bytes(count: float) -> str:
    """Returns a number of bytes with its unit.

    Example:
        >>> in_bytes(3 * 2**20)
        '3.0 MiB'
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:,.1f} GiB"
