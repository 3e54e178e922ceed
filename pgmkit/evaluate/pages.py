"""How reports look: one self-contained HTML page that needs no script and no other file.

Light and dark, on a phone, on paper; pictures grow where they are opened, and what few look for is
folded.
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pgmkit.config import in_toml

Picture = npt.NDArray[np.uint8]

MOST_BYTES = 1_200_000
"""Of the pictures of a page, before they are written as text, which takes a third more."""

_QUALITIES = (90, 75, 60)
_LEAST_SIDE = 64
_SIZES = {"small": "11rem", "medium": "19rem", "large": "38rem"}
"""How wide a picture is at least: what a reader chooses from."""

_CHOSEN = "".join(
    f"#{name}:checked ~ .parts {{ --wide: {width} }}" for name, width in _SIZES.items()
)
_STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1d2a33; --pale: #5d6b75; --line: #d9dfe3;
         --ground: #fff; --card: #f5f7f8; --accent: #33658a }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #dfe5e9; --pale: #9aa7b0; --line: #3a4248; --ground: #191919; --card: #232628;
           --accent: #8bbbdc }}
  .chart img {{ filter: invert(.9) hue-rotate(180deg) }} }}
@media print {{
  :root {{ color-scheme: light; --ink: #000; --pale: #444; --line: #bbb; --ground: #fff;
           --card: #fff; --accent: #000 }}
  .chart img {{ filter: none }}
  .sizes > input, .sizes > label {{ display: none }}
  details::details-content {{ content-visibility: visible; block-size: auto; display: block }}
  figure, .part, tr {{ break-inside: avoid }} h2 {{ break-after: avoid }} }}
* {{ box-sizing: border-box }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
        max-width: 76rem; margin: 0 auto; padding: 1rem 1rem 3rem }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .75rem }}
.lead {{ font-size: 1.05rem; max-width: 62ch; margin: 0 0 1rem }}
p {{ max-width: 72ch }} a {{ color: var(--accent) }} .pale {{ color: var(--pale) }}
figure {{ margin: 0 }} figcaption {{ margin-bottom: .3rem }}
img {{ display: block; max-width: 100%; height: auto }}
.pixels img {{ width: 100%; image-rendering: pixelated }}
.sizes label {{ margin: 0 .9rem 0 .2rem }}
.parts {{ --wide: 19rem; display: grid; gap: 1rem; margin-top: .75rem;
          grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--wide)), 1fr)) }}
{_CHOSEN}
.part {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
         padding: .6rem }}
.part summary {{ list-style: none; cursor: zoom-in }}
.part summary::-webkit-details-marker {{ display: none }}
.part[open] {{ grid-column: 1 / -1 }} .part[open] summary {{ cursor: zoom-out }}
.part img {{ margin-top: .4rem }} .part p {{ margin: .6rem 0 0 }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px }}
.beside {{ display: grid; gap: 1rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .95rem }}
td, th {{ padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top;
          border-bottom: 1px solid var(--line); font-weight: normal }}
td {{ overflow-wrap: anywhere }} .wide td {{ white-space: nowrap }}
thead th {{ color: var(--pale); white-space: nowrap }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.fold {{ border-top: 1px solid var(--line); margin-top: 2rem; padding-top: .75rem }}
.fold > summary {{ cursor: pointer; font-weight: 600; font-size: 1.15rem }}
@media (max-width: 40rem) {{ body {{ padding: .5rem .75rem 2rem }}
  .record tr {{ display: block; padding: .3rem 0 }} .record td {{ display: block; border: 0;
    padding: 0 }} .record td:first-child {{ color: var(--pale); font-size: .85rem }} }}
"""


