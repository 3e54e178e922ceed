"""The command line: data on stdout, everything else on stderr.

Commands are imported when they run, and `--help` and the listings import no torch.
"""

import atexit
import contextlib
import errno
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import click

import pgmkit
from pgmkit import files, progress
from pgmkit.cli.output import print_message
from pgmkit.components import OWN_DISTRIBUTION, command_of, speaking_for
from pgmkit.errors import (
    PgmkitError,
    PgmkitNote,
    PgmkitWarning,
    first_line,
    in_words,
    nearest_names,
    printable,
    shortened,
)
from pgmkit.plugins import disable_third_party_plugins, installed

_MOST_OF_A_WORD = 400
_MOST_OF_A_LINE = 2000
_FRAMES = re.compile(
    r"Exception raised from [^\n]*\n?(frame #\d+[^\n]*\n?)*"
    r"|C\+\+ CapturedTraceback:\n(#\d+[^\n]*\n?)*"
)
"""The stack of C++ calls that torch adds to its messages."""

_OF_STDOUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)
_OF_CLICK = (click.ClickException, click.Abort, click.exceptions.Exit)
_STOPPING = [signal.SIGINT, signal.SIGTERM]
_received: list[int] = []

_COMMANDS = {
    "shatter": ("pgmkit.cli.shatter:shatter", "Shatter a generator into clusters."),
    "spectrum": ("pgmkit.cli.spectrum:spectrum", "Compute spectra, tell about them, draw them."),
    "ablate": ("pgmkit.cli.ablate:ablate", "Compare methods over axes and seeds."),
    "partition": ("pgmkit.cli.partition:partition", "Fit partitioners to images, and use them."),
    "explore": ("pgmkit.cli.explore:explore", "Look at a result in a browser, and change it."),
    "sample": ("pgmkit.cli.sample:sample", "Make images with a shattered generator."),
    "evaluate": ("pgmkit.cli.evaluate:evaluate", "Score a shattered generator."),
    "train": ("pgmkit.cli.train:train", "Train a generator or an evaluation classifier."),
    "audit": ("pgmkit.cli.audit:audit", "Hold a partitioner or a generator against theory."),
    "info": ("pgmkit.cli.info:info", "Tell what a folder or a reference holds."),
    "generators": ("pgmkit.cli.generators:generators", "List, inspect and publish generators."),
    "components": ("pgmkit.cli.components:components", "List and describe the installed methods."),
    "plugins": ("pgmkit.cli.plugins:plugins", "List, check and begin plugins."),
    "cache": ("pgmkit.cli.cache:cache", "Look at the cache, and empty it."),
    "env": ("pgmkit.cli.env:env", "Tell what belongs in a report of a fault."),
}

_EPILOG = """
\b
Examples:
  pgmkit shatter mnist-dcgan -o shattered
  pgmkit sample shattered --cluster 3 -o cluster-3.png
  pgmkit info shattered

\b
Environment variables:
  PGMKIT_CACHE            folder of the cache; PGMKIT_CACHE_SIZE, its size in GiB
  PGMKIT_DISABLE_PLUGINS  plugins to leave out, as a,b:c
  PGMKIT_STRICT_PLUGINS   1 makes a plugin that fails an error
  PGMKIT_DEBUG            1 shows where an error comes from
  NO_COLOR                1 prints without colours and pictures
  PGMKIT_PICTURES         how a terminal shows pictures: kitty, iterm2, sixel, blocks or none
  HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and others of the Hub's client

\b
Completion of words by the Tab key, in bash (zsh_source and fish_source for others):
  eval "$(_PGMKIT_COMPLETE=bash_source pgmkit)"
"""


class _StoppedError(Exception):
    """Ctrl-C or SIGTERM; the cause is the KeyboardInterrupt with the number of the signal."""


class _LazyGroup(click.Group):
    """Knows names and one-line help of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *(c.name for c in installed().of_kind("commands"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if installed().offers("commands", cmd_name):
            offered: click.Command = command_of(installed().find("commands", cmd_name))
            return offered
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # click itself would print an empty line; only after the ^C of a terminal it has a use.
            if sys.stderr.isatty():
                click.echo(err=True)
            raise _StoppedError from error
        except (PgmkitError, BrokenPipeError, *_OF_CLICK):
            raise
        except Exception:
            if (name := ctx.invoked_subcommand) is None or name in _COMMANDS:
                raise
            with speaking_for(installed().find("commands", name).called, "when it ran"):
                raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in _COMMANDS.items()]
        rows += [(c.name, c.component.summary) for c in installed().of_kind("commands")]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _leave_out_plugins(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        disable_third_party_plugins()


def _print_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Prints the version of pgmkit, and those of all plugins of others."""
    if not value or context.resilient_parsing:
        return
    click.echo(f"pgmkit {pgmkit.__version__}")
    for record in installed().records:
        if record.name.partition(":")[0] != OWN_DISTRIBUTION:
            state = "" if record.status == "loaded" else f" {record.status}"
            click.echo(printable(f"{record.name} {record.version}{state}"))
    context.exit()


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of pgmkit and of plugins, and end.",
)
@click.option(
    "--no-plugins",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_leave_out_plugins,
    help="Load only the plugins that come with pgmkit.",
)
def cli() -> None:
    """Turn pretrained unconditional image generators into conditional ones."""


