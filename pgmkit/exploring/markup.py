"""HTML of the explorer's pictures: walls, tiles, strips and the map.

Pictures stand in the page itself, so that no file is served. Whatever can be clicked is a button
with a name, so that keys and screen readers find it.
"""

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pgmkit import pictures
from pgmkit.evaluate.pages import percent
from pgmkit.exploring.exhibit import LARGEST_TILE, Exhibit, Samples
from pgmkit.exploring.mapping import Map
from pgmkit.exploring.shattered import Preview, Removal

_JPEG_FROM = 150_000
"""Bytes of a picture from which on it is a JPEG."""

_GREY = "#9aa4ab"
COLOURS = ("cluster", "density", "class")

STYLE = """
.pk-note { opacity: .75 }
.pk-wall { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 15rem), 1fr)) }
.pk-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem;
  background: var(--background-fill-secondary); color: inherit; text-align: left; cursor: pointer;
  font: inherit }
.pk-card img { width: 100%; image-rendering: pixelated; display: block; margin-top: .35rem }
.pk-card[aria-current=true] { outline: 3px solid var(--color-accent) }
.pk-card[data-hidden] img { opacity: .35 }
.pk-tiles { display: grid; gap: 3px;
  grid-template-columns: repeat(auto-fill, minmax(3.25rem, 1fr)) }
.pk-tile { aspect-ratio: var(--ratio); border: 0; padding: 0; cursor: pointer;
  background: var(--sheet) no-repeat; background-size: var(--size); image-rendering: pixelated;
  border-radius: 3px }
.pk-tile[aria-pressed=true] { box-shadow: 0 0 0 1px var(--color-accent),
  inset 0 0 0 3px var(--color-accent) }
.pk-card:focus-visible, .pk-tile:focus-visible, .pk-map canvas:focus-visible {
  outline: 3px solid var(--color-accent); outline-offset: 2px }
.pk-pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
.pk-pair img, .pk-plane img { width: 100%; image-rendering: pixelated }
.pk-pair figure, .pk-strip figure { margin: 0 }
.pk-strip { display: flex; flex-wrap: wrap; gap: 4px }
.pk-strip figure { width: 5rem; text-align: center; font-size: .85rem }
.pk-strip img { width: 100%; image-rendering: pixelated }
.pk-strip .pk-large { width: min(12rem, calc(50% - 2px)) }
.pk-large img { width: 100%; max-width: 24rem; image-rendering: pixelated }
.pk-map { position: relative; max-width: 46rem }
.pk-map canvas { width: 100%; aspect-ratio: 4 / 3; display: block; touch-action: none;
  border: 1px solid var(--border-color-primary); border-radius: 8px; cursor: crosshair }
.pk-tip { position: absolute; pointer-events: none; background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 4px;
  font-size: .85rem; width: 7.5rem; display: none }
.pk-tip div { width: 100%; aspect-ratio: var(--ratio); background-repeat: no-repeat;
  image-rendering: pixelated }
.pk-key { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin-top: .4rem }
.pk-key i { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .3em }
.pk-status { margin: 0; scroll-margin: 1rem; overflow-wrap: anywhere }
.pk-status code { display: block; margin-top: .35rem; padding: .35rem .5rem; border-radius: 4px;
  background: var(--background-fill-secondary) }
.pk-error { border-left: 4px solid #c8553d; padding: .5rem 1rem; overflow-wrap: anywhere }
"""

SCRIPT = """
const cluster = event => event.target.closest('[data-cluster]');
element.addEventListener('click', event => {
  const card = cluster(event);
  if (card) {
    element.querySelectorAll('[data-cluster]').forEach(
      one => one.setAttribute('aria-current', one === card));
    trigger('click', {cluster: +card.dataset.cluster});
    document.getElementById('cluster')?.scrollIntoView({behavior: 'smooth', block: 'start'});
    return;
  }
  const tile = event.target.closest('.pk-tile');
  if (!tile) return;
  tile.setAttribute('aria-pressed', tile.getAttribute('aria-pressed') !== 'true');
  const pressed = element.querySelectorAll('.pk-tile[aria-pressed=true]').length;
  const told = element.querySelector('[role=status]');
  told.textContent = pressed ? `${pressed} chosen, to be downloaded.` : told.dataset.none;
});
"""
"""Of walls and tiles: a card tells its cluster, and tiles are chosen."""

