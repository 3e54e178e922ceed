"""Runs the experiments of section 5 of the LASH paper, and others around them.

python benchmarks/lash/run.py ls
python benchmarks/lash/run.py ablate mnist
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from compare import CELLS, RECORD, markdown_table, protocol, read_results, side_by_side

from pgmkit import files, progress
from pgmkit.cli import main
from pgmkit.cli.settings import set_option
from pgmkit.config import apply_overrides, read_toml
from pgmkit.errors import UnknownNameError
from pgmkit.jobs.ablate import Job, prepare

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
GROUPS = {
    "paper": "The paper's experiments",
    "differences": "What could explain differences to the paper",
    "beyond": "Beyond the paper",
}
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
@set_option
def ablate(
    names: tuple[str, ...],
    out: Path,
    results: Path | None,
    jobs: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Run experiments by NAMES, or "all", and write their results and pages.

    A run that was stopped continues. The exit code is 3 if some cells failed and 1 if all did.
    """
    if overrides and results is None:
        raise click.UsageError(
            "--set makes another experiment; name a folder for its results with --results"
        )
    code = 0
    names = tuple(configs()) if names == ("all",) else names
    for name in names:
        values = apply_overrides(read_toml(config_of(name)), overrides)
        job = prepare(values if jobs is None else {**values, "jobs": jobs})
        with progress.shown():
            progress.tell(f"{name}: {title_of(config_of(name))}")
            summary = job.run(out / name)
        if summary is None:  # another process of the engine tells
            continue
        if summary["failed"] < summary["cells"]:
            words = ["ablate", name]
            words += [word for override in overrides for word in ("--set", override)]
            collect(out / name, (results or HERE) / name, job, shlex.join(words))
            write_pages(results or HERE)
        code = max(code, outcome(summary), key=(0, 3, 1).index)
    sys.exit(code)


@cli.command()
@results_option
def pages(results: Path | None) -> None:
    """Write README.md and the pages of all experiments again, from the results."""
    write_pages(results or HERE)


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


def outcome(summary: Mapping[str, Any]) -> int:
    """Returns the exit code of an ablation."""
    if not summary["failed"]:
        return 0
    return 1 if summary["failed"] == summary["cells"] else 3


def collect(run_folder: Path, to: Path, job: Job, arguments: str) -> None:
    """Copies tables, cells and record of an ablation; its figures stay where it ran.

    Args:
        run_folder: output of the ablation.
        to: folder of the results.
        job: what ran.
        arguments: of this script, as they are to be given again.
    """
    to.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(run_folder / name, to / name)
    record = json.loads((run_folder / RECORD).read_text(encoding="utf-8"))
    cells = json.loads((run_folder / "cells.json").read_text(encoding="utf-8"))
    record["warned"] = sum(bool(cell["warnings"]) for cell in cells)
    record["told"] = [_told(cell) for cell in cells]
    for key in ("tables", "spectra"):  # cells.csv has the first; the second is of this machine
        record.pop(key)
    record["command"] = f"python benchmarks/lash/run.py {arguments}"
    record["classifiers"] = {
        name: dict(models.classifier.measured)
        for name, models in job.models.items()
        if models.classifier is not None
    }
    files.write_json(to / RECORD, record)  # last, as it says that the results are whole


def _told(cell: Mapping[str, Any]) -> str:
    """Returns what the cluster sampler of a cell says of its fit, on one line."""
    said = cell["origin"].get("sampler", {}).get("findings", {})
    return "; ".join(f"{name} {value}" for name, value in said.items())


def experiment_page(record: Mapping[str, Any], title: str, compared: str) -> str:
    """Returns the page of one experiment: how it was made, and where its numbers are."""
    parts = [
        f"# {title}\n",
        "Written by `benchmarks/lash/run.py`; do not edit.\n",
        protocol(record),
        "Results: [table.md](table.md), [table.tex](table.tex); all cells: [cells.csv](cells.csv); "
        "settings in full, and what samplers say of their fits: [ablation.json](ablation.json).\n",
    ]
    return "\n".join([*parts, *(["## Beside the paper\n", compared] if compared else [])])


def write_pages(results: Path) -> None:
    """Writes a page for each experiment that has results, and README.md over all."""
    rows: dict[str, list[list[str]]] = {}
    compared = []
    for name, config in configs().items():
        title = title_of(config)
        if not (results / name / RECORD).exists():
            rows.setdefault(group_of(config), []).append([f"`{name}`", title, "not run yet", ""])
            continue
        record, cells = read_results(results / name)
        text = side_by_side(cells)
        files.write_text(results / name / "README.md", experiment_page(record, title, text))
        state = f"{record['cells']} cells, {len(record['settings']['seeds'])} seeds"
        state += f", {record['failed']} failed" if record["failed"] else ""
        generators = ", ".join(table["name"] for table in record["settings"]["generators"])
        rows.setdefault(group_of(config), []).append(
            [f"[`{name}`]({name}/README.md)", title, state, generators]
        )
        compared += [text] if text and group_of(config) == "paper" else []
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
