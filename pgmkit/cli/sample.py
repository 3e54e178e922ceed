"""`pgmkit sample`."""

from pathlib import Path
from typing import Any

import click

from pgmkit.cli.output import json_option, print_json
from pgmkit.cli.sources import generator_options, needed_source


@click.command()
@click.argument("source", required=False)
@click.option(
    "--cluster", type=int, help="Cluster number from 0; all clusters by size if left out."
)
@click.option("-n", "--num", "count", default=64, show_default=True, help="Number of images.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same images.")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="grid.png, images.npz, or a folder for one PNG per image.",
)
@generator_options
@json_option
def sample(
    source: str | None,
    cluster: int | None,
    count: int,
    seed: int,
    out: Path,
    generator: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Make images with SOURCE: a folder that `pgmkit shatter` wrote, or any generator."""
    from pgmkit.errors import ParameterError
    from pgmkit.generator import Generator
    from pgmkit.models import load
    from pgmkit.pictures import write_images

    model = load(needed_source(source), **(generator or {}))
    if not isinstance(model, Generator):
        latents, frozen = model.sample_latents(count, cluster, seed), model.generator
    elif cluster is None:
        latents, frozen = model.sample_latents(count, seed), model
    else:
        raise ParameterError(
            f"{source} is a generator without clusters; leave --cluster out, or find clusters "
            f"first: pgmkit shatter {source} -o shattered"
        )
    write_images(out, frozen.images(latents), frozen.image.range, latents=latents)
    if as_json:
        print_json({"out": str(out), "num": count, "cluster": cluster, "seed": seed})
    else:
        click.echo(out)
