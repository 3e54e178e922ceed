"""`pgmkit train`."""

import sys
from pathlib import Path

import click

from pgmkit.cli.output import json_option, print_json
from pgmkit.cli.settings import set_option
from pgmkit.config import apply_overrides, read_toml


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="An .npz file, a folder, or torchvision:NAME:ROOT.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("--device", default="cpu", show_default=True, help="Such as cpu or cuda.")
@set_option
@json_option
def train(
    config: Path, data: str, out: Path, device: str, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Train what CONFIG (TOML) describes; a run that was stopped continues.

    The trained model is written to OUT/model as a Hub folder.
    """
    from pgmkit.train.run import run_training

    resolved = apply_overrides(read_toml(config), overrides)
    folder = run_training(
        resolved,
        data,
        out,
        device=device,
        progress=sys.stderr.isatty(),
        report=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json({"model": str(folder), "config": resolved})
    else:
        click.echo(folder)
