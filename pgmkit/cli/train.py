"""`pgmkit train`."""

from pathlib import Path
from typing import Any

import click

from pgmkit.cli.output import examples, print_json
from pgmkit.cli.settings import (
    OutPath,
    check_out,
    device_option,
    gather_settings,
    run_options,
    working,
)
from pgmkit.config import IMAGES


@click.command(
    epilog=examples(
        "pgmkit train examples/mnist-pgmgan.toml --data mnist.npz -o runs/mnist-pgmgan",
        "pgmkit train examples/ring-pgmgan.toml --data points:ring -o runs/ring --set steps=500",
        "pgmkit train examples/mnist-dcgan.toml --data mnist.npz --dry-run",
    )
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--data", required=True, help=f"Images: {IMAGES}.")
@click.option("-o", "--out", type=OutPath(), help="Output folder.")
@device_option
@run_options
def train(
    config: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train what CONFIG (TOML) describes; a run that was stopped continues.

    The trained model is written to OUT/model as a Hub folder. Under torchrun several processes
    train one model.
    """
    check_out(out, dry_run)
    from pgmkit.jobs.train import prepare
    from pgmkit.learning import ranks

    with working(quiet, dry_run):
        job = prepare(gather_settings(config, flags, overrides))
        estimate = job.estimate() if dry_run else None
        folder = None if dry_run or out is None else job.run(out)
    if estimate is not None:
        told = {"settings": job.resolved(), "steps": job.steps, "parameters": job.sizes}
        told["shapes"], told["bytes"] = job.shapes, dict(estimate.memory)
        told["seconds"] = {"training": round(estimate.seconds, 1)}
        told["tried"] = (
            f"batches of {estimate.batch_size} images of {job.settings.batch_size}; bytes of "
            "activations are on a straight line through two such sizes, seconds in proportion"
        )
        if ranks.is_coordinator():
            print_json(told)
        return
    if folder is None:
        return
    if as_json:
        print_json({"model": str(folder), "config": job.resolved()})
    else:
        click.echo(folder)
