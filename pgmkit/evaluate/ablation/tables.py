"""Cells as tables: one row per cell, and the paper's tables of means over seeds."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from pgmkit.evaluate.ablation.cells import Result
from pgmkit.evaluate.ablation.measures import MEASURES, Measure, Metric
from pgmkit.evaluate.ablation.plan import Cell

_PARTS_OF_METHODS = ("density", "sampler")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Row:
    """A cell and its result."""

    cell: Cell
    result: Result

    def value(self, metric: str) -> float | None:
        """Returns a number of the cell, or None if it has none."""
        return self.result.metrics.get(metric)

    def measured(self, measure: str) -> bool:
        """Returns whether the cell has any number of a measure."""
        return any(metric.startswith(f"{measure}.") for metric in self.result.metrics)

    def counted(self, measure: str) -> bool:
        """Returns whether the cell has the counts of a measure."""
        return measure in self.result.counts


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Args:
        mean: over seeds; None if there is no number.
        std: over seeds, with n - 1; None of fewer than two numbers.
        count: numbers that there are.
        total: seeds that there should be.
        best: whether no method of the section is better, to the digits shown.
    """

    mean: float | None
    std: float | None
    count: int
    total: int
    best: bool = False

    @classmethod
    def of(cls, values: Sequence[float], total: int | None = None) -> "Entry":
        """Returns the entry of numbers over seeds, of which there should be `total`."""
        return cls(
            mean=mean(values) if values else None,
            std=stdev(values) if len(values) > 1 else None,
            count=len(values),
            total=len(values) if total is None else total,
        )

    def text(self, form: str = ".4f", *, bold: str = "{}", plus_minus: str = "±") -> str:
        """Returns mean and deviation, the best in bold, with the share of seeds where some lack.

        Example:
            >>> Entry.of([0.1, 0.3], 3).text()
            '0.2000 ± 0.1414 (2/3)'
        """
        if self.mean is None:
            return "–"
        text = f"{self.mean:{form}}"
        if self.std is not None:
            text += f" {plus_minus} {self.std:{form}}"
        text = bold.format(text) if self.best else text
        return text if self.count == self.total else f"{text} ({self.count}/{self.total})"


@dataclass(frozen=True)
class Section:
    """The rows of a table of one generator and setting: for each metric one entry per method."""

    title: str
    entries: Mapping[str, Sequence[Entry]]


@dataclass(frozen=True)
class Table:
    """A table in the form of the LASH paper's Tables 1 and 2.

    Args:
        measure: its name.
        caption: what is shown, and what all sections have in common.
        methods: the columns.
        sections: one after the other.
    """

    measure: str
    caption: str
    methods: Sequence[str]
    sections: Sequence[Section]

    def lines(self) -> Iterator[tuple[str, Metric, Sequence[Entry]]]:
        """Yields metrics with their entries, section by section, the first with its title."""
        for section in self.sections:
            title = section.title
            for metric, entries in section.entries.items():
                yield title, MEASURES[self.measure].metrics[metric], entries
                title = ""


