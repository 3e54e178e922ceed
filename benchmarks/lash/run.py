"""Runs the experiments of section 5 of the LASH paper, and others around them.

python benchmarks/lash/run.py ls
python benchmarks/lash/run.py ablate mnist
"""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from compare import CELLS, RECORD, experiment_page, markdown_table, reached, read_results
from compare import side_by_side as beside_the_paper

from pgmkit import files
from pgmkit.cli import main
from pgmkit.cli.settings import report, set_option
from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import LoadError, ParameterError, PgmkitError, UnknownNameError
from pgmkit.evaluate.ablation import PreparedAblation, prepare, run
from pgmkit.evaluate.ablation.cells import Measurer
from pgmkit.evaluate.ablation.plan import GeneratorSettings, make_plan, slug
from pgmkit.loading.references import open_folder

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
GROUPS = {
    "paper": "The paper's experiments",
    "differences": "What could explain differences to the paper",
    "beyond": "Beyond the paper",
}
LARGEST_FILE = 300_000
"""Bytes; nothing larger is put among the results."""
MOST_HISTOGRAMS = 8
COPIED = (CELLS, "table.md", "table.tex")

out_option = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/lash"),
    show_default=True,
    help="Where experiments run, each in a folder of its own; what is there is taken up.",
)
results_option = click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Where small results and pages go.  [default: beside this script]",
)
where_option = click.option(
    "--where",
    multiple=True,
    metavar="AXIS=VALUE",
    help="Only cells with this value of an axis, such as sampler=learned; may be repeated.",
)
available_option = click.option(
    "--available", is_flag=True, help="Leave out generators that are not there, and say so."
)


class NotRunError(LoadError):
    """Too few of the generators of an experiment are there."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run the experiments of the LASH paper, and others, by name."""


@cli.command("ls")
@results_option
def list_experiments(results: Path | None) -> None:
    """List the experiments, and which are done."""
    for name, config in configs().items():
        done = "done" if (results or HERE).joinpath(name, RECORD).exists() else "-"
        click.echo(f"{name:15} {group_of(config):12} {done:5} {title_of(config)}")


@cli.command()
@click.argument("names", nargs=-1, required=True)
@out_option
@results_option
@click.option("--jobs", type=int, help="Cells at the same time; one per core by default.")
@available_option
@set_option
def ablate(
    names: tuple[str, ...],
    out: Path,
    results: Path | None,
    jobs: int | None,
    available: bool,
    overrides: tuple[str, ...],
) -> None:
    """Run experiments by NAMES, or "all", and write their results and pages.

    A run that was stopped continues. Of several experiments with --available, those without any
    generator are left out, and those whose results are of generators that are not there now. The
    exit code is 3 if some cells failed and 1 if all did.
    """
    if overrides and results is None:
        raise click.UsageError(
            "--set makes another experiment; name a folder for its results with --results"
        )
    code = 0
    names = tuple(configs()) if names == ("all",) else names
    for name in names:
        report(f"{name}: {title_of(config_of(name))}")
        try:
            prepared = prepare_experiment(name, overrides, available=available, jobs=jobs)
            if available:
                check_results((results or HERE) / name, list(prepared.models))
        except NotRunError as error:
            if len(names) == 1:
                raise
            report(f"{name} is left out: {error}")
            continue
        progress = sys.stderr.isatty()
        summary = run(prepared, out / name, progress=progress, report=report)
        if summary is None:  # another process of the engine tells
            continue
        if summary["failed"] < summary["cells"]:
            words = ["ablate", name, *(["--available"] if available else [])]
            words += [word for override in overrides for word in ("--set", override)]
            collect(out / name, (results or HERE) / name, prepared, shlex.join(words))
            write_pages(results or HERE)
        code = max(code, outcome(summary), key=(0, 3, 1).index)
    sys.exit(code)


@cli.command()
@results_option
def pages(results: Path | None) -> None:
    """Write README.md and the pages of all experiments again, from the results."""
    write_pages(results or HERE)


