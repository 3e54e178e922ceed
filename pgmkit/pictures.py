"""Images as files: value ranges, grids, PNG."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pgmkit import files
from pgmkit.errors import ParameterError, PgmkitWarning

_PLANE = 256
_CHECKS = 204, 255
_CHECK_SIZE = 4


def to_uint8(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Returns images (N, C, H, W) as bytes from 0 to 255; values outside the range are clipped."""
    low, high = value_range
    scaled = (images.detach().float() - low) / (high - low) * 255
    return scaled.round().clamp(0, 255).byte()


def grid(images: Tensor, columns: int = 8, border: int = 1) -> npt.NDArray[np.uint8]:
    """Arranges byte images (N, C, H, W) row by row, or draws points (N, d) into one square.

    Args:
        images: bytes; C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). What is
            transparent shows a grey and white checkerboard. Of more channels the first three are
            shown, and a warning says so. Of points the first two coordinates are shown, the second
            one upwards.
        columns: images per row.
        border: white pixels between images.

    Returns:
        One picture, (H', W', 3) or (H', W') for grey and for points.
    """
    if images.ndim == 2:
        return _scatter(images)
    images = _opaque(images)
    count, channels, height, width = images.shape
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    shape = (rows * (height + border) + border, columns * (width + border) + border, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top = border + (index // columns) * (height + border)
        left = border + (index % columns) * (width + border)
        canvas[top : top + height, left : left + width] = image
    return canvas[:, :, 0] if channels == 1 else canvas


def png(picture: npt.NDArray[np.uint8], scale: int = 1) -> bytes:
    """Encodes a picture as PNG, each pixel enlarged `scale` times.

    Args:
        picture: (H, W), or (H, W, C) with C from 2 to 4 as for `grid`; alpha is kept.
        scale: at least 1.
    """
    image = Image.fromarray(picture)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def grid_png(images: Tensor, value_range: tuple[float, float], scale: int = 1) -> bytes:
    """Returns images (N, C, H, W), or points (N, d), as one PNG grid."""
    return png(grid(to_uint8(images, value_range)), scale)


def write_grid(
    path: Path, images: Tensor, value_range: tuple[float, float], scale: int = 1
) -> None:
    """Writes images (N, C, H, W) as one PNG grid."""
    files.write_bytes(path, grid_png(images, value_range, scale))


def write_rows(
    path: Path, images: Tensor, value_range: tuple[float, float], columns: int, scale: int = 1
) -> None:
    """Writes one PNG of images (N, C, H, W), or points (N, d), in rows that are numbered from 0."""
    parts = [grid(part, columns) for part in to_uint8(images, value_range).split(columns)]
    picture = Image.fromarray(np.concatenate(parts))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BOX)
    margin = 8 + 8 * len(str(len(parts) - 1))
    canvas = Image.new(picture.mode, (picture.width + margin, picture.height), "white")
    canvas.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row in range(len(parts)):
        middle = int((row + 0.5) * picture.height / len(parts))
        draw.text((4, middle - 6), str(row), fill="black")
    files.write_bytes(path, png(np.asarray(canvas)))


def write_images(
    out: Path,
    images: Tensor,
    value_range: tuple[float, float],
    *,
    latents: Tensor,
    partitions: Tensor | None = None,
) -> None:
    """Writes images (N, C, H, W) in the form that the name asks for.

    Args:
        out: "*.png" is one grid; "*.npz" holds `images` (N, H, W, C) as bytes, `latents` (N, M)
            and, if there are any, `partitions` (N,); a name without a suffix is a folder of PNGs.
            The last two keep alpha. Of points, *.npz holds `points` (N, d) as they are, and there
            are no single PNGs.
        images: in `value_range`.
        value_range: lowest and highest value.
        latents: that the images were made from.
        partitions: that the images are of.

    Raises:
        ParameterError: the suffix is another one, or does not go with points.
        OutputError: the file cannot be written.
    """
    suffix = out.suffix.lower()
    if suffix == ".png":
        write_grid(out, images, value_range)
    elif suffix == ".npz":
        buffer = io.BytesIO()
        made: dict[str, Any] = {"latents": latents.cpu().numpy()}
        if partitions is not None:
            made["partitions"] = partitions.cpu().numpy()
        if images.ndim == 2:
            np.savez_compressed(buffer, points=images.cpu().numpy(), **made)
        else:
            pixels = to_uint8(images, value_range).permute(0, 2, 3, 1).cpu().numpy()
            np.savez_compressed(buffer, images=pixels, **made)
        files.write_bytes(out, buffer.getvalue())
    elif suffix == "" and images.ndim == 2:
        raise ParameterError(
            f"points are no pictures one by one; write them as {out.name}.npz, or as "
            f"{out.name}.png, which draws them all"
        )
    elif suffix == "":
        digits = len(str(len(images) - 1))
        for index, image in enumerate(_shown(to_uint8(images, value_range))):
            pixels = image.permute(1, 2, 0).cpu().numpy()
            picture = pixels[:, :, 0] if len(image) == 1 else pixels
            files.write_bytes(out / f"{index:0{digits}d}.png", png(picture))
    else:
        raise ParameterError(f"images are written as .png, .npz or a folder, not {out.name!r}")


def _shown(images: Tensor) -> Tensor:
    """Returns the channels of images (N, C, H, W) that a picture can show, at most four."""
    channels = images.shape[1]
    if channels <= 4:
        return images
    warnings.warn(
        f"the images have {channels} channels, of which pictures show the first three as red, "
        "green and blue; *.npz holds all",
        PgmkitWarning,
        stacklevel=4,
    )
    return images[:, :3]


def _opaque(images: Tensor) -> Tensor:
    """Returns bytes (N, 1 or 3, H, W), with images that have alpha before a checkerboard."""
    images = _shown(images)
    if images.shape[1] in (1, 3):
        return images
    rows, columns = (torch.arange(size) // _CHECK_SIZE for size in images.shape[-2:])
    board = torch.tensor(_CHECKS)[(rows[:, None] + columns) % 2].to(images.device)
    alpha = images[:, -1:].float() / 255
    return (images[:, :-1] * alpha + board * (1 - alpha)).round().byte()


def _scatter(points: Tensor) -> npt.NDArray[np.uint8]:
    """Draws points (N, d), from 0 to 255 across the picture, as black marks on white."""
    canvas = np.full((_PLANE, _PLANE), 255, dtype=np.uint8)
    places = points.cpu().numpy().astype(int)
    across, up = places[:, 0], places[:, 1] if places.shape[1] > 1 else np.full(len(places), 128)
    for right in (-1, 0, 1):
        for above in (-1, 0, 1):
            rows = (_PLANE - 1 - up + above).clip(0, _PLANE - 1)
            canvas[rows, (across + right).clip(0, _PLANE - 1)] = 0
    return canvas
