"""Figures of a shattering, of a spectrum and of parts of the plane."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSource, batches
from pgmkit.partition.fitted import FittedPartitioner
from pgmkit.selection import Selection
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.spectrum import RANK_RTOL, check_volume
from pgmkit.spectrum.summary import term_spread

_SIZE = (6.4, 3.2)
_SQUARE = (6.4, 6.4)
_PAGE, _PAGE_DPI = (12.8, 7.2), 150
_PANEL, _PANELS_ACROSS = (3.2, 2.0), 3
_WHEN = ("step", "epoch")
_MOST_BINS = 60
_MOST_TICKS = 20
_POINTS = 20_000
_AREAS, _ARROWS, _ARROW_LENGTH = 300, 24, 0.8
"""Cells of a plane along each side: those that are coloured, and those with an arrow in them, and
how much of such a cell an arrow takes."""
_PALE = 0.25
_GOLDEN = 0.618034
_BLUE, _RED, _GREY = "#33658a", "#c8553d", "#b8c4cc"


def sizes(counts: Sequence[int], part: str, members: str) -> bytes:
    """Draws a bar for each part's number of members; both are named on the axes."""
    figure, axes = _axes()
    axes.bar(range(len(counts)), counts, color=_BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=_MOST_TICKS, integer=True))
    axes.set(xlabel=part, ylabel=members)
    return png(figure)


def curves(logs: Sequence[Path]) -> bytes:
    """Draws every column of CSV files over their steps, each for itself.

    Args:
        logs: with the column "step", such as `pgmkit.learning.learn` leaves.
    """
    drawn = []
    for log in logs:
        with log.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name in [name for name in rows[0] if name not in _WHEN]:
            told = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            drawn.append((name, *zip(*told, strict=True)))
    width, height = _PANEL
    across = min(len(drawn), _PANELS_ACROSS)
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes, (name, steps, values) in zip(panels, drawn, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot(steps, values, color=_BLUE)
        axes.set_title(name, fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    return png(figure)


def plane(fitted: FittedPartitioner, source: ImageSource, part: int | None = None) -> bytes:
    """Draws points of the plane in the colours of their parts, on what belongs to each part.

    With a part i, arrows show where its guide R_i pulls (Partition-Guided GANs, Figure 4): along
    −∇R_i, all of one length, and none where it pulls nowhere, as within the part.

    Args:
        fitted: of points of the plane.
        source: the points (n, 2); pictures show the range of `source.image`.
        part: i, from 0 to k - 1; None draws no arrows.

    Raises:
        ParameterError: these are no points of the plane, there is no such part, or the logits have
            no gradient.
    """
    if source.image.shape != (2,):
        raise ParameterError(f"{source.name} holds {source.image}, and no points of the plane")
    low, high = source.image.range
    figure = Figure(figsize=_SQUARE, dpi=_PAGE_DPI, layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlim=(low, high), ylim=(low, high))
    colours = _distinct_colours(fitted.num_partitions)
    cells = _cells(low, high, _AREAS).to(source.device)
    areas = fitted.assign(cells)
    pale = 1 - _PALE * (1 - colours[areas.cpu().numpy()])
    extent = (low, high, low, high)
    axes.imshow(pale.reshape(_AREAS, _AREAS, 3), extent=extent, origin="lower")
    for x in batches(source, _POINTS):
        across, up = x.cpu().numpy().T
        axes.scatter(across, up, s=1, c=colours[fitted.assign(x).cpu().numpy()], linewidths=0)
    if part is not None:
        _draw_pull(axes, fitted, _cells(low, high, _ARROWS).to(source.device), part)
    for shown in areas.unique().tolist():
        across, up = cells[areas == shown].mean(dim=0).tolist()
        axes.annotate(str(shown), (across, up), (7, 7), textcoords="offset points", weight="bold")
    pull = "" if part is None else f", and −∇R of part {part}"
    axes.set_title(f"{fitted.num_partitions} parts{pull}", fontsize="medium")
    return png(figure)


def points(x: Tensor, parts: Tensor | None, shown: tuple[float, float]) -> bytes:
    """Draws points of the plane, in the colours of the parts that they were asked for.

    Args:
        x: (n, d), of which the first two coordinates are drawn.
        parts: (n,), or None.
        shown: part of both axes.
    """
    figure = Figure(figsize=_SQUARE, dpi=_PAGE_DPI / 2, layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlim=shown, ylim=shown)
    colours: Any = (
        _BLUE if parts is None else _distinct_colours(int(parts.max()) + 1)[parts.numpy()]
    )
    across, up = x[:, :2].T.numpy()
    axes.scatter(across, up, s=1, c=colours, linewidths=0)
    return png(figure)


def _draw_pull(axes: Axes, fitted: FittedPartitioner, x: Tensor, part: int) -> None:
    """Draws an arrow of one length along −∇R_i at each point x (n, 2) where there is one."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(fitted.guide(x, part).sum(), x)
    pulled = slope.norm(dim=1) > 0
    arrows = torch.nn.functional.normalize(-slope, dim=1)
    low, high = axes.get_xlim()
    axes.quiver(
        *x.detach()[pulled].cpu().numpy().T,
        *arrows[pulled].cpu().numpy().T,
        angles="xy",
        scale_units="xy",
        scale=_ARROWS / (high - low) / _ARROW_LENGTH,
        width=0.002,
        color="black",
    )


def _cells(low: float, high: float, count: int) -> Tensor:
    """Returns the middles of count² squares of the plane, float32 (count², 2), row by row."""
    side = (torch.arange(count) + 0.5) * ((high - low) / count) + low
    up, across = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([across, up], dim=-1).reshape(-1, 2)


def _distinct_colours(count: int) -> npt.NDArray[np.float64]:
    """Returns colours (k, 3), those of neighbouring numbers as different as any."""
    hue = np.arange(count) * _GOLDEN % 1
    value = np.where(np.arange(count) % 2, 0.6, 0.9)
    return hsv_to_rgb(np.stack([hue, np.full(count, 0.8), value], axis=1))


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
        histtype="stepfilled",  # one shape, which is drawn sooner than 80 bars
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