@cli.command()
@click.argument("source")
@out_option
@results_option
@where_option
@click.option("--classifier", help="Of a saved shattered generator: names its clusters.")
@click.option("-n", "columns", default=16, show_default=True, help="Samples of each cluster.")
@click.option("--seed", type=int, help="Of an experiment.  [default: its first]")
@available_option
@set_option
def grids(
    source: str,
    out: Path,
    results: Path | None,
    where: tuple[str, ...],
    classifier: str | None,
    columns: int,
    seed: int | None,
    available: bool,
    overrides: tuple[str, ...],
) -> None:
    """Draw a row of samples per cluster, for SOURCE: an experiment, or a shattered generator.

    Of an experiment that has run, with the same --set, the cells of one seed are fitted again, each
    in seconds to minutes, and drawn to RESULTS/NAME/grids. Of a saved shattered generator one
    picture is drawn, to grid.png in the folder --results.
    """
    from grids import cluster_grid

    from pgmkit.evaluate.classifier import load_classifier
    from pgmkit.shattering import ShatteredGenerator

    if source not in configs():
        if results is None:
            raise click.UsageError("a shattered generator is drawn to --results; name a folder")
        shattered = ShatteredGenerator.from_pretrained(source)
        judge = None if classifier is None else load_classifier(classifier)
        path = results / "grid.png"
        title = f"{shattered.generator.name}, {shattered.origin.density['name']}"
        files.write_bytes(path, cluster_grid(shattered, title, judge, columns=columns))
        click.echo(path)
        return
    prepared = prepare_experiment(source, overrides, available=available)
    measurer = Measurer(prepared.plan, out / source / "spectra", prepared.models)
    chosen, wanted = parsed_where(where), prepared.plan.seeds[0] if seed is None else seed
    found = 0
    for cell in prepared.cells:
        columns_of = {axis: str(value) for axis, value in cell.columns().items()}
        if cell.seed != wanted or any(columns_of.get(a) != v for a, v in chosen.items()):
            continue
        parts = [v for axis, v in columns_of.items() if axis not in ("latents", "seed")]
        judge = prepared.models[cell.generator].classifier
        title = f"{', '.join(parts[:-2])}, {cell.clusters} clusters, remove {cell.remove}"
        picture = cluster_grid(
            measurer.shatter(cell), f"{title}, seed {cell.seed}", judge, columns=columns
        )
        path = (results or HERE) / source / "grids" / f"{slug('-'.join(parts))}.png"
        files.write_bytes(path, picture)
        click.echo(path)
        found += 1
    if not found:
        raise ParameterError(f"no cell of {source} has seed {wanted} and {chosen}; see {CELLS}")
    if (results or HERE).joinpath(source, RECORD).exists():
        write_pages(results or HERE)


@cli.command()
@click.argument("name")
@results_option
@where_option
@click.option(
    "--ami", multiple=True, metavar="[DATA SET=]VALUE", help="Of samples; may be repeated."
)
@click.option("--fidelity", multiple=True, metavar="[DATA SET=]VALUE", help="May be repeated.")
def check(
    name: str,
    results: Path | None,
    where: tuple[str, ...],
    ami: tuple[str, ...],
    fidelity: tuple[str, ...],
) -> None:
    """Print AMI of the mapper's samples and cluster fidelity of NAME, for each data set.

    The exit code is 3 if a mean over seeds is under its threshold, a number is missing, or a cell
    has clusters that cannot be sampled, which these numbers leave out. A
    threshold without a data set is that of all data sets which have none of their own.
    """
    table, passed = reached(
        read_results((results or HERE) / name),
        parsed_where(where),
        {
            "samples.adjusted_mutual_information": parsed_thresholds("--ami", ami),
            "diagnostics.cluster_fidelity": parsed_thresholds("--fidelity", fidelity),
        },
    )
    click.echo(table)
    sys.exit(0 if passed else 3)


def configs() -> dict[str, Path]:
    """Returns the config of each experiment by name, in the order of `GROUPS`."""
    found = [*sorted(EXAMPLES.glob("ablation-*.toml"))]
    for group in GROUPS:
        found += sorted((HERE / "configs" / group).glob("*.toml"))
    return {path.stem.removeprefix("ablation-"): path for path in found}


def group_of(config: Path) -> str:
    """Returns which of `GROUPS` a config belongs to; the paper's are examples of the project."""
    return "paper" if config.parent == EXAMPLES else config.parent.name


def config_of(name: str) -> Path:
    """Returns the config of an experiment.

    Raises:
        UnknownNameError: there is none of the name.
    """
    if name not in configs():
        raise UnknownNameError("experiment", name, configs())
    return configs()[name]


def title_of(config: Path) -> str:
    """Returns the first line of a config, which is a comment that says what it is."""
    return config.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def is_available(generator: GeneratorSettings) -> bool:
    """Returns whether generator and classifier are there; says why not on stderr."""
    try:
        open_folder(generator.source).config()
        if generator.classifier is not None:
            open_folder(generator.classifier, "classifier").config()
    except PgmkitError as error:
        report(f"{generator.name or generator.source} is left out: {error}")
        return False
    return True


def check_results(to: Path, generators: Sequence[str]) -> None:
    """Checks that results to be written are of all generators that those in their place are of.

    Raises:
        NotRunError: some are missing.
    """
    if not (to / RECORD).exists():
        return
    settings = json.loads((to / RECORD).read_text(encoding="utf-8"))["settings"]
    lost = [t["name"] for t in settings["generators"] if t["name"] not in generators]
    if lost:
        raise NotRunError(
            f"{to} has results of {', '.join(lost)} too, which would be lost; bring these "
            "generators back, or name another folder with --results"
        )


def outcome(summary: Mapping[str, Any]) -> int:
    """Returns the exit code of an ablation."""
    if not summary["failed"]:
        return 0
    return 1 if summary["failed"] == summary["cells"] else 3


