"""Sets ablations beside the LASH paper's numbers; prints Markdown.

python benchmarks/lash/compare.py runs/lash/mnist runs/lash/fashion-mnist
"""

import argparse
import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pgmkit.config import read_toml
from pgmkit.errors import LoadError
from pgmkit.evaluate.ablation.measures import MEASURES

PUBLISHED = Path(__file__).with_name("published.toml")
RECORD, CELLS = "ablation.json", "cells.csv"
TABLES = {"clusters": "Table 1", "samples": "Table 2"}
RANKED_BY = "adjusted_mutual_information"
SHOWN = {
    "clusters.adjusted_mutual_information": "AMI, kept latents",
    "clusters.mean_cluster_entropy": "cluster entropy, nats",
    "clusters.class_entropy": "class entropy, nats",
    "samples.adjusted_mutual_information": "AMI, samples",
    "samples.class_entropy": "class entropy of samples, nats",
    "diagnostics.cluster_fidelity": "cluster fidelity",
    "diagnostics.worst_cluster": "of the worst cluster",
    "diagnostics.clusters_without_samples": "clusters without samples",
    "diagnostics.acceptance_rate": "acceptance rate",
    "selection.effective_sample_size": "effective sample size",
}
"""What the short table of an experiment shows; table.md has all."""
UNSAMPLED = "diagnostics.clusters_without_samples"


@dataclass(frozen=True)
class Results:
    """What an ablation left, read from its folder.

    Args:
        name: of the folder.
        record: `ablation.json`.
        axes: columns that say where a cell lies, but for the seed.
        cells: lines of `cells.csv`.
    """

    name: str
    record: Mapping[str, Any]
    axes: Sequence[str]
    cells: Sequence[Mapping[str, str]]

    @property
    def varying(self) -> list[str]:
        """The axes with more than one value; the generator and the density always are."""
        named = ("generator", "density")
        return [a for a in self.axes if a in named or len({cell[a] for cell in self.cells}) > 1]

    def groups(self, axes: Iterable[str]) -> dict[tuple[str, ...], list[Mapping[str, str]]]:
        """Returns the cells of each place on some axes, in order."""
        axes = list(axes)
        groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for cell in self.cells:
            groups.setdefault(tuple(cell[axis] for axis in axes), []).append(cell)
        return groups