STATUS_SCRIPT = """
watch('value', () => element.querySelector('.pk-status')?.scrollIntoView(
  {behavior: 'smooth', block: 'nearest'}));
"""
"""Of what is told of an edit: it is brought into sight."""

CHOSEN = """(...given) => {
  const pressed = [...document.querySelectorAll('#tiles .pk-tile[aria-pressed=true]')];
  return [...given.slice(0, -1), pressed.map(one => one.dataset.index).join(' ')];
}"""
"""Puts the numbers of the tiles that are chosen in the place of the last input."""

_NONE_CHOSEN = "None is chosen: all that are shown are downloaded."

MAP_SCRIPT = """
let nearest = -1;
const setup = () => {
  const map = element.querySelector('.pk-map');
  if (!map || !map.dataset.points) return;
  const data = JSON.parse(map.dataset.points), canvas = map.querySelector('canvas');
  const tip = map.querySelector('.pk-tip'), picture = tip.querySelector('div');
  const said = tip.querySelector('span'), margin = 12;
  const spot = i => [margin + data.x[i] * (canvas.width - 2 * margin),
                     canvas.height - margin - data.y[i] * (canvas.height - 2 * margin)];
  const draw = () => {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale; canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext('2d'), size = 3.2 * scale;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.x.length; i++) {
      const [x, y] = spot(i);
      pen.globalAlpha = data.kept[i] ? .85 : .35;
      pen.fillStyle = data.colours[data.colour[i]];
      pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill();
    }
    if (nearest >= 0) {
      const [x, y] = spot(nearest);
      pen.globalAlpha = 1; pen.lineWidth = 2 * scale; pen.strokeStyle = '#e8590c';
      pen.beginPath(); pen.arc(x, y, 2.2 * size, 0, 7); pen.stroke();
    }
  };
  const show = i => {
    nearest = i; draw();
    const [x, y] = spot(i), ratio = canvas.clientWidth / canvas.width;
    const across = i % data.columns, down = Math.floor(i / data.columns);
    const share = (n, all) => all > 1 ? 100 * n / (all - 1) : 0;
    picture.style.backgroundImage = `url(${map.querySelector('img').src})`;
    picture.style.backgroundSize = `${100 * data.columns}% ${100 * data.rows}%`;
    picture.style.backgroundPosition =
      `${share(across, data.columns)}% ${share(down, data.rows)}%`;
    said.textContent = data.labels[i];
    tip.style.display = 'block';
    const left = x * ratio + 14, wide = tip.offsetWidth;
    tip.style.left = `${left + wide > canvas.clientWidth ? left - wide - 28 : left}px`;
    const top = Math.min(y * ratio, canvas.clientHeight - tip.offsetHeight);
    tip.style.top = `${Math.max(0, top)}px`;
  };
  const find = (x, y, allowed) => {
    let best = -1, least = Infinity;
    for (let i = 0; i < data.x.length; i++) {
      const [a, b] = spot(i), far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least && (!allowed || allowed(a, b))) { least = far; best = i; }
    }
    return best;
  };
  canvas.onpointermove = canvas.onpointerdown = event => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    show(find((event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
  };
  const keys = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.onkeydown = event => {
    const way = keys[event.key];
    if (!way) return;
    event.preventDefault();
    if (nearest < 0) { show(find(canvas.width / 2, canvas.height / 2)); return; }
    const [x, y] = spot(nearest);
    const next = find(x, y, (a, b) => {
      const along = (a - x) * way[0] + (b - y) * way[1];
      const aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
      return along > 0 && along >= aside;
    });
    if (next >= 0) show(next);
  };
  nearest = -1;
  new ResizeObserver(draw).observe(canvas);
  draw();
};
setup();
watch('value', setup);
"""
"""Of the map: points on a canvas, and the image of the nearest under the pointer or the keys."""


