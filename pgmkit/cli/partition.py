"""`pgmkit partition fit`, `assign`, `info` and `plot`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit import defaults
from pgmkit.cli.completion import complete_components
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.cli.settings import (
    OutPath,
    check_file,
    check_out,
    config_option,
    device_option,
    gather_settings,
    run_options,
    voice_options,
    working,
)
from pgmkit.config import IMAGES, check_count
from pgmkit.errors import printable

_DATA = f"Images: {IMAGES}."
_SCORES = {
    "normalized_mutual_information": "NMI",
    "adjusted_mutual_information": "AMI",
    "adjusted_rand_index": "ARI",
    "matched_accuracy": "accuracy by matching",
}
_PER_PART = 16


def _with_data(command: Any) -> Any:
    size = click.option("--size", type=int, help="Side to which images are padded or resized.")
    split = click.option("--split", help="train (default) or test, where the data have both.")
    return split(size(command))


@click.group(
    epilog=examples(
        "pgmkit partition fit --data mnist.npz --partitions 10 -o parts",
        "pgmkit partition assign parts --data mnist.npz -o parts.csv",
        "pgmkit partition plot parts --data mnist.npz -o parts.png",
    )
)
def partition() -> None:
    """Fit partitioners to images, and use them."""


@partition.command(
    epilog=examples(
        "pgmkit partition fit --data mnist.npz --partitions 10 -o parts",
        "pgmkit partition fit kmeans --data photos/ --size 64 -o parts "
        "--set partitioner.features=timm",
        "pgmkit partition fit examples/mnist-iresnet.toml --data mnist.npz -o parts",
    )
)
@click.argument(
    "name",
    required=False,
    metavar="[NAME|CONFIG]",
    shell_complete=complete_components("partitioners"),
)
@click.option("--data", help=_DATA)
@click.option(
    "--partitions",
    type=int,
    help=f"How many parts; by default as many as NAME has, {defaults.CLUSTERS} for most.",
)
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
    """Fit the partitioner NAME to images, and leave it in OUT as a Hub folder, with a report.

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

    with working(quiet, dry_run):
        job = prepare(gather_settings(config, {"partitioner": name, **flags}, overrides))
        seconds = job.estimate() if dry_run else 0.0
        numbers = {} if dry_run or out is None else job.run(out)
    if dry_run:
        told = {"settings": job.resolved(), "images": len(job.source)}
        print_json({**told, "seconds": {"parts": round(seconds, 1)}})
    elif as_json:
        print_json({"out": str(out), **numbers})
    else:
        _print(numbers)
        click.echo(f"report: {out}/report.html")
        click.echo(f"\nshatter a generator with it: --partitioner local-dir:{out}")


@partition.command(
    epilog=examples("pgmkit partition assign parts --data mnist.npz --split test -o parts.csv")
)
@click.argument("partitioner")
@click.option("--data", required=True, help=_DATA)
@click.option("-o", "--out", type=OutPath(), help="A .csv file of parts and margins.")
@_with_data
@device_option
@voice_options
@json_option
def assign(partitioner: str, out: Path | None, quiet: bool, as_json: bool, **where: Any) -> None:
    """Say in which part of PARTITIONER (a folder or hf-hub:org/name) each image lies."""
    from pgmkit import files
    from pgmkit.jobs.partition import assign_images

    if out is not None:
        check_file(out, ".csv", "the list of parts")
    with working(quiet):
        fitted, source = _opened(partitioner, **where)
        found = assign_images(fitted, source)
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


@partition.command(epilog=examples("pgmkit partition info parts"))
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


@partition.command(
    epilog=examples(
        "pgmkit partition plot parts --data mnist.npz -n 8 -o parts.png",
        "pgmkit partition plot ring --data points:ring --part 2 -o guide.png",
    )
)
@click.argument("partitioner")
@click.option("--data", required=True, help=_DATA)
@click.option("-o", "--out", required=True, type=OutPath(), help="A .png file.")
@click.option(
    "-n", "--num", "count", type=int, help=f"Images of each part; {_PER_PART} by default."
)
@click.option("--part", type=int, help="Of points: the part towards which arrows show the pull.")
@_with_data
@device_option
@voice_options
def plot(
    partitioner: str, out: Path, count: int | None, part: int | None, quiet: bool, **where: Any
) -> None:
    """Draw the parts of PARTITIONER.

    Of images, those that lie the most clearly in each part, one row for each. Of points of the
    plane, all in the colours of their parts, and with --part where the guide of that part pulls.
    """
    from pgmkit.jobs.partition import assign_images, draw, draw_plane

    check_file(out, ".png", "the picture")
    if count is not None:
        check_count("the number of images of each part", count)
    with working(quiet):
        fitted, source = _opened(partitioner, **where)
        is_plane = source.image.shape == (2,)
        if (count if is_plane else part) is not None:
            raise click.UsageError(
                "-n is for images, and these are points of the plane"
                if is_plane
                else "--part is for points of the plane, and these are images"
            )
        if is_plane:
            draw_plane(out, fitted, source, part)
        else:
            found = assign_images(fitted, source)
            each = _PER_PART if count is None else count
            draw(out, source, found["parts"], found["margins"], fitted.num_partitions, each)
    click.echo(out)


def _opened(
    partitioner: str, *, data: str, split: str | None, size: int | None, device: str | None
) -> tuple[Any, Any]:
    """Returns a fitted partitioner and the images that options name."""
    from pgmkit.images import load_images
    from pgmkit.machine import check_device
    from pgmkit.partition import load_partitioner

    fitted = load_partitioner(partitioner)
    where = check_device(device or "auto")
    return fitted, load_images(data, split=split or "train", size=size).to(where)


def _print(numbers: Mapping[str, Any]) -> None:
    from pgmkit.loading.cards import shares

    table = numbers.get("partitioner")
    if table:
        findings = ", ".join(f"{k} {v}" for k, v in numbers.get("findings", {}).items())
        click.echo(printable(f"{table['name']}{': ' if findings else ''}{findings}\n"))
    print_table(shares(numbers["sizes"]), ("part", "images", "share"))
    scores = numbers.get("scores")
    if scores:
        told = [f"{short} {scores[name]:.4f}" for name, short in _SCORES.items() if name in scores]
        click.echo(f"\nagainst labels: {', '.join(told)} ({scores.get('num_images', 0):,} images)")
    if "seconds" in numbers:
        said = f"{numbers['seconds']:.1f} s; seed {numbers['seed']}; {numbers['machine']}"
        click.echo(f"\n{printable(said)}")
