"""Data sets of images: classes, labels, pixels, sizes, torchvision; what is hostile or damaged."""

import io
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pgmkit.errors import DataError, ParameterError, PgmkitError
from pgmkit.images import (
    ArrayImages,
    ImageSource,
    as_channels,
    batches,
    load_images,
)
from pgmkit.images.rows import KeptRows
from pgmkit.pictures import to_uint8

Bytes = npt.NDArray[np.uint8]

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def save(path: Path, array: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blocks(count: int, height: int, width: int) -> Bytes:
    """Pictures with edges, in colour, in which a way to shrink shows."""
    coarse = noise(count, height // 8, width // 8, 3)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def folder_of(root: Path, images: Bytes) -> str:
    for index, image in enumerate(images):
        save(root / f"{index:03d}.png", image)
    return str(root)


def archive_of(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def seen(source: ImageSource) -> torch.Tensor:
    """Returns all images of a source as bytes (N, C, H, W)."""
    return torch.cat([to_uint8(batch, (-1.0, 1.0)) for batch in batches(source, 3)])


def one(path: Path) -> torch.Tensor:
    """Returns the only image below a folder, (C, H, W)."""
    (image,) = seen(load_images(str(path)))
    return image


def test_sub_folders_are_classes_in_natural_order(tmp_path: Path) -> None:
    for value, name in enumerate(("a1", "a2", "a10")):
        save(tmp_path / name / "one.png", np.full((4, 4), value, np.uint8))
    data = load_images(str(tmp_path))
    assert data.classes == {0: "a1", 1: "a2", 2: "a10"}
    assert data.labels is not None
    assert data.labels.tolist() == seen(data)[:, 0, 0, 0].tolist()


def test_folders_called_by_numbers_get_those_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10, 11, 30):
        save(tmp_path / str(number) / "one.png", np.full((4, 4), number, np.uint8))
    data = load_images(str(tmp_path))
    assert data.labels is not None
    assert data.labels.tolist() == seen(data)[:, 0, 0, 0].tolist()
    save(tmp_path / "01" / "one.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"two classes of .* are the same number"):
        load_images(str(tmp_path))


def test_hidden_and_empty_folders_are_no_classes_and_hidden_files_no_images(tmp_path: Path) -> None:
    for name in ("b", "c"):
        save(tmp_path / name / "one.png", RAMP)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "a").mkdir()
    save(tmp_path / "b" / ".ipynb_checkpoints" / "one-checkpoint.png", RAMP)
    (tmp_path / "b" / "._one.png").write_bytes(b"what a Mac leaves behind")
    data = load_images(str(tmp_path))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]
    assert data.classes == {0: "b", 1: "c"}


def test_a_class_may_be_a_link_and_links_that_go_round_end(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "one.png", RAMP)
    save(tmp_path / "data" / "a" / "one.png", RAMP)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "round").symlink_to(tmp_path / "data")
    data = load_images(str(tmp_path / "data"))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_names_decide_which_class_of_a_classifier_is_meant(tmp_path: Path) -> None:
    names = ["shirt", "bag", "boot"]
    for value, name in enumerate(names):
        save(tmp_path / name / "one.png", np.full((4, 4), value, np.uint8))
    data = load_images(str(tmp_path)).numbered_as(names, "the classifier")
    assert data.labels is not None
    assert data.labels.tolist() == seen(data)[:, 0, 0, 0].tolist()
    assert data.numbered_as(names, "the classifier").labels is not None
    with pytest.raises(DataError, match="class 'boot', which the classifier does not know; did "):
        data.numbered_as(["boots", "bag", "shirt"], "the classifier")


@pytest.mark.parametrize(
    ("held", "names", "numbers"),
    [
        ([3, 8], ["3", "8"], [0, 1]),
        (["03", "08"], ["8", "3"], [1, 0]),
        ([0, 2], ["cat", "dog", "owl"], [0, 2]),
        (["dog"], ["cat", "dog"], [1]),
    ],
)
def test_numbers_are_names_where_the_classifier_has_them_and_places_else(
    tmp_path: Path, held: list[Any], names: list[str], numbers: list[int]
) -> None:
    for name in held:
        save(tmp_path / str(name) / "one.png", RAMP)
    labels = load_images(str(tmp_path)).numbered_as(names, "the classifier").labels
    assert labels is not None
    assert labels.tolist() == numbers


