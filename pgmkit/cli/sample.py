"""`pgmkit sample`."""

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json
from pgmkit.cli.reports import class_of, report_beside
from pgmkit.cli.settings import OutPath, device_option, voice_options, working
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.errors import OutputError, ParameterError
from pgmkit.loading.references import open_folder
from pgmkit.runs import check_place

if TYPE_CHECKING:
    from pgmkit.conditional import Drawn

_PICTURE = re.compile(r"\d+\.png")
_STDOUT = Path("-")


@click.command(
    epilog=examples(
        "pgmkit sample shattered --cluster 3 -n 64 -o cluster-3.png",
        "pgmkit sample shattered --class 7 -o sevens.png",
        "pgmkit sample mnist-pgmgan --class 7 --classifier mnist-classifier -o sevens.npz",
        "pgmkit sample mnist-dcgan -n 16 -o - | display",
    )
)
@click.argument("source", required=False, shell_complete=complete_models("generator"))
@click.option(
    "--cluster", help="Number of a cluster, from 0, or its name; all by size if left out."
)
@click.option(
    "--class",
    "class_name",
    metavar="CLASS",
    help="The clusters or partitions whose images are mostly of this class, by --classifier, or "
    "else by the report that lies beside them.",
)
@click.option(
    "--classifier",
    shell_complete=complete_models("classifier"),
    help="What --class is asked, such as mnist-classifier.",
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
    help="grid.png, images.npz, a folder for one PNG per image, or - for a grid on stdout.",
)
@click.option("--overwrite", is_flag=True, help="Replace what was sampled to OUT before.")
@device_option
@generator_options
@voice_options
@json_option
def sample(
    source: str | None,
    cluster: str | None,
    class_name: str | None,
    classifier: str | None,
    truncation: float | None,
    redraws: int | None,
    count: int,
    seed: int,
    out: Path,
    overwrite: bool,
    device: str | None,
    generator: dict[str, Any] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make images with SOURCE: a folder that `pgmkit shatter` wrote, or any generator.

    A conditional generator mixes its partitions by their masses; --partition takes one.
    """
    source, options = needed_source(source), dict(generator or {})
    how = {"truncation": truncation, "redraws": redraws}
    partition, chosen = options.pop("partition", None), _number_or_name(cluster)
    _check_choice(cluster, partition, class_name, classifier)
    old = _check_stdout(as_json) if out == _STDOUT else _check_out(out, overwrite)
    from pgmkit.conditional import ConditionalGenerator
    from pgmkit.generator import Generator
    from pgmkit.jobs.sample import make
    from pgmkit.machine import check_device, check_memory
    from pgmkit.models import load
    from pgmkit.pictures import grid_png, write_images
    from pgmkit.shattering import ShatteredGenerator

    with working(quiet):
        model = load(source, device=check_device(device or "auto"), **options)
        wanted = "--cluster" if cluster is not None else "--class"
        is_plain = isinstance(model, Generator)
        if (cluster is not None and not isinstance(model, ShatteredGenerator)) or (
            class_name is not None and is_plain
        ):
            raise ParameterError(_without_clusters(source, is_plain, generator, wanted))
        given = {k: v for k, v in {"partition": partition, **how}.items() if v is not None}
        if not isinstance(model, ConditionalGenerator) and given:
            raise ParameterError(
                f"{source} is not conditional, and --{next(iter(given))} is for what is; leave it "
                "out"
            )
        frozen = model.generator if isinstance(model, ShatteredGenerator) else model
        size = 4 * frozen.latent.dim + 16 * math.prod(frozen.image.shape)
        check_memory(count * size, f"{count:,} images", "ask for fewer, with several seeds")
        parts: Any = chosen if chosen is not None else partition
        if class_name is not None:
            parts = _parts_of_class(model, source, class_name, classifier)
        given.pop("partition", None)
        made = make(model, count, seed, parts=parts, how=given)
    if out == _STDOUT:
        sys.stdout.buffer.write(grid_png(made.images, frozen.image.range))
        return
    for picture in old:
        picture.unlink()
    drawn = made.drawn
    write_images(
        out,
        made.images,
        frozen.image.range,
        latents=made.latents,
        partitions=None if drawn is None else drawn.partitions,
    )
    told = {"out": str(out), "num": count, "cluster": chosen, "seed": seed}
    if drawn is not None:
        told |= {"partition": partition, **how, "acceptance": _shares(drawn)}
    if class_name is not None:
        told |= {"class": class_name, "cluster" if drawn is None else "partition": parts}
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
    if cluster is None or re.fullmatch(r"-?\d+", cluster) is None:
        return cluster
    return int(cluster)


def _check_choice(
    cluster: str | None, partition: int | None, class_name: str | None, classifier: str | None
) -> None:
    """Checks that what is to be drawn is said once."""
    if class_name is None and classifier is not None:
        raise click.UsageError("--classifier is asked for a class; add --class")
    if class_name is not None and (cluster is not None or partition is not None):
        other = "--cluster" if cluster is not None else "--partition"
        raise click.UsageError(f"--class and {other} both say what to draw; leave one out")


def _check_stdout(as_json: bool) -> list[Path]:
    """Checks that a picture may go to stdout; there are no earlier ones to replace.

    Raises:
        ParameterError: stdout is a terminal.
    """
    if as_json:
        raise click.UsageError("-o - and --json both print on stdout; leave one out")
    if sys.stdout.isatty():
        raise ParameterError(
            "a picture is nothing for a terminal; send it on, such as with -o - > samples.png"
        )
    return []


def _parts_of_class(model: Any, source: str, name: str, classifier: str | None) -> list[int]:
    """Returns the clusters or partitions of a model that are mostly of a class.

    Raises:
        ParameterError: nobody says what they are of.
        UnknownNameError: none is.
    """
    from pgmkit.jobs.sample import Judged, judged_by

    if classifier is not None:
        return judged_by(model, classifier).of_class(name)
    sizes = getattr(model, "cluster_sizes", None)
    report = None if sizes is None else report_beside(open_folder(source), sizes)
    clusters = [] if report is None else report["clusters"]
    classes = [class_of(cluster) or "" for cluster in clusters]
    if not any(classes):
        raise ParameterError(
            f"no classifier has looked at {source}; name one with --classifier, such as one of "
            "pgmkit generators ls"
        )
    return Judged(classes, [cluster["purity"] for cluster in clusters]).of_class(name)


def _without_clusters(
    source: str, is_unconditional: bool, table: dict[str, Any] | None, option: str
) -> str:
    """Returns what is wrong with a cluster, or a class, of what has none."""
    from pgmkit.loading.options import GeneratorOptions, shatter_command

    command = shatter_command(source, GeneratorOptions.from_table(table or {}))
    if is_unconditional:
        what = f"a generator without clusters; leave {option} out, or find clusters first"
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