def collect(run_folder: Path, to: Path, prepared: PreparedAblation, arguments: str) -> None:
    """Copies what is small and worth keeping of an ablation; larger files are left out.

    Args:
        run_folder: output of the ablation.
        to: folder of the results.
        prepared: what ran.
        arguments: of this script, as they are to be given again.
    """
    for name in COPIED:
        _copy(run_folder / name, to / name)
    figures = sorted((run_folder / "figures").glob("*-along-*.png"))
    histograms = sorted((run_folder / "figures").glob("*-classes.png"))
    with files.replaced_folder(to / "figures") as folder:
        for figure in [*figures, *(histograms if len(histograms) <= MOST_HISTOGRAMS else [])]:
            _copy(figure, folder / figure.name)
    record = json.loads((run_folder / RECORD).read_text(encoding="utf-8"))
    cells = json.loads((run_folder / "cells.json").read_text(encoding="utf-8"))
    record["warned"] = sum(bool(cell["warnings"]) for cell in cells)
    record["told"] = [_told(cell) for cell in cells]
    for key in ("tables", "spectra"):  # cells.csv has the first; the second is of this machine
        record.pop(key)
    record["command"] = f"python benchmarks/lash/run.py {arguments}"
    record["classifiers"] = {
        name: dict(models.classifier.measured)
        for name, models in prepared.models.items()
        if models.classifier is not None
    }
    files.write_json(to / RECORD, record)  # last, as it says that the results are whole


def _told(cell: Mapping[str, Any]) -> str:
    """Returns what the cluster sampler of a cell says of its fit, on one line."""
    said = cell["origin"].get("sampler", {}).get("summary", {})
    return "; ".join(f"{name} {value}" for name, value in said.items())


def _copy(source: Path, to: Path) -> None:
    size = source.stat().st_size
    if size > LARGEST_FILE:
        report(f"{source.name} is left out of the results: {size:,} bytes")
        to.unlink(missing_ok=True)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, to)


def prepare_experiment(
    name: str, overrides: Iterable[str], *, available: bool, jobs: int | None = None
) -> PreparedAblation:
    """Checks the settings of an experiment and loads its models.

    Raises:
        NotRunError: `available`, and none of its generators is.
        PgmkitError: one of its models is not there, or a setting is wrong.
    """
    values = apply_overrides(read_toml(config_of(name)), overrides)
    if available:
        plan, given = make_plan(values), values["generators"]
        pairs = zip(given, plan.generators, strict=True)
        values["generators"] = [table for table, found in pairs if is_available(found)]
        if not values["generators"]:
            raise NotRunError(f"none of the generators of {name} is there; see {config_of(name)}")
    return prepare(values if jobs is None else {**values, "jobs": jobs})


def parsed_where(texts: Iterable[str]) -> dict[str, str]:
    """Returns values by axis, of texts such as "sampler=learned"."""
    pairs = [text.partition("=") for text in texts]
    for axis, equals, _ in pairs:
        if not equals:
            raise click.UsageError(f"--where takes AXIS=VALUE, not {axis!r}")
    return {axis: value for axis, _, value in pairs}


def parsed_thresholds(option: str, texts: Iterable[str]) -> Callable[[str], float]:
    """Returns the threshold of a data set, of texts such as "0.5" and "MNIST=0.6"."""
    thresholds: dict[str, float] = {}
    for text in texts:
        data_set, _, number = text.rpartition("=")
        try:
            thresholds[data_set] = float(number)
        except ValueError:
            raise click.UsageError(f"{option} takes a number, not {number!r}") from None
    return lambda data_set: thresholds.get(data_set, thresholds.get("", math.nan))


def write_pages(results: Path) -> None:
    """Writes a page for each experiment that has results, and README.md over all."""
    rows: dict[str, list[list[str]]] = {}
    compared = []
    for name, config in configs().items():
        title = title_of(config)
        if not (results / name / RECORD).exists():
            rows.setdefault(group_of(config), []).append([f"`{name}`", title, "not run yet", ""])
            continue
        found = read_results(results / name)
        figures = [
            path.relative_to(results / name).as_posix()
            for folder in ("figures", "grids")
            for path in sorted((results / name / folder).glob("*.png"))
        ]
        files.write_text(results / name / "README.md", experiment_page(found, title, figures))
        settings, failed = found.record["settings"], found.record["failed"]
        state = f"{found.record['cells']} cells, {len(settings['seeds'])} seeds"
        state += f", {failed} failed" if failed else ""
        generators = ", ".join(table["name"] for table in settings["generators"])
        rows.setdefault(group_of(config), []).append(
            [f"[`{name}`]({name}/README.md)", title, state, generators]
        )
        text = beside_the_paper(found) if group_of(config) == "paper" else ""
        compared += [text] if text else []
    parts = [
        "# The LASH paper's experiments, and others around them\n",
        "Written by `python benchmarks/lash/run.py pages`; do not edit. What was done, and how to "
        "read it: [docs/results.md](../../docs/results.md).\n",
    ]
    for group, title in GROUPS.items():
        header = ["`run.py ablate` …", "what it asks", "done", "on"]
        parts += [f"## {title}\n", markdown_table(header, rows.get(group, []))]
    if compared:
        parts += ["## Beside the paper's numbers\n", *compared]
    files.write_text(results / "README.md", "\n".join(parts))


if __name__ == "__main__":
    main(cli)
