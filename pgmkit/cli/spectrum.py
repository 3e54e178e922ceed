"""`pgmkit spectrum`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgmkit import defaults
from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.cli.settings import (
    OutPath,
    check_file,
    check_out,
    config_option,
    device_option,
    gather_settings,
    no_cache_option,
    run_options,
    working,
)
from pgmkit.cli.sources import generator_options
from pgmkit.errors import LoadError

if TYPE_CHECKING:
    from pgmkit.spectrum import Spectrum

_LABELS = {
    "numeric_rank": "numeric rank",
    "condition_number": "condition number",
    "log_volume": "log-volume, nats",
    "frobenius_norm": "Frobenius norm",
    "log_prior": "log prior, nats",
}
_FIELDS = {
    "generator_name": "generator",
    "generator": "fingerprint",
    "num_latents": "latents",
    "latents": "SHA-256 of latents",
    "jacobian": "computed in",
}
"""What the table calls settings whose own name says too little; all others stand as they are."""

_COLUMNS = {"min": "min", "q05": "5 %", "median": "median", "q95": "95 %", "max": "max"}

_folder = click.argument("folder", type=click.Path(path_type=Path))
_rank_rtol = click.option(
    "--rank-rtol",
    type=float,
    help="Share of the largest singular value up to which one counts as null; 1e-6 by default.",
)


@click.group(
    epilog=examples(
        "pgmkit spectrum compute mnist-dcgan -o spectrum --latents 8000",
        "pgmkit spectrum info spectrum",
        "pgmkit spectrum plot spectrum -o spectrum.png",
    )
)
def spectrum() -> None:
    """Compute spectra, tell about them, draw them.

    A spectrum is the singular values of a generator's Jacobian at many latents. It is the one
    expensive thing, and every density estimator reads it: pgmkit shatter --spectrum FOLDER.
    """


@spectrum.command(
    epilog=examples(
        "pgmkit spectrum compute mnist-dcgan -o spectrum --latents 8000",
        "pgmkit spectrum compute hf-hub:org/name -o spectrum --probes 32 --device cuda",
        "pgmkit spectrum compute mnist-dcgan --dry-run",
    )
)
@click.argument("source", required=False, shell_complete=complete_models("generator"))
@click.option("-o", "--out", type=OutPath(urls=True), help="Folder or URL of the spectrum.")
@click.option("--latents", type=int, help=f"Latents to draw; {defaults.LATENTS} by default.")
@click.option("--seed", type=int, help="Of the latents; 0 by default.")
@click.option("--dtype", help="auto (default), float32, float64, tf32 or bfloat16.")
@click.option("--probes", type=int, help="Directions of a sketch; exact if left out.")
@click.option("--sketch", help="What the probes are for: volume (default) or top.")
@click.option("--engine", help=f"Where blocks are computed; {defaults.ENGINE} by default.")
@click.option("--block-size", type=int, help="Latents per block of work; 128 by default.")
@generator_options
@device_option
@no_cache_option
@config_option
@run_options
def compute(
    out: Path | str | None,
    no_cache: bool,
    config: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Compute the spectrum of SOURCE: a registry name, a weight file, a folder or hf-hub:org/name.

    Each finished block is kept. A computation that was stopped continues, and a complete spectrum
    is read back.
    """
    check_out(out, dry_run)
    from pgmkit.jobs.spectrum import prepare

    flags["cache"] = False if no_cache else None
    with working(quiet, dry_run):
        job = prepare(gather_settings(config, flags, overrides))
        seconds = job.estimate() if dry_run else 0.0
        computed = None if dry_run or out is None else job.run(out)
    if dry_run:
        told = {"settings": job.resolved(), "generator": repr(job.generator)}
        print_json({**told, "seconds": {"spectrum": round(seconds, 1)}})
    elif computed is not None and out is not None:
        _tell(out, computed, {}, as_json)


