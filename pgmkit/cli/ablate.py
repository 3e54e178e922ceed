"""`pgmkit ablate`."""

from pathlib import Path
from typing import Any

import click

from pgmkit.cli.output import examples, print_json
from pgmkit.cli.settings import (
    OutPath,
    check_out,
    device_option,
    gather_settings,
    no_cache_option,
    run_options,
    working,
)

SOME_FAILED = 3


@click.command(
    epilog=examples(
        "pgmkit ablate examples/ablation-mnist.toml -o runs/ablation",
        "pgmkit ablate examples/ablation-mnist.toml -o runs/ablation --jobs 4 --set seeds=[0,1]",
        "pgmkit ablate examples/ablation-mnist.toml --dry-run",
    )
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=OutPath(), help="Output folder.")
@click.option(
    "--jobs", type=int, help="Cells at the same time, each in a process; one per core by default."
)
@device_option
@no_cache_option
@run_options
def ablate(
    config: Path,
    out: Path | None,
    jobs: int | None,
    device: str | None,
    no_cache: bool,
    overrides: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare methods as CONFIG (TOML) says: generators × densities × partitioners × mappers × ...

    Leaves cells.csv, tables (Markdown and LaTeX) and figures in OUT. A run that was stopped
    continues where it was, and cells that failed are tried again. The exit code is 3 if some cells
    failed and 1 if all did.
    """
    check_out(out, dry_run)
    from pgmkit.jobs.ablate import prepare

    spectrum = {"cache": False} if no_cache else None
    flags = {"jobs": jobs, "device": device, "spectrum": spectrum}
    with working(quiet, dry_run):
        job = prepare(gather_settings(config, flags, overrides))
        summary = None if dry_run or out is None else job.run(out)
    if dry_run:
        counts = {"cells": len(job.cells), "spectra": len(job.spectra)}
        print_json({"settings": job.resolved(), **counts})
        return
    if summary is None or out is None:  # another process of the engine tells
        return
    if as_json:
        print_json({"out": str(out), **summary})
    else:
        _print_summary(out, summary)
    if summary["failed"]:
        raise click.exceptions.Exit(1 if summary["failed"] == summary["cells"] else SOME_FAILED)


def _print_summary(out: Path, summary: dict[str, Any]) -> None:
    click.echo((out / "table.md").read_text())
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in summary["seconds"].items())
    click.echo(
        f"{summary['cells']} cells, {summary['computed']} of them computed now, "
        f"{summary['failed']} failed; {seconds}"
    )
    click.echo(f"tables and figures: {out}")