def main(command: click.Command = cli) -> None:
    """Runs the command; exits with 0 (done), 1 (expected error), 2 (usage) or 3 (done in part).

    Ctrl-C ends with 1 and SIGTERM with 143, both with one line on stderr.

    Args:
        command: another one than `pgmkit` itself, for scripts that are to behave like it.
    """
    warnings.showwarning = _show_warning
    _open_stdout()
    try:
        with _signals_heard():
            code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _show_usage(error)
        sys.exit(error.exit_code)
    except (_StoppedError, click.Abort, KeyboardInterrupt) as error:
        _end_stopped(error if isinstance(error, KeyboardInterrupt) else error.__cause__)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)
    except Exception as error:
        if os.environ.get("PGMKIT_DEBUG") == "1":
            raise
        print_message("error", _one_line(_told(error)))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _told(error: Exception) -> str:
    """Returns what a user is told of an error, with what to do next."""
    if isinstance(error, PgmkitError):
        return "; ".join([str(error), *dict.fromkeys(getattr(error, "__notes__", []))])
    if isinstance(error, OSError) and error.errno in _OF_STDOUT and error.filename is None:
        _discard_stdout()
        return (
            f"the output cannot be printed: {in_words(error)}; all else is done and kept, so send "
            "the output elsewhere and run the same command again"
        )
    if isinstance(error, OSError) and error.filename is not None:
        name = shortened(str(error.filename), 100)
        return f"cannot use {name}: {in_words(error)}; check the path and the rights to it"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "no home folder is known; set HOME (or HF_HOME for the Hub), or write whole paths"
    if isinstance(error, RecursionError):
        return "the input is nested too deep; make it flat (PGMKIT_DEBUG=1 shows where it is read)"
    if _is_out_of_memory(error):
        return (
            f"memory ran out ({first_line(error)}); ask for less, such as fewer latents or images, "
            "or take a machine with more"
        )
    return (
        f"{type(error).__name__}: {first_line(error)}; pgmkit did not expect this: please report "
        "it with what PGMKIT_DEBUG=1 prints"
    )


def _is_out_of_memory(error: Exception) -> bool:
    words = ("allocate memory", "cannot allocate", "out of memory", "bad_alloc")
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in words)


def _show_usage(error: click.ClickException) -> None:
    """Prints what is wrong with a command line, with the commands that are like an unknown one."""
    text, context = error.format_message(), getattr(error, "ctx", None)
    unknown = re.fullmatch(r"No such command '(.*)'\.", text)
    if unknown and context is not None and isinstance(context.command, click.Group):
        near = nearest_names(unknown[1], context.command.list_commands(context))
        text = f"{text} {near[0].upper()}{near[1:]}"
    click.UsageError(shortened(printable(text), 2000), context).show()


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does, and the second of them end at once without a trace."""
    previous: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        if _received:
            files.remove_unfinished()
            os.write(2, b"stopped\n")
            os._exit(_exit_code(_received[0]))
        _received.append(number)
        raise KeyboardInterrupt(number)

    # torchrun expects its processes to end at SIGTERM even where they wait in C++ code.
    ours = [signal.SIGINT] if "TORCHELASTIC_RUN_ID" in os.environ else _STOPPING
    with contextlib.suppress(ValueError):  # not in the main thread: signals go elsewhere
        for name in ours:
            if signal.getsignal(name) is not signal.SIG_IGN:
                previous[name] = signal.signal(name, stop)
    try:
        yield
    finally:
        if not _received:  # else the process is about to end, and a second one may still come
            for name, handler in previous.items():
                signal.signal(name, handler)


def _exit_code(number: int) -> int:
    return 1 if number == signal.SIGINT else 128 + number


def _end_stopped(stop: BaseException | None) -> NoReturn:
    if _received:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
    notes = getattr(stop, "__notes__", [])
    click.echo("stopped" + (f": {notes[0]}" if notes else ""), err=True)
    arguments = getattr(stop, "args", ())
    code = _exit_code(arguments[0] if arguments else signal.SIGINT)
    if _received:
        # Not in the usual order: threads of C++ code may be at work, and end that in an abort.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _open_stdout() -> None:
    """Gives a process that was started without stdout a place to print to.

    Else the next file that is opened would be stdout.
    """
    if sys.stdout is None:
        os.open(os.devnull, os.O_WRONLY)
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **_: Any) -> None:
    if issubclass(category, PgmkitWarning):
        called = "note" if issubclass(category, PgmkitNote) else "warning"
        print_message(called, _one_line(message))
    elif progress.is_verbose():
        print_message("warning", _one_line(f"{category.__name__}: {message}"))


def _one_line(message: object) -> str:
    words = printable(_FRAMES.sub("", str(message))).split()
    return shortened(" ".join(shortened(word, _MOST_OF_A_WORD) for word in words), _MOST_OF_A_LINE)
