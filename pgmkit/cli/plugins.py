"""`pgmkit plugins`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from pgmkit.cli.completion import complete_components
from pgmkit.cli.output import examples, json_option, print_json, print_table
from pgmkit.cli.settings import set_option, voice_options, working
from pgmkit.components import KINDS, RegisteredComponent
from pgmkit.config import apply_overrides
from pgmkit.errors import ParameterError, PluginError, UnknownNameError
from pgmkit.plugins import installed
from pgmkit.progress import track


@click.group(
    epilog=examples(
        "pgmkit plugins ls",
        "pgmkit plugins new acme-halves --kind partitioners",
        "pgmkit plugins check acme-halves",
    )
)
def plugins() -> None:
    """List, check and begin plugins."""


@plugins.command("ls", epilog=examples("pgmkit plugins ls", "pgmkit plugins ls --json"))
@json_option
def list_plugins(as_json: bool) -> None:
    """List plugins, what they offer, and why any of them failed."""
    records = installed().records
    if as_json:
        print_json([asdict(record) for record in records])
        return
    rows = [
        (r.name, r.version, r.status, r.error or ", ".join(r.components) or "-") for r in records
    ]
    print_table(rows, ("plugin", "version", "status", "components"))


@plugins.command(
    "check",
    epilog=examples(
        "pgmkit plugins check acme-halves",
        "pgmkit plugins check kmeans --set num_partitions=3 --image 1x28x28",
        "pgmkit plugins check mappers/mixture --json",
    ),
)
@click.argument("name", shell_complete=complete_components())
@set_option
@click.option("--image", metavar="CxHxW", default="3x8x8", help="Images to try it on: 3x8x8.")
@click.option("--latent", metavar="DIM", help="Prior of a generator loader that says none.")
@voice_options
@json_option
@click.pass_context
def check(
    context: click.Context,
    name: str,
    overrides: Sequence[str],
    image: str,
    latent: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check that a component keeps its contract, or all of a plugin or a distribution.

    NAME is a component, such as kmeans, acme:halves or mappers/mixture, or a distribution, such as
    acme. Parameters of a component are given as --set size=3, and else are those that its record
    has for this. The exit code is 1 if a check fails.
    """
    found = _named(name)
    if overrides and len(found) > 1:
        raise ParameterError(
            f"--set gives parameters of one component, and {name!r} stands for {len(found)}: "
            f"{', '.join(f'{c.kind}/{c.name}' for c in found)}; name one"
        )
    from pgmkit.loading.options import as_image, as_latent
    from pgmkit.testing import Case, checks_of
    from pgmkit.testing.case import run, told

    parameters = apply_overrides({}, overrides)
    shape = as_image(image, "--image").shape
    prior = None if latent is None else as_latent(latent, "--latent")
    with working(quiet):
        reports = [
            run(
                Case(component, {**component.component.trial, **parameters}, shape, prior),
                checks_of(component.kind),
            )
            for component in track(found, "checking", len(found), "component")
        ]
    counts = {
        status: sum(report.counts()[status] for report in reports)
        for status in ("run", "passed", "failed", "skipped")
    }
    if as_json:
        components = [{**asdict(report), "counts": report.counts()} for report in reports]
        print_json({"counts": counts, "components": components})
    else:
        rows = [
            (f"{report.kind}/{report.name}", outcome.status, outcome.check, outcome.reason)
            for report in reports
            for outcome in report.outcomes
        ]
        print_table(rows, ("component", "status", "check", "reason"))
        click.echo(told(counts))
    if counts["failed"]:
        context.exit(1)


@plugins.command(
    "new",
    epilog=examples(
        "pgmkit plugins new acme-halves --kind partitioners",
        "pgmkit plugins new acme-flows --kind mappers -o src/acme-flows",
    ),
)
@click.argument("name")
@click.option("--kind", required=True, help="What it offers, such as features or partitioners.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder; NAME by default.")
def new(name: str, kind: str, out: Path | None) -> None:
    """Write a plugin with one component, which passes its checks, to be changed.

    NAME is that of the distribution and of the component, such as acme-halves.
    """
    from pgmkit.templates import new_plugin

    folder = out or Path(name)
    for path in new_plugin(name, kind, folder):
        click.echo(path)
    click.echo(
        f"install it with pip install -e '{folder}[test]', then run pgmkit plugins check {name}",
        err=True,
    )


def _named(name: str) -> list[RegisteredComponent]:
    """Returns what a distribution or a plugin offers, or the components of a name, of any kind.

    Raises:
        PluginError: the plugin could not be loaded.
        UnknownNameError: there is nothing of that name.
    """
    plugins = installed()
    own = [r for r in plugins.records if name.lower() in (r.name, r.name.partition(":")[0])]
    for record in own:
        if record.status == "failed":
            raise PluginError(f"the plugin {record.name!r} failed to load: {record.error}; mend it")
        if record.status == "disabled":
            raise PluginError(
                f"the plugin {record.name!r} is disabled, by PGMKIT_DISABLE_PLUGINS or --no-plugins"
            )
    if own:
        owners = {record.name for record in own}
        return [component for component in plugins.components if component.plugin in owners]
    kind, slash, short = name.partition("/")
    if slash:
        return [plugins.find(kind, short)]
    found = [plugins.find(kind, name) for kind in KINDS if plugins.offers(kind, name)]
    if not found:
        known = {component.name for component in plugins.components}
        known |= {record.name.partition(":")[0] for record in plugins.records}
        raise UnknownNameError("component or plugin", name, known)
    return found