def test_numbers_that_a_classifier_of_numbers_does_not_know_are_refused(tmp_path: Path) -> None:
    for name in ("0", "1"):
        save(tmp_path / name / "one.png", RAMP)
    with pytest.raises(DataError, match="has the class '0', which judge does not know"):
        load_images(str(tmp_path)).numbered_as(["1", "2"], "judge")


def test_a_test_split_is_numbered_as_the_training_images(tmp_path: Path) -> None:
    for path in ("train/a", "train/b", "train/c", "test/c"):
        save(tmp_path / path / "one.png", RAMP)
    labels = load_images(str(tmp_path), split="test").labels
    assert labels is not None
    assert labels.tolist() == [2]
    save(tmp_path / "test" / "cc" / "one.png", RAMP)
    with pytest.raises(DataError, match=r"has the class 'cc'.* did you mean 'c'"):
        load_images(str(tmp_path), split="test")


def test_a_test_split_is_never_what_was_trained_on(tmp_path: Path) -> None:
    whole = archive_of(tmp_path / "whole.npz", images=noise(4, 8, 8), labels=np.arange(4))
    assert len(load_images(whole)) == 4
    with pytest.raises(DataError, match="x_test"):
        load_images(whole, split="test")
    save(tmp_path / "folder" / "a" / "one.png", RAMP)
    with pytest.raises(DataError, match="no folder 'test'"):
        load_images(str(tmp_path / "folder"), split="test")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2, 0, 1, 2]),
        np.array([[2], [0], [1], [2]], dtype=np.uint8),
        np.array([2.0, 0.0, 1.0, 2.0]),
        np.eye(3)[[2, 0, 1, 2]],
        np.eye(3, dtype=bool)[[2, 0, 1, 2]],
    ],
)
def test_labels_of_every_form_are_one_number_per_image(labels: Any, tmp_path: Path) -> None:
    found = load_images(archive_of(tmp_path / "x.npz", images=noise(4, 8, 8), labels=labels)).labels
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1, 2]


def test_labels_may_be_names(tmp_path: Path) -> None:
    labels = np.array(["owl", "cat", "dog", "owl"])
    data = load_images(archive_of(tmp_path / "x.npz", images=noise(4, 8, 8), labels=labels))
    assert data.labels is not None
    assert data.classes == {0: "cat", 1: "dog", 2: "owl"}
    assert data.labels.tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros(3, np.int64),
        np.full(4, 0.5),
        np.array([0, 1, np.nan, 1]),
        np.ones((4, 3), np.int64),
        np.full((4, 2), 0.5),
        np.array(3),
        np.zeros((2, 2), np.int64),
    ],
)
def test_labels_that_are_not_one_per_image_are_refused(labels: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be 4 whole numbers or names, one per image"):
        load_images(archive_of(tmp_path / "x.npz", images=noise(4, 8, 8), labels=labels))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_divided_by_257(suffix: str, tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257 + np.uint16(100)
    deep[-1, -1] = 65535
    save(tmp_path / f"deep.{suffix}", deep)
    assert np.array_equal(one(tmp_path)[0], RAMP)
    stack = archive_of(tmp_path / "deep.npz", images=deep[None])
    assert np.array_equal(seen(load_images(stack))[0, 0], RAMP)


def test_bytes_that_were_stored_with_16_bits_are_not_taken_for_black(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RAMP.astype(np.uint16))
    with pytest.raises(DataError, match=r"none is brighter than 1 of 255.* save them with 8 bits"):
        load_images(str(tmp_path))
    with pytest.raises(DataError, match="save them with 8 bits"):
        load_images(archive_of(tmp_path / "x.npz", images=RAMP.astype(np.uint16)[None]))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_whose_range_nobody_knows_are_refused(kind: type, tmp_path: Path) -> None:
    save(tmp_path / "a.tif", (RAMP / 255).astype(kind))
    with pytest.raises(DataError, match=r"a\.tif holds .* whose range is unknown; save it with 8"):
        load_images(str(tmp_path))
    with pytest.raises(DataError, match=r"they must be uint8 \(0 to 255\)"):
        load_images(archive_of(tmp_path / "x.npz", images=RAMP[None].astype(kind)))


def test_what_is_transparent_lies_on_white_in_files_and_arrays(tmp_path: Path) -> None:
    colour, alpha = noise(6, 6, 3), noise(6, 6, seed=1)
    for name, opaque in {"grey": colour[..., 0], "colour": colour}.items():
        layered = np.dstack([opaque, alpha])
        share = alpha / 255.0 if name == "grey" else alpha[..., None] / 255.0
        expected = opaque * share + 255 * (1 - share)
        save(tmp_path / name / "a.png", layered)
        stack = archive_of(tmp_path / f"{name}.npz", images=layered[None])
        for source in (str(tmp_path / name), stack):
            (image,) = seen(load_images(source))
            assert image.shape[0] == (1 if name == "grey" else 3)
            found = image.numpy().transpose(1, 2, 0).squeeze().astype(float)
            assert abs(found - expected).max() <= 1


def test_palettes_and_cmyk_become_rgb(tmp_path: Path) -> None:
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2] = (255, 0, 0)
    colours[2:] = (0, 0, 255)
    picture = Image.fromarray(colours)
    (tmp_path / "palette").mkdir()
    (tmp_path / "cmyk").mkdir()
    picture.quantize(2).save(tmp_path / "palette" / "a.png")
    picture.convert("CMYK").save(tmp_path / "cmyk" / "a.tif")
    for name in ("palette", "cmyk"):
        assert np.array_equal(one(tmp_path / name).numpy().transpose(1, 2, 0), colours)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png", transparency=0)
    assert one(tmp_path)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]