@dataclass(frozen=True)
class Sheet:
    """Many images of one size in one picture.

    Args:
        source: a data URI.
        columns, rows: of images.
        ratio: width over height of each.
    """

    source: str
    columns: int
    rows: int
    ratio: float

    def place(self, index: int) -> str:
        """Returns the style that shows one image of the sheet as a background."""
        down, across = divmod(index, self.columns)
        x = 100 * across / (self.columns - 1) if self.columns > 1 else 0
        y = 100 * down / (self.rows - 1) if self.rows > 1 else 0
        return f"background-position:{x:.4f}% {y:.4f}%"

    @property
    def shared(self) -> str:
        """The style of what is around them, with the picture itself, once."""
        size = f"{100 * self.columns}% {100 * self.rows}%"
        return f"--sheet:url({self.source});--ratio:{self.ratio:.4f};--size:{size}"


def sheet(images: Tensor) -> Sheet:
    """Returns bytes (n, C, H, W), n at least 1, side by side, no side of an image above 96."""
    count, _, height, width = images.shape
    columns = max(1, math.ceil(math.sqrt(count * height / width)))
    picture = pictures.grid(images, columns, border=0)
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    shrunk = LARGEST_TILE / max(height, width)
    made = Image.fromarray(picture)
    if shrunk < 1:
        made = made.resize((int(columns * width * shrunk), int(rows * height * shrunk)))
    return Sheet(_uri(made), columns, rows, width / height)


def picture_of(images: Tensor, columns: int = 8) -> str:
    """Returns a data URI of bytes (n, C, H, W) in rows, or of points (n, d) in the plane."""
    if images.ndim == 2:
        return _uri(_plane(images))
    border = int(len(images) > 1)
    return _uri(Image.fromarray(pictures.grid(images, columns, border=border)))


def wall(exhibit: Exhibit, images: Sequence[Tensor], chosen: int, hidden: Sequence[int]) -> str:
    """Returns a button with samples for each cluster."""
    cards = []
    for number, (name, share, some) in enumerate(
        zip(exhibit.called, exhibit.shares, images, strict=True)
    ):
        note = f"{percent(share)}{', hidden' if number in hidden else ''}"
        shown = (
            f'<img alt="" src="{picture_of(some, columns=4)}">'
            if len(some)
            else "<p>nothing to show</p>"
        )
        cards.append(
            f'<button type="button" class="pk-card" data-cluster="{number}" '
            f'aria-current="{str(number == chosen).lower()}" '
            f'aria-label="open {_attribute(name)}, {note}"'
            f"{' data-hidden' if number in hidden else ''}><b>{html.escape(name)}</b> "
            f'<span class="pk-note">{note}</span>{shown}</button>'
        )
    return f'<div class="pk-wall" role="group" aria-label="clusters">{"".join(cards)}</div>'


def tiles(samples: Samples, called: str) -> str:
    """Returns a button for each sample of a cluster, that can be chosen."""
    if not len(samples):
        return '<p class="pk-note">There is nothing to show of it.</p>'
    if samples.images.ndim == 2:
        shown = f'<img alt="points of {_attribute(called)}" src="{picture_of(samples.images)}">'
        return f'<div class="pk-large">{shown}</div>'
    made, found = sheet(samples.images), []
    for index in range(len(samples)):
        margin = "" if samples.margins is None else f", margin {float(samples.margins[index]):.2f}"
        found.append(
            f'<button type="button" class="pk-tile" data-index="{index}" aria-pressed="false" '
            f'aria-label="sample {index + 1}{margin}" title="{index + 1}{margin}" '
            f'style="{made.place(index)}"></button>'
        )
    about = (
        f"{len(samples)} samples"
        if samples.margins is None
        else f"{len(samples)} samples, the clearest first: margins from "
        f"{float(samples.margins[0]):.2f} to {float(samples.margins[-1]):.2f}"
    )
    return (
        f'<p class="pk-note">{about}. Choose any, to download those alone.</p>'
        f'<div class="pk-tiles" role="group" aria-label="samples of {_attribute(called)}" '
        f'style="{made.shared}">'
        f"{''.join(found)}</div>"
        f'<p class="pk-note" id="chosen" role="status" data-none="{_NONE_CHOSEN}">'
        f"{_NONE_CHOSEN}</p>"
    )


