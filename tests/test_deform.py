"""Deformations: what each does, presets by kind of image, the same on every device."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.images import Deformations, deformed, preset
from pgmkit.images.deform import PRESETS

STILL = Deformations()


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6, channels: int = 1) -> Tensor:
    """A bright bar on black, thicker from picture to picture."""
    images = torch.full((count, channels, 32, 32), -1.0)
    for index in range(count):
        images[index, :, 8:24, 14 : 16 + index] = 1.0
    return images


def smooth(count: int, channels: int, height: int, width: int) -> Tensor:
    coarse = torch.rand(count, channels, 6, 6, generator=random(9)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def cubic(distance: Any) -> Any:
    """The kernel of bicubic interpolation (Keys 1981), a = -0.75."""
    x = abs(distance)
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def knot_weights(length: int) -> Any:
    """How much each of 5 knots from end to end weighs at each pixel, (length, 5)."""
    places = np.linspace(0, 4, length)
    weights = np.zeros((length, 5))
    for knot in range(-2, 7):  # those beyond the ends are as the last
        weights[:, np.clip(knot, 0, 4)] += cubic(places - knot)
    return weights


def slowly(images: Tensor, strength: float, flip: bool, chance: torch.Generator) -> Any:
    """What was the one deformation there was, pixel by pixel and in float64."""
    count, channels, height, width = images.shape

    def spread(limit: float, *shape: int) -> Any:
        drawn = torch.rand(count, *shape, generator=chance)
        return (drawn.double().numpy() * 2 - 1) * limit * strength

    angle, shear = spread(math.radians(20)), spread(0.4)
    wide, high = np.exp(spread(0.25)), np.exp(spread(0.25))
    if flip:
        wide = wide * (torch.randint(2, (count,), generator=chance).numpy() * 2 - 1)
    shift, bend, stroke = spread(0.2, 2, 1)[..., 0], spread(0.12, 2, 5, 5), spread(1.0, 1, 1, 1)
    grey = torch.rand(count, 1, 1, 1, generator=chance).numpy() if channels > 1 else None
    contrast = np.exp(spread(0.3, 1, 1, 1))
    brightness = spread(0.3 if channels > 1 else 0.0, channels, 1, 1)

    result = np.zeros(images.shape)
    down, across = knot_weights(height), knot_weights(width)
    x = (2 * np.arange(width) + 1) / width - 1
    y = ((2 * np.arange(height) + 1) / height - 1)[:, None]
    for index, image in enumerate(images.double().numpy()):
        turn = np.array(
            [
                [np.cos(angle[index]), -np.sin(angle[index])],
                [np.sin(angle[index]), np.cos(angle[index])],
            ]
        )
        leaned = turn @ np.array([[1, shear[index]], [0, 1]]) @ np.diag([wide[index], high[index]])
        bent = [down @ knots @ across.T for knots in bend[index]]
        at_x, at_y = (
            row[0] * x + row[1] * y + shift[index, axis] + bent[axis]
            for axis, row in enumerate(leaned)
        )
        columns = np.clip(((at_x + 1) * width - 1) / 2, 0, width - 1)
        rows = np.clip(((at_y + 1) * height - 1) / 2, 0, height - 1)
        left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
        right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
        u, v = columns - left, rows - top
        for channel, plane in enumerate(image):
            upper = plane[top, left] * (1 - u) + plane[top, right] * u
            lower = plane[below, left] * (1 - u) + plane[below, right] * u
            result[index, channel] = upper * (1 - v) + lower * v
    thick = maximum_filter(result, (1, 1, 3, 3), mode="nearest")
    thin = -maximum_filter(-result, (1, 1, 3, 3), mode="nearest")
    result = (
        result + np.maximum(stroke, 0) * (thick - result) + np.maximum(-stroke, 0) * (thin - result)
    )
    if grey is not None:
        result = np.where(grey < 0.2, result.mean(axis=1, keepdims=True), result)
    return (result * contrast + brightness).clip(-1, 1)


@pytest.mark.parametrize(("channels", "strength"), [(1, 1.0), (1, 0.3), (3, 1.0), (3, 0.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_what_is_fast_has_the_values_of_what_is_slow(
    channels: int, strength: float, flip: bool
) -> None:
    images = smooth(40, channels, 28, 32)
    ranges = replace(preset("auto", channels).scaled(strength), flip=flip)
    quick, slow = random(3), random(3)
    found = deformed(images, ranges, quick)
    assert abs(found.numpy() - slowly(images, strength, flip, slow)).max() < 3e-6
    assert torch.equal(quick.get_state(), slow.get_state())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["auto", *PRESETS])
def test_deformed_images_differ_and_stay_in_range(kind: str, channels: int) -> None:
    images = pictures(channels=channels)
    before = images.clone()
    ranges = preset(kind, channels)
    first, again = (deformed(images, ranges, random(3)) for _ in range(2))
    other = deformed(images, ranges, random(4))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.abs().max() <= 1
    assert ((first - other).abs().mean(dim=(1, 2, 3)) > 0.005).all()
    assert ((first - images).abs().mean(dim=(1, 2, 3)) > 0.005).all()


def test_without_any_range_an_image_stays_as_it_is() -> None:
    images = smooth(8, 3, 20, 24)
    torch.testing.assert_close(deformed(images, STILL, random()), images, rtol=0, atol=1e-5)
    for kind in PRESETS:
        ranges = replace(PRESETS[kind].scaled(0.0), flip=False, grey=0.0, apart=False)
        assert ranges == STILL
    mirrored = deformed(images, replace(STILL, flip=True), random())
    turned = [
        torch.allclose(m, i.flip(-1), atol=1e-5) for m, i in zip(mirrored, images, strict=True)
    ]
    same = [torch.allclose(m, i, atol=1e-5) for m, i in zip(mirrored, images, strict=True)]
    assert [a != b for a, b in zip(turned, same, strict=True)] == [True] * 8
    assert 0 < sum(turned) < 8


def test_colour_is_lost_by_the_share_that_is_asked_for() -> None:
    images = smooth(400, 3, 8, 8)
    found = deformed(images, replace(STILL, grey=0.25), random())
    is_grey = (found - found.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert float(is_grey.float().mean()) == pytest.approx(0.25, abs=0.06)
    kept = deformed(images[:, :1], replace(STILL, grey=1.0), random())
    torch.testing.assert_close(kept, images[:, :1], rtol=0, atol=1e-5)


def test_strokes_become_thicker_and_thinner() -> None:
    many = pictures(1).repeat(200, 1, 1, 1)
    for ranges in (PRESETS["digits"], replace(STILL, stroke=1.0)):
        bright = (deformed(many, ranges, random()) > 0).float()
        inside = bright.mean(dim=(1, 2, 3)) / (pictures(1) > 0).float().mean()
        assert inside.min() < 0.5
        assert inside.max() > 1.3


def places(ranges: Deformations, count: int = 500) -> tuple[Tensor, Tensor]:
    """Returns which x and y, from -1 to 1 across the picture, are seen at each pixel."""
    side = (torch.arange(33) - 16) / 16.5
    images = torch.stack([side.expand(33, 33), side[:, None].expand(33, 33)])
    found = deformed(images.expand(count, 2, 33, 33), ranges, random())
    return found[:, 0], found[:, 1]


def test_ranges_are_those_that_are_said() -> None:
    x, y = places(replace(STILL, shift=0.1))
    for axis in (x, y):
        moved = axis[:, 16, 16] / 2  # of a side
        assert 0.095 < moved.abs().max() <= 0.1 + 1e-5
    x, y = places(replace(STILL, turn=20))
    angle = torch.atan2(y[:, 16, 24], x[:, 16, 24]).rad2deg()
    assert 19 < angle.abs().max() <= 20 + 1e-3
    x, _ = places(replace(STILL, stretch=0.25))
    factor = (x[:, 16, 24] - x[:, 16, 16]) / (8 / 16.5)
    assert 1.25 < factor.max() <= math.exp(0.25) + 1e-4
    assert math.exp(-0.25) - 1e-4 <= factor.min() < 0.8
    x, y = places(replace(STILL, bend=0.06))
    for axis in (x, y):
        moved = axis[:, 16, 16] / 2  # where a knot is
        assert 0.055 < moved.abs().max() <= 0.06 + 1e-5


def test_a_crop_shows_a_part_of_the_picture_and_nothing_beyond() -> None:
    x, y = places(replace(STILL, crop=0.3))
    width, height = (seen[:, -1, -1] - seen[:, 0, 0] for seen in (x, y))
    area = (width / (64 / 33)) * (height / (64 / 33))
    assert 0.3 - 1e-3 <= area.min() < 0.35
    assert 0.9 < area.max() <= 1 + 1e-3
    assert (x[:, 0, 0] >= -1).all()
    assert (x[:, -1, -1] <= 1).all()
    assert x[:, 16, 16].std() > 0.05


def test_contrast_and_brightness_are_those_that_are_said() -> None:
    level = torch.full((500, 3, 4, 4), 0.1)
    found = deformed(level, replace(STILL, contrast=0.4), random())[:, 0, 0, 0] / 0.1
    assert 1.45 < found.max() <= math.exp(0.4) + 1e-4
    found = deformed(level, replace(STILL, brightness=0.3), random())[..., 0, 0] - 0.1
    assert 0.29 < found.abs().max() <= 0.3 + 1e-5
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.1


def test_channels_that_are_images_are_deformed_each_on_its_own() -> None:
    digits, stacked = PRESETS["digits"], PRESETS["stacked"]
    images = torch.rand(6, 1, 16, 16, generator=random()).repeat(1, 3, 1, 1) * 2 - 1
    together = deformed(images, digits, random())
    assert torch.equal(together[:, 0], together[:, 2])
    found = deformed(images, stacked, random())
    assert (found[:, 0] - found[:, 2]).abs().amax(dim=(1, 2)).min() > 0.1
    alone = deformed(images.reshape(18, 1, 16, 16), digits, random())
    assert torch.equal(found, alone.reshape(6, 3, 16, 16))
    grey = images[:, :1]
    assert torch.equal(deformed(grey, stacked, random()), deformed(grey, digits, random()))


def test_hues_turn_about_the_greys_and_saturation_moves_away_from_them() -> None:
    images = torch.rand(50, 3, 8, 8, generator=random()) * 0.6 - 0.3
    before = images - images.mean(dim=1, keepdim=True)
    for ranges in (Deformations(hue=36), Deformations(saturation=0.4)):
        found = deformed(images, ranges, random())
        torch.testing.assert_close(found.mean(dim=1), images.mean(dim=1))
        after = found - found.mean(dim=1, keepdim=True)
        factor = (after.norm(dim=1) / before.norm(dim=1)).log()
        cosine = torch.nn.functional.cosine_similarity(after, before, dim=1)
        angle = cosine.clamp(-1, 1).acos() * 180 / math.pi
        for measured, limit in ((angle, ranges.hue), (factor, ranges.saturation)):
            of_each = measured.median(dim=2).values.median(dim=1).values
            torch.testing.assert_close(  # the same in all of an image
                measured, of_each[:, None, None].expand_as(measured), atol=0.3, rtol=0
            )
            assert of_each.abs().max() <= limit + 0.1
            assert of_each.abs().max() >= 0.8 * limit
    grey = images[:, :1].expand(-1, 3, -1, -1)
    ranges = Deformations(hue=36, saturation=0.4)
    torch.testing.assert_close(deformed(grey, ranges, random()), grey)
    assert torch.equal(deformed(images[:, :1], ranges, random()), images[:, :1])


def test_kinds_of_images_suit_what_they_show() -> None:
    assert preset("auto", 1) == PRESETS["digits"]
    assert preset("auto", 3) == PRESETS["colour"]
    assert not PRESETS["digits"].flip
    for name in ("turn", "stretch", "shear", "bend", "stroke"):
        assert getattr(PRESETS["clothes"], name) < getattr(PRESETS["digits"], name)
    assert PRESETS["photographs"].stroke == PRESETS["photographs"].bend == 0
    assert PRESETS["photographs"].crop < 1
    with pytest.raises(UnknownNameError, match=r"'digit'; did you mean 'digits'"):
        preset("digit", 1)


def test_strength_scales_how_far_and_not_how_often() -> None:
    for ranges in PRESETS.values():
        half = asdict(ranges.scaled(0.5))
        for name, value in asdict(ranges).items():
            if name in ("grey", "flip", "apart"):
                assert half[name] == value
            elif name == "crop":
                assert half[name] == pytest.approx((1 + value) / 2)
            else:
                assert half[name] == value / 2
        assert ranges.scaled(1.0) == ranges
    for strength in (-1.0, math.inf, math.nan, "1"):
        with pytest.raises(ParameterError, match="strength must be at least 0"):
            STILL.scaled(strength)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("turn", -1, "turn of deformations must be at least 0, not -1"),
        ("bend", math.nan, "bend of deformations must be at least 0, not nan"),
        ("shift", math.inf, "shift of deformations must be at least 0"),
        ("stroke", "1", "stroke of deformations must be at least 0, not '1'"),
        ("contrast", True, "contrast of deformations must be at least 0, not True"),
        ("grey", 1.5, "grey of deformations must be from 0 to 1, not 1.5"),
        ("crop", 2, "crop of deformations must be from 0 to 1, not 2"),
        ("flip", 1, "flip must be true or false, not 1"),
        ("apart", "no", "apart must be true or false, not 'no'"),
    ],
)
def test_ranges_that_are_none_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        replace(STILL, **{name: value})


def test_images_of_any_size_and_number_of_channels_are_deformed() -> None:
    for shape in ((2, 1, 1, 1), (1, 4, 3, 50), (3, 2, 64, 16)):
        found = deformed(torch.zeros(shape), preset("auto", shape[1]), random())
        assert found.shape == shape
        assert found.isfinite().all()


def devices() -> list[str]:
    return ["cuda"] if torch.cuda.is_available() else []


@pytest.mark.parametrize("kind", PRESETS)
def test_every_device_sees_the_same(kind: str) -> None:
    """On the device "meta", which has no values, all that is checked is that nothing is made on
    another one."""
    images = smooth(32, 3, 32, 32)
    expected = deformed(images, PRESETS[kind], random(1))
    for device in devices():
        found = deformed(images.to(device), PRESETS[kind], random(1))
        assert found.device.type == device
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5)
    assert deformed(images.to("meta"), PRESETS[kind], random(1)).device.type == "meta"