def test_the_rotation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    picture = noise(4, 6)
    save(tmp_path / "a.png", picture, exif=exif)
    assert np.array_equal(one(tmp_path)[0], np.rot90(picture, -1))


def test_a_note_of_a_camera_that_is_damaged_is_an_error_with_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 4), exif=b"Exif\0\0nothing that is known")
    with pytest.raises(DataError, match=r"a\.png cannot be made grey or RGB"):
        load_images(str(tmp_path))


def test_grey_among_colour_becomes_rgb(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(8, 8))
    save(tmp_path / "b.png", noise(8, 8, 3))
    images = seen(load_images(str(tmp_path)))
    assert np.array_equal(images[0], np.broadcast_to(noise(8, 8), (3, 8, 8)))
    assert np.array_equal(images[1], noise(8, 8, 3).transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(5, 8, 9, 3), (5, 3, 8, 9), (5, 8, 9), (5, 8, 9, 1)])
def test_channels_may_come_first_or_last(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = noise(*shape)
    images = seen(load_images(archive_of(tmp_path / "x.npz", images=array)))
    assert images.shape[2:] == (8, 9)
    first = array if shape[1] == 3 else np.moveaxis(array.reshape(5, 8, 9, -1), 3, 1)
    assert np.array_equal(images, first)


@pytest.mark.parametrize("shape", [(32, 32, 3), (4, 16, 16, 16), (8, 8), (0, 8, 8), (4, 784)])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(N, H, W, C\) or \(N, C, H, W\)"):
        load_images(archive_of(tmp_path / "x.npz", images=noise(*shape)))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (24, 96), (24, 24)])
def test_the_same_pictures_are_the_same_whatever_holds_them(
    height: int, width: int, tmp_path: Path
) -> None:
    pictures = blocks(6, height, width)
    by_folder = seen(load_images(folder_of(tmp_path / "all", pictures), size=32))
    by_array = seen(load_images(archive_of(tmp_path / "x.npz", images=pictures), size=32))
    folder_of(tmp_path / "set" / "root" / "a", pictures)
    by_name = seen(load_images(f"torchvision:ImageFolder:{tmp_path / 'set' / 'root'}", size=32))
    assert torch.equal(by_folder, by_array)
    assert torch.equal(by_folder, by_name)
    first = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    planes = archive_of(tmp_path / "p.npz", images=np.concatenate([first, first], axis=1))
    assert torch.equal(seen(load_images(planes, size=32))[:, :3], by_folder)


