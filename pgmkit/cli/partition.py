"""`pgmkit partition fit`, `assign`, `info` and `plot`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit import defaults, progress
from pgmkit.cli.output import json_option, print_json, print_table
from pgmkit.cli.settings import (
    OutPath,
    check_out,
    config_option,
    device_option,
    gather_settings,
    quiet_option,
    run_options,
)
from pgmkit.config import IMAGES

_DATA = f"Images: {IMAGES}."


def _with_data(command: Any) -> Any:
    size = click.option("--size", type=int, help="Side to which images are padded or resized.")
    split = click.option("--split", help="train (default) or test, where the data have both.")
    return split(size(command))


@click.group()
def partition() -> None:
    """Fit partitioners to images, and use them."""


@partition.command()
@click.argument("name", required=False, metavar="[NAME|CONFIG]")
@click.option("--data", help=_DATA)
@click.option("--partitions", type=int, help=f"How many parts; {defaults.CLUSTERS} by default.")
@click.option("-o", "--out", type=OutPath(), help="Output folder.")
@click.option("--seed", type=int, help=f"Of everything random; {defaults.SEED} by default.")
@_with_data
@device_option
@config_option
@run_options
def fit(
    name: str | None,
    out: Path | None,
    config: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fit the partitioner NAME to images, and leave it in OUT as a Hub folder.

    NAME is one of `pgmkit components ls partitioners`; or CONFIG, a file that ends in .toml, names
    it and other settings, as --config does. A run that was stopped continues.
    `pgmkit shatter SOURCE --partitioner local-dir:OUT` shatters a generator with it, and `pgmkit
    generators push OUT org/name` publishes it.
    """
    check_out(out, dry_run)
    if name is not None and name.endswith(".toml"):
        if config is not None:
            raise click.UsageError(f"two config files are given, {name} and --config {config}")
        config, name = Path(name), None
    from pgmkit.jobs.partition import prepare

    job = prepare(gather_settings(config, {"partitioner": name, **flags}, overrides))
    if dry_run:
        told = {"settings": job.resolved(), "images": len(job.source)}
        print_json({**told, "seconds": {"parts": round(job.estimate(), 1)}})
        return
    assert out is not None
    with progress.shown(not quiet):
        numbers = job.run(out)
    if as_json:
        print_json({"out": str(out), **numbers})
    else:
        _print(numbers)
        click.echo(f"\nshatter a generator with it: --partitioner local-dir:{out}")


@partition.command()
@click.argument("partitioner")
@click.option("--data", required=True, help=_DATA)
@click.option("-o", "--out", type=OutPath(), help="A .csv file of parts and margins.")
@_with_data
@device_option
@quiet_option
@json_option
def assign(partitioner: str, out: Path | None, as_json: bool, **where: Any) -> None:
    """Say in which part of PARTITIONER (a folder or hf-hub:org/name) each image lies."""
    from pgmkit import files

    fitted, _, found = _assigned(partitioner, **where)
    parts, margins = found["parts"].tolist(), found["margins"].tolist()
    sizes = found["parts"].bincount(minlength=fitted.num_partitions).tolist()
    if out is not None:
        rows = [
            f"{i},{part},{margin:.6g}"
            for i, (part, margin) in enumerate(zip(parts, margins, strict=True))
        ]
        files.write_text(out, "\n".join(["image,part,margin", *rows]) + "\n")
    numbers = {"partitions": len(sizes), "sizes": sizes, "scores": found["scores"]}
    if as_json:
        print_json({**numbers, **({"out": str(out)} if out else {"parts": parts})})
    else:
        _print(numbers)


@partition.command()
@click.argument("partitioner")
@json_option
def info(partitioner: str, as_json: bool) -> None:
    """Tell about PARTITIONER: a folder that `fit` wrote, or hf-hub:org/name."""
    from pgmkit.jobs.partition import describe
    from pgmkit.partition import load_partitioner

    numbers = describe(load_partitioner(partitioner))
    if as_json:
        print_json(numbers)
    else:
        _print(numbers)


@partition.command()
@click.argument("partitioner")
@click.option("--data", required=True, help=_DATA)
@click.option("-o", "--out", required=True, type=OutPath(), help="A .png file.")
@click.option("-n", "--num", "count", default=16, show_default=True, help="Images of each part.")
@_with_data
@device_option
@quiet_option
def plot(partitioner: str, out: Path, count: int, **where: Any) -> None:
    """Draw the images that lie the most clearly in each part of PARTITIONER, one row for each."""
    from pgmkit.jobs.partition import draw

    fitted, source, found = _assigned(partitioner, **where)
    draw(out, source, found["parts"], found["margins"], fitted.num_partitions, count)
    click.echo(out)


def _assigned(
    partitioner: str,
    *,
    data: str,
    split: str | None,
    size: int | None,
    device: str | None,
    quiet: bool,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns a fitted partitioner, the images that options name, and where these lie."""
    from pgmkit.images import load_images
    from pgmkit.jobs.partition import assign_images
    from pgmkit.machine import check_device
    from pgmkit.partition import load_partitioner

    fitted = load_partitioner(partitioner)
    where = check_device(device or "auto")
    source = load_images(data, split=split or "train", size=size).to(where)
    with progress.shown(not quiet):
        return fitted, source, assign_images(fitted, source)


def _print(numbers: Mapping[str, Any]) -> None:
    from pgmkit.loading.cards import shares

    table = numbers.get("partitioner")
    if table:
        findings = ", ".join(f"{k} {v}" for k, v in numbers.get("findings", {}).items())
        click.echo(f"{table['name']}{': ' if findings else ''}{findings}\n")
    print_table(shares(numbers["sizes"]), ("part", "images", "share"))
    scores = numbers.get("scores")
    if scores:
        click.echo(
            f"\nagainst labels: NMI {scores['normalized_mutual_information']:.4f}, AMI "
            f"{scores['adjusted_mutual_information']:.4f}, ARI "
            f"{scores['adjusted_rand_index']:.4f}, accuracy by matching "
            f"{scores['matched_accuracy']:.4f} ({scores['num_images']:,} images)"
        )
    if "seconds" in numbers:
        click.echo(f"\n{numbers['seconds']:.1f} s; seed {numbers['seed']}; {numbers['machine']}")