def records(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Returns one plain, nested record per cell."""
    return [{"id": row.cell.id, **row.cell.columns(), **vars(row.result)} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """Returns one line per cell: its place on every axis, every metric, error and seconds."""
    flat = []
    for row in rows:
        seconds = {f"seconds.{name}": value for name, value in row.result.seconds.items()}
        flat.append((row.cell.columns(), row.result.metrics, seconds, row.result.error))
    header = [
        *_union(columns for columns, *_ in flat),
        *_union(metrics for _, metrics, *_ in flat),
        "error",
        *_union(seconds for *_, seconds, _ in flat),
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", lineterminator="\n")
    writer.writeheader()
    for columns, metrics, seconds, error in flat:
        writer.writerow({**columns, **metrics, **seconds, "error": error})
    return buffer.getvalue()


def varying(rows: Iterable[Row]) -> list[str]:
    """Returns the axes that have more than one value, parameters that only some have included."""
    values: dict[str, set[Any]] = {}
    columns = [row.cell.columns() for row in rows]
    for name in _union(columns):
        values[name] = {repr(each.get(name)) for each in columns}
    return [name for name, found in values.items() if len(found) > 1]


def is_of_method(axis: str) -> bool:
    """Returns whether an axis is a density or a sampler, or a parameter of one."""
    return axis.partition(".")[0] in _PARTS_OF_METHODS


def describe(row: Row, axes: Iterable[str]) -> str:
    """Returns where a cell lies on some axes, in words."""
    columns = row.cell.columns()
    words = []
    for axis in axes:
        if axis in columns:
            plain = axis in ("generator", *_PARTS_OF_METHODS)
            words.append(
                str(columns[axis]) if plain else f"{axis.rpartition('.')[2]} {columns[axis]}"
            )
    return ", ".join(words)


def grouped(rows: Iterable[Row], axes: Iterable[str]) -> dict[str, list[Row]]:
    """Returns the cells that agree on some axes, by the words of `describe`, in order."""
    axes = list(axes)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(describe(row, axes), []).append(row)
    return groups


def method_axes(rows: Iterable[Row]) -> list[str]:
    """Returns the axes that tell methods apart; the density always does."""
    return ["density", *(a for a in varying(rows) if is_of_method(a) and a != "density")]


def section_axes(rows: Iterable[Row]) -> list[str]:
    """Returns the axes that tell sections apart; the generator always does."""
    kept = [a for a in varying(rows) if not is_of_method(a) and a not in ("generator", "seed")]
    return ["generator", *kept]


def make_tables(rows: Sequence[Row], measures: Iterable[str]) -> list[Table]:
    """Returns a table of means over seeds for each measure that has metrics to show.

    Sections for which a measure has nothing to say, though all cells are there, are left out.
    """
    by_method, by_section = method_axes(rows), section_axes(rows)
    methods = list(grouped(rows, by_method))
    tables = []
    for name in measures:
        measure = MEASURES[name]
        sections = [
            _section(title, grouped(section, by_method), methods, name, measure)
            for title, section in grouped(rows, by_section).items()
            if any(row.result.error is not None or row.measured(name) for row in section)
        ]
        if measure.metrics and sections:
            caption = f"{measure.title}. {_common(rows)}"
            tables.append(Table(name, caption, methods, sections))
    return tables


def to_markdown(tables: Iterable[Table]) -> str:
    """Returns tables as Markdown."""
    parts = []
    for table in tables:
        lines = [
            _markdown_line("", "", *map(_markdown, table.methods)),
            "|---|---|" + "---:|" * len(table.methods),
        ]
        for title, shown, entries in table.lines():
            cells = [entry.text(shown.form, bold="**{}**") for entry in entries]
            lines.append(_markdown_line(_markdown(title), _markdown(shown.title), *cells))
        parts.append(f"{_markdown(table.caption)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def to_latex(tables: Iterable[Table]) -> str:
    """Returns tables as LaTeX, which needs no package."""
    parts = []
    for table in tables:
        header = " & ".join(["", "Metric", *map(escape_latex, table.methods)])
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{ll{'c' * len(table.methods)}}}",
            r"\hline",
            rf"{header} \\",
        ]
        for title, shown, entries in table.lines():
            told = (
                entry.text(shown.form, bold=r"\mathbf{{{}}}", plus_minus=r"\pm")
                for entry in entries
            )
            cells = [f"${cell}$" if cell != "–" else "--" for cell in told]
            lines += [r"\hline"] if title else []
            line = " & ".join([escape_latex(title), escape_latex(shown.title), *cells])
            lines.append(rf"{line} \\")
        lines += [
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\label{{tab:{table.measure}}}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def escape_latex(text: str) -> str:
    r"""Returns a text that LaTeX prints as it is.

    Example:
        >>> escape_latex("50% of rank_rtol")
        '50\\% of rank\\_rtol'
    """
    return "".join(_LATEX.get(character, character) for character in text)


def _section(
    title: str,
    found: Mapping[str, Sequence[Row]],
    methods: Sequence[str],
    name: str,
    measure: Measure,
) -> Section:
    entries = {}
    for key, metric in measure.metrics.items():
        line = []
        for rows in (found.get(method, []) for method in methods):
            values = [row.value(f"{name}.{key}") for row in rows]
            line.append(Entry.of([v for v in values if v is not None], len(rows)))
        entries[key] = _with_best(line, metric)
    return Section(title, entries)


def _with_best(line: Sequence[Entry], metric: Metric) -> list[Entry]:
    means = [entry.mean for entry in line if entry.mean is not None]
    if metric.best is None or len(means) < 2:
        return list(line)
    best = format(max(means) if metric.best == "high" else min(means), metric.form)
    return [replace(e, best=e.mean is not None and f"{e.mean:{metric.form}}" == best) for e in line]


def _common(rows: Sequence[Row]) -> str:
    """Returns what all cells have in common, and over what means are taken."""
    first, changing = rows[0].cell, varying(rows)
    shown = first.columns()
    words = {
        "clusters": f"{shown['clusters']} clusters",
        "remove": f"remove {shown['remove']}",
        "latents": f"{first.latents:,} latents",
    }
    shared = [text for axis, text in words.items() if axis not in changing]
    seeds = len({row.cell.seed for row in rows})
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else f"seed {first.seed}"
    text = "; ".join(filter(None, [", ".join(shared), over]))
    return f"{text[0].upper()}{text[1:]}."


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the keys of all mappings, each behind those it follows where it first occurs."""
    keys: list[str] = []
    for mapping in mappings:
        place = 0
        for key in mapping:
            if key in keys:
                place = keys.index(key) + 1
            else:
                keys.insert(place, key)
                place += 1
    return keys


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _markdown_line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
