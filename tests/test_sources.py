"""Sources of images: one contract for all kinds, streamed from files, archives and generators."""

import bz2
import gzip
import io
import lzma
import math
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pgmkit
from pgmkit.cache import cache_folder
from pgmkit.errors import DataError, GeneratorError, ParameterError
from pgmkit.images import (
    ArrayImages,
    GeneratedImages,
    ImageSource,
    LatentPoints,
    Moves,
    batches,
    check_source,
    labels_among,
    load_images,
    moved_latents,
    require_labels,
    resized,
)
from pgmkit.images import rows as rows_module
from pgmkit.pictures import to_uint8

COUNT = 21


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


PIXELS = noise(COUNT, 6, 8, 3)
LABELS = np.arange(COUNT) % 3
NAMES = ("cat", "dog", "owl")


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Returns a picture in a file for each of `PIXELS`, in a folder for each class."""
    return {
        f"{NAMES[label]}/{index:03d}.png": encoded(pixels)
        for index, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True))
    }


IN_FOLDERS = np.argsort(LABELS, kind="stable")
"""Where each picture of a folder is among `PIXELS`."""


def write_folder(root: Path, content: dict[str, bytes]) -> str:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def write_zip(path: Path, content: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return str(path)


def write_tar(
    path: Path, content: dict[str, bytes], packed: Callable[[bytes], bytes] = bytes
) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    path.write_bytes(packed(buffer.getvalue()))
    return str(path)


def in_gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


class Flat(torch.nn.Module):
    """Images whose pixels are the latents, beyond their range at times."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, z: Tensor) -> Tensor:
        Flat.seen += len(z)
        return (self.scale * z).reshape(-1, 1, 2, 2)


def generator() -> pgmkit.Generator:
    return pgmkit.Generator(
        Flat(), pgmkit.LatentSpec(4), pgmkit.ImageSpec((1, 2, 2), (0.0, 2.0)), name="flat"
    )


def npz(path: Path, save: Callable[..., None] = np.savez, **arrays: Any) -> str:
    save(path, **(arrays or {"images": PIXELS, "labels": LABELS}))
    return str(path)


def _float_array(tmp_path: Path) -> ImageSource:
    values = PIXELS.astype(np.float32) / 255
    return ArrayImages(values, LABELS, value_range=(0.0, 1.0))


