"""Figures of an ablation: metrics along an axis, and the classes in each cluster."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pgmkit.evaluate.ablation.measures import MEASURES, Metric
from pgmkit.evaluate.ablation.plan import slug
from pgmkit.evaluate.ablation.tables import (
    Row,
    grouped,
    method_axes,
    section_axes,
    varying,
)
from pgmkit.evaluate.figures import png

_STYLES = ("-", "--", ":", "-.")
_WHOLE = ("clusters", "latents")
_PANEL = (4.6, 3.2)
_MOST_COLUMNS = 3
_HISTOGRAM = (1.7, 1.3)
_MOST_HISTOGRAMS = 5  # in a row, as in the paper
_MOST_CLASS_NAMES = 12


def draw_all(rows: Sequence[Row], measures: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yields file name and PNG of every figure of an ablation."""
    measures = list(measures)
    for generator, of_generator in grouped(rows, ["generator"]).items():
        for axis in numeric_axes(of_generator):
            for measure in measures:
                figure = along_axis(of_generator, axis, measure)
                if figure is not None:
                    yield f"{slug(generator)}-{measure}-along-{axis}.png", png(figure)
    axes = [*section_axes(rows), *method_axes(rows)]
    for place, cells in grouped(rows, axes).items():
        counted = [(row, measure) for measure in measures for row in cells if row.counted(measure)]
        if counted:
            yield f"{slug(place)}-classes.png", png(class_histograms(*counted[0], place))


def numeric_axes(rows: Sequence[Row]) -> list[str]:
    """Returns the axes with more than one number on them; seeds are no axis of a figure."""
    return [axis for axis in varying(rows) if axis != "seed" and len(_numbers(rows, axis)) > 1]


def along_axis(rows: Sequence[Row], axis: str, measure: str) -> Figure | None:
    """Draws the metrics of a measure along an axis, mean and standard deviation over seeds.

    The rows are of one generator, and the axis has numbers on it. One line per method and setting
    of the other axes. Of "clusters" this is the LASH paper's Figure 3a, of "remove" its Figure 3b.

    Returns:
        The figure; None if the measure has no numbers to draw.
    """
    panels: dict[str, dict[str, Metric]] = {}
    for name, metric in MEASURES[measure].metrics.items():
        key = f"{measure}.{name}"
        if any(row.value(key) is not None for row in rows):
            panels.setdefault(metric.panel or metric.title, {})[key] = metric
    if not panels:
        return None
    others = [a for a in varying(rows) if a not in (axis, "seed", "density")]
    on_axis = [row for row in rows if isinstance(row.cell.columns().get(axis), int | float)]
    lines = grouped(on_axis, ["density", *others])
    columns = min(_MOST_COLUMNS, len(panels))
    height = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * height), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False).flatten()
    for axes, (title, metrics) in zip(grid, panels.items(), strict=False):
        for key, style in zip(metrics, itertools.cycle(_STYLES)):
            for color, line in enumerate(lines.values()):
                _draw_line(axes, line, axis, key, f"C{color % 10}", style)
        _label(axes, axis, title, metrics)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], color=f"C{color % 10}") for color in range(len(lines))]
    figure.legend(handles, list(lines), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{rows[0].cell.generator}: {MEASURES[measure].title.lower()}")
    return figure


def class_histograms(row: Row, measure: str, title: str) -> Figure:
    """Draws how often each class lies in each cluster of a cell (LASH paper, appendix A.4)."""
    counts = np.asarray(row.result.counts[measure])
    names = row.result.classes
    columns = min(_MOST_HISTOGRAMS, len(counts))
    height = math.ceil(len(counts) / columns)
    size = (max(4.0, _HISTOGRAM[0] * columns), 0.8 + _HISTOGRAM[1] * height)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for cluster, axes in enumerate(grid):
        if cluster >= len(counts):
            axes.set_visible(False)
            continue
        axes.bar(range(len(names)), counts[cluster], color="#33658a")
        axes.set_title(f"cluster {cluster}", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="x-small")
        if len(names) <= _MOST_CLASS_NAMES:
            turned = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(len(names)), names, rotation=turned)
    figure.suptitle(f"{title}; seed {row.cell.seed}", fontsize="medium")
    figure.supxlabel("class", fontsize="small")
    return figure


def _draw_line(
    axes: Axes, rows: Sequence[Row], axis: str, metric: str, color: str, style: str
) -> None:
    points = []
    for x in _numbers(rows, axis):
        found = [row.value(metric) for row in rows if row.cell.columns().get(axis) == x]
        values = [value for value in found if value is not None]
        if values:
            points.append((x, mean(values), stdev(values) if len(values) > 1 else 0.0))
    if points:
        x, middle, spread = np.asarray(points).T
        axes.plot(x, middle, style, marker=".", color=color)
        axes.fill_between(x, middle - spread, middle + spread, color=color, alpha=0.2, linewidth=0)


def _label(axes: Axes, axis: str, title: str, metrics: Mapping[str, Metric]) -> None:
    axes.set(xlabel=axis, ylabel=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=axis in _WHOLE))
    if len(metrics) > 1:
        for metric, style in zip(metrics.values(), itertools.cycle(_STYLES)):
            axes.plot([], [], style, color="grey", label=metric.title.lower())
        axes.legend(frameon=False, fontsize="small")


def _numbers(rows: Iterable[Row], axis: str) -> list[float]:
    values = {row.cell.columns().get(axis) for row in rows}
    return sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
