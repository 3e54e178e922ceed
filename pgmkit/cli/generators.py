"""`pgmkit generators`."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmkit.cli.output import json_option, print_json, print_table
from pgmkit.cli.push import push
from pgmkit.cli.settings import OutPath, check_file, working
from pgmkit.cli.sources import generator_options
from pgmkit.loading.configs import read_config, read_masses
from pgmkit.loading.references import open_folder, registry_configs
from pgmkit.runs import check_place

if TYPE_CHECKING:
    from pgmkit.loading.inspection import Inspection

_SHOWN = 40
"""Files and weights that are listed, at most; --json has them all."""


@click.group()
def generators() -> None:
    """List, inspect and publish generators."""


generators.add_command(push)


@generators.command("ls")
@json_option
def list_generators(as_json: bool) -> None:
    """List the generators that ship with pgmkit."""
    found = registry_configs("generator")
    if as_json:
        print_json([{**config, "name": name} for name, config in found.items()])
        return
    rows = [(name, *_facts(config).values()) for name, config in found.items()]
    print_table(rows, ("name", "architecture", "latent", "image", "license"))


@generators.command("info")
@click.argument("reference")
@json_option
def info(reference: str, as_json: bool) -> None:
    """Tell what the config.json of one generator says; nothing is loaded.

    REFERENCE is a registry name, a folder, a weight file or hf-hub:org/name[@revision].
    """
    folder = open_folder(reference)
    config = {**read_config(folder).ours, **folder.provenance}
    masses = read_masses(folder)
    if as_json:
        more = {} if masses is None else {"masses": masses}
        print_json({"reference": reference, **config, **more})
        return
    rows = [("reference", reference), *_facts(config).items()]
    if masses is not None:
        low, high = min(masses), max(masses)
        rows.append(("partitions", f"{len(masses)}, with masses from {low:.3g} to {high:.3g}"))
    rows += [(key, str(config[key])) for key in ("paper", "repo", "revision") if key in config]
    if "architecture" not in config:
        rows.append(("to look closer", f"pgmkit generators inspect {reference}"))
    print_table(rows, ("field", "value"))


@generators.command("inspect")
@click.argument("source", metavar="REFERENCE", required=False)
@generator_options
@click.option("-o", "--out", type=OutPath(), help="Where to write a grid of 64 samples, .png.")
@json_option
def inspect(
    source: str | None, generator: dict[str, Any] | None, out: Path | None, as_json: bool
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
    with working(quiet=True):
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


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    latent, image = config.get("latent", {}), config.get("image", {})
    shape = image.get("shape")
    return {
        "architecture": str(config.get("architecture", "-")),
        "latent": f"{latent.get('dim', '?')} {latent.get('distribution', 'normal')}",
        "image": "×".join(map(str, shape)) if isinstance(shape, list) else "?",
        "license": str(config.get("license", "-")),
    }
