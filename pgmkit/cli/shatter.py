"""`pgmkit shatter`."""

import sys
from pathlib import Path
from typing import Any

import click

from pgmkit.cli.output import json_option, print_json, print_table, set_option
from pgmkit.config import apply_overrides, read_toml


@click.command()
@click.argument("source", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Output folder.")
@click.option("--density", help="Density estimator; lash by default.")
@click.option("--sampler", help="Cluster sampler; kmeans-gmm by default.")
@click.option("--clusters", type=int, help="Number of clusters; 10 by default.")
@click.option("--remove", type=float, help="Fraction of prior mass to remove; 0.2 by default.")
@click.option("--latents", type=int, help="Latents to draw, before removal; 20000 by default.")
@click.option("--seed", type=int, help="Of everything random; 0 by default.")
@click.option("--engine", help="Where the spectrum is computed: local (default), torchrun or ray.")
@click.option("--no-cache", is_flag=True, help="Compute the spectrum though it is in the cache.")
@click.option("--classifier", help="Classifier for the scores, such as mnist-classifier.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings as TOML.")
@set_option
@click.option(
    "--dry-run", is_flag=True, help="Check everything, print the settings, write nothing."
)
@json_option
def shatter(
    source: str | None,
    out: Path | None,
    no_cache: bool,
    config: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Shatter SOURCE: a registry name, local-dir:/path or hf-hub:org/name[@revision].

    Leaves the shattered generator, report.html and its pictures in OUT. A run that was stopped
    continues where it was.
    """
    from pgmkit.evaluate.run import prepare, run

    values = {} if config is None else read_toml(config)
    flags |= {"source": source, "cache": False if no_cache else None}
    settings = apply_overrides(_with_flags(values, flags), overrides)
    prepared = prepare(settings)
    if dry_run:
        print_json({"settings": prepared.resolved(), "generator": repr(prepared.generator)})
        return
    if out is None:
        raise click.UsageError("Missing option '-o' / '--out'.")
    numbers = run(
        prepared,
        out,
        progress=sys.stderr.isatty(),
        report=lambda line: click.echo(line, err=True),
    )
    if numbers is None:
        return
    if as_json:
        print_json({"out": str(out), **numbers})
    else:
        _print_summary(out, numbers)


def _with_flags(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Lays the flags that were given over a config; components are tables with a name."""
    result = dict(values)
    for name in ("density", "sampler", "engine"):
        if isinstance(result.get(name), str):
            result[name] = {"name": result[name]}
    for name, value in flags.items():
        if value is None:
            continue
        if name in ("density", "sampler", "engine"):
            table = result.get(name, {})
            same = isinstance(table, dict) and table.get("name") == value
            result[name] = table if same else {"name": value}
        else:
            result[name] = value
    return result


def _print_summary(out: Path, numbers: dict[str, Any]) -> None:
    statistics, rank = numbers["statistics"], numbers["statistics"]["numeric_rank"]
    click.echo(numbers["generator"])
    click.echo(
        f"{numbers['density']['name']} kept {statistics['num_kept']:,} of "
        f"{statistics['num_latents']:,} latents (mass {statistics['mass_kept']:.3f}, effective "
        f"sample size {statistics['effective_sample_size']:,.0f}, numeric rank "
        f"{rank['smallest']} to {rank['largest']} of {rank['of']})\n"
    )
    rows = [
        (
            cluster["name"],
            f"{cluster['size']:,}",
            f"{cluster['share']:.1%}",
            "-" if cluster["purity"] is None else f"{cluster['purity']:.2f}",
        )
        for cluster in numbers["clusters"]
    ]
    print_table(rows, ("cluster", "size", "share", "purity"))
    for protocol, scores in numbers["scores"].items():
        click.echo(
            f"\n{protocol}: AMI {scores['adjusted_mutual_information']:.4f}, V-measure "
            f"{scores['v_measure']:.4f}, homogeneity {scores['homogeneity']:.4f}, completeness "
            f"{scores['completeness']:.4f}, class entropy {scores['class_entropy']:.3f} nats",
            nl=False,
        )
    click.echo(
        f"\n{', '.join(f'{k} {v:.1f} s' for k, v in numbers['seconds'].items())}; "
        f"seed {numbers['settings']['seed']}; {numbers['machine']}"
    )
    click.echo(f"report: {out / 'report.html'}")
