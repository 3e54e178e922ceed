"""`pgmkit generators push`."""

from collections.abc import Mapping
from typing import Any

import click

from pgmkit.cli.completion import complete_models
from pgmkit.cli.output import examples, json_option, print_json
from pgmkit.cli.reports import report_beside
from pgmkit.cli.settings import voice_options, working
from pgmkit.cli.sources import generator_options, needed_source
from pgmkit.loading.folders import PARTITIONER_CONFIG
from pgmkit.loading.hub import check_push
from pgmkit.loading.references import open_folder
from pgmkit.progress import phase


@click.command(
    "push",
    epilog=examples(
        "pgmkit generators push shattered org/name --private",
        'pgmkit generators push parts org/name -m "Parts of MNIST"',
    ),
)
@click.argument("source", required=False, shell_complete=complete_models("generator"))
@click.argument("repository", required=False)
@generator_options
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("-m", "--message", help="Message of the commit.")
@voice_options
@json_option
def push(
    source: str | None,
    repository: str | None,
    generator: Mapping[str, Any] | None,
    private: bool,
    message: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish SOURCE on the Hub as REPOSITORY.

    SOURCE is a generator, conditional or not, or what pgmkit shatter or pgmkit partition fit
    wrote: a folder or anything else that loads; REPOSITORY is org/name, and is created if it is
    not there. It gets a model card with pictures, numbers and a recipe. Before, log in with
    hf auth login.
    """
    source = needed_source(source)
    if repository is None:
        raise click.UsageError("Missing argument 'REPOSITORY': org/name.")
    check_push(repository)
    from pgmkit.loading.cards import SAMPLES_FILE
    from pgmkit.models import load
    from pgmkit.partition import load_partitioner
    from pgmkit.shattering import ShatteredGenerator

    folder = open_folder(source)
    model: Any
    more: dict[str, Any] = {}
    with working(quiet):
        if generator is None and folder.weights is None and folder.fetch(PARTITIONER_CONFIG):
            model, more = load_partitioner(source), {"picture": folder.fetch(SAMPLES_FILE)}
        else:
            model = load(source, **(generator or {}))
            if isinstance(model, ShatteredGenerator):
                more = {"numbers": report_beside(folder, model.cluster_sizes)}
        with phase("making the card, and sending"):
            address = model.push_to_hub(repository, private=private, message=message, **more)
    if as_json:
        print_json({"source": source, "repository": repository, "address": address})
    else:
        click.echo(address)
