"""Figures of a shattering and of a spectrum."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pgmkit.errors import ParameterError
from pgmkit.selection import Selection
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.spectrum import RANK_RTOL, check_volume
from pgmkit.spectrum.summary import term_spread

_SIZE = (6.4, 3.2)
_PAGE, _PAGE_DPI = (12.8, 7.2), 150
_MOST_BINS = 60
_POINTS = 20_000
_BLUE, _RED, _GREY = "#33658a", "#c8553d", "#b8c4cc"


def cluster_sizes(sizes: Sequence[int], names: Sequence[str]) -> bytes:
    """Draws a bar for each cluster's number of kept latents."""
    figure, axes = _axes()
    axes.bar(range(len(sizes)), sizes, color=_BLUE)
    axes.set_xticks(range(len(sizes)), names, rotation=90 if len(sizes) > 12 else 0)
    axes.set(xlabel="cluster", ylabel="kept latents")
    return png(figure)


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
    axes.set(xlabel=f"log-weight of {name}, nats", ylabel="latents")
    axes.legend(frameon=False)
    return png(figure)


def singular_values(spectrum: Spectrum) -> bytes:
    """Draws the singular values, median and range over latents, and the numeric rank."""
    figure, axes = _axes()
    _draw_singular_values(axes, spectrum)
    rank = spectrum.numeric_rank()[spectrum.finite()]
    axes.axvline(
        float(rank.median()),
        color=_RED,
        label=f"numeric rank at {RANK_RTOL:g}: {rank.min()} to {rank.max()}",
    )
    axes.legend(frameon=False)
    return png(figure)


def choice(record: Mapping[str, Any], what: str) -> bytes:
    """Draws the criterion of a `Choice` over its candidates, the chosen one and what is left."""
    figure, axes = _axes()
    candidates, value = record["candidates"], record["value"]
    axes.errorbar(
        candidates, record["mean"], record["std"], color=_BLUE, marker=".", capsize=2, linewidth=1
    )
    axes.axvline(value, color=_RED, label=f"chosen: {value:g}")
    axes.set(xlabel=what, ylabel=str(record["criterion"]))
    axes.legend(frameon=False, loc="lower right")
    if record["diversity"]:
        left = axes.twinx()
        left.plot(candidates, record["diversity"], color=_GREY, linestyle="--")
        left.set(ylabel="share of clusters left", ylim=(0, 1.05))
        left.spines["top"].set_visible(False)
    return png(figure)


def spectrum_overview(spectrum: Spectrum, rank_rtol: float = RANK_RTOL) -> Figure:
    """Draws a spectrum on one page, as `pgmkit spectrum plot` does.

    Singular values, log-volume, condition number, numeric rank, and log-volume against log prior.
    Latents whose Jacobian is not finite are left out.

    Args:
        spectrum: of at least one latent with a finite Jacobian.
        rank_rtol: singular values at or below this share of the largest count as null, in [0, 1).

    Raises:
        ParameterError: no latent has a finite Jacobian, or `rank_rtol` is outside [0, 1).
    """
    check_volume(rank_rtol=rank_rtol)
    usable = spectrum.only_finite()
    if not len(usable):
        raise ParameterError("no latent of the spectrum has a finite Jacobian to draw")
    padded = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=_PAGE, dpi=_PAGE_DPI, layout=padded)
    panels = figure.subplot_mosaic([["values", "values", "volume"], ["condition", "rank", "terms"]])
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    name = spectrum.provenance.get("generator_name", "a generator")
    figure.suptitle(f"Jacobian spectrum of {name} at {len(usable):,} latents")
    _draw_singular_values(panels["values"], usable)
    floor = float((rank_rtol * usable.singular_values[:, 0]).median())
    if floor > 0:
        label = f"rank floor, {rank_rtol:g} of the largest"
        panels["values"].axhline(floor, color=_RED, linestyle="--", label=label)
    panels["values"].legend(frameon=False)
    _draw_volume(panels["volume"], usable, rank_rtol)
    _draw_condition(panels["condition"], usable)
    _draw_rank(panels["rank"], usable, rank_rtol)
    _draw_terms(panels["terms"], usable, rank_rtol)
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw_singular_values(axes: Axes, spectrum: Spectrum) -> None:
    values = spectrum.only_finite().singular_values.clamp(min=1e-300).numpy()
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
    index = range(1, values.shape[1] + 1)
    axes.fill_between(index, low, high, color=_GREY, label="5 to 95 % of latents")
    axes.plot(index, middle, color=_BLUE, label="median")
    axes.set_yscale("log")
    axes.set(xlabel="index i", ylabel="singular value σ of the Jacobian")


def _draw_volume(axes: Axes, spectrum: Spectrum, rank_rtol: float) -> None:
    volume = spectrum.log_volume(rank_rtol=rank_rtol, top_k=spectrum.known_top_k)
    axes.hist(volume[volume.isfinite()].numpy(), bins=_bins(len(volume)), color=_BLUE)
    axes.set(xlabel="log-volume Σ log σ, nats", ylabel="latents")


def _draw_condition(axes: Axes, spectrum: Spectrum) -> None:
    condition = spectrum.condition_number()
    usable = condition[condition.isfinite()]
    if len(usable):
        low, high = float(usable.min()), float(usable.max())
        edges = np.geomspace(low, high * 1.001, _bins(len(usable)) + 1)
        axes.hist(usable.numpy(), bins=list(edges), color=_BLUE)
    axes.set_xscale("log")
    infinite = len(condition) - len(usable)
    axes.set(
        xlabel="condition number" + (f" ({infinite:,} infinite)" if infinite else ""),
        ylabel="latents",
    )


def _bins(count: int) -> int:
    """Returns the number of bins for a histogram of so many values: the square root of it."""
    return min(_MOST_BINS, math.isqrt(count) + 1)


def _draw_rank(axes: Axes, spectrum: Spectrum, rank_rtol: float) -> None:
    largest = spectrum.singular_values.shape[1]
    counts = spectrum.numeric_rank(rank_rtol).bincount(minlength=largest + 1)
    present = counts.nonzero().flatten()
    axes.bar(present.numpy(), counts[present].numpy(), width=0.9, color=_BLUE)
    axes.set_xlim(min(int(present.min()), largest - 4) - 1, largest + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel=f"numeric rank of {largest}, at {rank_rtol:g}", ylabel="latents")


def _draw_terms(axes: Axes, spectrum: Spectrum, rank_rtol: float) -> None:
    """Latents are drawn at random, so the first of them stand for all."""
    volume = spectrum.log_volume(rank_rtol=rank_rtol, top_k=spectrum.known_top_k)
    spread = term_spread(spectrum, rank_rtol=rank_rtol)
    points = spectrum.log_prior[:_POINTS].numpy(), volume[:_POINTS].numpy()
    axes.plot(*points, ".", markersize=3, color=_BLUE)
    axes.set_title(
        f"std {spread['std_log_prior']:.3g} (prior) : {spread['std_log_volume']:.3g} (volume)",
        fontsize="medium",
    )
    axes.set(xlabel="log prior log p(z), nats", ylabel="log-volume, nats")


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
