"""Settings from a config file, flags and `--set`, in that order."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit import progress
from pgmkit.cli.output import json_option
from pgmkit.components import stdout_to_stderr
from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import OutputError, ParameterError, PgmkitNote

_Command = Callable[..., Any]
_VOICE = "pgmkit.voice"
_CHOSEN = ("clusters", "remove")
"""Settings that may be the name of a way to choose them, which is short for a table with it."""


class OutPath(click.ParamType[Path | str]):
    """A place to write to, on this machine; or a URL where a command can write to one.

    Args:
        urls: whether it may be a URL, which stays a string.
    """

    name = "path"

    def __init__(self, urls: bool = False) -> None:
        self.urls = urls

    def convert(self, value: Any, param: Any, ctx: Any) -> Path | str:
        """Returns the path, or the URL."""
        if isinstance(value, Path) or "://" not in value:
            return Path(value)
        if not self.urls:
            self.fail(
                f"{value!r} is a URL, and this command writes to a disk; give a path, and copy "
                "what it leaves (pgmkit spectrum compute can write to URLs)",
                param,
                ctx,
            )
        return str(value)


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
device_option = click.option(
    "--device", help="Such as cpu or cuda:1; by default auto: CUDA, then MPS, then the CPU."
)


def _set_voice(context: click.Context, option: click.Parameter, value: bool) -> bool:
    """Lets a command say less or more, as one of `voice_options` asks."""
    if not value:
        return value
    if context.meta.setdefault(_VOICE, option.name) != option.name:
        raise click.UsageError("-q asks for less to be said, and -v for more; leave one out")
    if option.name == "quiet":
        warnings.simplefilter("ignore", PgmkitNote)
    else:
        context.with_resource(progress.verbose())
    return value


_quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_set_voice,
    help="Say nothing on stderr but warnings and errors.",
)
_verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=_set_voice,
    expose_value=False,
    help="Also tell how long each part took, and what libraries warn of.",
)


def voice_options(command: _Command) -> _Command:
    """Adds how much a command says on stderr; the command takes `quiet`."""
    for option in (_verbose_option, _quiet_option):
        command = option(command)
    return command


def run_options(command: _Command) -> _Command:
    """Adds what every command that runs by settings takes behind its own options."""
    for option in (json_option, voice_options, dry_run_option, set_option):
        command = option(command)
    return command


@contextlib.contextmanager
def working(quiet: bool, dry_run: bool = False) -> Iterator[None]:
    """Shows progress unless `quiet`, and sends what components print to stderr."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(stdout_to_stderr())
        stack.enter_context(progress.shown(not quiet))
        if dry_run:  # whose parts are no whole ones
            stack.enter_context(progress.phase("trying a little of each part"))
            stack.enter_context(progress.shown(False))
        yield


def gather_settings(
    config: Path | None, flags: Mapping[str, Any], overrides: Iterable[str]
) -> dict[str, Any]:
    """Returns the settings of a command; flags that are None were not given."""
    values = {} if config is None else read_toml(config)
    return apply_overrides(_with_flags(values, flags), overrides)


def check_file(out: Path, suffix: str, what: str) -> None:
    """Checks where a file of a kind is to go, before anything is computed for it.

    Raises:
        OutputError: a folder is there.
        ParameterError: its name says another kind.
    """
    if out.is_dir():
        raise OutputError(f"{out} is a folder; give a file, such as {out / f'out{suffix}'}")
    if out.suffix.lower() != suffix:
        raise ParameterError(f"{what} is written as {suffix}, not {out.name!r}")


def check_out(out: Path | str | None, dry_run: bool) -> None:
    """Checks, before anything is loaded, that there is an output path if one is needed."""
    if out is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--out'.")


def _with_flags(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Lays the flags that were given over a config, whose tables keep what they have of a name."""
    result = dict(values)
    for name, value in flags.items():
        if value is None:
            continue
        if name in ("generator", "spectrum") and isinstance(value, Mapping):
            under = result.get(name, {})
            if not isinstance(under, Mapping):
                raise click.UsageError(
                    f"--{' and --'.join(value)} would be ignored, since {name} is {under!r}"
                )
            result[name] = {**under, **value}
            continue
        table = result.get(name)
        if not isinstance(table, Mapping) or table.get("name") != value:
            result[name] = value
    for name in _CHOSEN:
        if isinstance(result.get(name), str):
            result[name] = {"name": result[name]}
    return result
