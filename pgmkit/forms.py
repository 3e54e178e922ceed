"""What modules put out, as images: forms, and whether they fit what was declared."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgmkit.errors import GeneratorError

_SLACK = 0.02
"""By what share of its width images may overshoot a range."""

_MOST_CHANNELS = 4

_OVERSHOOTING = 0.01
"""Which share of the values may lie further out than that."""


def as_images(output: Any, count: int, shape: tuple[int, ...], name: str) -> Tensor:
    """Returns the images (n, C, H, W), or points (n, d), in what a module put out.

    Args:
        output: a tensor (n, C, H, W), (n, H, W, C), flat (n, C·H·W), or (n, H, W) for C = 1; or a
            tuple, whose first such tensor is taken, or a dict or object, which must hold just one.
        count: n, the number of latents.
        shape: (C, H, W), or (d,) for points.
        name: of the generator, for the messages.

    Raises:
        GeneratorError: there are no images of that shape in it, or several.
    """
    wanted = (count, *shape)
    if isinstance(output, Tensor):
        images = _arranged(output, count, shape)
        if images is None:
            raise GeneratorError(
                f"the generator {name!r} returns shape {tuple(output.shape)} for {count} latents, "
                f"and its image spec says {wanted}; correct the spec or wrap the module"
            )
        return images
    entries = _entries(output)
    found = [
        images
        for value in entries.values()
        if isinstance(value, Tensor) and (images := _arranged(value, count, shape)) is not None
    ]
    if found and (len(found) == 1 or isinstance(output, tuple | list)):
        return found[0]
    held = ", ".join(f"{key}: {_described(value)}" for key, value in entries.items())
    raise GeneratorError(
        f"the generator {name!r} returns a {type(output).__name__} ({held:.300}), in which "
        f"{len(found) or 'nothing'} {'fit' if found else 'fits'} the image spec {wanted}; correct "
        "the spec, or wrap it in a module that returns the images alone"
    )


def shape_of(output: Any, count: int) -> tuple[int, int, int] | None:
    """Returns the (C, H, W) of the images in what a module put out, where it shows it.

    Flat images do not, nor do entries of which several might be them.
    """
    if not isinstance(output, Tensor):
        found = [shape_of(value, count) for value in _entries(output).values()]
        shapes = [shape for shape in found if shape is not None]
        return (
            shapes[0] if len(shapes) == 1 or (shapes and isinstance(output, tuple | list)) else None
        )
    sizes = tuple(output.shape)
    if sizes[:1] != (count,) or len(sizes) not in (3, 4):
        return None
    if len(sizes) == 3:
        return (1, sizes[1], sizes[2])
    if sizes[1] <= _MOST_CHANNELS:
        return (sizes[1], sizes[2], sizes[3])
    return (sizes[3], sizes[1], sizes[2]) if sizes[3] <= _MOST_CHANNELS else None


def range_complaint(images: Tensor, declared: tuple[float, float]) -> str | None:
    """Returns what is odd about the values of images, and the range to declare; None if nothing is.

    Odd is a range that a hundredth of the values overshoot, one with negative values where images
    have none, and one of bytes where images stay within [-1, 1].

    Args:
        images: (B, C, H, W), or points (B, d), which may well have no negative values; those that
            are not finite do not count.
        declared: lowest and highest value, as the image spec says.
    """
    low, high = declared
    are_points = images.ndim == 2
    images = images[images.isfinite()]
    if not len(images):
        return None
    slack = _SLACK * (high - low)
    least, most = float(images.min()), float(images.max())
    outside = float(((images < low - slack) | (images > high + slack)).double().mean())
    if outside > _OVERSHOOTING:
        odd = f"{outside:.0%} of the values lie outside, which is cut off in pictures"
    elif not are_points and low < 0 < high and least >= 0 and most > high / 4:
        odd = "no value is negative, which is what a sigmoid makes"
    elif high - low > 100 and least >= -1 - _SLACK and most <= 1 + _SLACK:
        odd = "these are no bytes"
    else:
        return None
    better = _range_of(least, most)
    if better == (low, high):
        return None
    return (
        f"images from {least:.3g} to {most:.3g}, and the declared range is [{low:g}, {high:g}]: "
        f"{odd}; if that is not meant, declare range [{better[0]:g}, {better[1]:g}]: "
        f"ImageSpec(shape, {better}), --image CxHxW:{better[0]:g},{better[1]:g}, or 'image' in "
        "config.json"
    )


def _range_of(least: float, most: float) -> tuple[float, float]:
    """Returns the usual range that values from `least` to `most` come from, or their own."""
    if least >= -_SLACK and most <= 1 + _SLACK:
        return 0.0, 1.0
    if least >= -1 - _SLACK and most <= 1 + _SLACK:
        return -1.0, 1.0
    if least > -1 and 100 < most < 256:
        return 0.0, 255.0
    return float(f"{least:.2g}"), float(f"{most:.2g}")


def _arranged(values: Tensor, count: int, shape: tuple[int, ...]) -> Tensor | None:
    """Returns values as (n, *shape), if they are so in a form that is known."""
    sizes = tuple(values.shape)
    if sizes == (count, *shape):
        return values
    if sizes == (count, math.prod(shape)):
        return values.reshape(count, *shape)
    if len(shape) == 3:
        channels, height, width = shape
        if sizes == (count, height, width, channels):
            return values.permute(0, 3, 1, 2)
        if sizes == (count, height, width) and channels == 1:
            return values.unsqueeze(1)
    return None


def _entries(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple | list):
        return {str(place): value for place, value in enumerate(output)}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(getattr(output, "__dict__", {}))


def _described(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
