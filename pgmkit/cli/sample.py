"""`pgmkit sample`."""

from pathlib import Path

import click

from pgmkit.cli.output import json_option, print_json


@click.command()
@click.argument("source")
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
@json_option
def sample(
    source: str, cluster: int | None, count: int, seed: int, out: Path, as_json: bool
) -> None:
    """Make images with SOURCE, a folder that `pgmkit shatter` wrote or a reference."""
    from pgmkit.pictures import write_images
    from pgmkit.shattering import ShatteredGenerator

    shattered = ShatteredGenerator.from_pretrained(source)
    latents = shattered.sample_latents(count, cluster, seed)
    images = shattered.images(latents)
    write_images(out, images, shattered.generator.image.range, latents=latents)
    if as_json:
        print_json({"out": str(out), "num": count, "cluster": cluster, "seed": seed})
    else:
        click.echo(out)