def test_the_middle_is_shrunk_in_proportion_with_antialias(tmp_path: Path) -> None:
    slope = np.tile(2 * np.arange(128, dtype=np.uint8), (1, 64, 1))
    small = seen(load_images(archive_of(tmp_path / "x.npz", images=slope), size=8))
    middle = 2 * np.arange(32, 96).reshape(8, 8).mean(axis=1)
    assert small.shape == (1, 1, 8, 8)
    assert abs(small[0, 0, :, 2:6].numpy() - middle[2:6]).max() <= 1  # at the ends there is a wall
    flicker = np.tile(np.array([0, 255], np.uint8), (1, 64, 32))
    grey = seen(load_images(archive_of(tmp_path / "y.npz", images=flicker), size=8))
    assert abs(grey[..., 1:-1].float() - 127.5).max() < 8


def test_small_images_are_padded_with_black_and_centred(tmp_path: Path) -> None:
    digits = noise(3, 28, 28)
    data = load_images(archive_of(tmp_path / "x.npz", images=digits), size=32)
    assert seen(data).shape == (3, 1, 32, 32)
    assert np.array_equal(seen(data)[:, 0, 2:30, 2:30], digits)
    assert seen(data).sum() == digits.sum()
    batch = data.batch(torch.tensor([0, 1]))
    assert batch.min() == -1.0
    assert batch.max() <= 1.0


def test_a_side_that_is_too_short_is_padded_and_one_that_is_too_long_is_cut(tmp_path: Path) -> None:
    thin, square = noise(30, 64), noise(64, 64, seed=1)
    save(tmp_path / "a.png", thin)
    save(tmp_path / "b.png", square)
    images = seen(load_images(str(tmp_path), size=32))
    assert np.array_equal(images[0, 0, 1:31], thin[:, 16:48])
    assert images[0, 0, (0, 31)].max() == 0
    wide = seen(load_images(str(tmp_path), size=(16, 32)))
    assert wide.shape == (2, 1, 16, 32)


def test_images_of_several_sizes_are_named_with_what_helps(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(30, 40))
    save(tmp_path / "b.png", noise(30, 41))
    with pytest.raises(DataError, match=r"b\.png has 30×41 pixels and .*a\.png has 30×40; set im"):
        load_images(str(tmp_path))
    assert len(load_images(str(tmp_path), size=16)) == 2


def test_colour_becomes_grey_by_luma_and_grey_becomes_colour() -> None:
    images = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).reshape(2, 3, 1, 1)
    assert as_channels(images, 1, "it").flatten().tolist() == pytest.approx([0.299, 0.587])
    assert torch.equal(as_channels(images[:, :1], 3, "it")[0], torch.ones(3, 1, 1))
    assert as_channels(images, None, "it") is images
    with pytest.raises(ParameterError, match="it takes images of 3 channels, and these have 2"):
        as_channels(images[:, :2], 3, "it")


