"""`pgmkit audit`."""

import textwrap
from collections.abc import Mapping
from typing import Any

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.cli.settings import device_option, voice_options
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.config import IMAGES

_TITLES = {
    "theorem_1": "Theorem 1: one continuous generator misses some of data whose parts lie apart",
    "theorem_3": "Theorem 3: the guide leads into every part",
}
_WIDTH = 96


@click.command(
    epilog=examples(
        "pgmkit audit parts --data mnist.npz",
        "pgmkit audit mnist-dcgan --data mnist.npz --partitioner parts",
    )
)
@click.argument("source", required=False, shell_complete=complete_models("generator"))
@click.option("--data", help=f"Images: {IMAGES}.")
@click.option("--split", help="train (default) or test, where the data have both.")
@click.option("--size", type=int, help="Side to which images are padded or resized.")
@click.option("--partitioner", help="Of a generator: the folder of a fitted one, or hf-hub:...")
@click.option("-n", "--images", type=int, help="Images that are looked at; 5000 by default.")
@click.option("--latents", type=int, help="Of a generator: latents for c; 64 by default.")
@click.option("--tries", type=int, help="Of a partitioner: descents and paths; 100 by default.")
@click.option("--steps", type=int, help="Of a partitioner: of a descent; 200 by default.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same numbers.")
@device_option
@generator_options
@voice_options
@json_option
def audit(
    source: str | None, device: str | None, quiet: bool, as_json: bool, **settings: Any
) -> None:
    """Hold SOURCE against the theorems of "Partition-Guided GANs".

    A partitioner (a folder that `pgmkit partition fit` wrote, or hf-hub:org/name) against Theorem
    3, on --data: does its guide lead into every part? A generator against Theorem 1: what must it
    miss of data on parts that lie apart, as --partitioner finds them in --data?
    """
    from pgmkit.jobs.audit import AuditSettings
    from pgmkit.jobs.audit import audit as run
    from pgmkit.progress import shown

    named = AuditSettings(source=needed_source(source), device=device or "auto", **settings)
    with shown(not quiet):
        numbers = run(named)
    if as_json:
        print_json(numbers)
    else:
        _print(numbers)


def _print(numbers: Mapping[str, Any]) -> None:
    if numbers["parts"] is not None:
        click.echo(f"{numbers['images']['source']}: {numbers['parts']['num_images']:,} images\n")
        _print_parts(numbers["parts"])
        click.echo()
    for name in _TITLES.keys() & numbers.keys():
        click.echo(f"{_TITLES[name]}\n")
        for row in numbers[name]["words"]:
            click.echo(f"  {row['what']}: {row['found']}")
            click.echo(textwrap.fill(row["measured"], _WIDTH, **_indented(4)))
        click.echo()
        click.echo(textwrap.fill(numbers[name]["meaning"], _WIDTH))
    click.echo(f"\n{numbers['seconds']:.1f} s; seed {numbers['seed']}; {numbers['machine']}")


def _indented(by: int) -> dict[str, Any]:
    return {"initial_indent": " " * by, "subsequent_indent": " " * by}


def _print_parts(parts: Mapping[str, Any]) -> None:
    """Prints what is known of each part, a row for each."""
    columns = {
        "images": [str(size) for size in parts["sizes"]],
        "share": [f"{size / parts['num_images']:.4f}" for size in parts["sizes"]],
        "distance": ["-" if d is None else f"{d:.4g}" for d in parts["distances"]],
    }
    if "starts" in parts:
        columns["descents in"] = _of(parts["reached"], parts["starts"])
        columns["paths"] = _of(parts["joined"], parts["pairs"])
    rows = [(str(part), *cells) for part, cells in enumerate(zip(*columns.values(), strict=True))]
    print_table(rows, ("part", *columns))


def _of(counts: list[int], totals: list[int]) -> list[str]:
    return [f"{n} of {all_}" if all_ else "-" for n, all_ in zip(counts, totals, strict=True)]
