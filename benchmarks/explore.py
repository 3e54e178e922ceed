"""What `pgmkit explore` takes: the page, its parts, and memory with 100,000 latents.

    python benchmarks/explore.py --out benchmarks/explore.md
    python benchmarks/explore.py --result runs/mnist-dcgan

The page is opened in Chromium by Playwright (`pip install 'pgmkit[browser]'`); without them that
part is left out. Without a result one of mnist-dcgan is made, of 4,000 latents by k-means. Of the
100,000 latents only latents and images are real: the generator is small and untrained, singular
values are drawn, and clusters are of latents. Peaks are the largest resident sizes that the kernel
has seen.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from generators import dcgan, wrapped
from memory import peak, reset_peak

import pgmkit
from pgmkit.exploring import ShatteredExhibit, open_exhibit
from pgmkit.exploring.mapping import FEATURES, IMAGES, LAYOUTS, has_umap
from pgmkit.machine import machine
from pgmkit.spectrum import Spectrum

LATENTS = 4_000
MANY = 100_000
CLUSTERS = 10
EDITS = 12
PARTITIONERS = ("kmeans", "mixture", "manifold")
VISITS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--many", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.many:
        print(json.dumps(with_many()))
        return
    lines = [
        "# The explorer",
        "",
        f"`python benchmarks/explore.py`, {machine()}, torch {torch.__version__}, of "
        + (f"{args.result}." if args.result else f"mnist-dcgan, {LATENTS:,} latents, by k-means."),
        "",
        "| what | s |",
        "|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = args.result or made(Path(folder) / "result")
        for row in (*page(result), *parts(result)):
            lines.append("| {} | {} |".format(*row))
            print(lines[-1], flush=True)
    command = [sys.executable, __file__, "--many"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    lines += [
        "",
        f"With {MANY:,} latents, whose result takes {found['result'] / 2**20:.0f} MiB; peaks are "
        "those beside it:",
        "",
        "| what | s | peak until then, MiB |",
        "|---|---|---|",
        *(f"| {what} | {took:.2f} | {most / 2**20:.0f} |" for what, took, most in found["rows"]),
    ]
    print(*lines[-len(found["rows"]) - 5 :], sep="\n")
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def made(folder: Path) -> Path:
    words = ["shatter", "mnist-dcgan", "-o", str(folder), "--latents", str(LATENTS), "-q"]
    more = ["--partitioner", "kmeans", "--mapper", "rejection", "--clusters", str(CLUSTERS)]
    command = [sys.executable, "-m", "pgmkit", *words, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def page(result: Path) -> Iterator[tuple[str, str]]:
    """Yields what a visitor waits for."""
    try:
        import gradio  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        yield f"the page: not measured, since {error.name} is not installed", "–"
        return
    words = ["explore", str(result), "--port", "0", "--no-browser"]
    started = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "pgmkit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        yield "the command, until it gives the address", f"{time.perf_counter() - started:.2f}"
        path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            yield from visited(browser, address)
            browser.close()
        status = Path(f"/proc/{server.pid}/status").read_text()
        most = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        yield "peak memory of the command", f"{int(most) / 2**10:.0f} MiB"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def visited(browser: Any, address: str) -> Iterator[tuple[str, str]]:
    first, wall, opened = list[float](), list[float](), list[float]()
    for visit in range(VISITS + 1):
        tab = browser.new_page()
        started = time.perf_counter()
        tab.goto(address)
        tab.locator(".pk-card:visible").first.wait_for()
        shown = time.perf_counter() - started
        painted = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        if visit:  # the first is slow, since the browser is new
            first.append(tab.evaluate(painted) / 1e3)
            wall.append(shown)
        started = time.perf_counter()
        tab.locator(".pk-card:visible").nth(visit + 1).click()
        tab.locator(f".pk-tiles[aria-label='samples of cluster {visit + 1}']").wait_for()
        opened.append(time.perf_counter() - started)
        tab.close()
    yield "first contentful paint, median", f"{middle(first):.2f}"
    yield "the wall of clusters is there, median", f"{middle(wall):.2f}"
    yield "a cluster that nobody opened before, 64 samples, median", f"{middle(opened):.2f}"


def parts(result: Path) -> Iterator[tuple[str, str]]:
    """Yields what the parts take that change what is seen."""
    opened, took = timed(lambda: open_exhibit(result))
    assert isinstance(opened, ShatteredExhibit)
    yield "opening the result", f"{took:.2f}"
    for what, took in walked(opened):
        yield what, f"{took:.2f}"


def walked(exhibit: ShatteredExhibit) -> Iterator[tuple[str, float]]:
    own, other = exhibit.densities()[:2]
    yield "64 samples of a cluster", timed(lambda: exhibit.samples(0, 64))[1]
    yield "512 samples of each cluster", timed(lambda: every(exhibit, 512))[1]
    yield "another share removed", timed(lambda: exhibit.removal(0.5))[1]
    yield f"by {other}", timed(lambda: exhibit.removal(0.5, other))[1]
    for name in PARTITIONERS:
        for what, density, clusters in (
            ("what it learns, and 10 clusters", own, 10),
            ("12 clusters", own, 12),
            (f"{other}, 12 clusters", other, 12),
        ):
            look = timed(lambda d=density, k=clusters, p=name: exhibit.preview(d, p, k, 0.2))
            yield f"{name}: {what}", look[1]
    for layout in LAYOUTS if has_umap() else LAYOUTS[:1]:
        for of in (IMAGES, FEATURES) if exhibit.has_features else (IMAGES,):
            yield f"map of {of}: {layout}", timed(lambda la=layout, of=of: exhibit.map(la, of))[1]
    yield "a walk", timed(lambda: exhibit.walk(0, 1))[1]
    latents = exhibit.samples(0, 64).latents
    assert latents is not None
    yield "directions at a latent", timed(lambda: exhibit.directions(latents[0]))[1]


def with_many() -> dict[str, Any]:
    """Returns what all of it takes with many latents."""
    torch.manual_seed(0)
    generator = wrapped(dcgan(64, 32, 4), 64, (3, 32, 32), "a small DCGAN")
    z = generator.sample_latents(MANY, seed=0)
    values = torch.randn(MANY, 64, dtype=torch.float64).exp().sort(dim=1, descending=True).values
    spectrum = Spectrum(z, values, generator.latent.log_prior(z))
    found = pgmkit.shatter(
        generator,
        partitioner={"name": "kmeans", "features": "latents", "num_starts": 1},
        clusters=CLUSTERS,
        spectrum=spectrum,
    )
    exhibit = ShatteredExhibit(found, spectrum)
    before = reset_peak()
    rows = [(what, took, peak() - before) for what, took in walked(exhibit)]
    edited, took = timed(lambda: edits(exhibit))
    rows.append(
        (f"{EDITS} edits, with 64 samples of each cluster after each", took, peak() - before)
    )
    with tempfile.TemporaryDirectory() as folder:
        took = timed(lambda: edited.save(Path(folder) / "saved"))[1]
        rows.append(("saving it", took, peak() - before))
    size = sum(part.nbytes for part in (z, values, spectrum.log_prior))
    return {"rows": rows, "result": size}


def edits(exhibit: ShatteredExhibit) -> ShatteredExhibit:
    for number in range(EDITS):
        if number % 4 == 0:
            exhibit = exhibit.split(0)
        elif number % 4 == 1:
            exhibit = exhibit.merged([0, len(exhibit.called) - 1])
        elif number % 4 == 2:
            exhibit = exhibit.renamed(number % CLUSTERS, f"edit {number}")
        else:
            exhibit = exhibit.with_hidden(1, 1 not in exhibit.shattered.hidden)
        every(exhibit, 64)
    return exhibit


def every(exhibit: ShatteredExhibit, n: int) -> None:
    for cluster in range(len(exhibit.called)):
        exhibit.samples(cluster, n)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = function()
    return found, time.perf_counter() - started


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
