"""Pictures of any mode and size as bytes of one shape."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional

from pgmkit.errors import DataError, ParameterError, first_line

_LUMA = (0.299, 0.587, 0.114)
_GREY_MODES = ("1", "L", "LA", "La")
_ON_THEIR_SIDES = (5, 6, 7, 8)
"""Orientations in EXIF data that make height of width."""


def opaque(images: Any, where: str, places: Iterable[int]) -> Any:
    """Returns byte arrays (N, H, W, C) of grey or RGB and alpha on white, without the alpha."""
    pictures = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
    named = zip(pictures, places, strict=True)
    found = [np.asarray(plain(picture, f"image {place} of {where}")) for picture, place in named]
    return np.stack(found).reshape(*images.shape[:3], -1)


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
        raise _not_plain(name, error) from error


def upright_size(picture: Image.Image, name: str) -> tuple[int, int]:
    """Returns height and width of what `plain` makes of a picture, as its header says.

    Raises:
        DataError: `plain` would refuse it.
    """
    _check_mode(picture, name)
    # A PNG has it behind its pixels if it has it nowhere else; it would be decoded to find out.
    is_said = picture.format != "PNG" or {"exif", "Raw profile type exif"} & picture.info.keys()
    try:
        turned = is_said and picture.getexif().get(ExifTags.Base.Orientation, 1) in _ON_THEIR_SIDES
    except Exception as error:
        raise _not_plain(name, error) from error
    if turned and picture.format == "TIFF":  # some versions of Pillow have turned it, some not
        picture = plain(picture, name)
        return picture.height, picture.width
    return picture.size if turned else (picture.height, picture.width)


def is_colour(picture: Image.Image) -> bool:
    """Returns whether `plain` makes a picture RGB, and not grey."""
    return not is_deep(picture) and picture.mode not in _GREY_MODES


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the middle of a picture with another height and width.

    This is how images of all sources get the size that is asked for; those that a network wants in
    another size are `resized`. It is shrunk until one side fits (Lanczos, with antialias), never
    enlarged; then what is too long is cut off and what is too short is padded with 0, alike on both
    ends.
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


def resized(images: Tensor, size: int | tuple[int, int], kernel: str = "bilinear") -> Tensor:
    """Returns float images (B, C, H, W) in another size, with antialias.

    This is how images reach a network that wants another size than theirs, whatever it is.

    Args:
        images: of any range; those of the right size are returned as they are.
        size: side of square images, or height and width.
        kernel: "bilinear", or "bicubic", which may leave the range.
    """
    shape = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == shape:
        return images
    return functional.interpolate(images, shape, mode=kernel, align_corners=False, antialias=True)


def shrunk(images: Tensor, size: int) -> Tensor:
    """Returns images (B, C, H, W) `resized` so that the longer side is at most `size`.

    The proportion stays. Points (B, d) stay as they are.
    """
    if images.ndim == 2:
        return images
    height, width = images.shape[-2:]
    factor = min(1.0, size / max(height, width))
    return resized(images, (max(1, round(height * factor)), max(1, round(width * factor))))


def channels_first(array: Any) -> Tensor:
    """Returns an array (N, H, W) or (N, H, W, C) as a tensor (N, C, H, W)."""
    array = array[..., None] if array.ndim == 3 else array
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _plain(picture: Image.Image, name: str) -> Image.Image:
    ImageOps.exif_transpose(picture, in_place=True)
    if is_deep(picture):
        return Image.fromarray(narrowed(np.asarray(picture)))
    _check_mode(picture, name)
    target = "RGB" if is_colour(picture) else "L"
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == target else picture.convert(target)


def _check_mode(picture: Image.Image, name: str) -> None:
    if picture.mode in ("I", "F"):
        held = "32-bit numbers" if picture.mode == "I" else "floats"
        raise DataError(f"{name} holds {held}, whose range is unknown; save it with 8 or 16 bits")


def _not_plain(name: str, error: Exception) -> DataError:
    return DataError(f"{name} cannot be made grey or RGB: {first_line(error)}; mend or remove it")


def check_array(array: Any, where: str, allowed: str = "B H") -> None:
    """Raises DataError unless an array of images (N, ...) is of a type among numpy's letters."""
    if array.dtype.char not in allowed or array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(
            f"the images in {where} are {array.dtype} of shape {array.shape}; they must be uint8 "
            "(0 to 255) or uint16 (0 to 65535) of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[1] > 4:
        raise DataError(
            f"the images in {where} are of shape {array.shape}, which is one image in colour or "
            "many that are very thin; they must be (N, H, W, C) or (N, C, H, W)"
        )


def channels_last(array: Any, where: str) -> Any:
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


def fitted_array(array: Any, size: tuple[int, int]) -> Any:
    """Does to images (N, H, W, C) what `fitted` does to one."""
    height, width = array.shape[1:3]
    if min(height / size[0], width / size[1]) > 1:
        planes = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        found = [[np.asarray(fitted(Image.fromarray(p), size)) for p in image] for image in planes]
        return np.array(found).transpose(0, 2, 3, 1)
    result = np.zeros((len(array), *size, array.shape[3]), array.dtype)  # all at once is quicker
    rows, columns = _overlap(height, size[0]), _overlap(width, size[1])
    result[:, rows[1], columns[1]] = array[:, rows[0], columns[0]]
    return result


def _overlap(length: int, wanted: int) -> tuple[slice, slice]:
    """Returns which part of a side is kept, and where it lies on a side of `wanted` pixels."""
    start, both = int((length - wanted) / 2), min(length, wanted)
    kept, place = max(start, 0), max(-start, 0)
    return slice(kept, kept + both), slice(place, place + both)


def is_deep(picture: Image.Image) -> bool:
    """Returns whether a picture holds numbers of 16 bits."""
    return picture.mode.startswith("I;16")


def check_depth(levels: Iterable[Any], where: str) -> None:
    """Refuses images of 16 bits that were bytes before: divided by 257 they are all black.

    Raises:
        DataError: some are 1 and none is more.
    """
    brightest = 0
    for level in levels:
        brightest = max(brightest, int(level.max()))
        if brightest > 1:
            return
    if brightest == 1:
        raise DataError(
            f"the images in {where} are stored with 16 bits, and none is brighter than 1 of 255; "
            "if they go from 0 to 255, save them with 8 bits"
        )