def removal(found: Removal, called: Sequence[str], before: Sequence[int]) -> str:
    """Returns what goes and what stays, and what that leaves of each cluster."""
    pairs = [
        ("Kept, with the largest weights", found.clearest),
        ("The last that are kept", found.last),
        ("The first that are removed", found.first),
        ("Removed, with the smallest weights", found.farthest),
    ]
    shown = "".join(
        f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" '
        f'src="{picture_of(images)}"></figure>'
        for caption, images in pairs
        if len(images)
    )
    left = ", ".join(
        f"{html.escape(name)} {percent(now / was) if was else '–'}"
        for name, now, was in zip(called, found.sizes, before, strict=True)
    )
    return (
        f"<p><b>{found.kept:,} kept, {found.removed:,} removed</b>; the cut is at a log-weight of "
        f'{found.cut:.4g}.</p><div class="pk-pair">{shown}</div>'
        f'<p class="pk-note">Of the clusters as they are, this keeps: {left}.</p>'
    )


def preview(found: Preview) -> str:
    """Returns the clusters that another method would find."""
    total = max(1, sum(found.sizes))
    cards = "".join(
        f'<figure class="pk-card" style="margin:0;cursor:auto"><figcaption><b>{number}</b> '
        f'<span class="pk-note">{percent(size / total)}</span></figcaption>'
        + (
            f'<img alt="samples of cluster {number}" src="{picture_of(some, 4)}">'
            if len(some)
            else ""
        )
        + "</figure>"
        for number, (size, some) in enumerate(zip(found.sizes, found.images, strict=True))
    )
    agreement = (
        ""
        if found.agreement is None
        else f" They agree with the clusters as they are to AMI {found.agreement:.2f}."
    )
    return (
        f"<p>Clusters of {total:,} kept latents, of {found.looked_at:,} that were looked at."
        f'{agreement}</p><div class="pk-wall">{cards}</div>'
    )


def strip(images: Tensor, captions: Iterable[str]) -> str:
    """Returns images one beside the other, with what stands below each."""
    if images.ndim == 2:
        shown = f'<img alt="a path of points" src="{picture_of(images)}">'
        return f'<div class="pk-large">{shown}</div>'
    steps = "".join(
        f'<figure><img alt="step {step + 1}: {_attribute(caption)}" '
        f'src="{picture_of(image[None])}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for step, (image, caption) in enumerate(zip(images, captions, strict=True))
    )
    return f'<div class="pk-strip">{steps}</div>'


def large(images: Sequence[tuple[str, Tensor]]) -> str:
    """Returns images (C, H, W) with their captions, large."""
    shown = "".join(
        f'<figure class="pk-large"><figcaption>{html.escape(caption)}</figcaption>'
        f'<img alt="{_attribute(caption)}" src="{picture_of(image[None])}"></figure>'
        for caption, image in images
    )
    return f'<div class="pk-strip">{shown}</div>'


