"""The page of `pgmkit explore`, walked through in a browser.

Screenshots are left in the folder that PGMKIT_SCREENSHOTS names.
"""

import contextlib
import http.client
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import environment, run_pgmkit, write_tiny_classifier, write_tiny_generator

import pgmkit
from pgmkit.exploring.mapping import has_umap

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SLOW = 60_000
"""Milliseconds after which something is given up, however busy the machine is."""

IN_SIGHT = """place => {
  const box = document.querySelector(place)?.getBoundingClientRect();
  return box && box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
}"""
NOTE_WHAT_IS_TOLD = """() => {
  window.toldWhileDisabled = [];
  const look = () => document.querySelector('#save').disabled &&
    window.toldWhileDisabled.push(document.querySelector('#status').innerText.trim());
  new MutationObserver(look).observe(
    document.body, {subtree: true, childList: true, characterData: true, attributes: true});
}"""


@contextlib.contextmanager
def started(result: object, stderr: int = subprocess.DEVNULL) -> Iterator[tuple[Any, str]]:
    """Serves a result, and yields the process and the address."""
    words = ["explore", str(result), "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pgmkit", *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment(),
    )
    with process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), address
            wait_for(address)
            yield process, address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@contextlib.contextmanager
def served(result: object) -> Iterator[str]:
    """Serves a result, and yields the address."""
    with started(result) as (_, address):
        yield address


def wait_for(address: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            answer(address, "/")
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing answers at {address}")


def answer(address: str, path: str, **headers: str) -> tuple[int, str]:
    """Returns status and body of a request; a path may be what no browser would send."""
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers={"Host": host, **given})
        found = connection.getresponse()
        return found.status, found.read().decode(errors="replace")
    finally:
        connection.close()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gradio", reason="Gradio is not installed; see make test-browser")
    root = tmp_path_factory.mktemp("page")
    source = write_tiny_generator(root / "tiny")
    classifier = write_tiny_classifier(root / "classifier")
    words = ("--latents", 240, "--clusters", 4, "--partitioner", "kmeans")
    more = ("--classifier", classifier)
    finished = run_pgmkit("shatter", source, "-o", root / "result", *words, *more)
    assert finished.code == 0, finished.stderr
    return root / "result"


