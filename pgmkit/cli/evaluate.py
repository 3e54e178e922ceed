"""`pgmkit evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json, print_table, scores_line
from pgmkit.cli.settings import OutPath, device_option, voice_options, working
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.config import IMAGES


@click.command(
    epilog=examples(
        "pgmkit evaluate shattered --classifier mnist-classifier",
        "pgmkit evaluate shattered --reference mnist.npz --extractor classifier:mnist-classifier",
        "pgmkit evaluate shattered -n 2000 --json -o evaluation.json",
    )
)
@click.argument("source", required=False)
@click.option(
    "--classifier",
    shell_complete=complete_models("classifier"),
    help="Reference of a classifier, for scores against its classes.",
)
@click.option("--reference", "data", help=f"Real images: {IMAGES}.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Part of the reference.",
)
@click.option(
    "--extractor",
    default="inception",
    show_default=True,
    help="Features for fidelity: inception, classifier:NAME or timm:NAME; @FILE names weights.",
)
@click.option(
    "-n", "--num", "num_samples", default=10_000, show_default=True, help="Samples for each score."
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same numbers.")
@device_option
@click.option("--no-cache", is_flag=True, help="Do not keep features of the reference.")
@click.option("-o", "--out", type=OutPath(), help="Also write JSON, as evaluation.json.")
@generator_options
@voice_options
@json_option
def evaluate(
    source: str | None,
    device: str | None,
    no_cache: bool,
    out: Path | None,
    quiet: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Evaluate SOURCE, a folder that `pgmkit shatter` wrote or a reference."""
    from pgmkit import files
    from pgmkit.errors import OutputError
    from pgmkit.jobs.evaluate import evaluate as run

    if out is not None and out.is_dir():
        raise OutputError(f"{out} is a folder; give a file, such as {out / 'evaluation.json'}")
    with working(quiet):
        source = needed_source(source)
        numbers = run(source, device=device or "auto", cache=not no_cache, **how)
    if out is not None:
        files.write_json(out, numbers)
    if as_json:
        print_json(numbers)
    else:
        _print_summary(numbers)


def _print_summary(numbers: Mapping[str, Any]) -> None:
    click.echo(numbers["generator"])
    returned, found = numbers["return_rate"], numbers["diagnostics"]
    rates = returned["acceptance_rates"]
    rows = [
        ("return rate", f"{returned['overall']:.4f}"),
        ("  by cluster", ", ".join(map(_short, returned["clusters"]))),
        *([("acceptance rate by cluster", ", ".join(map(_short, rates)))] if rates else []),
        ("milliseconds per accepted sample", _short(returned["seconds_per_accepted"], 1000)),
        ("silhouette of latents", _short(found["silhouette_latents"])),
        ("silhouette of images", _short(found["silhouette_images"])),
        ("latent-output agreement (AMI)", f"{found['latent_output_agreement']:.4f}"),
    ]
    header = f"{found['num_latents']:,} {found['latents']}"
    print_table(rows, (header, ""))
    for protocol, scores in numbers["scores"].items():
        click.echo(f"\n{scores_line(protocol, scores)}")
    if numbers["fidelity"] is not None:
        click.echo()
        _print_fidelity(numbers["fidelity"])
    taken = ", ".join(f"{name} {value:.1f} s" for name, value in numbers["seconds"].items())
    click.echo(f"\n{taken}; seed {numbers['evaluation']['seed']}; {numbers['machine']}")


def _print_fidelity(fidelity: Mapping[str, Any]) -> None:
    """Prints one row for each set of samples, with numbers of images and extractor."""
    shares = ("precision", "recall", "density", "coverage")
    parts = {"before": fidelity["before"], "after": fidelity["after"]}
    parts |= {f"cluster {index}": part for index, part in enumerate(fidelity["clusters"])}
    rows = [
        (
            name,
            f"{part['fid']:.2f}",
            f"{part['kid']:.4f} ± {part['kid_std']:.4f}",
            *(f"{part[key]:.3f}" for key in shares),
            f"{part['num_samples']:,}",
            f"{part['num_reference']:,}, {part['reference']}",
        )
        for name, part in parts.items()
        if part is not None
    ]
    first = fidelity["before"]
    click.echo(f"fidelity by {first['num_features']:,} features of {first['extractor']}")
    print_table(rows, ("", "FID", "KID", *shares, "samples", "references"))


def _short(value: float | None, factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:.3g}"