def write_mnist(root: Path, name: str = "MNIST", prefix: str = "") -> Bytes:
    """Writes the files of a data set of MNIST's family, and returns the images of each split."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = noise(2, 28, 28)
    for split in ("train", "test" if prefix else "t10k"):
        header = np.array([0x00000803, 2, 28, 28], dtype=">i4").tobytes()
        (raw / f"{prefix}{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x00000801, 2], dtype=">i4").tobytes()
        (raw / f"{prefix}{split}-labels-idx1-ubyte").write_bytes(header + bytes([7, 3]))
    return images


def test_a_torchvision_data_set_is_read_by_name(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)
    for split in ("train", "test"):
        data = load_images(f"torchvision:MNIST:{tmp_path}", split=split)
        assert data.labels is not None
        assert data.labels.tolist() == [7, 3]
        assert np.array_equal(seen(data)[:, 0], images)
    assert (data.name, data.classes) == ("torchvision:MNIST", None)


def test_parameters_of_a_torchvision_data_set_stand_behind_its_root(tmp_path: Path) -> None:
    root = tmp_path / "with:colon"
    write_mnist(root, "EMNIST", prefix="emnist-letters-")
    assert len(load_images(f"torchvision:EMNIST:{root}:split=letters", split="test")) == 2
    fake = "torchvision:FakeData:.:size=5:image_size=[3, 8, 6]"
    data = load_images(fake)
    assert seen(data).shape == (5, 3, 8, 6)
    assert data.labels is not None


def test_attributes_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CelebA in its own form, but without the checksums of the real files."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
    root, names = tmp_path / "celeba", [f"{index:06d}.jpg" for index in range(1, 4)]
    for name in names:
        save(root / "img_align_celeba" / name, noise(22, 18, 3))
    for file, header, values in (
        ("list_eval_partition", "", "0"),
        ("identity_CelebA", "", "1"),
        ("list_attr_celeba", "3\nbald young\n", "-1 1"),
        ("list_bbox_celeba", "3\nimage_id x y w h\n", "1 2 3 4"),
        ("list_landmarks_align_celeba", "3\na b\n", "1 2"),
    ):
        lines = "".join(f"{name} {values}\n" for name in names)
        (root / f"{file}.txt").write_text(header + lines)
    data = load_images(f"torchvision:CelebA:{tmp_path}", size=16)
    assert seen(data).shape == (3, 3, 16, 16)
    assert data.labels is None
    labels = load_images(f"torchvision:CelebA:{tmp_path}:target_type=identity").labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="is asked for split=all, so there are no images that were"):
        load_images(f"torchvision:CelebA:{tmp_path}:split=all", split="test")


def test_classes_of_a_torchvision_data_set_keep_their_names(tmp_path: Path) -> None:
    root = tmp_path / "eurosat" / "2750"
    for value, name in enumerate(("Forest", "Pasture", "River")):
        save(root / name / "one.png", np.dstack([np.full((4, 4), value, np.uint8)] * 3))
    data = load_images(f"torchvision:EuroSAT:{tmp_path}")
    assert data.classes == {0: "Forest", 1: "Pasture", 2: "River"}
    again = data.numbered_as(["River", "Forest", "Pasture"], "judge").labels
    assert again is not None
    assert again.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("torchvision:NOPE:{root}", "no data set of images called 'NOPE'; there are MNIST,"),
        ("torchvision:mnist:{root}", "did you mean 'MNIST'"),
        ("torchvision:CIFAR-10:{root}", "did you mean 'CIFAR10'"),
        ("torchvision:folder:{root}", "no data set of images called 'folder'"),
        ("torchvision:MNIST", "write torchvision:MNIST:ROOT"),
        ("torchvision:MNIST:{root}", "finds no MNIST in {root}; check the folder, or fetch it"),
        ("torchvision:EMNIST:{root}", "needs its split, one of byclass, bymerge, balanced,"),
        ("torchvision:EMNIST:{root}:splitt=letters", "has no parameter 'splitt' to set; did you"),
        ("torchvision:MNIST:{root}:download=true", "has no parameter 'download' to set"),
        ("torchvision:Places365:{root}", "torchvision finds no Places365"),
        ("torchvision:Caltech101:{root}", "torchvision finds no Caltech101"),
        ("torchvision:Omniglot:{root}", "torchvision finds no Omniglot"),
        ("torchvision:LSUN:{root}", "torchvision:LSUN "),
        ("torchvision:ImageFolder:{root}/none", "there are no images at"),
        ("torchvision:SVHN:{root}:split=tset", "torchvision:SVHN "),
    ],
)
def test_a_torchvision_data_set_that_cannot_be_read_says_why_in_one_line(
    source: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        load_images(source.format(root=tmp_path))
    assert said.format(root=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_without_a_test_split_has_none() -> None:
    with pytest.raises(DataError, match="FakeData has no test split"):
        load_images("torchvision:FakeData:.", split="test")


def test_folders_of_a_torchvision_data_set_called_by_numbers_get_those(tmp_path: Path) -> None:
    for number in (2, 10, 11):
        path = tmp_path / "eurosat" / "2750" / str(number) / "one.png"
        save(path, np.full((4, 4), number, np.uint8))
    data = load_images(f"torchvision:EuroSAT:{tmp_path}")
    assert data.labels is not None
    assert data.labels.tolist() == seen(data)[:, 0, 0, 0].tolist()


@contextmanager
def without_rights() -> Iterator[None]:
    """Gives up the rights of the superuser for a while, where there are any."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def in_one_line(source: str) -> str:
    """Returns the error of a source that cannot be read, which is short and quick."""
    started = time.monotonic()
    with pytest.raises(PgmkitError) as caught:
        load_images(source)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_may_not_be_read_are_called_that(tmp_path: Path) -> None:
    picture = save(tmp_path / "data" / "a.png", RAMP)
    archive = Path(archive_of(tmp_path / "x.npz", images=RAMP[None]))
    closed = [p for p in (tmp_path, *tmp_path.parents) if not p.stat().st_mode & 0o005]
    for place in closed:
        place.chmod(0o755)
    (tmp_path / "data" / "b").mkdir(mode=0)
    try:
        with without_rights():
            assert "/b cannot be read: Permission denied" in in_one_line(str(tmp_path / "data"))
        (tmp_path / "data" / "b").rmdir()
        for path in (picture, archive):
            path.chmod(0)
        with without_rights():
            assert "a.png cannot be read: Permission" in in_one_line(str(tmp_path / "data"))
            assert "x.npz cannot be read: Permission denied" in in_one_line(str(archive))
    finally:
        for place in closed:
            place.chmod(0o700)


