"""`pgmkit sample`."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmkit.cli.output import json_option, print_json
from pgmkit.cli.settings import OutPath, device_option, working
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.errors import OutputError, ParameterError
from pgmkit.runs import check_place

if TYPE_CHECKING:
    from pgmkit.conditional import Drawn

_PICTURE = re.compile(r"\d+\.png")


@click.command()
@click.argument("source", required=False)
@click.option(
    "--cluster", help="Number of a cluster, from 0, or its name; all by size if left out."
)
@click.option(
    "--truncation",
    type=float,
    help="Of a conditional generator: latents within so many standard deviations.",
)
@click.option(
    "--redraws",
    type=int,
    help="Of a conditional generator: draw again, at most so often, what its partitioner finds in "
    "another partition.",
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
    cluster: str | None,
    truncation: float | None,
    redraws: int | None,
    count: int,
    seed: int,
    out: Path,
    overwrite: bool,
    device: str | None,
    generator: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """Make images with SOURCE: a folder that `pgmkit shatter` wrote, or any generator.

    A conditional generator mixes its partitions by their masses; --partition takes one.
    """
    old = _check_out(out, overwrite)
    from pgmkit.conditional import ConditionalGenerator
    from pgmkit.generator import Generator
    from pgmkit.machine import check_device, check_memory
    from pgmkit.models import load
    from pgmkit.pictures import write_images
    from pgmkit.shattering import ShatteredGenerator

    source, options = needed_source(source), dict(generator or {})
    of_conditional = {"partition": options.pop("partition", None)}
    of_conditional |= {"truncation": truncation, "redraws": redraws}
    given = {name: value for name, value in of_conditional.items() if value is not None}
    drawn, partitions = None, None
    with working(quiet=True):
        model = load(source, device=check_device(device or "auto"), **options)
        frozen = model.generator if isinstance(model, ShatteredGenerator) else model
        if not isinstance(model, ShatteredGenerator) and cluster is not None:
            raise ParameterError(_without_clusters(source, isinstance(model, Generator), generator))
        if not isinstance(model, ConditionalGenerator) and given:
            raise ParameterError(
                f"{source} is not conditional, and --{next(iter(given))} is for what is; leave it "
                "out"
            )
        size = 4 * frozen.latent.dim + 16 * math.prod(frozen.image.shape)
        check_memory(count * size, f"{count:,} images", "ask for fewer, with several seeds")
        if isinstance(model, ConditionalGenerator):
            drawn = model.draw(count, seed=seed, **given)
            latents, images, partitions = drawn.latents, drawn.images, drawn.partitions
        else:
            if isinstance(model, ShatteredGenerator):
                latents = model.sample_latents(count, _number_or_name(cluster), seed)
            else:
                latents = model.sample_latents(count, seed)
            images = model.images(latents)
    for picture in old:
        picture.unlink()
    write_images(out, images, frozen.image.range, latents=latents, partitions=partitions)
    told = {"out": str(out), "num": count, "cluster": _number_or_name(cluster), "seed": seed}
    if drawn is not None:
        told |= {**of_conditional, "acceptance": _shares(drawn)}
    if as_json:
        print_json({**told, "device": str(frozen.device)})
        return
    click.echo(out)
    if drawn is not None and drawn.inside is not None and drawn.tries is not None:
        tries, inside = int(drawn.tries.sum()), int(drawn.inside.sum())
        click.echo(
            f"acceptance {inside / tries:.1%}: {inside:,} of {tries:,} images were in their "
            f"partition, and {count - inside:,} that are not were kept"
        )


def _number_or_name(cluster: str | None) -> int | str | None:
    """Returns what --cluster says: a number, or the name of a cluster, which is none."""
    is_number = cluster is not None and re.fullmatch(r"-?\d+", cluster) is not None
    return int(cluster) if is_number and cluster is not None else cluster


def _without_clusters(source: str, is_unconditional: bool, table: dict[str, Any] | None) -> str:
    """Returns what is wrong with a cluster of what has none."""
    from pgmkit.loading.options import GeneratorOptions, shatter_command

    command = shatter_command(source, GeneratorOptions.from_table(table or {}))
    if is_unconditional:
        what = "a generator without clusters; leave --cluster out, or find clusters first"
    else:
        what = "conditional and has no clusters; take --partition instead, or find clusters first"
    return f"{source} is {what}: {command}"


def _shares(drawn: "Drawn") -> list[float | None] | None:
    """Returns the acceptance of each partition, None where it was not drawn."""
    if drawn.acceptance is None:
        return None
    return [None if math.isnan(share) else share for share in drawn.acceptance.tolist()]


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
