"""Settings from a config file, flags and `--set`, in that order."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit.config import apply_overrides, read_toml

_NAMED = ("density", "sampler", "engine", "clusters", "remove")
"""Settings that are a table with a name, or may be one; the name alone is short for it."""

config_option = click.option("--config", type=click.Path(path_type=Path), help="Settings as TOML.")
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override one setting; may be repeated.",
)
no_cache_option = click.option(
    "--no-cache", is_flag=True, help="Compute the spectrum even if it is in the cache."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check everything, print the settings, write nothing."
)


def gather_settings(
    config: Path | None, flags: Mapping[str, Any], overrides: Iterable[str]
) -> dict[str, Any]:
    """Returns the settings of a command; flags that are None were not given."""
    values = {} if config is None else read_toml(config)
    return apply_overrides(_with_flags(values, flags), overrides)


def report(line: str) -> None:
    """Prints a line about the run on stderr."""
    click.echo(line, err=True)


def needed_out(out: Path | None) -> Path:
    """Returns the output path, which only a dry run can do without."""
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    return out


def _with_flags(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Lays the flags that were given over a config; a name becomes a table with it."""
    result = dict(values)
    for name in _NAMED:
        if isinstance(result.get(name), str):
            result[name] = {"name": result[name]}
    for name, value in flags.items():
        if value is None:
            continue
        if name == "generator":
            result[name] = {**result.get(name, {}), **value}
        elif name in _NAMED and isinstance(value, str):
            table = result.get(name, {})
            same = isinstance(table, dict) and table.get("name") == value
            result[name] = table if same else {"name": value}
        else:
            result[name] = value
    return result