def png_claiming(width: int, height: int) -> bytes:
    """A picture of a few bytes with a header that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def test_pictures_that_are_none_are_named(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(good, "PNG")
    for content, said in (
        (png_claiming(60_000, 60_000), "a.png has more than the 178,956,970 pixels that are read"),
        (good.getvalue()[:2000], "cannot be read as an image"),
        (b"", "its content is of no known kind; mend or remove it"),
        (b"<html>not found</html>", "its content is of no known kind"),
    ):
        (tmp_path / "a.png").write_bytes(content)
        message = in_one_line(str(tmp_path))
        assert said in message
        assert "a.png" in message
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("nowhere")
    assert "a.png cannot be read: No such file or directory" in in_one_line(str(tmp_path))
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    assert "a.png is no regular file" in in_one_line(str(tmp_path))


def write_header(path: Path, shape: str, kind: str = "|u1") -> str:
    """Writes an .npz file whose header says `shape` and that holds a few bytes."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", data)
    return str(path)


def test_an_archive_is_not_read_before_it_is_known_to_fit(tmp_path: Path) -> None:
    for shape in (f"({2**40},)", f"(4, {2**20}, {2**20})"):
        message = in_one_line(write_header(tmp_path / "x.npz", shape))
        assert "bytes, and the file holds" in message
        assert "it is damaged" in message


def test_a_device_keeps_images_that_fit_a_quarter_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = torch.from_numpy(noise(10, 8, 8))[:, None]
    source, cuda = ArrayImages(pixels), torch.device("cuda")
    assert source.kept_on(torch.device("cpu"))._rows is source._rows
    for free, is_kept in ((4 * 640, True), (4 * 640 - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        found = source.kept_on(cuda)
        assert found.device == cuda
        assert isinstance(found._rows, KeptRows) == is_kept


def test_images_for_which_there_is_no_memory_are_read_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(60, 16, 16)
    folder = folder_of(tmp_path / "all", pixels)
    kept = load_images(folder)
    monkeypatch.setattr("pgmkit.machine.available_memory", lambda: 10_000)
    streamed = load_images(folder)
    (tmp_path / "all" / "007.png").unlink()
    assert np.array_equal(seen(kept)[:, 0], pixels)
    assert np.array_equal(seen(streamed.subset(torch.arange(7)))[:, 0], pixels[:7])
    with pytest.raises(DataError, match=r"007\.png cannot be read: No such file"):
        seen(streamed)
    labelled = archive_of(tmp_path / "x.npz", images=noise(60, 16, 16), labels=np.arange(60))
    monkeypatch.setattr("pgmkit.machine.available_memory", lambda: 100)
    monkeypatch.setattr("pgmkit.machine._LITTLE", 100)
    assert "the labels in" in in_one_line(labelled)


@pytest.mark.parametrize("kind", ["text", "empty", "array", "truncated", "objects", "other"])
def test_an_archive_that_is_none_says_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=noise(40, 16, 16))
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, RAMP)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "objects":
        np.savez(path, images=np.array([{}], dtype=object))
    else:
        np.savez(path, numbers=np.zeros(3))
    said = {
        "objects": "holds Python objects, which are never loaded",
        "other": "holds numbers; it needs an array called 'images' or 'x_train'",
    }
    assert said.get(kind, "is no .npz file, or a damaged one") in in_one_line(str(path))


