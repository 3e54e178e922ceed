"""Images as files: value ranges, grids, PNG."""

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from pgmkit import files
from pgmkit.errors import ParameterError


def to_uint8(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Returns images (N, C, H, W) as bytes from 0 to 255; values outside the range are clipped."""
    low, high = value_range
    scaled = (images.detach().float() - low) / (high - low) * 255
    return scaled.round().clamp(0, 255).byte()


def grid(images: Tensor, columns: int = 8, border: int = 1) -> npt.NDArray[np.uint8]:
    """Arranges byte images (N, C, H, W) row by row.

    Args:
        images: bytes, C is 1 or 3 (more channels: the first three; two: the first).
        columns: images per row.
        border: white pixels between images.

    Returns:
        One picture, (H', W', 3) or (H', W') for grey.
    """
    count, channels, height, width = images.shape
    channels = 3 if channels >= 3 else 1
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    shape = (rows * (height + border) + border, columns * (width + border) + border, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for index, image in enumerate(images[:, :channels].permute(0, 2, 3, 1).cpu().numpy()):
        top = border + (index // columns) * (height + border)
        left = border + (index % columns) * (width + border)
        canvas[top : top + height, left : left + width] = image
    return canvas[:, :, 0] if channels == 1 else canvas


def png(picture: npt.NDArray[np.uint8], scale: int = 1) -> bytes:
    """Encodes a picture (H, W) or (H, W, 3) as PNG, each pixel enlarged `scale` times."""
    image = Image.fromarray(picture)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_grid(
    path: Path,
    images: Tensor,
    value_range: tuple[float, float],
    columns: int = 8,
    scale: int = 1,
) -> None:
    """Writes images (N, C, H, W) as one PNG grid."""
    files.write_bytes(path, png(grid(to_uint8(images, value_range), columns), scale))


def write_rows(
    path: Path, images: Tensor, value_range: tuple[float, float], columns: int, scale: int = 1
) -> None:
    """Writes images (N, C, H, W) as one PNG whose rows of `columns` images are numbered from 0."""
    picture = Image.fromarray(grid(to_uint8(images, value_range), columns))
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BOX)
    rows = max(1, math.ceil(len(images) / columns))
    margin = 8 + 8 * len(str(rows - 1))
    canvas = Image.new(picture.mode, (picture.width + margin, picture.height), "white")
    canvas.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row in range(rows):
        middle = int((row + 0.5) * picture.height / rows)
        draw.text((4, middle - 6), str(row), fill="black")
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    files.write_bytes(path, buffer.getvalue())


def write_images(
    out: Path, images: Tensor, value_range: tuple[float, float], *, latents: Tensor
) -> None:
    """Writes images (N, C, H, W) in the form that the name asks for.

    Args:
        out: "*.png" is one grid; "*.npz" holds `images` (N, H, W, C) as bytes and `latents` (N, M);
            a name without a suffix is a folder of PNGs.
        images: in `value_range`.
        value_range: lowest and highest value.
        latents: that the images were made from.

    Raises:
        ParameterError: the suffix is another one.
        OutputError: the file cannot be written.
    """
    suffix = out.suffix.lower()
    if suffix == ".png":
        write_grid(out, images, value_range)
    elif suffix == ".npz":
        buffer = io.BytesIO()
        pixels = to_uint8(images, value_range).permute(0, 2, 3, 1).cpu().numpy()
        np.savez_compressed(buffer, images=pixels, latents=latents.cpu().numpy())
        files.write_bytes(out, buffer.getvalue())
    elif suffix == "":
        digits = len(str(len(images) - 1))
        for index, image in enumerate(to_uint8(images, value_range)):
            files.write_bytes(out / f"{index:0{digits}d}.png", png(grid(image[None], border=0)))
    else:
        raise ParameterError(f"images are written as .png, .npz or a folder, not {out.name!r}")
