"""Pictures of any mode and size as bytes of one shape."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from pgmkit.errors import DataError, ParameterError, first_line
from pgmkit.machine import check_memory

_LUMA = (0.299, 0.587, 0.114)
_GREY_MODES = ("1", "L", "LA", "La")


def stacked(
    pictures: Iterable[tuple[str, Image.Image]],
    count: int,
    size: tuple[int, int] | None,
    where: str,
) -> Tensor:
    """Returns pictures as bytes (N, C, H, W), in colour if one of them is.

    Each is turned upright, made 8 bits deep and opaque (see `plain`), and then fitted to `size`
    (see `fitted`).

    Args:
        pictures: with the name of each, for messages.
        count: how many there are, to tell beforehand what memory they need.
        size: height and width; None leaves them, and then they must be alike.
        where: what holds them, for messages.

    Raises:
        DataError: one cannot be told as bytes, or they differ in size.
        ParameterError: there is not enough memory.
    """
    arrays: list[Any] = []
    first, extent, brightest = "", (0, 0), 0
    for name, raw in pictures:
        is_deep = _is_deep(raw)
        picture = plain(raw, name)
        if is_deep:
            brightest = max(brightest, int(np.asarray(picture).max()))
        if size is not None:
            picture = fitted(picture, size)
        if not arrays:
            first, extent = name, picture.size
            _check_room(count, picture, where)
        if picture.size != extent:
            raise DataError(
                f"{name} has {_shape(picture.size)} pixels and {first} has {_shape(extent)}; set "
                "image_size to make all images of one size"
            )
        arrays.append(np.asarray(picture))
    _check_depth(brightest, where)
    if any(array.ndim == 3 for array in arrays):
        grey = extent[::-1]
        arrays = [np.broadcast_to(a[..., None], (*grey, 3)) if a.ndim == 2 else a for a in arrays]
    return channels_first(np.stack(arrays))


def from_array(array: Any, size: tuple[int, int] | None, where: str) -> Tensor:
    """Returns an array of images as bytes (N, C, H, W), by the same steps as pictures.

    Args:
        array: bytes or 16-bit numbers (N, H, W), (N, H, W, C) or (N, C, H, W). Two channels are
            grey and alpha, four are RGB and alpha; more than four stay as they are.
        size: height and width; None leaves them.
        where: what holds them, for messages.

    Raises:
        DataError: it is of another type or shape.
    """
    _check_array(array, where)
    array = _channels_last(array, where)
    if array.dtype == np.uint16:
        array = narrowed(array)
        _check_depth(int(array.max()), where)
    if array.shape[-1] in (2, 4):
        pictures = (
            (f"image {index} of {where}", Image.fromarray(np.ascontiguousarray(image)))
            for index, image in enumerate(array)
        )
        return stacked(pictures, len(array), size, where)
    return channels_first(array if size is None else _fitted_array(array, size))


def plain(picture: Image.Image, name: str) -> Image.Image:
    """Returns a picture as 8-bit grey (mode "L") or colour ("RGB").

    A rotation that its EXIF data ask for is applied, 16 bits are divided by 257, and what is
    transparent lies on white. Palettes, CMYK and other colours become RGB, without profiles.

    Raises:
        DataError: it holds 32-bit numbers or floats, whose range nobody knows, or cannot be
            converted.
    """
    try:
        return _plain(picture, name)
    except DataError:
        raise
    except Exception as error:  # of damaged EXIF data, or of colours without a conversion
        raise DataError(
            f"{name} cannot be made grey or RGB: {first_line(error)}; mend or remove it"
        ) from error


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the middle of a picture with another height and width.

    It is shrunk until one side fits (Lanczos, with antialias), never enlarged; then what is too
    long is cut off and what is too short is padded with 0, alike on both ends.
    """
    height, width = size
    factor = min(picture.height / height, picture.width / width)
    if factor > 1:
        box_width = min(factor * width, picture.width)
        box_height = min(factor * height, picture.height)
        left, top = (picture.width - box_width) // 2, (picture.height - box_height) // 2
        box = (left, top, left + box_width, top + box_height)
        return picture.resize((width, height), Image.Resampling.LANCZOS, box)
    left, top = int((picture.width - width) / 2), int((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def narrowed(array: Any) -> Any:
    """Returns 16-bit numbers divided by 257 and rounded, as bytes."""
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def as_channels(images: Tensor, channels: int | None, whose: str) -> Tensor:
    """Returns float images (N, C, H, W) with as many channels as someone takes.

    Grey becomes RGB by repetition, RGB becomes grey by the luma weights of ITU-R 601.

    Args:
        images: of any range.
        channels: 1 or 3; None takes images as they are.
        whose: who takes them, for messages.

    Raises:
        ParameterError: they have another number of channels that cannot be turned into it.
    """
    given = images.shape[1] if images.ndim == 4 else None
    if given is None or (channels not in (None, given) and {given, channels} != {1, 3}):
        have = f"have {given}" if given is not None else f"are {tuple(images.shape[1:])}"
        wanted = "(C, H, W)" if channels is None else f"{channels} channels"
        raise ParameterError(
            f"{whose} takes images of {wanted}, and these {have}; only grey (1) and RGB (3) are "
            "turned into each other"
        )
    if channels == given or channels is None:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,c->nhw", images, weights)[:, None]


def shrunk(images: Tensor, size: int) -> Tensor:
    """Returns images (B, C, H, W) with the longer side at most `size`, in the same proportion.

    Points (B, d) stay as they are.
    """
    if images.ndim == 2:
        return images
    height, width = images.shape[-2:]
    factor = size / max(height, width)
    if factor >= 1:
        return images
    shape = (max(1, round(height * factor)), max(1, round(width * factor)))
    return functional.interpolate(
        images, shape, mode="bilinear", align_corners=False, antialias=True
    )


def channels_first(array: Any) -> Tensor:
    """Returns an array (N, H, W) or (N, H, W, C) as a tensor (N, C, H, W)."""
    array = array[..., None] if array.ndim == 3 else array
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _plain(picture: Image.Image, name: str) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if _is_deep(picture):
        return Image.fromarray(narrowed(np.asarray(picture)))
    if picture.mode in ("I", "F"):
        held = "32-bit numbers" if picture.mode == "I" else "floats"
        raise DataError(f"{name} holds {held}, whose range is unknown; save it with 8 or 16 bits")
    target = "L" if picture.mode in _GREY_MODES else "RGB"
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == target else picture.convert(target)


def _check_array(array: Any, where: str) -> None:
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (3, 4) or not array.size:
        raise DataError(
            f"the images in {where} are {array.dtype} of shape {array.shape}; they must be uint8 "
            "(0 to 255) or uint16 (0 to 65535) of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[1] > 4:
        raise DataError(
            f"the images in {where} are of shape {array.shape}, which is one image in colour or "
            "many that are very thin; they must be (N, H, W, C) or (N, C, H, W)"
        )


def _channels_last(array: Any, where: str) -> Any:
    """Returns a view (N, H, W, C) of (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    if array.ndim == 3:
        return array[..., None]
    first, last = array.shape[1], array.shape[3]
    for counts in ((1, 3), (2, 4)):
        if first in counts or last in counts:
            return array.transpose(0, 2, 3, 1) if first in counts else array
    if array.shape[1] < min(array.shape[2:]):
        return array.transpose(0, 2, 3, 1)
    if array.shape[3] < min(array.shape[1:3]):
        return array
    raise DataError(
        f"the images in {where} are of shape {array.shape}, which does not tell the channels from "
        "height and width; they must be (N, H, W, C) or (N, C, H, W), with C the smallest"
    )


def _fitted_array(array: Any, size: tuple[int, int]) -> Any:
    """Does to images (N, H, W, C) what `fitted` does to one."""
    height, width = array.shape[1:3]
    if min(height / size[0], width / size[1]) > 1:
        planes = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        found = [[np.asarray(fitted(Image.fromarray(p), size)) for p in image] for image in planes]
        return np.array(found).transpose(0, 2, 3, 1)
    result = np.zeros((len(array), *size, array.shape[3]), np.uint8)  # quicker than one by one
    rows, columns = _overlap(height, size[0]), _overlap(width, size[1])
    result[:, rows[1], columns[1]] = array[:, rows[0], columns[0]]
    return result


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Returns which part of a side is kept, and where it lies on a side of `wanted` pixels."""
    start, both = int((length - wanted) / 2), min(length, wanted)
    kept, place = max(start, 0), max(-start, 0)
    return slice(kept, kept + both), slice(place, place + both)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode.startswith("I;16")


def _check_depth(brightest: int, where: str) -> None:
    """Refuses images of 16 bits that were bytes before: divided by 257 they are all black."""
    if brightest == 1:
        raise DataError(
            f"the images in {where} are stored with 16 bits, and none is brighter than 1 of 255; "
            "if they go from 0 to 255, save them with 8 bits"
        )


def _check_room(count: int, picture: Image.Image, where: str) -> None:
    needed = count * picture.width * picture.height * len(picture.getbands())
    check_memory(
        2 * needed,
        f"{count:,} images of {_shape(picture.size)} pixels in {where}",
        "make them fewer, or set a smaller image_size",
    )


def _shape(size: tuple[int, int]) -> str:
    width, height = size
    return f"{height}×{width}"
