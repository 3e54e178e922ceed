"""`pgmkit sample`."""

import math
import re
from pathlib import Path
from typing import Any

import click

from pgmkit.cli.output import json_option, print_json
from pgmkit.cli.settings import OutPath, device_option, working
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.errors import OutputError, ParameterError
from pgmkit.runs import check_place

_PICTURE = re.compile(r"\d+\.png")


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
    type=OutPath(),
    help="grid.png, images.npz, or a folder for one PNG per image.",
)
@click.option("--overwrite", is_flag=True, help="Replace what was sampled to OUT before.")
@device_option
@generator_options
@json_option
def sample(
    source: str | None,
    cluster: int | None,
    count: int,
    seed: int,
    out: Path,
    overwrite: bool,
    device: str | None,
    generator: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Make images with SOURCE: a folder that `pgmkit shatter` wrote, or any generator."""
    old = _check_out(out, overwrite)
    from pgmkit.generator import Generator
    from pgmkit.loading.options import GeneratorOptions, shatter_command
    from pgmkit.machine import check_device, check_memory
    from pgmkit.models import load
    from pgmkit.pictures import write_images

    with working(quiet=True):
        model = load(
            needed_source(source), device=check_device(device or "auto"), **(generator or {})
        )
        frozen = model if isinstance(model, Generator) else model.generator
        size = 4 * frozen.latent.dim + 16 * math.prod(frozen.image.shape)
        check_memory(count * size, f"{count:,} images", "ask for fewer, with several seeds")
        if not isinstance(model, Generator):
            latents = model.sample_latents(count, cluster, seed)
        elif cluster is None:
            latents = model.sample_latents(count, seed)
        else:
            options = GeneratorOptions.from_table(generator or {})
            raise ParameterError(
                f"{source} is a generator without clusters; leave --cluster out, or find clusters "
                f"first: {shatter_command(needed_source(source), options)}"
            )
        images = frozen.images(latents)
    for picture in old:
        picture.unlink()
    write_images(out, images, frozen.image.range, latents=latents)
    if as_json:
        told = {"out": str(out), "num": count, "cluster": cluster, "seed": seed}
        print_json({**told, "device": str(frozen.device)})
    else:
        click.echo(out)


def _check_out(out: Path, overwrite: bool) -> list[Path]:
    """Checks where pictures are to go, before anything is loaded.

    Returns:
        Pictures of an earlier sample in that folder, which are to go.
    """
    check_place(out if out.suffix else out / "0.png")
    if out.suffix.lower() not in ("", ".png", ".npz"):
        raise ParameterError(f"images are written as .png, .npz or a folder, not {out.name!r}")
    if out.suffix:
        if out.is_dir():
            raise OutputError(f"{out} is a folder; give a file, such as {out / 'grid.png'}")
        if out.exists() and not overwrite:
            raise OutputError(f"{out} is there already; choose another name, or add --overwrite")
        return []
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is no folder; give one, or a file that ends in .png or .npz")
    inside = sorted(out.iterdir()) if out.is_dir() else []
    others = [path.name for path in inside if not _PICTURE.fullmatch(path.name)]
    if others:
        raise OutputError(
            f"{out} holds other things, such as {others[0]}; choose a new or an empty folder"
        )
    if inside and not overwrite:
        raise OutputError(f"{out} holds pictures already; choose another, or add --overwrite")
    return inside
