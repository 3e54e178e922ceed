"""Options that say of a generator what its source does not say of itself."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import ParameterError

_OPTIONS = (
    (
        "--architecture",
        "NAME",
        "Its network: a component, package.module:Class, or auto to infer it from the weights.",
    ),
    ("--latent", "DIM", "Its prior: 100, uniform:100 or a TOML table such as '{dim=8, std=2.0}'."),
    ("--image", "CxHxW", "What comes out: 3x64x64, or 3x64x64:0,1 with the range of values."),
    ("--model-args", "TABLE", "Arguments of the architecture, as a TOML table: '{width=64}'."),
    ("--weights", "FILE", "The weight file, relative to the source."),
    ("--key", "KEY", "The entry of the weight file that holds the generator, such as g_ema."),
    ("--prefix", "PREFIX", "What names of the generator's weights begin with, such as module."),
)
_NAMES = [option.removeprefix("--").replace("-", "_") for option, *_ in _OPTIONS]
_TABLES = ("latent", "image", "model_args")
_Command = Callable[..., Any]


def generator_options(command: _Command) -> _Command:
    """Adds the options of `pgmkit.load_generator` to a command with an argument `source`.

    The command takes them as one table `generator`, None if none was given.
    """

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        generator_file: Path | None,
        recalibrate: bool,
        partition: int | None,
        **given: Any,
    ) -> Any:
        flags = {name: given.pop(name) for name in _NAMES}
        table = {} if generator_file is None else read_toml(generator_file)
        source = table.pop("source", None)
        if source is not None and given.get("source") is None:
            given["source"] = source
        for name, value in flags.items():
            if value is not None:
                table[name] = _value(name, value)
        if recalibrate:
            table["recalibrate"] = True
        if partition is not None:
            table["partition"] = partition
        return command(*args, generator=table or None, **given)

    for option, metavar, text in reversed(_OPTIONS):
        wrapped = click.option(option, metavar=metavar, help=text)(wrapped)
    wrapped = click.option(
        "--partition", type=int, help="One partition of a conditional generator, from 0."
    )(wrapped)
    wrapped = click.option(
        "--recalibrate", is_flag=True, help="Estimate its batch-norm statistics anew."
    )(wrapped)
    return click.option(
        "--generator",
        "generator_file",
        type=click.Path(path_type=Path),
        help="A TOML file with these options, and perhaps the source.",
    )(wrapped)


def needed_source(source: str | None) -> str:
    """Returns the source, which the argument or the file of `--generator` has to name."""
    if source is None:
        raise click.UsageError("Missing argument 'SOURCE'.")
    return source


def _value(name: str, text: str) -> Any:
    """Returns an option's value; what begins like a table is one."""
    if name not in _TABLES or not text.lstrip().startswith(("{", "[")):
        return text
    value = apply_overrides({}, [f"value={text}"])["value"]
    if isinstance(value, str):
        raise ParameterError(f"--{name.replace('_', '-')} is no valid TOML table: {text}")
    return value
