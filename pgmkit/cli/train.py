"""`pgmkit train`."""

from pathlib import Path

import click

from pgmkit.cli.output import json_option, print_json
from pgmkit.cli.settings import OutPath, device_option, quiet_option, set_option, telling
from pgmkit.config import apply_overrides, read_toml


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="An .npz file, a folder, or torchvision:NAME:ROOT.")
@click.option("-o", "--out", required=True, type=OutPath(), help="Output folder.")
@device_option
@set_option
@quiet_option
@json_option
def train(
    config: Path,
    data: str,
    out: Path,
    device: str | None,
    overrides: tuple[str, ...],
    quiet: bool,
    as_json: bool,
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
        device=device or "auto",
        **telling(quiet),
    )
    if as_json:
        print_json({"model": str(folder), "config": resolved})
    else:
        click.echo(folder)
