"""Small pictures in a terminal, by whichever way it has to show them."""

import base64
import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]

WAYS = ("kitty", "iterm2", "sixel", "blocks", "none")
"""What `PGMKIT_PICTURES` may say, where a terminal is taken for another one."""

_GAP = 1
_WIDEST = 12
_NARROWEST = 7
_MOST_LINES = 22
_CELL = 10
"""Pixels across one column of a terminal, about."""

_CHUNK = 4096
_COLOURS = 64
_CUBE = (0, 95, 135, 175, 215, 255)
"""Levels of red, green and blue among the 256 colours of a terminal."""


def way_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> str:
    """Returns how pictures are shown on a stream, one of `WAYS`.

    Nothing is shown where it is no terminal, where `NO_COLOR` is set, or where the terminal says
    that it is dumb. Within tmux and screen only half blocks arrive.
    """
    asked = environment.get("PGMKIT_PICTURES", "")
    if not stream.isatty() or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return "none"
    if asked in WAYS:
        return asked
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    within = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not within:
        if "KITTY_WINDOW_ID" in environment or program == "ghostty" or "kitty" in term:
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
        if term.startswith(("foot", "mlterm", "contour")) or "KONSOLE_VERSION" in environment:
            return "sixel"
    return "blocks" if "utf" in str(stream.encoding).lower() else "none"


def show(tiles: Sequence[tuple[str, Picture]]) -> None:
    """Prints pictures side by side on stdout, each under its label, if the terminal can show them.

    Args:
        tiles: label and picture of each, (H, W) or (H, W, 3), all of one size.
    """
    way = way_of(sys.stdout)
    if way != "none" and tiles:
        for line in drawn(tiles, way, shutil.get_terminal_size().columns):
            click.echo(line, color=True)


def drawn(tiles: Sequence[tuple[str, Picture]], way: str, columns: int) -> Iterator[str]:
    """Yields the lines of `show`, no more than 22 of them.

    Args:
        tiles: see `show`.
        way: one of `WAYS`, but "none".
        columns: of the terminal.
    """
    height, width = tiles[0][1].shape[:2]
    across = max(1, min(len(tiles), columns // (_NARROWEST + _GAP)))
    wide = max(1, min(_WIDEST, columns // across - _GAP))
    lines = min(_MOST_LINES - 1, max(1, round(wide * height / width / 2)))
    bands = max(1, _MOST_LINES // (lines + 1))
    for start in range(0, min(len(tiles), across * bands), across):
        band = tiles[start : start + across]
        yield "".join(label[:wide].ljust(wide + _GAP) for label, _ in band).rstrip()
        if way == "blocks":
            yield from _blocks([_resized(picture, wide, 2 * lines) for _, picture in band], _GAP)
        else:
            row = [_resized(picture, wide * _CELL, lines * 2 * _CELL) for _, picture in band]
            gap = np.zeros((2 * lines * _CELL, _GAP * _CELL, 3), dtype=np.uint8)
            joined = np.concatenate([part for one in row for part in (one, gap)], axis=1)
            yield _inline(joined, way, len(band) * (wide + _GAP), lines)
    left = len(tiles) - across * bands
    if left > 0:
        yield f"and {left} more"


def _resized(picture: Picture, width: int, height: int) -> Picture:
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.HAMMING))


def _blocks(row: Sequence[Picture], gap: int) -> Iterator[str]:
    """Yields lines in which each character is two pixels, one upon the other."""
    exact = os.environ.get("COLORTERM") in ("truecolor", "24bit") or "WT_SESSION" in os.environ
    for top in range(0, len(row[0]), 2):
        line = []
        for picture in row:
            for upper, lower in zip(picture[top], picture[top + 1], strict=True):
                line.append(f"\x1b[38;{_colour(upper, exact)};48;{_colour(lower, exact)}m▀")
            line.append("\x1b[0m" + " " * gap)
        yield "".join(line)


def _colour(pixel: Any, exact: bool) -> str:
    if exact:
        return "2;" + ";".join(str(int(part)) for part in pixel)
    red, green, blue = (
        min(range(6), key=lambda level: abs(_CUBE[level] - int(part))) for part in pixel
    )
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _inline(picture: Picture, way: str, columns: int, lines: int) -> str:
    """Returns what makes a terminal show a picture, so many columns and lines large."""
    if way == "sixel":
        return _sixel(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if way == "iterm2":
        how = f"inline=1;size={len(buffer.getvalue())};width={columns};height={lines}"
        return f"\x1b]1337;File={how}:{data}\x07"
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    last = len(parts) - 1
    return "".join(
        f"\x1b_G{f'a=T,f=100,q=2,c={columns},r={lines},' if not number else ''}"
        f"m={int(number < last)};{part}\x1b\\"
        for number, part in enumerate(parts)
    )


def _sixel(picture: Picture) -> str:
    """Returns a picture (H, W, 3) as sixels: six rows at a time, colour by colour."""
    image = Image.fromarray(picture).quantize(_COLOURS)
    index = np.asarray(image)
    palette = np.asarray(image.getpalette(), dtype=int).reshape(-1, 3) * 100 // 255
    height, width = index.shape
    out = [f'\x1bPq"1;1;{width};{height}']
    used = np.unique(index)
    out += [f"#{number};2;{';'.join(map(str, palette[number]))}" for number in used]
    weights = 1 << np.arange(6)
    for top in range(0, height, 6):
        band = index[top : top + 6]
        for number in np.unique(band):
            bits = ((band == number) * weights[: len(band), None]).sum(axis=0)
            out.append(f"#{number}{_runs(bits)}$")
        out.append("-")
    return "".join(out) + "\x1b\\"


def _runs(bits: Any) -> str:
    """Returns sixels with repeated ones counted."""
    ends = np.flatnonzero(np.diff(bits)) + 1
    starts = np.concatenate([[0], ends])
    lengths = np.diff(np.concatenate([starts, [len(bits)]]))
    return "".join(
        chr(63 + int(bits[start])) * int(length)
        if length < 4
        else f"!{length}{chr(63 + int(bits[start]))}"
        for start, length in zip(starts, lengths, strict=True)
    )
