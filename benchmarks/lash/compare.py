"""Sets ablations beside the LASH paper's numbers; prints Markdown.

python benchmarks/lash/compare.py runs/lash/mnist runs/lash/fashion-mnist
"""

import argparse
import csv
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgmkit.config import read_toml
from pgmkit.errors import LoadError
from pgmkit.evaluate.ablation.cells import Result
from pgmkit.evaluate.ablation.measures import MEASURES
from pgmkit.evaluate.ablation.plan import Cell, Variant
from pgmkit.evaluate.ablation.tables import (
    Entry,
    Row,
    Table,
    grouped,
    make_tables,
    varying,
)

PUBLISHED = Path(__file__).with_name("published.toml")
RECORD, CELLS = "ablation.json", "cells.csv"
_OF_SAMPLERS = ("sampler.", "partitioner.", "mapper.")
TABLES = {"clusters": "Table 1", "samples": "Table 2"}
RANKED_BY = "adjusted_mutual_information"


def read_results(folder: Path) -> tuple[Mapping[str, Any], list[Row]]:
    """Reads what `pgmkit ablate` left in a folder: its record, and its cells with their numbers.

    Raises:
        LoadError: it holds no ablation that is done.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        lines = (folder / CELLS).read_text(encoding="utf-8").splitlines()
        return record, [_row(line) for line in csv.DictReader(lines)]
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"{folder} holds no ablation that is done; run it first ({error})"
        ) from error


def _row(line: Mapping[str, str]) -> Row:
    """Returns a cell as it was before it became a line of `cells.csv`, but for its parameters."""
    names = list(line)
    axes, rest = names[: names.index("seed")], names[names.index("seed") + 1 : names.index("error")]
    methods = []
    for kind, parts in (("density", ("density.",)), ("sampler", _OF_SAMPLERS)):
        varied = {axis: line[axis] for axis in axes if axis.startswith(parts) and line[axis]}
        methods.append(Variant(line[kind], {}, varied))
    count, seed = int(line["latents"]), int(line["seed"])
    place = (line["generator"], *methods, line["clusters"], line["remove"], count, seed)
    metrics = {name: float(line[name]) if line[name] else None for name in rest}
    return Row(Cell("", *place), Result(metrics, error=line["error"] or None))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def side_by_side(rows: Sequence[Row]) -> str:
    """Returns the paper's and the measured numbers, in one table per data set and table.

    What was not measured is left out, and so is what the paper did not do: other methods, data sets
    and samplers, or more than one setting of everything else.
    """
    published = read_toml(PUBLISHED)
    known = [
        row
        for row in rows
        if row.cell.generator in published["clusters"]
        and row.cell.density.label in published["methods"]
    ]
    as_there = {row.cell.sampler.label for row in rows} == {"kmeans-gmm"}
    if not as_there or not set(varying(rows)) <= {"generator", "density", "seed"} or not known:
        return ""
    parts = []
    for generator, own in grouped(known, ["generator"]).items():
        measured = [measure for measure in TABLES if any(row.measured(measure) for row in own)]
        for table in make_tables(own, measured):
            numbers = published[table.measure][generator]
            if len(table.methods) > 1:
                title = f"{TABLES[table.measure]}: {MEASURES[table.measure].title.lower()}"
                parts.append(f"**{generator}, {title}**\n\n{_beside(table, numbers, published)}\n")
                parts[-1] += _orders(own, table, numbers[RANKED_BY], published)
    return "\n".join(parts)


def _beside(table: Table, numbers: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    """Returns the table of one data set, each line under that of the paper, where it has one."""
    columns = [published["methods"].index(method) for method in table.methods]
    lines = []
    for name, entries in table.sections[0].entries.items():
        metric, pairs = MEASURES[table.measure].metrics[name], numbers.get(name)
        if pairs is not None:
            paper = [Entry(*pairs[column], count=1, total=1).text() for column in columns]
            lines.append([metric.title, "paper", *paper])
        title = metric.title if pairs is None else ""
        lines.append([title, "measured", *(entry.text(metric.form) for entry in entries)])
    return markdown_table(["metric", "", *table.methods], lines)


def _orders(
    rows: Sequence[Row],
    table: Table,
    pairs: Sequence[Sequence[float]],
    published: Mapping[str, Any],
) -> str:
    """Returns how the methods rank in the paper and here, and on how many pairs that agrees."""
    entries = zip(table.methods, table.sections[0].entries[RANKED_BY], strict=True)
    means = {method: entry.mean for method, entry in entries if entry.mean is not None}
    paper = {method: pairs[published["methods"].index(method)][0] for method in means}
    duels = list(itertools.combinations(means, 2))
    agreed = sum((means[a] > means[b]) == (paper[a] > paper[b]) for a, b in duels)
    best = max(paper, key=lambda method: paper[method], default="")
    key = f"{table.measure}.{RANKED_BY}"
    whole = [
        {row.cell.density.label: row.result.metrics[key] for row in of_seed}
        for of_seed in grouped([r for r in rows if r.value(key) is not None], ["seed"]).values()
        if len(of_seed) == len(table.methods)
    ]
    wins = sum(max(scores, key=lambda method: scores[method]) == best for scores in whole)
    return (
        f"Order by adjusted MI, paper: {_ranked(paper)}. Measured: {_ranked(means)}. "
        f"{agreed} of {len(duels)} pairs are in the paper's order; the paper's best, {best}, is "
        f"best in {wins} of {len(whole)} seeds.\n"
    )


def _ranked(means: Mapping[str, float]) -> str:
    ranked = sorted(means, key=lambda method: -means[method])
    return ", ".join(f"{method} ({means[method]:.4f})" for method in ranked)


def protocol(record: Mapping[str, Any]) -> str:
    """Returns how the numbers came about: command, settings, models, versions, machine."""
    settings, seconds = record["settings"], record["seconds"]
    taken_up = (
        f" Spectra taken up from the cache, or where a run was stopped: "
        f"{record['spectra_taken_up']}; what they took before is not counted."
    )
    warned = f", {record['warned']} warned" if record.get("warned") else ""
    lines = [
        f"* Latents from the prior: {_listed(settings['latents'], ',')}; removed share: "
        f"{_listed(settings['remove'])}; seeds: {_listed(settings['seeds'])}; samples of the "
        f"mapper that are scored, per cell: {settings['samples']:,}.",
        f"* Densities: {'; '.join(map(_method, settings['densities']))}.",
        f"* Samplers: {'; '.join(map(_method, settings['samplers']))}.",
        *(_generator(table, record) for table in settings["generators"]),
        "* Numbers are means ± standard deviation over seeds, with n - 1.",
        f"* {record['cells']} cells, {record['failed']} of them failed{warned}.",
        f"* Time: spectra and labels {seconds['spectra']:,.0f} s, "
        f"cells {seconds['cells']:,.0f} s in all.{taken_up * bool(record['spectra_taken_up'])}",
        f"* Made on: {'; '.join(record['machines'])}. Versions: "
        + ", ".join(f"{name} {' and '.join(found)}" for name, found in record["versions"].items())
        + ".",
    ]
    if record.get("command"):
        lines.insert(0, f"* `{record['command']}`")
    return "\n".join(lines) + "\n"


def _method(table: Mapping[str, Any]) -> str:
    parameters = [f"{key} {value}" for key, value in table.items() if key not in ("label", "name")]
    named = dict.fromkeys((table["label"], table["name"]))
    return ": ".join(named) + (f" ({', '.join(parameters)})" if parameters else "")


def _generator(table: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    classifier = table["classifier"]
    accuracy = record.get("classifiers", {}).get(table["name"], {}).get("test_accuracy")
    judged = f", classes by {classifier}" if classifier else ""
    judged += f" (test accuracy {accuracy})" if accuracy is not None else ""
    weights = table["weights"].get("sha256", "unknown")[:12]
    return (
        f"* {table['name']}: {table['source']} (weights {weights}){judged}; clusters: "
        f"{_listed(table['clusters'])}."
    )


def _listed(values: Iterable[Any], form: str = "") -> str:
    return ", ".join(format(value, form) for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="Outputs of pgmkit ablate.")
    for folder in parser.parse_args().folders:
        record, rows = read_results(folder)
        print(f"# {folder.name}\n\n{protocol(record)}\n{side_by_side(rows)}")


if __name__ == "__main__":
    main()