def read_results(folder: Path) -> Results:
    """Reads what `pgmkit ablate` left in a folder.

    Raises:
        LoadError: it holds no ablation that is done.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        cells = list(csv.DictReader((folder / CELLS).read_text(encoding="utf-8").splitlines()))
        columns = list(cells[0])
        return Results(folder.name, record, columns[: columns.index("seed")], cells)
    except (OSError, ValueError, IndexError) as error:
        raise LoadError(
            f"{folder} holds no ablation that is done; run it first ({error})"
        ) from error


def numbers(cells: Iterable[Mapping[str, str]], metric: str) -> list[float]:
    """Returns the numbers of a metric; cells without one are left out."""
    return [float(text) for cell in cells if (text := cell.get(metric))]


def plus_minus(values: Sequence[float], total: int, form: str = ".4f") -> str:
    """Returns mean ± standard deviation (with n - 1), and of how many, where some lack.

    Example:
        >>> plus_minus([0.1, 0.3], 3)
        '0.2000 ± 0.1414 (2/3)'
    """
    if not values:
        return "–"
    text = f"{mean(values):{form}}"
    if len(values) > 1:
        text += f" ± {stdev(values):{form}}"
    return text if len(values) == total else f"{text} ({len(values)}/{total})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def comparable(results: Results) -> list[str]:
    """Returns the data sets that the paper has numbers of, for just the methods and k-means here.

    There must be one setting of everything else, or it would not be clear which to compare.
    """
    published = read_toml(PUBLISHED)
    only_methods = set(results.varying) == {"generator", "density"}
    if not only_methods or {cell["sampler"] for cell in results.cells} != {"kmeans-gmm"}:
        return []
    methods = set(published["methods"]) & {cell["density"] for cell in results.cells}
    found = dict.fromkeys(cell["generator"] for cell in results.cells)
    return [name for name in found if name in published["clusters"] and len(methods) > 1]


def side_by_side(results: Results) -> str:
    """Returns the paper's and the measured numbers in one table per data set and table.

    Tables of what was not measured are left out.
    """
    published = read_toml(PUBLISHED)
    parts = []
    measured = {
        measure: table
        for measure, table in TABLES.items()
        if numbers(results.cells, f"{measure}.{RANKED_BY}")
    }
    for data_set, (measure, table) in itertools.product(comparable(results), measured.items()):
        by_method = {
            method: cells
            for (generator, method), cells in results.groups(["generator", "density"]).items()
            if generator == data_set and method in published["methods"]
        }
        columns = [published["methods"].index(method) for method in by_method]
        rows = []
        for name, metric in MEASURES[measure].metrics.items():
            pairs = published[measure][data_set].get(name)
            if pairs is not None:
                texts = [f"{pairs[c][0]:.4f} ± {pairs[c][1]:.4f}" for c in columns]
                rows.append([metric.title, "paper", *texts])
            key = f"{measure}.{name}"
            texts = [plus_minus(numbers(c, key), len(c)) for c in by_method.values()]
            rows.append(["" if pairs else metric.title, "measured", *texts])
        title = MEASURES[measure].title.lower()
        parts.append(
            f"**{data_set}, {table}: {title}**\n\n"
            + markdown_table(["metric", "", *by_method], rows)
            + "\n"
            + _orders(published, data_set, measure, by_method)
        )
    return "\n".join(parts)


def _orders(
    published: Mapping[str, Any],
    data_set: str,
    measure: str,
    by_method: Mapping[str, Sequence[Mapping[str, str]]],
) -> str:
    """Returns how the methods rank in the paper and here, and on how many pairs that agrees."""
    key = f"{measure}.{RANKED_BY}"
    pairs = published[measure][data_set][RANKED_BY]
    paper = {method: pairs[published["methods"].index(method)][0] for method in by_method}
    measured = {method: numbers(cells, key) for method, cells in by_method.items()}
    means = {method: mean(values) for method, values in measured.items() if values}
    paper = {method: paper[method] for method in means}
    duels = list(itertools.combinations(means, 2))
    agreed = sum((means[a] > means[b]) == (paper[a] > paper[b]) for a, b in duels)
    best = max(paper, key=lambda method: paper[method], default="")
    seeds: dict[str, dict[str, float]] = {}
    for method, cells in by_method.items():
        for cell in cells:
            if cell[key]:
                seeds.setdefault(cell["seed"], {})[method] = float(cell[key])
    whole = [found for found in seeds.values() if len(found) == len(by_method)]
    wins = sum(max(found, key=lambda method: found[method]) == best for found in whole)
    return (
        f"Order by adjusted MI, paper: {_ranked(paper)}. Measured: {_ranked(means)}. "
        f"{agreed} of {len(duels)} pairs are in the paper's order; the paper's best, {best}, is "
        f"best in {wins} of {len(whole)} seeds.\n"
    )


def _ranked(means: Mapping[str, float]) -> str:
    ranked = sorted(means, key=lambda method: -means[method])
    return ", ".join(f"{method} ({means[method]:.4f})" for method in ranked)


def short_table(results: Results) -> str:
    """Returns one line per setting with the most telling metrics, mean ± deviation over seeds."""
    shown = [key for key in SHOWN if numbers(results.cells, key)]
    axes = results.varying
    rows = []
    for place, cells in results.groups(axes).items():
        texts = []
        for key in shown:
            measure, _, name = key.partition(".")
            form = MEASURES[measure].metrics[name].form
            texts.append(plus_minus(numbers(cells, key), len(cells), form))
        rows.append([*place, *texts])
    header = [axis.rpartition(".")[2] for axis in axes] + [SHOWN[key] for key in shown]
    return markdown_table(header, rows)


def protocol(results: Results) -> str:
    """Returns how the numbers came about: command, settings, models, versions, machine."""
    record, settings = results.record, results.record["settings"]
    samplers = "; ".join(_method(table) for table in settings["samplers"])
    densities = "; ".join(_method(table) for table in settings["densities"])
    seconds, taken_up = record["seconds"], record["spectra_taken_up"]
    warned = (
        f", {record['warned']} warned (see cells.json of the run)" if record.get("warned") else ""
    )
    before = (
        f" Spectra taken up from the cache, or where a run was stopped: {taken_up}; what they took "
        "before is not counted."
        if taken_up
        else ""
    )
    lines = [
        f"* Latents from the prior: {_listed(settings['latents'], ',')}; removed share: "
        f"{_listed(settings['remove'])}; seeds: {_listed(settings['seeds'])}; samples of the "
        f"mapper that are scored, per cell: {settings['samples']:,}.",
        f"* Densities: {densities}.",
        f"* Samplers: {samplers}.",
        *(_generator(table, record) for table in settings["generators"]),
        "* Numbers are means ± standard deviation over seeds, with n - 1.",
        f"* {record['cells']} cells, {record['failed']} of them failed{warned}.",
        f"* Time: spectra and labels {seconds['spectra']:,.0f} s, "
        f"cells {seconds['cells']:,.0f} s in all.{before}",
        f"* Made on: {'; '.join(record['machines'])}. Versions: "
        + ", ".join(f"{name} {' and '.join(found)}" for name, found in record["versions"].items())
        + ".",
    ]
    if record.get("command"):
        lines.insert(0, f"* `{record['command']}`")
    return "\n".join(lines) + "\n"


def _method(table: Mapping[str, Any]) -> str:
    parameters = [f"{key} {value}" for key, value in table.items() if key not in ("label", "name")]
    name = (
        table["name"] if table["label"] == table["name"] else f"{table['label']}: {table['name']}"
    )
    return f"{name} ({', '.join(parameters)})" if parameters else str(name)


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


def experiment_page(results: Results, title: str, figures: Iterable[str]) -> str:
    """Returns the page of one experiment."""
    parts = [
        f"# {title}\n",
        "Written by `benchmarks/lash/run.py`; do not edit.\n",
        protocol(results),
    ]
    compared = side_by_side(results)
    if compared:
        parts += ["## Beside the paper\n", compared]
    parts += ["## In short\n", short_table(results)]
    if any(results.record.get("told", ())):
        parts += ["## What samplers say of their fits\n", told_table(results)]
    parts.append(
        "All metrics: [table.md](table.md), [table.tex](table.tex); all cells: "
        "[cells.csv](cells.csv); settings in full: [ablation.json](ablation.json).\n"
    )
    parts += [f"![{Path(figure).stem}]({figure})\n" for figure in figures]
    return "\n".join(parts)


def told_table(results: Results) -> str:
    """Returns what the cluster sampler of each cell says of its fit, where it says anything."""
    axes = [*results.varying, "seed"]
    pairs = zip(results.cells, results.record["told"], strict=True)
    rows = [[*(cell[axis] for axis in axes), said] for cell, said in pairs if said]
    return markdown_table([*(axis.rpartition(".")[2] for axis in axes), "says"], rows)


def reached(
    results: Results,
    where: Mapping[str, str],
    thresholds: Mapping[str, Callable[[str], float]],
) -> tuple[str, bool]:
    """Compares means over seeds with thresholds, for each data set.

    Args:
        results: of any ablation.
        where: values of axes that cells must have.
        thresholds: for each metric the threshold of a data set; NaN is none.

    Returns:
        A Markdown table, and whether all means are there, none is below its threshold, and no cell
        has clusters that cannot be sampled, which the other numbers leave out.

    Raises:
        LoadError: no cell is left by `where`.
    """
    cells = [c for c in results.cells if all(c.get(axis) == v for axis, v in where.items())]
    if not cells:
        raise LoadError(f"no cell of {results.name} has {dict(where)}; see its {CELLS}")
    chosen = Results(results.name, results.record, results.axes, cells)
    rows, passed = [], True
    for place, group in chosen.groups(results.varying).items():
        texts = []
        for metric, threshold_of in thresholds.items():
            threshold, values = threshold_of(group[0]["generator"]), numbers(group, metric)
            text = plus_minus(values, len(group))
            if values:
                text += f", lowest {min(values):.4f}"
            if not math.isnan(threshold):
                good = len(values) == len(group) and mean(values) >= threshold
                text += f", {'reaches' if good else 'UNDER'} {threshold:g}"
                passed = passed and good
            texts.append(text)
        unsampled = numbers(group, UNSAMPLED)
        passed = passed and not any(unsampled)
        rows.append([*place, *texts, plus_minus(unsampled, len(group), ".3g")])
    header = [axis.rpartition(".")[2] for axis in results.varying]
    shown = [SHOWN[metric] for metric in (*thresholds, UNSAMPLED)]
    return markdown_table([*header, *shown], rows), passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="Outputs of pgmkit ablate.")
    for folder in parser.parse_args().folders:
        results = read_results(folder)
        print(f"# {results.name}\n\n{protocol(results)}\n{side_by_side(results)}")
        print(short_table(results))


if __name__ == "__main__":
    main()
