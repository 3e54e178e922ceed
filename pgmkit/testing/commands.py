"""Checks of commands, which become `pgmkit NAME`."""

from click.testing import CliRunner, Result

from pgmkit.components import command_of
from pgmkit.testing.case import Case, needs


def is_a_click_command(case: Case) -> None:
    """The factory names a `click.Command`."""
    case.factory()
    command_of(case.component)


def help_is_printed(case: Case) -> None:
    """`--help` prints a line on what the command does, and ends with 0."""
    result = _invoked(case, "--help")
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    case.require(
        result.exit_code == 0 and len(lines) > 1 and not lines[1].startswith("Options"),
        "does not say with --help what it does; give it a docstring",
    )


def unknown_options_are_usage_errors(case: Case) -> None:
    """An option that does not exist ends with 2."""
    result = _invoked(case, "--no-such-option")
    case.require(
        result.exit_code == 2, f"ends with {result.exit_code} for an option that does not exist"
    )


def _invoked(case: Case, *arguments: str) -> Result:
    with needs("is_a_click_command"):
        command = command_of(case.component)
    return CliRunner().invoke(command, [*arguments])
