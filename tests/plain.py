"""Figures without what takes most of their time: axes, legends, layout, and most of the pixels.

Tests that look at them draw them in full.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend

_SLOW = [(Axis, "draw"), (Legend, "draw"), (ConstrainedLayoutEngine, "execute")]


def draw_plainly(patch: pytest.MonkeyPatch) -> None:
    """Draws all figures so."""
    for cls, name in _SLOW:
        patch.setattr(cls, name, functools.wraps(getattr(cls, name))(lambda *_: None))
    patch.setattr(FigureCanvasAgg, "print_png", _coarse(FigureCanvasAgg.print_png))


def draw_in_full(patch: pytest.MonkeyPatch) -> None:
    """Draws figures as users see them."""
    for cls, name in [*_SLOW, (FigureCanvasAgg, "print_png")]:
        patch.setattr(cls, name, getattr(cls, name).__wrapped__)


def _coarse(print_png: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(print_png)
    def printed(canvas: Any, *args: Any) -> None:
        canvas.figure.set_dpi(canvas.figure.dpi / 3)
        print_png(canvas, *args)

    return printed
