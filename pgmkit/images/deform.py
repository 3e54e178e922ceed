"""Deformations of images: other versions of a picture that show the same."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.machine import sent

_SWITCHES = ("flip", "apart")
_KNOTS = 5
"""A bend is given at so many places along each side, and smooth between them."""


@dataclass(frozen=True)
class Deformations:
    """How far images may be deformed; each value of an image is drawn evenly from its range.

    Args:
        turn: by up to so many degrees either way.
        stretch: of width and of height, each by a factor of up to exp(±stretch).
        shear: of one axis along the other, up to ±shear.
        shift: by up to this share of a side, along both axes.
        bend: of the plane, smoothly, by up to this share of a side.
        stroke: how much thicker bright strokes become, up to a pixel at 1, or thinner.
        contrast: a factor of up to exp(±contrast).
        brightness: up to ±brightness, of a range from -1 to 1, for each channel.
        hue: of RGB images, turned about the greys by up to so many degrees either way.
        saturation: of RGB images, a factor of up to exp(±saturation).
        grey: share of images in colour that lose it.
        flip: whether half of the images are mirrored, left to right.
        crop: least share of the area that is seen; 1 is all of it, before what the others do.
        apart: whether each channel is deformed on its own, where it is an image by itself.

    Raises:
        ParameterError: a value is outside its range.
    """

    turn: float = 0.0
    stretch: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    bend: float = 0.0
    stroke: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    flip: bool = False
    crop: float = 1.0
    apart: bool = False

    def __post_init__(self) -> None:
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name in [name for name in vars(self) if name not in _SWITCHES]:
            value, most = getattr(self, name), 1 if name in ("grey", "crop") else math.inf
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= most or value == math.inf:
                within = "from 0 to 1" if most == 1 else "at least 0"
                raise ParameterError(f"{name} of deformations must be {within}, not {value!r}")

    def scaled(self, strength: float) -> "Deformations":
        """Returns the same, with images deformed `strength` times as far.

        How many lose their colour or are mirrored stays, and whether channels are apart.

        Raises:
            ParameterError: the strength is below 0 or not finite.
        """
        if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
            raise ParameterError(f"strength must be at least 0, not {strength!r}")
        as_often = ("grey", *_SWITCHES)
        farther = {
            name: value * strength for name, value in vars(self).items() if name not in as_often
        }
        farther["crop"] = max(0.0, self.crop + (1 - strength) * (1 - self.crop))
        return replace(self, **farther)


_DIGITS = Deformations(
    turn=20, stretch=0.25, shear=0.4, shift=0.1, bend=0.06, stroke=1.0, contrast=0.3
)

PRESETS: Mapping[str, Deformations] = MappingProxyType(
    {
        "digits": _DIGITS,
        "stacked": replace(_DIGITS, apart=True),
        "clothes": Deformations(
            turn=8,
            stretch=0.2,
            shear=0.1,
            shift=0.1,
            bend=0.03,
            stroke=0.3,
            contrast=0.4,
            flip=True,
        ),
        "colour": replace(_DIGITS, brightness=0.3, grey=0.2, flip=True),
        "photographs": Deformations(
            stretch=math.log(4 / 3) / 2, contrast=0.4, brightness=0.4, grey=0.2, flip=True, crop=0.3
        ),
        "colour-photographs": Deformations(
            stretch=math.log(4 / 3) / 2,
            contrast=0.4,
            brightness=0.3,
            hue=36,
            saturation=0.4,
            grey=0.2,
            flip=True,
            crop=0.2,
        ),
    }
)
"""Deformations by what images show."""


def preset(kind: str, channels: int) -> Deformations:
    """Returns the deformations that suit a kind of images.

    Args:
        kind: one of `PRESETS`, or "auto": "digits" for grey images and "colour" for others.
        channels: C of the images.

    Raises:
        UnknownNameError: there is no such kind.
    """
    if kind == "auto":
        kind = "digits" if channels == 1 else "colour"
    if kind not in PRESETS:
        raise UnknownNameError("kind of images", kind, ["auto", *PRESETS])
    return PRESETS[kind]


def deformed(images: Tensor, deformations: Deformations, random: torch.Generator) -> Tensor:
    """Returns another version of each image (B, C, H, W) in [-1, 1], float32.

    Places beyond the border show what lies on it.

    Args:
        images: to deform; they stay as they are.
        deformations: how far.
        random: decides, on the CPU, so that every device sees the same.
    """
    if deformations.apart and images.shape[1] > 1:
        return deformed(images.flatten(0, 1)[:, None], deformations, random).reshape(images.shape)
    count, channels, height, width = images.shape
    device = images.device

    def spread(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=random) * 2 - 1) * limit

    affine, bend = _motion(deformations, count, spread, random)
    stroke = spread(deformations.stroke, 1, 1, 1)
    grey = torch.rand(count, 1, 1, 1, generator=random) if channels > 1 else stroke
    contrast = spread(deformations.contrast, 1, 1, 1).exp()
    brightness = spread(deformations.brightness, channels, 1, 1)
    is_coloured = channels == 3 and bool(deformations.hue or deformations.saturation)
    colours = _colours(deformations, spread) if is_coloured else stroke
    drawn = [affine, bend, stroke, grey, contrast, brightness, colours]
    affine, bend, stroke, grey, contrast, brightness, colours = _sent_together(drawn, device)

    plane, knots = _places(height, width, device)
    places = affine @ plane
    if deformations.bend:
        places += bend @ knots
    places = places.reshape(count, 2, height, width).permute(0, 2, 3, 1)
    result = functional.grid_sample(images, places, padding_mode="border", align_corners=False)
    if deformations.stroke:
        result = _stroked(result, stroke)
    if is_coloured:
        result = (colours @ result.flatten(2)).view_as(result)
    if channels > 1 and deformations.grey:
        is_grey = grey < deformations.grey
        result = torch.where(is_grey, result.mean(dim=1, keepdim=True), result)
    return result.mul_(contrast).add_(brightness).clamp(-1, 1)


def _sent_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Returns small tensors (B, ...) of the CPU on a device, in the time that one of them takes."""
    if device.type == "cpu":
        return list(tensors)
    rows = sent(torch.cat([tensor.flatten(1) for tensor in tensors], dim=1), device)
    parts = rows.split([math.prod(tensor.shape[1:]) for tensor in tensors], dim=1)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _motion(
    ranges: Deformations, count: int, spread: Callable[..., Tensor], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns affine maps of the plane, (B, 2, 3), and how far knots are moved, (B, 2, 25)."""
    angle, shear = spread(math.radians(ranges.turn)), spread(ranges.shear)
    wide, high = spread(ranges.stretch).exp(), spread(ranges.stretch).exp()
    seen = torch.zeros(count, 2, 1)
    if ranges.crop < 1:
        side = (1 - (1 - ranges.crop) * torch.rand(count, generator=random)).sqrt()
        wide, high = (wide * side).clamp(max=1), (high * side).clamp(max=1)
        seen = (1 - torch.stack([wide, high], dim=1)[..., None]) * spread(1.0, 2, 1)
    if ranges.flip:
        wide = wide * (torch.randint(2, (count,), generator=random) * 2 - 1)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * wide, (shear * cos - sin) * high], dim=1),
        torch.stack([sin * wide, (shear * sin + cos) * high], dim=1),
    ]
    affine = torch.cat([torch.stack(rows, dim=1), spread(2 * ranges.shift, 2, 1) + seen], dim=2)
    return affine, spread(2 * ranges.bend, 2, _KNOTS, _KNOTS).flatten(2)


def _colours(ranges: Deformations, spread: Callable[..., Tensor]) -> Tensor:
    """Returns what RGB is multiplied by, (B, 3, 3): greys stay, and all else turns about them."""
    angle = spread(math.radians(ranges.hue), 1, 1)
    factor = spread(ranges.saturation, 1, 1).exp()
    mean = torch.full((3, 3), 1 / 3)
    right = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return mean + factor * (angle.cos() * (torch.eye(3) - mean) + angle.sin() * right)


@functools.lru_cache(maxsize=8)
def _places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns what the places of pixels are made of, so that a product with it gives them.

    Returns:
        x, y and 1, (3, H·W), and how much each knot weighs in bicubic interpolation, (25, H·W).
    """
    same = torch.eye(2, 3)[None]
    places = functional.affine_grid(same, [1, 1, height, width], align_corners=False).flatten(0, 2)
    knots = torch.eye(_KNOTS**2).reshape(-1, 1, _KNOTS, _KNOTS)
    smooth = functional.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
    plane = torch.cat([places.T, torch.ones(1, len(places))])
    return plane.to(device), smooth.flatten(1).to(device)


def _stroked(images: Tensor, stroke: Tensor) -> Tensor:
    """Returns images whose strokes are thicker; thinner where stroke (B, 1, 1, 1) is below 0.

    Where they become thinner, dark becomes thicker, so that one pass serves all images.
    """
    sign = torch.where(stroke < 0, -1.0, 1.0)
    signed = images * sign
    return images + stroke.abs() * (_thickened(signed) * sign - images)


def _thickened(images: Tensor) -> Tensor:
    """Returns the largest value among each pixel and its eight neighbours, one axis at a time."""
    for axis in (2, 3):
        last = images.shape[axis] - 1
        pairs = torch.maximum(images.narrow(axis, 0, last), images.narrow(axis, 1, last))
        ends = images.narrow(axis, 0, 1), images.narrow(axis, last, 1)
        images = torch.maximum(
            torch.cat([ends[0], pairs], dim=axis), torch.cat([pairs, ends[1]], dim=axis)
        )
    return images
