"""Peak memory of sources of images, from 10,000 to 1,000,000 of them.

    python benchmarks/streams.py --out benchmarks/memory.md

Each measurement runs in a process of its own, which opens a source of grey images of 28×28 pixels,
or of points, and goes over it twice as principal components do. It reports the largest resident
size that the kernel has seen since a small source of the same kind was gone over. The section of
the output file with this table is replaced, and the rest of it stays.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from memory import peak, reset_peak, write_section
from PIL import Image

import pgmkit
from pgmkit.images import GeneratedImages, ImageSource, batches, load_images
from pgmkit.images import rows as rows_module
from pgmkit.machine import machine

SIDE = 28
COUNTS = (10_000, 100_000, 1_000_000)
KINDS = ("npz", "compressed npz", "zip", "tar", "folder", "points", "generated")
MOST = {"zip": 100_000, "tar": 100_000, "folder": 100_000}
"""A million files would take too long to write here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.one:
        kind, count, place, kept = args.one
        print(json.dumps(one(kind, int(count), Path(place), kept == "kept")))
        return
    lines = [
        "# Memory of image sources",
        "",
        f"`python benchmarks/streams.py`, {machine()}, torch {torch.__version__}, grey images of "
        f"{SIDE}×{SIDE} pixels, seed 0, one thread. Two passes, with a sum and a matrix of "
        "products over all pixels. Beside what is looked at, archives and folders hold a name for "
        "each picture, points take 16 bytes each, and the latents of generated images are not "
        "counted. The machine was shared with other work, so seconds are an upper bound. "
        "What takes work to read is kept in memory if all of it fits into 256 MiB: the "
        "last columns let it, those before do not.",
        "",
        "| source | images | MiB of pixels | peak, MiB | s | peak with what is kept, MiB | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for count in COUNTS:
            if count > MOST.get(kind, count):
                continue
            with tempfile.TemporaryDirectory() as place:
                write(kind, count, Path(place))
                streamed, kept = (fresh(kind, count, place, how) for how in ("streamed", "kept"))
            pixels = count * (
                2 * 4 if kind == "points" else SIDE * SIDE * (1 + 3 * (kind == "generated"))
            )
            lines.append(
                f"| {kind} | {count:,} | {pixels / 2**20:,.0f} | {streamed['peak'] / 2**20:.0f} | "
                f"{streamed['seconds']:.1f} | {kept['peak'] / 2**20:.0f} | {kept['seconds']:.1f} |"
            )
            print(lines[-1], flush=True)
    if args.out:
        write_section(args.out, lines)


def fresh(kind: str, count: int, place: str, how: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", kind, str(count), place, how]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(kind: str, count: int, place: Path, kept: bool) -> dict[str, float]:
    torch.set_num_threads(1)
    if not kept:
        rows_module.KEPT = 0
    with tempfile.TemporaryDirectory() as small:
        write(kind, 512, Path(small))
        passed_over(opened(kind, 512, Path(small)))
    module = torch.nn.Sequential(torch.nn.Linear(16, SIDE * SIDE), torch.nn.Tanh())
    generator = pgmkit.Generator(
        module, pgmkit.LatentSpec(16), pgmkit.ImageSpec((1, SIDE, SIDE)), name="toy"
    )
    latents = generator.sample_latents(count if kind == "generated" else 1, seed=0)
    before = reset_peak()
    started = time.perf_counter()
    if kind == "generated":
        passed_over(GeneratedImages(generator, latents))
    else:
        passed_over(opened(kind, count, place))
    return {"peak": peak() - before, "seconds": time.perf_counter() - started}


def opened(kind: str, count: int, place: Path) -> ImageSource:
    if kind == "generated":
        kind = "points"
    return load_images(f"points:ring:n={count}" if kind == "points" else str(path_of(kind, place)))


def passed_over(source: ImageSource) -> None:
    for _ in range(2):
        total, products = torch.zeros(1), torch.zeros(1)
        for batch in batches(source):
            flat = batch.flatten(1)
            total = total + flat.sum(dim=0)
            products = products + flat.T @ flat


def path_of(kind: str, place: Path) -> Path:
    return place / {"npz": "x.npz", "compressed npz": "x.npz", "folder": "x"}.get(kind, f"x.{kind}")


def write(kind: str, count: int, place: Path) -> None:
    """Writes pictures of noise, a thousand different ones again and again."""
    random = np.random.default_rng(0)
    block = random.integers(0, 256, (1000, SIDE, SIDE), dtype=np.uint8)
    path = path_of(kind, place)
    if kind in ("npz", "compressed npz"):
        how = zipfile.ZIP_STORED if kind == "npz" else zipfile.ZIP_DEFLATED
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE)}
        with (
            zipfile.ZipFile(path, "w", how, compresslevel=1) as archive,
            archive.open("images.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, 1000):
                file.write(block[: count - start].tobytes())
        return
    if kind in ("points", "generated"):
        return
    files = []
    for pixels in block:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(count):
                archive.writestr(f"{index % 10}/{index:07d}.png", files[index % 1000])
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for index in range(count):
                member = tarfile.TarInfo(f"{index % 10}/{index:07d}.png")
                member.size = len(files[index % 1000])
                archive.addfile(member, io.BytesIO(files[index % 1000]))
                archive.members = []
    else:
        for number in range(10):
            (path / str(number)).mkdir(parents=True)
        for index in range(count):
            (path / f"{index % 10}/{index:07d}.png").write_bytes(files[index % 1000])


if __name__ == "__main__":
    main()