SOURCES: dict[str, Callable[[Path], ImageSource]] = {
    "array": lambda path: ArrayImages(PIXELS, LABELS),
    "16 bits": lambda path: ArrayImages(PIXELS.astype(np.uint16) * 257, LABELS),
    "floats": _float_array,
    "tensor": lambda path: ArrayImages(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), LABELS),
    "npz": lambda path: load_images(npz(path / "x.npz")),
    "compressed npz": lambda path: load_images(npz(path / "x.npz", np.savez_compressed)),
    "folder": lambda path: load_images(write_folder(path / "x", files())),
    "zip": lambda path: load_images(write_zip(path / "x.zip", files())),
    "compressed zip": lambda path: load_images(
        write_zip(path / "x.zip", files(), zipfile.ZIP_DEFLATED)
    ),
    "tar": lambda path: load_images(write_tar(path / "x.tar", files())),
    "tar.gz": lambda path: load_images(write_tar(path / "x.tar.gz", files(), in_gzip)),
    "tar.bz2": lambda path: load_images(write_tar(path / "x.tar.bz2", files(), bz2.compress)),
    "tar.xz": lambda path: load_images(write_tar(path / "x.tar.xz", files(), lzma.compress)),
    "torchvision": lambda path: load_images(
        f"torchvision:EuroSAT:{Path(write_folder(path / 'eurosat' / '2750', files())).parents[1]}"
    ),
    "ring": lambda path: load_images(f"points:ring:n={COUNT}"),
    "grid": lambda path: load_images(f"points:grid:n={COUNT}:seed=3"),
    "generated": lambda path: GeneratedImages(generator(), generator().sample_latents(COUNT, 0)),
    "latents": lambda path: LatentPoints(
        pgmkit.LatentSpec(4), generator().sample_latents(COUNT, 0)
    ),
}
SORTED = ("folder", "zip", "compressed zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "torchvision")
STORED = ("array", "16 bits", "floats", "tensor", "npz", "compressed npz", *SORTED)


@pytest.fixture(params=["kept", "streamed"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets sources keep what they made, and not."""
    if request.param == "streamed":
        monkeypatch.setattr(rows_module, "KEPT", 0)


@pytest.mark.parametrize("reference", ["points:ring", "torchvision:FakeData:.", "x.npz", "."])
def test_there_are_two_splits_of_every_source(reference: str) -> None:
    with pytest.raises(ParameterError, match="split must be one of train, test, not 'foo'"):
        load_images(reference, split="foo")


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    assert isinstance(source, ImageSource)
    assert len(source) == COUNT
    everything = torch.cat(list(batches(source, 4)))
    assert everything.shape == (COUNT, *source.image.shape)
    assert everything.dtype == torch.float32
    assert everything.device == source.device
    assert not everything.requires_grad
    if not source.image.is_points:
        assert source.image.range == (-1.0, 1.0)
        assert -1 <= everything.min() <= everything.max() <= 1
    index = torch.tensor([5, 0, 20, 5])
    assert torch.equal(source.batch(index), everything[index])
    source.batch(index).fill_(7.0)
    assert torch.equal(source.batch(index), everything[index])  # what is returned is a copy
    part = source.subset(torch.tensor([4, 9, 2]))
    assert len(part) == 3
    assert torch.equal(part.batch(torch.arange(3)), everything[[4, 9, 2]])
    smaller = part.subset(torch.tensor([2, 1]))
    assert torch.equal(smaller.batch(torch.tensor([1, 0])), everything[[9, 2]])
    assert part.name == source.name
    if source.labels is not None:
        assert source.labels.shape == (COUNT,)
        assert source.labels.dtype == torch.int64
        assert part.labels is not None
        assert torch.equal(part.labels, source.labels[[4, 9, 2]])
        assert torch.equal(require_labels(source), source.labels)
    else:
        assert part.labels is None
        with pytest.raises(DataError, match="has no labels"):
            require_labels(source)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_summary_is_of_plain_values_and_the_same_again(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    summary = source.summary()
    assert summary["source"] == source.name
    assert summary["shape"] == [COUNT, *source.image.shape]
    assert len(summary["sha256"]) == 64
    assert ("labels" in summary) == (source.labels is not None)
    assert SOURCES[kind](tmp_path).summary() == summary
    parts = [source.subset(torch.tensor(index)).summary() for index in ([0, 1], [1, 0], [2, 1])]
    assert len({part["sha256"] for part in parts}) == 3


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("kind", STORED)
def test_the_same_pictures_are_the_same_whatever_holds_them(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    order = IN_FOLDERS if kind in SORTED else np.arange(COUNT)
    found = to_uint8(torch.cat(list(batches(source))), (-1.0, 1.0))
    assert np.array_equal(found, PIXELS[order].transpose(0, 3, 1, 2))
    assert source.labels is not None
    assert source.labels.tolist() == LABELS[order].tolist()
    assert source.classes == (dict(enumerate(NAMES)) if kind in SORTED else None)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("size", [(6, 6), (3, 4), (10, 7)])
def test_one_rule_makes_images_of_another_size(size: tuple[int, int], tmp_path: Path) -> None:
    content = {f"{index:03d}.png": encoded(pixels) for index, pixels in enumerate(PIXELS)}
    sources = [
        ArrayImages(PIXELS, size=size),
        ArrayImages(PIXELS.astype(np.uint16) * 257, size=size),
        load_images(npz(tmp_path / "x.npz"), size=size),
        load_images(npz(tmp_path / "y.npz", np.savez_compressed), size=size),
        load_images(write_folder(tmp_path / "x", content), size=size),
        load_images(write_zip(tmp_path / "x.zip", content), size=size),
        load_images(write_tar(tmp_path / "x.tgz", content, in_gzip), size=size),
    ]
    first, *others = (torch.cat(list(batches(source))) for source in sources)
    assert first.shape == (COUNT, 3, *size)
    for other in others:
        assert torch.equal(first, other)


def test_floats_get_another_size_as_bytes_do() -> None:
    slope = np.add.outer(np.arange(40.0), 3 * np.arange(60.0))[None].round()
    for size in ((10, 15), (20, 20), (50, 70)):
        floats = ArrayImages(slope / 255 * 4 - 1, value_range=(-1.0, 3.0), size=size)
        as_bytes = ArrayImages(slope.astype(np.uint8), size=size)
        found, expected = (torch.cat(list(batches(source))) for source in (floats, as_bytes))
        assert found.shape == (1, 1, *size)
        assert (found - expected).abs().max() <= 2.1 / 255


def test_networks_get_another_size_with_antialias() -> None:
    stripes = torch.tensor([-1.0, 1.0]).repeat(32).expand(2, 3, 64, 64)
    small = resized(stripes, (16, 8))
    assert small.shape == (2, 3, 16, 8)
    assert small[..., 1:-1].abs().max() < 0.1
    assert resized(stripes, 64) is stripes
    slope = torch.arange(8.0).expand(1, 1, 8, 8)
    middle = resized(slope, 4)[0, 0, 0, 1:3]
    torch.testing.assert_close(middle, torch.tensor([2.5, 4.5]), rtol=0, atol=1e-5)
    assert resized(slope, 20, "bicubic").shape == (1, 1, 20, 20)


def test_arrays_in_memory_are_checked(tmp_path: Path) -> None:
    floats = noise(4, 6, 8).astype(np.float32)
    with pytest.raises(DataError, match=r"they must be uint8 \(0 to 255\)"):
        ArrayImages(floats)
    with pytest.raises(DataError, match=r"a tensor \(4, 6, 8\); it must be \(N, C, H, W\)"):
        ArrayImages(torch.from_numpy(noise(4, 6, 8)))
    with pytest.raises(DataError, match="must be 21 whole numbers or names"):
        ArrayImages(PIXELS, LABELS[:-1])
    with pytest.raises(DataError, match="save them with 8 bits"):
        ArrayImages(np.full((4, 6, 8), 200, np.uint16))
    named = ArrayImages(PIXELS, np.array(NAMES)[LABELS])
    assert named.classes == dict(enumerate(NAMES))
    wide = ArrayImages(floats / 255 * 4 - 2, value_range=(-1.0, 1.0))
    assert torch.cat(list(batches(wide))).abs().max() == 1
    half = torch.rand(3, 1, 4, 4).bfloat16()
    assert ArrayImages(half, value_range=(0.0, 1.0)).batch(torch.arange(3)).dtype == torch.float32


def test_names_decide_which_class_is_meant(tmp_path: Path) -> None:
    source = load_images(write_zip(tmp_path / "x.zip", files()))
    turned = ["owl", "cat", "dog"]
    expected = [turned.index(NAMES[label]) for label in LABELS[IN_FOLDERS]]
    found = labels_among(source, turned, "the classifier")
    assert found is not None
    assert found.tolist() == expected
    renamed = source.numbered_as(turned, "the classifier")
    assert renamed.labels is not None
    assert renamed.labels.tolist() == expected
    assert renamed.classes == dict(enumerate(turned))
    with pytest.raises(DataError, match="class 'owl', which the classifier does not know"):
        labels_among(source, ["cat", "dog"], "the classifier")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_mapped_in_any_order_of_memory(save: Any, order: Any, tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", save, images=np.asarray(PIXELS, order=order), labels=LABELS)
    found = to_uint8(torch.cat(list(batches(load_images(path)))), (-1.0, 1.0))
    assert np.array_equal(found, PIXELS.transpose(0, 3, 1, 2))


def test_what_is_compressed_is_unpacked_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npz(tmp_path / "x.npz", np.savez_compressed)
    packed = write_tar(tmp_path / "x.tar.gz", files(), in_gzip)
    for reference in (path, packed, path, packed):
        load_images(reference)
    entries = [*cache_folder("unpacked").glob("[!.]*")]
    assert len(entries) == 2
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", lambda *arguments: pytest.fail("unpacked again"))
        load_images(path)
    for entry in entries:  # a damaged entry is known and mended
        data = bytearray((entry / "content").read_bytes())
        data[len(data) // 2] ^= 1
        (entry / "content").write_bytes(data)
    assert np.array_equal(seen(load_images(path)), PIXELS.transpose(0, 3, 1, 2))
    np.savez_compressed(path, images=255 - PIXELS)
    assert np.array_equal(seen(load_images(path)), 255 - PIXELS.transpose(0, 3, 1, 2))


def seen(source: ImageSource) -> Any:
    return to_uint8(torch.cat(list(batches(source))), (-1.0, 1.0)).numpy()


@pytest.mark.parametrize("kind", ["compressed npz", "tar.gz"])
def test_what_is_larger_than_the_cache_is_unpacked_into_a_temporary_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGMKIT_CACHE_SIZE", "0")
    monkeypatch.setattr(rows_module, "KEPT", 0)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    source = SOURCES[kind](tmp_path)
    assert not [*cache_folder("unpacked").glob("[!.]*")]
    assert not [*temporary.iterdir()]  # it has no name, and ends with the source
    order = IN_FOLDERS if kind in SORTED else np.arange(COUNT)
    assert np.array_equal(seen(source), PIXELS[order].transpose(0, 3, 1, 2))
    monkeypatch.setattr(
        "pgmkit.machine.shutil.disk_usage", lambda path: type("Usage", (), {"free": 9})
    )
    with pytest.raises(ParameterError, match=r"the unpacked contents of .* need about"):
        SOURCES[kind](tmp_path)


def test_archives_follow_the_rules_of_folders(tmp_path: Path) -> None:
    content = {
        "set/train/b10/x.png": encoded(PIXELS[0]),
        "set/train/b9/x.PNG": encoded(PIXELS[1]),
        "set/test/b10/x.png": encoded(PIXELS[2]),
        "set/train/.hidden/x.png": b"no picture",
        "set/train/b9/._x.png": b"what a Mac leaves behind",
        "__MACOSX/set/._x.png": b"likewise",
        "set/README.txt": b"hello",
    }
    for reference in (
        write_folder(tmp_path / "x", content) + "/set",
        write_zip(tmp_path / "x.zip", content),
        write_tar(tmp_path / "x.tar", content),
    ):
        train, test = (load_images(reference, split=split) for split in ("train", "test"))
        assert train.classes == test.classes == {0: "b9", 1: "b10"}
        assert require_labels(train).tolist() == [1, 0]
        assert require_labels(test).tolist() == [1]
        assert np.array_equal(seen(train), PIXELS[:2].transpose(0, 3, 1, 2))
    bare = write_zip(tmp_path / "bare.zip", {"a.png": encoded(PIXELS[0])})
    assert load_images(bare).labels is None
    with pytest.raises(DataError, match=r"bare\.zip has no folder 'test'"):
        load_images(bare, split="test")
    with pytest.raises(DataError, match="there are no images in"):
        load_images(write_tar(tmp_path / "empty.tar", {"README": b""}))


@pytest.mark.usefixtures("memory")
def test_mixed_pictures_are_resized_and_converted_if_a_size_is_given(tmp_path: Path) -> None:
    colour, grey = noise(40, 30, 3), noise(30, 40)
    deep = grey.astype(np.uint16) * 257
    palette, cmyk = Image.fromarray(colour).quantize(16), Image.fromarray(colour).convert("CMYK")
    content = {
        "a.png": encoded(grey),
        "b.png": encoded(colour),
        "c.png": encoded(np.dstack([colour, np.full((40, 30), 255, np.uint8)])),
        "d.png": encoded(deep),
    }
    for name, picture, kind in (("e.png", palette, "PNG"), ("f.jpg", cmyk, "JPEG")):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        content[name] = buffer.getvalue()
    found = []
    for reference in (
        write_folder(tmp_path / "x", content),
        write_zip(tmp_path / "x.zip", content),
        write_tar(tmp_path / "x.tar", content),
    ):
        with pytest.raises(DataError, match=r"b\.png has 40×30 pixels and .*a\.png has 30×40"):
            load_images(reference)
        source = load_images(reference, size=(12, 16))
        assert source.image.shape == (3, 12, 16)
        found.append(seen(source))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0][0], found[0][3])  # 16 bits are as 8
    assert np.array_equal(found[0][1], found[0][2])  # what is opaque is as without alpha


def test_pictures_whose_headers_do_not_tell_the_truth_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "KEPT", 0)
    root = tmp_path / "x"
    source = load_images(write_folder(root, {"a.png": encoded(PIXELS[0])}))
    for other in (noise(8, 8, 3), noise(5, 8)):
        (root / "a.png").write_bytes(encoded(other))
        with pytest.raises(DataError, match=r"a\.png is another picture than its header says"):
            seen(source)
    grey = load_images(write_folder(tmp_path / "y", {"a.png": encoded(noise(4, 4))}))
    (tmp_path / "y" / "a.png").write_bytes(encoded(noise(4, 4, 3)))
    with pytest.raises(DataError, match="another picture"):
        seen(grey)


def test_only_the_headers_of_large_sets_are_read_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {**files(), "dog/999.png": encoded(noise(6, 8, 3))[:70]}
    folder = write_folder(tmp_path / "x", content)
    with pytest.raises(DataError, match=r"999\.png cannot be read as an image"):
        load_images(folder)
    monkeypatch.setattr(rows_module, "KEPT", 0)
    source = load_images(folder)
    place = 13
    with pytest.raises(DataError, match=r"999\.png cannot be read as an image"):
        source.batch(torch.arange(len(source)))
    assert source.batch(torch.arange(place)).shape == (place, 3, 6, 8)


def test_a_folder_is_known_by_names_sizes_and_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "x"
    before = load_images(write_folder(root, files())).summary()["sha256"]
    data = bytearray(files()["owl/002.png"])
    moved = root / "owl" / "002.png"
    moved.rename(root / "owl" / "0020.png")
    renamed = load_images(str(root)).summary()["sha256"]
    (root / "owl" / "0020.png").rename(moved)
    assert load_images(str(root)).summary()["sha256"] == before
    moved.write_bytes(encoded(255 - PIXELS[2]))
    changed = load_images(str(root)).summary()["sha256"]
    assert len({before, renamed, changed}) == 3
    moved.write_bytes(bytes(data))
    monkeypatch.setattr(rows_module, "_WHOLE", 0)
    monkeypatch.setattr(rows_module, "SPREAD", 7)
    assert rows_module.looked_into(COUNT, 2**40) == [0, 3, 6, 9, 12, 15, 18]
    few = load_images(str(root)).summary()["sha256"]
    moved.write_bytes(bytes(data[:-1]) + b"!")  # not among those that are looked into
    assert load_images(str(root)).summary()["sha256"] == few


@pytest.mark.parametrize(
    ("reference", "modes", "variance"), [("points:ring", 8, 1e-4), ("points:grid", 25, 2.5e-3)]
)
def test_points_have_the_modes_of_the_protocol(reference: str, modes: int, variance: float) -> None:
    source = load_images(reference)
    assert len(source) == 100_000
    assert len(load_images(reference, split="test")) == 50_000
    assert source.image.shape == (2,)
    points, labels = source.batch(torch.arange(len(source))), require_labels(source)
    assert source.image.range[0] < points.min() <= points.max() < source.image.range[1]
    counts = labels.bincount().double()
    assert len(counts) == modes
    assert (counts * modes / 100_000 - 1).abs().max() < 0.1
    centres = torch.stack([points[labels == mode].mean(0) for mode in range(modes)])
    if modes == 8:
        angles = torch.arange(8) * math.pi / 4
        expected = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    else:
        places = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
        expected = torch.stack(torch.meshgrid(places, places, indexing="ij")).flatten(1).T
    torch.testing.assert_close(centres, expected, rtol=0, atol=5 * math.sqrt(variance / 4000))
    spread = (points - expected[labels]).double().square().mean(0)
    torch.testing.assert_close(spread / variance, torch.ones(2).double(), rtol=0.03, atol=0)


def test_points_follow_from_their_seed_and_split() -> None:
    def first(reference: str, split: str = "train") -> list[float]:
        found: list[float] = load_images(reference, split=split).batch(torch.arange(1))[0].tolist()
        return found

    assert first("points:ring") == first("points:ring:seed=0:n=100000")
    different = [first("points:ring"), first("points:ring:seed=1"), first("points:ring", "test")]
    assert len({tuple(point) for point in different}) == 3
    for reference, said in (
        ("points:rign", "no points called 'rign'; did you mean 'ring'"),
        ("points:ring:m=3", "points take n=NUMBER and seed=NUMBER"),
        ("points:ring:n=0", "points take n=NUMBER"),
        ("points:ring:n=999999999", "points take n=NUMBER"),
        ("points:ring:n=1e3", "points take n=NUMBER"),
    ):
        with pytest.raises(DataError, match=said):
            check_source(reference)
    with pytest.raises(DataError, match="which have no size; leave image_size out"):
        load_images("points:ring", size=32)


def test_generated_images_are_scaled_and_clamped() -> None:
    latents = torch.tensor([[0.0, 1.0, 2.0, 0.5], [-1.0, 3.0, 1.5, 1.0]])
    source = GeneratedImages(generator(), latents)
    expected = [[-1.0, 0.0, 1.0, -0.5], [-1.0, 1.0, 0.5, 0.0]]
    assert source.batch(torch.arange(2)).flatten(1).tolist() == expected
    assert source.name == "images of flat"
    assert torch.equal(source.latents, latents)
    assert torch.equal(source.subset(torch.tensor([1])).latents, latents[1:])
    with pytest.raises(GeneratorError, match=r"have the shape \(B, 4\)"):
        GeneratedImages(generator(), latents[:, :3])
    toy = pgmkit.Generator(
        torch.nn.Linear(2, 2), pgmkit.LatentSpec(2), pgmkit.ImageSpec((2,), (-5.0, 5.0))
    )
    points = GeneratedImages(toy, torch.randn(7, 2))
    assert points.image == toy.image
    assert torch.equal(points.batch(torch.arange(7)), toy.images(points.latents))


def made(source: GeneratedImages, times: int = 2) -> int:
    before = Flat.seen
    for _ in range(times):
        for _ in batches(source):
            pass
    return Flat.seen - before


def test_generated_images_are_made_once_if_they_fit_and_each_time_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents = torch.randn(600, 4, generator=random())
    source = GeneratedImages(generator(), latents)
    assert made(source) == 600
    assert made(source.subset(torch.arange(300))) == 0
    monkeypatch.setattr(rows_module, "KEPT", 300 * 4 * 4)
    large = GeneratedImages(generator(), latents)
    assert made(large) == 1200
    assert made(large.subset(torch.arange(300))) == 300  # fewer fit
    expected = source.batch(torch.arange(600))
    assert torch.equal(large.batch(torch.arange(600)), expected)
    order = torch.randperm(300, generator=random())
    shuffled = GeneratedImages(generator(), latents[:300]).batch(order)
    assert torch.equal(shuffled, expected[order])


def test_the_summary_of_generated_images_is_of_latents_and_generator() -> None:
    latents = torch.randn(9, 4, generator=random())
    first = GeneratedImages(generator(), latents).summary()
    other = generator()
    with torch.no_grad():
        other.module.scale.mul_(2)  # type: ignore[operator, union-attr]
    sums = [
        first["sha256"],
        GeneratedImages(other, latents).summary()["sha256"],
        GeneratedImages(generator(), latents + 1).summary()["sha256"],
    ]
    assert len(set(sums)) == 3
    assert GeneratedImages(generator(), latents).summary() == first


@pytest.mark.parametrize(
    "prior",
    [
        pgmkit.LatentSpec(3, std=2.0),
        pgmkit.LatentSpec(3, "uniform", low=-1.0, high=3.0),
        pgmkit.LatentSpec(3, "truncated-normal", low=-0.5, high=1.0),
    ],
)
@pytest.mark.parametrize("step", [0.1, 0.9])
def test_moves_leave_the_prior_as_it_is(prior: pgmkit.LatentSpec, step: float) -> None:
    z = prior.sample(20_000, random())
    there = moved_latents(z, prior, step, random(1))
    torch.testing.assert_close(there.mean(0), z.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(there.std(0), z.std(0), rtol=0, atol=0.05)
    together = torch.corrcoef(torch.stack([z[:, 0], there[:, 0]]))[0, 1]
    assert float(together) == pytest.approx(math.sqrt(1 - step**2), abs=0.03)
    if prior.distribution != "normal":
        assert prior.low <= there.min() <= there.max() <= prior.high


def test_categories_stay_where_latents_move() -> None:
    prior = pgmkit.LatentSpec(parts=[pgmkit.LatentSpec(2), pgmkit.LatentSpec(3, "categorical")])
    z = prior.sample(50, random())
    there = moved_latents(z, prior, 0.5, random(1))
    assert torch.equal(there[:, 2:], z[:, 2:])
    assert (there[:, :2] != z[:, :2]).all()


def test_sources_of_latents_can_move() -> None:
    latents = torch.randn(40, 4, generator=random())
    sources: list[Any] = [
        GeneratedImages(generator(), latents),
        LatentPoints(pgmkit.LatentSpec(4), latents),
    ]
    index = torch.tensor([3, 1, 30])
    for source in sources:
        assert isinstance(source, Moves)
        source.labels = torch.arange(40)
        part = source.subset(index)
        there: Any = part.moved(0.1, random(5))
        assert len(there) == 3
        assert there.labels.tolist() == [3, 1, 30]
        expected = moved_latents(latents[index], pgmkit.LatentSpec(4), 0.1, random(5))
        assert torch.equal(there.latents, expected)
        assert not torch.equal(there.batch(torch.arange(3)), part.batch(torch.arange(3)))
        assert there.summary() != part.summary()
    assert not isinstance(load_images("points:ring:n=10"), Moves)


def test_images_are_put_where_they_are_wanted() -> None:
    source = ArrayImages(PIXELS, LABELS)
    there = source.to("meta")
    assert there.device == torch.device("meta")
    assert there.batch(torch.arange(2)).device.type == "meta"
    assert there.subset(torch.arange(3)).device.type == "meta"
    assert source.device.type == "cpu"


def test_a_tar_may_be_compressed_whatever_it_is_called(tmp_path: Path) -> None:
    plain = Path(write_tar(tmp_path / "x.tar", files()))
    named = tmp_path / "y.tar"
    named.write_bytes(gzip.compress(plain.read_bytes()))
    assert np.array_equal(seen(load_images(str(named))), seen(load_images(str(plain))))
