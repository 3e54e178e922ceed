"""`pgmkit shatter`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit import defaults
from pgmkit.cli.completion import complete_components, complete_models
from pgmkit.cli.output import examples, print_json, print_table, scores_line
from pgmkit.cli.settings import (
    OutPath,
    check_out,
    config_option,
    device_option,
    gather_settings,
    no_cache_option,
    run_options,
    working,
)
from pgmkit.cli.sources import generator_options

_ACROSS, _DOWN = 8, 3
"""Samples in a row of a cluster's picture, and how many are shown one upon the other."""


def _number_or_auto(number: Callable[[str], float]) -> Callable[[str], float | str]:
    def convert(value: str) -> float | str:
        try:
            return "auto" if value == "auto" else number(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is neither a number nor auto") from None

    return convert


@click.command(
    epilog=examples(
        "pgmkit shatter mnist-dcgan -o shattered --classifier mnist-classifier",
        "pgmkit shatter netG.pth --architecture auto -o shattered --clusters 10 --remove 0.2",
        "pgmkit shatter mnist-dcgan -o paper --sampler kmeans-gmm --set sampler.num_components=3",
        "pgmkit shatter --config examples/shatter-mnist.toml -o shattered --dry-run",
    )
)
@click.argument("source", required=False, shell_complete=complete_models("generator"))
@click.option("-o", "--out", type=OutPath(), help="Output folder.")
@click.option(
    "--density",
    shell_complete=complete_components("density-estimators"),
    help=f"Density estimator; {defaults.DENSITY} by default.",
)
@click.option(
    "--partitioner",
    shell_complete=complete_components("partitioners"),
    help=f"What finds the clusters: a name, or local-dir:FOLDER or hf-hub:org/name of one that was "
    f"fitted before; {defaults.PARTITIONER} by default.",
)
@click.option(
    "--mapper",
    shell_complete=complete_components("mappers"),
    help=f"What draws latents of them; {defaults.MAPPER} by default.",
)
@click.option(
    "--sampler",
    shell_complete=complete_components("cluster-samplers"),
    help="A cluster sampler that does both, in their stead.",
)
@click.option(
    "--clusters",
    type=_number_or_auto(int),
    metavar="N|auto",
    help=f"Number of clusters, or auto to choose it without labels; {defaults.CLUSTERS} by "
    "default.",
)
@click.option(
    "--remove",
    type=_number_or_auto(float),
    metavar="F|auto",
    help=f"Fraction of prior mass to remove, or auto to choose it; {defaults.REMOVE} by default.",
)
@click.option(
    "--latents", type=int, help=f"Latents to draw, before removal; {defaults.LATENTS} by default."
)
@click.option("--seed", type=int, help=f"Of everything random; {defaults.SEED} by default.")
@click.option(
    "--engine",
    shell_complete=complete_components("engines"),
    help=f"Where the spectrum is computed; {defaults.ENGINE} by default.",
)
@generator_options
@device_option
@no_cache_option
@click.option(
    "--classifier",
    shell_complete=complete_models("classifier"),
    help="Classifier for the scores, such as mnist-classifier.",
)
@click.option("--spectrum", help="Folder of a spectrum to use; computed if left out.")
@config_option
@run_options
def shatter(
    source: str | None,
    out: Path | None,
    engine: str | None,
    no_cache: bool,
    spectrum: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Shatter SOURCE: a registry name, a weight file, a folder or hf-hub:org/name[@revision].

    Leaves the shattered generator, report.html and its pictures in OUT. A run that was stopped
    continues where it was.
    """
    check_out(out, dry_run)
    from pgmkit.jobs.shatter import prepare

    flags |= {"source": source, "spectrum": _spectrum(spectrum, engine, no_cache)}
    with working(quiet, dry_run):
        job = prepare(gather_settings(config, flags, overrides))
        seconds = job.estimate() if dry_run else {}
        numbers = None if dry_run or out is None else job.run(out)
    if dry_run:
        told = {"settings": job.resolved(), "generator": repr(job.generator)}
        print_json({**told, "seconds": {k: round(v, 1) for k, v in seconds.items()}})
        return
    if numbers is None or out is None:  # another process of the engine tells
        return
    if as_json:
        print_json({"out": str(out), **numbers})
    else:
        _print_summary(out, numbers, quiet)


def _spectrum(
    folder: str | None, engine: str | None, no_cache: bool
) -> str | Mapping[str, Any] | None:
    """Returns what the flags say of the spectrum: a folder, or how to compute one."""
    table = {**({"engine": engine} if engine else {}), **({"cache": False} if no_cache else {})}
    if folder is not None and table:
        raise click.UsageError(
            "--engine and --no-cache would be ignored, since the spectrum is given"
        )
    return folder or table or None


def _print_summary(out: Path, numbers: dict[str, Any], quiet: bool) -> None:
    from pgmkit.choosing import describe_choice
    from pgmkit.loading.cards import kept_in_words

    click.echo(numbers["generator"])
    click.echo(f"{numbers['density']['name']} kept {kept_in_words(numbers['statistics'])}")
    for name, choice in numbers["settings"].get("chosen", {}).items():
        click.echo(describe_choice(name, choice))
    if findings := numbers["sampler"].get("findings"):
        facts = ", ".join(f"{key} {value}" for key, value in findings.items())
        click.echo(f"{numbers['sampler']['name']}: {facts}")
    click.echo()
    rows = [
        (
            cluster["name"],
            f"{cluster['size']:,}",
            f"{cluster['share']:.1%}",
            "-" if cluster["purity"] is None else f"{cluster['purity']:.2f}",
        )
        for cluster in numbers["clusters"]
    ]
    print_table(rows, ("cluster", "size", "share", "purity"))
    for protocol, scores in numbers["scores"].items():
        click.echo(f"\n{scores_line(protocol, scores)}", nl=False)
    click.echo(
        f"\n{', '.join(f'{k} {v:.1f} s' for k, v in numbers['seconds'].items())}; "
        f"seed {numbers['settings']['seed']}; {numbers['machine']}"
    )
    click.echo(f"report: {out / 'report.html'}")
    if not quiet:
        _show_samples(out, numbers)


def _show_samples(out: Path, numbers: dict[str, Any]) -> None:
    """Shows a few samples of each cluster, one upon the other, if the terminal can."""
    from pgmkit.cli.terminal import show, way_of

    if way_of(sys.stdout) == "none":
        return
    import numpy as np
    from PIL import Image

    tiles = []
    shape = numbers["image"]["shape"]
    for cluster in numbers["clusters"]:
        with Image.open(out / "clusters" / f"cluster-{cluster['index']:02d}.png") as grid:
            picture = np.asarray(grid.convert("RGB"))
        if len(shape) == 3:  # the first column of a grid, without its borders
            height, width = shape[1:]
            pixel = picture.shape[1] // (_ACROSS * (width + 1) + 1)
            rows = [pixel * (1 + row * (height + 1)) for row in range(_DOWN)]
            column = picture[:, pixel : pixel * (width + 1)]
            picture = np.concatenate([column[top : top + pixel * height] for top in rows])
        label = cluster["name"].removeprefix("cluster ").replace(", mostly", ":")
        tiles.append((label, picture))
    click.echo()
    show(tiles)
