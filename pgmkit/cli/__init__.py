"""The command line: data on stdout, everything else on stderr.

Commands are imported when they run, and `--help` and the listings import no torch.
"""

import importlib
import os
import sys
import warnings
from typing import Any

import click

import pgmkit
from pgmkit.errors import PgmkitError, PgmkitNote, PgmkitWarning
from pgmkit.plugins import disable_third_party_plugins, registry

_COMMANDS = {
    "shatter": ("pgmkit.cli.shatter:shatter", "Shatter a generator into clusters."),
    "spectrum": ("pgmkit.cli.spectrum:spectrum", "Compute spectra, tell about them, draw them."),
    "ablate": ("pgmkit.cli.ablate:ablate", "Compare methods over axes and seeds."),
    "sample": ("pgmkit.cli.sample:sample", "Make images with a shattered generator."),
    "evaluate": ("pgmkit.cli.evaluate:evaluate", "Score a shattered generator."),
    "train": ("pgmkit.cli.train:train", "Train a generator or an evaluation classifier."),
    "generators": ("pgmkit.cli.generators:generators", "List, inspect and publish generators."),
    "components": ("pgmkit.cli.components:components", "List the installed methods."),
    "plugins": ("pgmkit.cli.plugins:plugins", "List the installed plugins."),
}


class _StoppedError(Exception):
    """Ctrl-C or SIGTERM."""


class _LazyGroup(click.Group):
    """Knows names and one-line help of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *(c.name for c in registry().of_kind("commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        offered = registry().of_kind("commands")
        if any(cmd_name in (c.name, c.qualified_name) for c in offered):
            found: click.Command = registry().find("commands", cmd_name).resolve()
            return found
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # click itself would print an empty line; only after the ^C of a terminal it has a use.
            if sys.stderr.isatty():
                click.echo(err=True)
            raise _StoppedError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in _COMMANDS.items()]
        rows += [(c.name, c.component.summary) for c in registry().of_kind("commands")]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pgmkit.__version__, prog_name="pgmkit")
@click.option("--no-plugins", is_flag=True, help="Load only the plugins that come with pgmkit.")
def cli(no_plugins: bool) -> None:
    """Turn pretrained unconditional image generators into conditional ones."""
    if no_plugins:
        disable_third_party_plugins()


def main(command: click.Command = cli) -> None:
    """Runs the command; exits with 0 (done), 1 (expected error), 2 (usage) or 3 (done in part).

    Args:
        command: another one than `pgmkit` itself, for scripts that are to behave like it.
    """
    warnings.showwarning = _show_warning
    try:
        code = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PgmkitError as error:
        if os.environ.get("PGMKIT_DEBUG") == "1":
            raise
        click.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(1)
    except (_StoppedError, click.Abort, KeyboardInterrupt):
        click.echo("stopped: run the same command again to continue where it was", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **_: Any) -> None:
    if issubclass(category, PgmkitWarning):
        called = "note" if issubclass(category, PgmkitNote) else "warning"
        click.echo(f"{called}: {_one_line(message)}", err=True)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
