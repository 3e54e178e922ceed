"""`pgmkit generators`."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, in_bytes, json_option, print_json, print_table
from pgmkit.cli.push import push
from pgmkit.cli.settings import OutPath, check_file, voice_options, working
from pgmkit.cli.sources import generator_options
from pgmkit.loading.configs import facts_of, read_masses
from pgmkit.loading.folders import WEIGHTS_FILE
from pgmkit.loading.references import open_folder, registry_configs
from pgmkit.runs import check_place

if TYPE_CHECKING:
    from pgmkit.loading.inspection import Inspection

_SHOWN = 40
"""Files and weights that are listed, at most; --json has them all."""


@click.group(
    epilog=examples(
        "pgmkit generators ls",
        "pgmkit generators inspect netG.pth -o samples.png",
        "pgmkit generators push shattered org/name",
    )
)
def generators() -> None:
    """List, inspect and publish generators."""


generators.add_command(push)


@generators.command("ls", epilog=examples("pgmkit generators ls", "pgmkit generators ls --json"))
@json_option
def list_generators(as_json: bool) -> None:
    """List the generators and classifiers that ship with pgmkit."""
    rows, records = [], []
    for what in ("generator", "classifier"):
        for name, config in registry_configs(what).items():
            folder = open_folder(name, what)
            kind = what if read_masses(folder) is None else f"conditional {what}"
            size, measured = folder.sizes()[WEIGHTS_FILE], config.get("measured", {})
            records.append({**config, "name": name, "kind": kind, "bytes": size})
            facts = facts_of(config) if what == "generator" else _of_classifier(config)
            license_name = facts.pop("license")
            rows.append(
                (name, kind, *facts.values(), in_bytes(size), _quality(measured), license_name)
            )
    if as_json:
        print_json(records)
        return
    header = ("name", "kind", "architecture", "latent", "image", "size", "measured", "license")
    print_table(rows, header)


def _of_classifier(config: Mapping[str, Any]) -> dict[str, str]:
    arguments = config.get("model_args", {})
    side = arguments.get("image_size", "?")
    return {
        **facts_of(config),
        "latent": "-",
        "image": f"{arguments.get('image_channels', '?')}×{side}×{side}",
    }


def _quality(measured: Mapping[str, Any]) -> str:
    """Returns what was measured of a generator, or of a classifier, in a few words."""
    if "fid" in measured:
        shares = "".join(
            f", {k} {measured[k]:.2f}" for k in ("precision", "recall") if k in measured
        )
        return f"FID {measured['fid']:.1f}{shares}"
    if "test_accuracy" in measured:
        return f"test accuracy {measured['test_accuracy']:.3f}"
    return "-"


@generators.command(
    "inspect",
    epilog=examples(
        "pgmkit generators inspect netG.pth -o samples.png",
        "pgmkit generators inspect hf-hub:org/name",
        "pgmkit generators inspect netG.pth --architecture auto --latent uniform:100",
    ),
)
@click.argument(
    "source", metavar="REFERENCE", required=False, shell_complete=complete_models("generator")
)
@generator_options
@click.option("-o", "--out", type=OutPath(), help="Where to write a grid of 64 samples, .png.")
@voice_options
@json_option
def inspect(
    source: str | None,
    generator: dict[str, Any] | None,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Look at a generator before it is used, and tell the command that shatters it.

    REFERENCE is a registry name, a folder, a weight file or hf-hub:org/name[@revision]. What its
    folder does not say is inferred, and told. Exits with 1 if it cannot be loaded as it stands.
    """
    from pgmkit import pictures
    from pgmkit.cli.sources import needed_source
    from pgmkit.loading.inspection import inspect as look
    from pgmkit.loading.options import GeneratorOptions

    if out is not None:
        check_place(out)
        check_file(out, ".png", "the grid of samples")
    options = GeneratorOptions.from_table(generator or {}, "the command")
    with working(quiet):
        found = look(open_folder(needed_source(source)), options)
    if out is not None and found.generator is not None and found.samples is not None:
        pictures.write_grid(out, found.samples, found.generator.image.range, scale=2)
    if as_json:
        print_json(_record(found))
    else:
        _tell(found, out)
    if found.generator is None:
        raise click.exceptions.Exit(1)


def _tell(found: "Inspection", out: Path | None) -> None:
    rows = [("reference", found.reference), ("weights", found.weights or "-")]
    if found.generator is not None:
        rows.append(("generator", repr(found.generator)))
    print_table(rows, ("field", "value"))
    sizes = [name if size is None else f"{name}  {size:,} bytes" for name, size in found.files]
    _section(f"files ({len(found.files)})", sizes)
    values = f"{sum(math.prod(shape) for _, shape, _ in found.entries):,} values"
    types = ", ".join(sorted({dtype for _, _, dtype in found.entries}))
    tensors = [f"{name}  {'×'.join(map(str, shape)) or 'one'}" for name, shape, _ in found.entries]
    _section(f"tensors ({len(found.entries)}, {values}, {types})", tensors)
    _section("found and guessed", found.notes)
    far = [drift for drift in found.norms if drift.is_far]
    if far:
        _section(f"batch norm: statistics of {len(far)} of {len(found.norms)} layers", far)
        click.echo("  they look stale; --recalibrate estimates them anew")
    elif found.norms:
        _section("batch norm", [f"statistics of all {len(found.norms)} layers fit the prior"])
    _section("images", found.behaviour)
    _section("warnings", found.warnings)
    _section("in the way", found.problems)
    if found.command is not None:
        _section("to shatter it", [found.command])
        if out is None:
            click.echo("  (samples: the same command with -o samples.png)")
    if out is not None and found.samples is not None:
        click.echo(f"\nsamples: {out}")


def _section(title: str, lines: Any) -> None:
    lines = [str(line) for line in lines]
    if not lines:
        return
    click.echo(f"\n{title}")
    for line in lines[:_SHOWN]:
        click.echo(f"  {line}")
    if len(lines) > _SHOWN:
        click.echo(f"  and {len(lines) - _SHOWN} more (--json)")


def _record(found: "Inspection") -> dict[str, Any]:
    return {
        "reference": found.reference,
        "weights": found.weights,
        "files": [{"name": name, "size": size} for name, size in found.files],
        "config": dict(found.config),
        "tensors": [
            {"name": name, "shape": list(shape), "dtype": dtype}
            for name, shape, dtype in found.entries
        ],
        "notes": found.notes,
        "generator": None if found.generator is None else repr(found.generator),
        "specs": None if found.generator is None else found.generator.specs(),
        "architecture": None if found.generator is None else found.generator.architecture,
        "model_args": None if found.generator is None else found.generator.model_args,
        "batch_norm": [{**asdict(drift), "is_far": drift.is_far} for drift in found.norms],
        "images": found.behaviour,
        "warnings": found.warnings,
        "problems": found.problems,
        "command": found.command,
    }