def document(title: str, lead: str, *sections: str) -> str:
    """Returns a page of sections in HTML, from what everybody looks at to what few do.

    Title and lead are plain text; the lead says what was found, and how far to trust it.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{text(title)}</h1><p class="lead">{text(lead)}</p>{"".join(sections)}'
        "</main></body></html>\n"
    )


def section(title: str, *content: str) -> str:
    """Returns HTML under a heading; nothing where it is empty."""
    body = "".join(content)
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def fold(title: str, *content: str) -> str:
    """Returns HTML that shows when its title is clicked, and on paper; nothing if it is empty."""
    body = "".join(content)
    return f'<details class="fold"><summary>{text(title)}</summary>{body}</details>' if body else ""


def wall(cards: Iterable[str]) -> str:
    """Returns cards side by side, with a choice of how large they are."""
    choices = "".join(
        f'<input type="radio" name="size" id="{name}"{" checked" if name == "medium" else ""}>'
        f'<label for="{name}">{name}</label>'
        for name in _SIZES
    )
    # The inputs come before what they change, since a style looks ahead only.
    return (
        f'<section class="sizes" aria-label="pictures">{choices}'
        f'<div class="parts pixels">{"".join(cards)}</div></section>'
    )


def card(title: str, note: str, picture: bytes | None, more: str = "") -> str:
    """Returns a picture under its title, as wide as the page when it is opened.

    Args:
        title: what it is, plain text.
        note: behind the title, plain text.
        picture: PNG or JPEG; None where there is none.
        more: what is told when it is open, plain text.
    """
    shown = "" if picture is None else image(picture, f"{title}: {note}")
    told = f"<p>{text(more)}</p>" if more else ""
    return (
        f'<details class="part"><summary><b>{text(title)}</b> '
        f'<span class="pale">{text(note)}</span>{shown}</summary>{told}</details>'
    )


def figure(picture: bytes, caption: str, kind: str = "chart") -> str:
    """Returns a picture with its caption.

    Args:
        picture: PNG or JPEG.
        caption: plain text.
        kind: "chart" is drawn on white, which turns dark with the page; "pixels" is images.
    """
    return (
        f'<figure class="{kind}"><figcaption>{text(caption)}</figcaption>'
        f"{image(picture, caption)}</figure>"
    )


def beside(*figures: str) -> str:
    """Returns figures side by side where there is room."""
    return f'<div class="beside">{"".join(figures)}</div>'


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Returns a table whose cells are plain text; numbers stand to the right."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def record(facts: Mapping[str, Any]) -> str:
    """Returns a table of facts by name."""
    lines = "".join(
        f"<tr><td>{text(name)}</td><td>{text(fact)}</td></tr>" for name, fact in facts.items()
    )
    return f'<table class="record"><tbody>{lines}</tbody></table>'


def image(picture: bytes, description: str) -> str:
    """Returns an image that stands in the page itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    encoded = base64.b64encode(picture).decode()
    alt = html.escape(description, quote=True)
    return f'<img alt="{alt}" src="data:image/{kind};base64,{encoded}">'


def read(file: Path | io.BytesIO) -> Picture:
    """Returns the picture in a file, (H, W) or (H, W, 3)."""
    with Image.open(file) as picture:
        return np.asarray(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))


def fitting(found: Sequence[Picture], most: int = MOST_BYTES) -> list[bytes]:
    """Returns pictures as files that take so many bytes together, the best that do.

    PNG if that fits, else JPEG, at last with half the pixels along each side, and again.

    Args:
        found: (H, W) or (H, W, 3) each.
        most: bytes of all.
    """
    images = [Image.fromarray(picture) for picture in found]
    encoded = [_encoded(one, "PNG") for one in images]
    while sum(map(len, encoded)) > most:
        for quality in _QUALITIES:
            encoded = [_encoded(one, "JPEG", quality=quality) for one in images]
            if sum(map(len, encoded)) <= most:
                return encoded
        if max(max(one.size) for one in images) <= _LEAST_SIDE:
            break
        images = [one.resize([max(1, side // 2) for side in one.size]) for one in images]
    return encoded


def component(table: Mapping[str, Any]) -> str:
    """Returns name and parameters of a component, as one line."""
    given = {name: value for name, value in table["params"].items() if value is not None}
    parameters = [f"{name.replace('_', ' ')} {in_toml(value)}" for name, value in given.items()]
    return f"{table['name']} ({', '.join(parameters)})" if parameters else str(table["name"])


def pairs(values: Mapping[str, Any]) -> str:
    """Returns names and values as one line."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def percent(share: float | None) -> str:
    """Returns a share in percent, as many digits as it needs to be neither all nor nothing.

    Example:
        >>> percent(0.153), percent(0.9996), percent(1.0), percent(None)
        ('15.3 %', '99.96 %', '100 %', '–')
    """
    if share is None or math.isnan(share):
        return "–"
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    for digits in (1, 2, 3):
        shown = f"{share:.{digits}%}"
        if shown.strip("0.%") and not shown.startswith("100"):
            break
    return shown.replace("%", " %")


def text(value: Any) -> str:
    """Returns a value as text that HTML shows as it is."""
    return html.escape(str(value))


def _cell(value: Any) -> str:
    shown = str(value)
    is_number = (
        re.fullmatch(r"([-+]?[\d.,]+( %)?( ± [\d.,]+)?|–)( \(\d+/\d+\))?( \*)?", shown) is not None
    )
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{text(shown)}</td>"


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()