@pytest.fixture(scope="module")
def address(result: Path) -> Iterator[str]:
    with served(result) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed; see make test-browser"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """A page in a browser, which must ask nobody but the address, and log no error."""

    def __init__(self, browser: Any, address: str, size: str, dark: bool = False) -> None:
        width, height = SIZES[size]
        self.size, self.address = size, address
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        self.page = context.new_page()
        self.page.set_default_timeout(SLOW)
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", self._asked)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def shot(self, name: str, full_page: bool = True) -> None:
        folder = os.environ.get("PGMKIT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=f"{folder}/{self.size}-{name}.png", full_page=full_page)

    def tab(self, name: str) -> None:
        """Opens a tab, from the menu of those that do not fit if it is there."""
        self.page.get_by_role("tab", selected=True).wait_for()
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():
            self.page.locator(".overflow-menu button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()
        else:
            tab.click()

    def number(self, place: str, value: object) -> None:
        field = self.page.locator(f"{place} input[type=number]")
        field.fill(str(value))
        field.press("Enter")

    def end(self) -> None:
        wide = self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= SIZES[self.size][0], "the page is wider than the screen"
        assert self.elsewhere == []
        assert self.errors == []
        self.page.context.close()


@pytest.mark.parametrize("size", SIZES)
def test_a_walk_through_all_of_it(
    size: str, address: str, chromium: Any, tmp_path: Path, result: Path
) -> None:
    visit = Visit(chromium, address, size, dark=size == "phone")
    page = visit.page
    cards = page.locator(".pk-card:visible")
    cards.nth(3).wait_for()
    assert cards.count() == 4
    visit.shot("clusters")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, canvas')].filter(one => one.offsetParent &&"
        " !(one.innerText || one.ariaLabel || one.title || one.labels?.length)).length"
    )
    assert unnamed == 0

    cards.nth(2).focus()  # by keys alone
    page.keyboard.press("Enter")
    page.locator(".pk-tiles[aria-label='samples of cluster 2']").wait_for()
    tiles = page.locator(".pk-tile")
    tiles.nth(1).focus()
    page.keyboard.press("Space")
    tiles.nth(4).click()
    assert page.locator(".pk-tile[aria-pressed=true]").count() == 2
    page.locator("#chosen", has_text="2 chosen").wait_for()
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as found:
        assert found["images"].shape == (2, 32, 32, 1)
        assert found["latents"].shape == (2, 4)
        assert found["margins"][0] >= found["margins"][1]

    page.get_by_label("Name", exact=True).fill("sandals")
    page.locator("#rename").click()
    page.locator("text=Cluster 2 is called sandals.").wait_for()
    page.wait_for_function(IN_SIGHT, arg="#status")
    page.get_by_label("Merge with").click()
    page.get_by_role("option", name="cluster 0").click()
    page.keyboard.press("Escape")
    page.locator("#merge").click()
    page.locator(".pk-card[aria-label*='0: sandals']").wait_for()
    assert cards.count() == 3
    page.locator("#split").click()
    cards.nth(3).wait_for()
    page.locator("#hide").click()
    page.locator(".pk-card[data-hidden]").wait_for()
    page.locator("#undo").click()
    page.locator(".pk-card[data-hidden]").wait_for(state="detached")
    visit.shot("edited")
    page.get_by_label("Save as a new").fill(str(tmp_path / "saved"))
    page.evaluate(NOTE_WHAT_IS_TOLD)
    page.locator("#save").click()
    page.locator("#status", has_text=f"Saved in {tmp_path / 'saved'}.").wait_for()
    page.locator("#save:enabled").wait_for()
    assert f"Saving in {tmp_path / 'saved'} …" in page.evaluate("window.toldWhileDisabled")
    page.wait_for_function(IN_SIGHT, arg="#status code")
    visit.shot("saved", full_page=False)
    command = shlex.split(page.locator("#status code").inner_text())
    assert command[:3] == ["pgmkit", "sample", str(tmp_path / "saved")]
    assert command[3:] == ["--cluster", "sandals", "-o", "samples.png"]
    assert run_pgmkit(*command[1:-1], tmp_path / "samples.png", "-n", 4).code == 0
    saved = pgmkit.load(tmp_path / "saved")
    assert isinstance(saved, pgmkit.ShatteredGenerator)
    assert saved.names == ["sandals", "", "", ""]
    assert "sandals" in (tmp_path / "saved" / "report.html").read_text()

    visit.tab("Removed")
    page.locator("#removal img").first.wait_for()
    visit.number("#remove", 0.5)
    page.locator("text=120 kept, 120 removed").wait_for()
    visit.shot("removed")

    visit.tab("Other methods")
    page.locator("#try").click()
    page.locator("#preview .pk-card").nth(3).wait_for()
    visit.number("#clusters", 3)
    started = time.perf_counter()
    page.locator("#try").click()
    page.wait_for_function("document.querySelectorAll('#preview .pk-card').length === 3")
    print(f"another k on cached parts: {time.perf_counter() - started:.2f} s")
    visit.shot("methods")

    visit.tab("Map")
    canvas = page.locator("#map canvas")
    canvas.wait_for()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator(".pk-tip")
    tip.wait_for()
    first = tip.inner_text()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    page.get_by_label("class", exact=True).click()
    page.locator("#map", has_text=re.compile(r"0\s*1\s*2\s*3\s*4\s*5")).wait_for()
    visit.shot("map")
    page.get_by_label("features", exact=True).click()
    page.locator("#map", has_text="principal components of the features").wait_for()
    if has_umap():
        page.get_by_label("UMAP", exact=True).click()
        page.locator("#map", has_text="UMAP of the features").wait_for()
        visit.shot("umap")
    else:
        page.locator("#layout", has_text="pip install 'pgmkit[umap]'").wait_for()

    visit.tab("Walk")
    page.locator("#walk").click()
    page.locator("#strip img").nth(11).wait_for()
    visit.shot("walk")

    visit.tab("Directions")
    page.locator("#begin").click()
    page.locator("#direction-0").wait_for()
    visit.number("#direction-0", 3)
    page.locator("#steered", has_text="now").wait_for()
    visit.shot("directions")
    visit.end()


def test_what_takes_long_says_what_it_does_and_can_be_stopped(address: str, chromium: Any) -> None:
    visit = Visit(chromium, address, "desktop")
    visit.tab("Other methods")
    visit.page.get_by_label("Partitioner").click()
    visit.page.get_by_role("option", name="self-trained").click()
    visit.page.locator("#try").click()
    visit.page.locator("#preview", has_text="features by contrast").wait_for()
    visit.shot("learning")
    visit.page.locator("#stop").click()
    visit.page.locator("text=stopped; nothing is changed").wait_for()
    assert visit.page.locator("#preview .pk-card").count() == 0
    visit.end()


def test_ctrl_c_ends_it_at_once_while_a_page_is_open(result: Path, chromium: Any) -> None:
    with started(result, stderr=subprocess.PIPE) as (process, address):
        visit = Visit(chromium, address, "desktop")
        visit.page.locator(".pk-card:visible").nth(1).click()
        visit.page.locator(".pk-tiles[aria-label='samples of cluster 1']").wait_for()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 1  # about 0.1 s where nothing else runs
        assert process.stderr.read().splitlines()[-1:] == ["stopped"]
        visit.page.context.close()


def test_tiles_show_their_sample_up_to_their_edges(
    result: Path, address: str, chromium: Any
) -> None:
    from pgmkit.exploring import open_exhibit

    visit = Visit(chromium, address, "desktop")
    visit.page.locator(".pk-tile").nth(63).wait_for()
    wanted = open_exhibit(result).samples(0, 64).images
    for index in (0, 7, 27, 56, 63):  # corners of the sheet, and one within
        shot = io.BytesIO(visit.page.locator(".pk-tile").nth(index).screenshot())
        seen = Image.open(shot).convert("L").crop((0, 0, 52, 52))
        scaled = Image.fromarray(wanted[index, 0].numpy()).resize(
            seen.size, Image.Resampling.NEAREST
        )
        difference = abs(np.asarray(seen, float) - np.asarray(scaled, float))
        edges = [difference[1:3, 5:-5], difference[-3:-1, 5:-5], difference[5:-5, 1:3]]
        assert max(edge.mean() for edge in edges) < 8, index
        assert difference[1:-1, 1:-1].mean() < 2, index
    visit.end()


def test_what_cannot_be_done_is_told_and_changes_nothing(address: str, chromium: Any) -> None:
    visit = Visit(chromium, address, "desktop")
    visit.page.locator("#merge").click()
    visit.page.locator("text=two clusters or more can be merged").wait_for()
    visit.page.get_by_label("Name", exact=True).fill("12")
    visit.page.locator("#rename").click()
    visit.page.locator("text=a cluster is called by words").wait_for()
    assert visit.page.locator(".pk-card:visible").count() == 4
    visit.end()


def test_first_paint_and_a_cluster_take_little(address: str, chromium: Any) -> None:
    visit = Visit(chromium, address, "desktop")
    visit.page.locator(".pk-card:visible").first.wait_for()
    painted = visit.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    started = time.perf_counter()
    visit.page.locator(".pk-card:visible").nth(1).click()
    visit.page.locator(".pk-tiles[aria-label='samples of cluster 1']").wait_for()
    opened = time.perf_counter() - started
    print(f"first paint {painted:.0f} ms, a cluster {opened:.2f} s")
    assert painted < 10_000  # of a machine that does other things; see docs/explore.md
    assert opened < 10
    visit.end()


def test_a_damaged_result_says_so_on_the_page(result: Path, chromium: Any, tmp_path: Path) -> None:
    shutil.copytree(result, tmp_path / "copy")
    (tmp_path / "copy" / "sampler.safetensors").write_bytes(b"short")
    with served(tmp_path / "copy") as address:
        visit = Visit(chromium, address, "phone")
        alert = visit.page.get_by_role("alert")
        alert.wait_for()
        assert "truncated or damaged" in alert.inner_text()
        visit.shot("damaged")
        visit.end()
    shutil.copytree(result, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "spectrum")
    with served(tmp_path / "alone") as address:
        visit = Visit(chromium, address, "desktop")
        visit.page.get_by_role("note").wait_for()
        assert "Its spectrum is not there" in visit.page.get_by_role("note").inner_text()
        assert visit.page.locator(".pk-card:visible").count() == 4
        visit.shot("no-spectrum")
        visit.end()


def test_a_conditional_generator_opens_in_the_same_page(chromium: Any, result: Path) -> None:
    with served("mnist-pgmgan") as address:
        visit = Visit(chromium, address, "desktop")
        visit.page.locator(".pk-card:visible").nth(9).wait_for()
        visit.page.locator(".pk-card:visible").nth(3).click()
        visit.page.locator(".pk-tiles[aria-label='samples of partition 3']").wait_for()
        visit.shot("conditional")
        visit.end()


def test_points_of_a_partitioner_open_with_the_plane(
    chromium: Any, result: Path, tmp_path: Path
) -> None:
    words = ("--data", "points:ring:n=400", "-o", tmp_path / "ring", "--partitions", 8)
    assert run_pgmkit("partition", "fit", "kmeans", *words).code == 0
    with served(tmp_path / "ring") as address:
        visit = Visit(chromium, address, "desktop")
        visit.tab("Plane")
        plain = visit.page.locator("#plane img")
        plain.wait_for()
        visit.page.get_by_label("Guide of").click()
        visit.page.get_by_role("option", name="part 3").click()
        visit.page.locator("#plane img[alt*='part 3 pulls']").wait_for()
        visit.shot("plane")
        visit.end()


def test_other_hosts_and_origins_are_refused_and_no_file_is_served(address: str) -> None:
    host = address.removeprefix("http://")
    assert answer(address, "/")[0] == 200
    assert answer(address, "/", Origin=address)[0] == 200
    for headers in (
        {"Host": "example.org"},
        {"Host": "example.org:" + host.partition(":")[2]},
        {"Host": "127.0.0.1"},
        {"Origin": "http://example.org"},
        {"Origin": "null"},
    ):
        status, body = answer(address, "/", **headers)
        assert (status, body.partition(":")[0]) == (403, "refused")
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=" + __file__,
        "/gradio_api/file=pyproject.toml",
        "/file=/etc/passwd",
        "/gradio_api//file=/etc/passwd",
        "/gradio_api/%66ile=/etc/passwd",
        "/static/../../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/../../etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://example.org/",
    ):
        status, body = answer(address, path)
        assert "root:" not in body, path
        assert "mypy" not in body, path
        assert status in (403, 404, 405, 200), path
        assert status != 200 or "<html" in body, path


def test_a_port_in_use_is_one_line(address: str, result: Path) -> None:
    port = address.rpartition(":")[2]
    finished = run_pgmkit("explore", result, "--port", port, "--no-browser")
    assert finished.code == 1
    assert "cannot listen on 127.0.0.1" in finished.stderr
    assert "--port 0 takes a free one" in finished.stderr


def test_what_is_downloaded_is_what_is_shown(result: Path) -> None:
    import base64

    from pgmkit.exploring import open_exhibit
    from pgmkit.exploring.page import packed

    some = open_exhibit(result).samples(1, 6)
    with np.load(io.BytesIO(base64.b64decode(packed(some.part([2, 0]))))) as found:
        assert np.array_equal(found["images"][1], some.images[0].permute(1, 2, 0).numpy())
        assert some.latents is not None
        assert np.array_equal(found["latents"][0], some.latents[2].numpy())
