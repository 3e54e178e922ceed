"""Figures of a shattering, as PNG bytes."""

import io
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pgmkit.selection import Selection
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.spectrum import RANK_RTOL

_SIZE = (6.4, 3.2)
_BLUE, _RED, _GREY = "#33658a", "#c8553d", "#b8c4cc"


def cluster_sizes(sizes: Sequence[int], names: Sequence[str]) -> bytes:
    """Draws a bar for each cluster's number of kept latents."""
    figure, axes = _axes()
    axes.bar(range(len(sizes)), sizes, color=_BLUE)
    axes.set_xticks(range(len(sizes)), names, rotation=90 if len(sizes) > 12 else 0)
    axes.set_xlabel("cluster")
    axes.set_ylabel("kept latents")
    return _png(figure)


def log_density(selection: Selection, name: str) -> bytes:
    """Draws a histogram of the log-weights, kept ones apart from removed ones, and the cut."""
    figure, axes = _axes()
    kept = torch.zeros(len(selection.log_weights), dtype=torch.bool)
    kept[selection.kept] = True
    finite = selection.log_weights.isfinite()
    parts = [selection.log_weights[finite & kept], selection.log_weights[finite & ~kept]]
    axes.hist(
        [part.numpy() for part in parts],
        bins=80,
        stacked=True,
        color=[_BLUE, _GREY],
        label=[f"kept ({kept.sum():,})", f"removed ({(~kept).sum():,})"],
    )
    if selection.cut is not None:
        axes.axvline(selection.cut, color=_RED, label=f"cut at {selection.cut:.4g}")
    axes.set_xlabel(f"log-weight of {name}, nats")
    axes.set_ylabel("latents")
    axes.legend(frameon=False)
    return _png(figure)


def singular_values(spectrum: Spectrum) -> bytes:
    """Draws the singular values, median and range over latents, and the numeric rank."""
    figure, axes = _axes()
    values = spectrum.singular_values[spectrum.finite()].clamp(min=1e-300)
    low, middle, high = (
        values.quantile(q, dim=0) if len(values) <= 200_000 else values[:200_000].quantile(q, dim=0)
        for q in (0.05, 0.5, 0.95)
    )
    index = range(1, values.shape[1] + 1)
    axes.fill_between(index, low.numpy(), high.numpy(), color=_GREY, label="5 to 95 % of latents")
    axes.plot(index, middle.numpy(), color=_BLUE, label="median")
    rank = spectrum.numeric_rank()[spectrum.finite()]
    axes.axvline(
        float(rank.median()),
        color=_RED,
        label=f"numeric rank at {RANK_RTOL:g}: {rank.min()} to {rank.max()}",
    )
    axes.set_yscale("log")
    axes.set_xlabel("index i")
    axes.set_ylabel("singular value σ of the Jacobian")
    axes.legend(frameon=False)
    return _png(figure)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