def latents_map(found: Map, called: Sequence[str], by: str) -> str:
    """Returns the map, with points coloured by "cluster", "density" or "class"."""
    kept = found.clusters >= 0
    if by == "density":
        steps = 32
        colour = (found.weights * (steps - 1)).round().long()
        colours = [_ramp(step / (steps - 1)) for step in range(steps)]
        key = [("least dense", colours[0]), ("densest", colours[-1])]
    elif by == "class" and found.classes is not None:
        colour = found.classes
        colours = _hues(len(found.class_names))
        key = list(zip(found.class_names, colours, strict=True))
    else:
        colour = torch.where(kept, found.clusters, len(called))
        colours = [*_hues(len(called)), _GREY]
        key = list(zip([*called, "removed"], colours, strict=True))
    labels = []
    for index, number in enumerate(found.clusters.tolist()):
        label = called[number] if number >= 0 else "removed"
        if found.classes is not None:
            label += f"; class {found.class_names[int(found.classes[index])]}"
        labels.append(f"{label}; density rank {percent(float(found.weights[index]))}")
    made = sheet(found.images) if found.images.ndim == 4 else sheet(_dots(len(found.images)))
    data = {
        "x": [round(value, 4) for value in found.places[:, 0].tolist()],
        "y": [round(value, 4) for value in found.places[:, 1].tolist()],
        "colour": colour.tolist(),
        "colours": colours,
        "kept": kept.long().tolist(),
        "labels": labels,
        "columns": made.columns,
        "rows": made.rows,
    }
    legend = "".join(
        f'<span><i style="background:{shade}"></i>{html.escape(name)}</span>' for name, shade in key
    )
    return (
        f'<div class="pk-map" style="--ratio:{made.ratio:.4f}" '
        f'data-points="{_attribute(json.dumps(data))}">'
        '<canvas tabindex="0" role="application" aria-label="map of latents; arrow keys go from '
        'point to point"></canvas>'
        f'<div class="pk-tip"><div></div><span role="status" aria-live="polite"></span></div>'
        f'<img alt="" hidden src="{made.source}"></div><div class="pk-key">{legend}</div>'
        f'<p class="pk-note">{html.escape(found.about)}</p>'
    )


def status(told: str, command: str = "") -> str:
    """Returns what was done, and a command that goes on from there."""
    code = f"<code>{html.escape(command)}</code>" if command else ""
    return f'<p class="pk-status" role="status">{html.escape(told)}{code}</p>'


def notes(told: Sequence[str]) -> str:
    """Returns what cannot be shown."""
    return "".join(f'<p class="pk-error" role="note">{html.escape(note)}</p>' for note in told)


def failure(message: str) -> str:
    """Returns a page's only content, where there is nothing to explore."""
    return (
        '<div class="pk-error" role="alert"><h2>This cannot be shown</h2>'
        f"<p>{html.escape(message)}</p></div>"
    )


def _plane(points: Tensor) -> Image.Image:
    """Returns points (n, d), of which the first two coordinates are drawn, from -3 to 3."""
    scaled = ((points[:, :2] + 3) / 6 * 255).clamp(0, 255).byte()
    return Image.fromarray(pictures.grid(scaled))


def _dots(count: int) -> Tensor:
    return torch.full((count, 1, 1, 1), 128, dtype=torch.uint8)


def _hues(count: int) -> list[str]:
    """Returns colours, those of neighbouring numbers as different as any."""
    return [
        f"hsl({(index * 222.5) % 360:.0f} 70% {45 if index % 2 else 55}%)" for index in range(count)
    ]


def _ramp(place: float) -> str:
    """Returns a colour from dark blue to yellow, for a place from 0 to 1."""
    low, middle, high = np.array([48, 18, 110]), np.array([33, 145, 140]), np.array([253, 231, 37])
    ends = (low, middle, 2 * place) if place < 0.5 else (middle, high, 2 * place - 1)
    red, green, blue = (ends[0] * (1 - ends[2]) + ends[1] * ends[2]).round().astype(int)
    return f"rgb({red} {green} {blue})"


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    kind = "png"
    if len(buffer.getvalue()) > _JPEG_FROM:
        smaller = io.BytesIO()
        image.save(smaller, format="JPEG", quality=88)
        if len(smaller.getvalue()) < len(buffer.getvalue()):
            buffer, kind = smaller, "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _attribute(text: str) -> str:
    return html.escape(text, quote=True)