@spectrum.command(epilog=examples("pgmkit spectrum info spectrum"))
@_folder
@_rank_rtol
@json_option
def info(folder: Path, rank_rtol: float | None, as_json: bool) -> None:
    """Tell about the spectrum in FOLDER; exits with 1 if it is incomplete or damaged."""
    from pgmkit.spectrum import load_spectrum

    try:
        loaded = load_spectrum(folder)
    except LoadError:
        _tell_incomplete(folder, as_json)
        raise
    _tell(folder, loaded, _given(rank_rtol=rank_rtol), as_json)


@spectrum.command(epilog=examples("pgmkit spectrum plot spectrum -o spectrum.png"))
@_folder
@click.option("-o", "--out", required=True, type=OutPath(), help="A .png file.")
@_rank_rtol
def plot(folder: Path, out: Path, rank_rtol: float | None) -> None:
    """Draw the spectrum in FOLDER: singular values, volume, condition, rank and prior."""
    check_file(out, ".png", "the picture")
    from pgmkit import files
    from pgmkit.evaluate import figures
    from pgmkit.spectrum import load_spectrum

    loaded = load_spectrum(folder)
    figure = figures.spectrum_overview(loaded, **_given(rank_rtol=rank_rtol))
    files.write_bytes(out, figures.png(figure))
    click.echo(out)


def _given(**options: Any) -> dict[str, Any]:
    """Returns the options that were given, so that defaults stand in one place."""
    return {name: value for name, value in options.items() if value is not None}


def _tell(
    folder: Path | str, loaded: "Spectrum", options: Mapping[str, Any], as_json: bool
) -> None:
    from pgmkit.spectrum.blocks import BlockStore
    from pgmkit.spectrum.summary import summarize

    statistics = summarize(loaded, **options)
    if as_json:
        total = BlockStore(loaded.provenance).num_blocks
        print_json(_record(folder, loaded.provenance, total, total, statistics))
        return
    _print_facts(folder, loaded.provenance, "complete", _facts(statistics))
    if statistics["quantiles"] is None:
        return
    click.echo()
    rows = [
        (_LABELS[name], *(_number(values[column]) for column in _COLUMNS))
        for name, values in statistics["quantiles"].items()
    ]
    print_table(rows, ("over latents", *_COLUMNS.values()))


def _tell_incomplete(folder: Path, as_json: bool) -> None:
    """Tells what there is of a spectrum, if its manifest can be read."""
    from pgmkit.spectrum.blocks import count_blocks

    try:
        settings, whole, total = count_blocks(folder)
    except LoadError:
        return
    if as_json:
        print_json(_record(folder, settings, whole, total, None))
    else:
        _print_facts(folder, settings, f"incomplete: {whole} of {total} blocks are whole", {})


def _record(
    folder: Path | str, settings: Mapping[str, Any], whole: int, total: int, statistics: Any
) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "complete": whole == total,
        "blocks": {"whole": whole, "of": total},
        "settings": dict(settings),
        "statistics": statistics,
    }


def _print_facts(
    folder: Path | str, settings: Mapping[str, Any], state: str, more: Mapping[str, str]
) -> None:
    rows = [("folder", str(folder)), ("state", state)]
    shown = {key: value for key, value in settings.items() if key != "landmarks"}  # many numbers
    rows += [(_FIELDS.get(k, k.replace("_", " ")), _value(v)) for k, v in shown.items()]
    print_table([*rows, *more.items()], ("field", "value"))


def _facts(statistics: Mapping[str, Any]) -> dict[str, str]:
    prior, volume = statistics["std_log_prior"], statistics["std_log_volume"]
    share = statistics["float64_share"]
    larger = "log prior" if prior > volume else "log-volume"
    return {
        "dimension": f"{statistics['latent_dim']}, {statistics['num_singular_values']} singular "
        "values each",
        "not finite": f"{statistics['not_finite']:,} latents",
        "in float64": "-" if share is None else f"{share:.1%} of the latents",
        "rank rtol": f"{statistics['rank_rtol']:g}",
        "log-density": f"std of log prior {prior:.4g} : std of log-volume {volume:.4g} nats = "
        f"{_number(statistics['std_ratio'])}; {larger} dominates",
    }


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {part}" for key, part in value.items())
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:,.4g}"