def test_bytes_that_were_changed_in_an_archive_are_noticed(tmp_path: Path) -> None:
    path = Path(archive_of(tmp_path / "x.npz", images=noise(40, 16, 16)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "CRC" in in_one_line(str(path))


def test_many_files_of_other_kinds_are_passed_over_quickly(tmp_path: Path) -> None:
    for index in range(3000):
        (tmp_path / f"{index}.txt").touch()
    assert "there are no images in" in in_one_line(str(tmp_path))


@pytest.mark.parametrize(
    "source", ["none.npz", "none", "x" * 5000, "x" * 5000 + ".npz", "a\0b", ""]
)
def test_what_is_not_there_is_said_in_one_line(source: str) -> None:
    message = in_one_line(source)
    assert len(message) < 300


def test_a_summary_tells_labels_with_names_from_those_with_others() -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    found = [
        ArrayImages(images, labels, classes).summary()
        for classes in (None, {0: "cat", 1: "dog"}, {0: "dog", 1: "cat"})
    ]
    assert len({str(summary["labels"]) for summary in found}) == 3
    assert len({str(summary["sha256"]) for summary in found}) == 1
    values = [str(summary[key]) for summary in found for key in ("labels", "sha256")]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
    assert "labels" not in ArrayImages(images).summary()


def digits_of(path: Path, count: int = 40) -> str:
    images, labels = noise(count, 28, 28), np.arange(count) % 10
    return archive_of(
        path, x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1]
    )


def test_stacked_images_have_three_grey_ones_and_the_number_of_their_labels(tmp_path: Path) -> None:
    path = digits_of(tmp_path / "digits.npz")
    grey, stacked = load_images(path), load_images(f"stacked:{path}:n=500:seed=3")
    assert (len(stacked), stacked.image.shape) == (500, (3, 28, 28))
    everything = grey.batch(torch.arange(40))[:, 0]
    assert stacked.labels is not None
    for images, label in zip(
        stacked.batch(torch.arange(20)), stacked.labels.tolist(), strict=False
    ):
        found = [int((everything == channel).all(dim=(1, 2)).nonzero()) % 10 for channel in images]
        assert label == 100 * found[0] + 10 * found[1] + found[2]
    assert len(stacked.labels.unique()) > 300
    subset = stacked.subset(torch.tensor([7, 3]))
    assert torch.equal(subset.batch(torch.arange(2)), stacked.batch(torch.tensor([7, 3])))


def test_stacked_images_are_drawn_by_seed_and_split_and_have_a_size(tmp_path: Path) -> None:
    path = digits_of(tmp_path / "digits.npz")
    first, again, other, test = (
        load_images(f"stacked:{path}:{rest}", split=split)
        for rest, split in (
            ("n=9", "train"),
            ("seed=0:n=9", "train"),
            ("n=9:seed=1", "train"),
            ("n=9", "test"),
        )
    )
    assert first.summary() == again.summary()
    assert len({str(x.summary()["sha256"]) for x in (first, other, test)}) == 3
    assert not torch.equal(first.batch(torch.arange(9)), other.batch(torch.arange(9)))
    assert len(load_images(f"stacked:{path}")) == 128_000
    assert len(load_images(f"stacked:{path}", split="test")) == 26_000
    assert load_images(f"stacked:{path}", size=32).batch(torch.arange(2)).shape == (2, 3, 32, 32)


def test_what_cannot_be_stacked_is_told(tmp_path: Path) -> None:
    path = digits_of(tmp_path / "digits.npz")
    archive_of(tmp_path / "colour.npz", images=noise(4, 8, 8, 3), labels=np.arange(4))
    archive_of(tmp_path / "unlabelled.npz", images=noise(4, 8, 8))
    for reference, said in {
        "stacked:": "names no stacked images",
        f"stacked:{path}:n=0": "names no stacked images",
        "stacked:none.npz": "there are no images at none.npz",
        f"stacked:{tmp_path}/colour.npz": "must be grey images",
        "stacked:points:ring": "must be grey images",
        f"stacked:{tmp_path}/unlabelled.npz": "labels",
    }.items():
        with pytest.raises(DataError, match=re.escape(said)):
            load_images(reference)
