"""The page of `pgmkit explore`, in Gradio: it shows an exhibit, and holds no logic of its own."""

import base64
import contextlib
import io
import math
import os
import shlex
import socket
import threading
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from pgmkit import files, progress
from pgmkit.errors import LoadError, OutputError, PgmkitError, PgmkitWarning, first_line
from pgmkit.exploring import markup
from pgmkit.exploring.conditional import ConditionalExhibit
from pgmkit.exploring.exhibit import Exhibit, Samples
from pgmkit.exploring.mapping import FEATURES, IMAGES, LAYOUTS, has_umap
from pgmkit.exploring.opening import open_exhibit, place_of
from pgmkit.exploring.parts import PartitionerExhibit
from pgmkit.exploring.shattered import ShatteredExhibit

TITLE = "pgmkit explore"
_ON_THE_WALL = 16
_SLIDERS = 6
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_MOST_EDITS = 200
_MOST_BYTES = 2**28
"""Of the samples of a cluster that are shown at a time."""

_BETWEEN = 0.2
"""Seconds between two looks at what takes long."""
_STYLE = """
.gradio-container { width: 100% !important; max-width: 84rem !important;
  margin: 0 auto !important }
.gradio-container .main, .gradio-container .wrap, .gradio-container main { width: 100% !important;
  min-width: 0 !important; max-width: 100% !important }
.gradio-container button.lg { max-height: 3rem; align-self: flex-end }
footer { display: none !important }
@media (max-width: 40rem) { .gradio-container { padding: .5rem !important } }
"""
_DOWNLOAD = """(data) => {
  if (!data) return;
  const link = document.createElement('a');
  link.href = 'data:application/octet-stream;base64,' + data; link.download = 'samples.npz';
  link.click();
}"""


class _Versions:
    """The exhibit as it was opened and after each edit; pages hold the numbers of theirs.

    All pages share what was opened; each has edits of its own. The oldest edits are forgotten.
    """

    def __init__(self, first: Exhibit) -> None:
        self._all: dict[int, Exhibit] = {0: first}
        self._last = 0
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Any:
        return self._all.get(number, self._all[0])

    def add(self, exhibit: Exhibit) -> int:
        """Returns the number of a new one."""
        with self._lock:
            self._last += 1
            self._all[self._last] = exhibit
            for number in list(self._all)[1 : max(1, len(self._all) - _MOST_EDITS)]:
                del self._all[number]
            return self._last


def build_page(exhibit: Exhibit) -> gr.Blocks:
    """Returns the page of an exhibit."""
    versions = _Versions(exhibit)
    with gr.Blocks(
        title=f"{exhibit.title} · {TITLE}", analytics_enabled=False, fill_width=True
    ) as page:
        version, history = gr.State(0), gr.State([])
        heading = gr.Markdown(_heading(exhibit))
        gr.HTML(markup.notes(exhibit.notes), css_template=markup.STYLE, visible=bool(exhibit.notes))
        with gr.Tab("Clusters"):
            selectors = _clusters(exhibit, versions, version, history, heading)
        if isinstance(exhibit, ShatteredExhibit):
            if exhibit.spectrum is not None:
                with gr.Tab("Removed"):
                    _removed(exhibit, versions, version)
                with gr.Tab("Other methods"):
                    _methods(exhibit, versions, version, history, heading, selectors)
                with gr.Tab("Map") as tab:
                    _map(exhibit, versions, version, tab)
            with gr.Tab("Walk"):
                _walk(exhibit, versions, version, selectors)
            with gr.Tab("Directions"):
                _directions(exhibit, versions, version, selectors)
        if isinstance(exhibit, PartitionerExhibit | ConditionalExhibit) and exhibit.is_plane:
            with gr.Tab("Plane"):
                _plane(exhibit)
    return page


def build_failure(message: str) -> gr.Blocks:
    """Returns a page that says why there is nothing to see."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(markup.failure(message), css_template=markup.STYLE)
    return page


def how_it_looks() -> dict[str, Any]:
    """Returns what Gradio is told of the look: fonts of the system, none from elsewhere."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": _STYLE}


def application(page: gr.Blocks, host: str, port: int) -> FastAPI:
    """Returns what serves a page, and refuses other hosts and origins.

    A browser sends the name it went to, so a page of elsewhere that sends its visitors here is
    refused; nobody else can be asked by it either, since what is sent from another origin is, too.

    Args:
        page: the page.
        host: that it listens on. For "0.0.0.0" and "::" any name of a host is taken.
        port: that it listens on.
    """
    names = {host, *(_LOCAL_NAMES if host in ("127.0.0.1", "localhost", "::1") else ())}
    hosts = {f"{name}:{port}" for name in names}
    anywhere = host in ("0.0.0.0", "::")  # noqa: S104
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def guard(request: Any, call_next: Any) -> Any:
        asked = request.headers.get("host", "")
        origin = request.headers.get("origin")
        own = {f"http://{asked}", f"https://{asked}"}
        if (not anywhere and asked not in hosts) or (origin is not None and origin not in own):
            told = f"refused: this page is for {', '.join(sorted(hosts))} alone"
            return PlainTextResponse(told, status_code=403)
        if request.url.path.startswith(
            ("/gradio_api/upload", "/gradio_api/file", "/gradio_api/proxy")
        ):
            return PlainTextResponse("refused: there are no files here", status_code=403)
        return await call_next(request)

    app.middleware("http")(guard)
    return gr.mount_gradio_app(
        app, page, path="/", ssr_mode=False, footer_links=[], show_error=True, **how_it_looks()
    )


def page_of(reference: str, *, device: str = "auto") -> gr.Blocks:
    """Returns the page of a result; of one that is there but cannot be read, why that is so.

    Raises:
        LoadError: there is nothing.
        ParameterError: it has no clusters.
    """
    try:
        with progress.phase("opening"):
            return build_page(open_exhibit(reference, device=device))
    except LoadError as error:
        if not place_of(reference).exists():
            raise
        warnings.warn(str(error), PgmkitWarning, stacklevel=2)
        return build_failure(str(error))


def serve(page: gr.Blocks, *, host: str, port: int, browser: bool) -> None:
    """Serves a page until Ctrl-C, which ends it at once, and prints its address.

    Args:
        page: what is served.
        host: where to listen; see `application`.
        port: 0 takes a free one.
        browser: whether to open one.

    Raises:
        OutputError: the port is in use, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise OutputError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port (--port 0 "
            "takes a free one)"
        ) from error
    port = listening.getsockname()[1]
    named = f"[{host}]" if ":" in host else host
    address = f"http://{named}:{port}"
    app = application(page, named, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    print(address, flush=True)
    if browser:
        threading.Thread(target=_open_later, args=(server, address), daemon=True).start()
    # Not in the main thread, where it would wait at Ctrl-C for each page that is open.
    serving = threading.Thread(target=server.run, args=([listening],), daemon=True)
    serving.start()
    try:
        serving.join()
    except KeyboardInterrupt:
        files.remove_unfinished()
        raise


def _open_later(server: uvicorn.Server, address: str) -> None:
    while not server.started:
        time.sleep(0.05)
    webbrowser.open(address)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows what pgmkit raises on the page, and nothing of it changes."""

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except PgmkitError as error:
            raise gr.Error(first_line(error), duration=12, print_exception=False) from error

    return call


class _Watch:
    """Shows on a page what takes long, and stops it when the visitor says so."""

    def __init__(self) -> None:
        self._stopped: set[str | None] = set()

    def stop(self, request: gr.Request) -> None:
        """Stops what runs for a visitor, at its next step."""
        self._stopped.add(request.session_hash)

    @contextlib.contextmanager
    def following(self, shown: gr.Progress, request: gr.Request) -> Iterator[None]:
        """Shows each phase within the block.

        Raises:
            PgmkitError: the visitor has stopped it.
        """
        visitor, last, told_at = request.session_hash, "", 0.0
        self._stopped.discard(visitor)

        def tell(name: str, done: int, total: int | None) -> None:
            nonlocal last, told_at
            if visitor in self._stopped:
                raise PgmkitError("stopped; nothing is changed")
            now = time.monotonic()
            if name != last or now - told_at > _BETWEEN:
                last, told_at = name, now
                shown((done, total) if total else 0, desc=name)

        with progress.followed(tell):
            yield


def _heading(exhibit: Exhibit) -> str:
    return f"# {exhibit.title}\n{exhibit.lead}"


def _hidden(exhibit: Any) -> Sequence[int]:
    return exhibit.shattered.hidden if isinstance(exhibit, ShatteredExhibit) else ()


def _choices(exhibit: Exhibit) -> list[tuple[str, int]]:
    return [(name, number) for number, name in enumerate(exhibit.called)]


def _wall(exhibit: Exhibit, chosen: int) -> str:
    images = []
    for number in range(len(exhibit.called)):
        try:
            images.append(exhibit.samples(number, _ON_THE_WALL).images)
        except PgmkitError:  # of an empty cluster
            images.append(torch.empty(0))
    return markup.wall(exhibit, images, chosen, _hidden(exhibit))


def _clusters(
    exhibit: Exhibit,
    versions: _Versions,
    version: gr.State,
    history: gr.State,
    heading: gr.Markdown,
) -> list[gr.Dropdown]:
    """Adds the wall, one cluster, and edits; returns what chooses a cluster."""
    wall = gr.HTML(_wall(exhibit, 0), css_template=markup.STYLE, js_on_load=markup.SCRIPT)
    with gr.Row():
        cluster = gr.Dropdown(_choices(exhibit), value=0, label="Cluster", elem_id="cluster")
        most = min(512, max(16, _MOST_BYTES // math.prod(exhibit.image.shape) // 16 * 16))
        count = gr.Slider(
            16, most, min(64, most), step=16, label="Samples at most", elem_id="count"
        )
        fresh = gr.Checkbox(
            False,
            label="New draws",
            info="instead of latents that were clustered",
            visible=not isinstance(exhibit, PartitionerExhibit),
        )
    tiles = gr.HTML(
        markup.tiles(exhibit.samples(0, 64), exhibit.called[0]),
        css_template=markup.STYLE,
        js_on_load=markup.SCRIPT,
        elem_id="tiles",
    )
    with gr.Row():
        download = gr.Button("Download", elem_id="download")
        gr.Markdown("An `.npz` of images, margins and latents.")
    chosen, payload = gr.Textbox(visible=False), gr.Textbox(visible=False)

    @_told
    def show(number: int, cluster: int, count: int, fresh: bool) -> str:
        found = versions[number]
        cluster = min(int(cluster or 0), len(found.called) - 1)
        some = found.samples(cluster, int(count), fresh=fresh)
        return markup.tiles(some, found.called[cluster])

    @_told
    def pack(number: int, cluster: int, count: int, fresh: bool, chosen: str) -> str:
        some: Samples = versions[number].samples(int(cluster), int(count), fresh=fresh)
        index = [place for place in map(int, chosen.split()) if 0 <= place < len(some)]
        return packed(some.part(index) if index else some)

    def open_card(event: gr.EventData) -> Any:
        return event.cluster

    shown = [version, cluster, count, fresh]
    for trigger in (cluster.change, count.release, fresh.change):
        trigger(
            show,
            shown,
            tiles,
            show_progress="minimal",
            trigger_mode="always_last",
        )
    # All of them, one after the other: what is sent again later would bear the data of the first.
    wall.click(open_card, None, cluster, show_progress="hidden", trigger_mode="multiple")
    fetched = download.click(pack, [*shown, chosen], payload, js=markup.CHOSEN)
    fetched.then(None, payload, None, js=_DOWNLOAD)
    if isinstance(exhibit, ShatteredExhibit):
        return _edits(
            exhibit, versions, version, history, heading, wall, tiles, cluster, show, shown
        )
    return [cluster]


def packed(samples: Samples) -> str:
    """Returns samples as an .npz file in base64: images (n, H, W, C), latents and margins."""
    arrays: dict[str, Any] = {}
    if samples.images.ndim == 4:
        arrays["images"] = samples.images.permute(0, 2, 3, 1).numpy()
    else:
        arrays["points"] = samples.images.numpy()
    for name in ("latents", "margins"):
        if (found := getattr(samples, name)) is not None:
            arrays[name] = found.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


def _edits(
    exhibit: ShatteredExhibit,
    versions: _Versions,
    version: gr.State,
    history: gr.State,
    heading: gr.Markdown,
    wall: gr.HTML,
    tiles: gr.HTML,
    cluster: gr.Dropdown,
    show: Callable[..., Any],
    shown: list[Any],
) -> list[gr.Dropdown]:
    """Adds names, merging, splitting, hiding and saving."""
    gr.Markdown("## Name, merge, split, hide\nOf the cluster that is open above.")
    with gr.Row(equal_height=True):
        name = gr.Textbox(label="Name", max_lines=1, elem_id="name", placeholder="such as sandals")
        rename = gr.Button("Name it", elem_id="rename")
        hide = gr.Button("Hide or show it", elem_id="hide")
        undo = gr.Button("Undo", elem_id="undo")
    with gr.Row(equal_height=True):
        others = gr.Dropdown(
            _choices(exhibit), multiselect=True, label="Merge with", elem_id="others"
        )
        merge = gr.Button("Merge", elem_id="merge")
        parts = gr.Slider(2, 6, 2, step=1, label="Split into", elem_id="parts")
        split = gr.Button("Split", elem_id="split", interactive=exhibit.spectrum is not None)
    with gr.Row(equal_height=True):
        folder = gr.Textbox(
            label="Save as a new shattered generator in",
            max_lines=1,
            elem_id="folder",
            placeholder="a new folder",
            min_width=300,
            scale=3,
        )
        save = gr.Button("Save", variant="primary", elem_id="save")
    status = gr.HTML(
        "", css_template=markup.STYLE, js_on_load=markup.STATUS_SCRIPT, elem_id="status"
    )
    selectors = [cluster]

    def after(
        number: int, before: list[int], edited: ShatteredExhibit, place: int, told: str
    ) -> Any:
        new = versions.add(edited)
        return _refreshed(edited, new, [*before, number], place, told)

    def _refreshed(
        found: ShatteredExhibit, number: int, before: list[int], place: int, told: str
    ) -> Any:
        place = min(place, len(found.called) - 1)
        choices = _choices(found)
        return [
            number,
            before,
            _heading(found),
            _wall(found, place),
            gr.Dropdown(choices, value=place),
            gr.Dropdown(choices, value=[]),
            markup.tiles(found.samples(place, 64), found.called[place]),
            "",
            markup.status(told),
        ]

    outputs = [version, history, heading, wall, cluster, others, tiles, name, status]

    @_told
    def do_rename(number: int, before: list[int], place: int, name: str) -> Any:
        edited = versions[number].renamed(int(place), name)
        told = f"Cluster {place} is called {name.strip()}." if name.strip() else "The name is gone."
        return after(number, before, edited, int(place), told)

    @_told
    def do_hide(number: int, before: list[int], place: int) -> Any:
        found, place = versions[number], int(place)
        hidden = place not in found.shattered.hidden
        told = f"{found.called[place]} is {'hidden' if hidden else 'shown'}."
        return after(number, before, found.with_hidden(place, hidden), place, told)

    @_told
    def do_merge(number: int, before: list[int], place: int, others: list[int]) -> Any:
        members = sorted({int(place), *map(int, others or [])})
        edited = versions[number].merged(members)
        told = f"Clusters {', '.join(map(str, members))} are cluster {members[0]} now."
        return after(number, before, edited, members[0], told)

    @_told
    def do_split(number: int, before: list[int], place: int, parts: int) -> Any:
        edited = versions[number].split(int(place), int(parts))
        last = len(edited.called) - 1
        told = f"Cluster {place} is split; its other parts are the last, up to {last}."
        return after(number, before, edited, int(place), told)

    @_told
    def do_undo(number: int, before: list[int], place: int) -> Any:
        if not before:
            raise gr.Error("there is nothing to undo", duration=5, print_exception=False)
        told = f"Undone; {len(before) - 1} earlier edits are left."
        return _refreshed(versions[before[-1]], before[-1], before[:-1], int(place), told)

    def do_save(number: int, folder: str) -> Iterator[Any]:
        if not folder.strip():
            raise gr.Error("name a new folder", duration=5, print_exception=False)
        found, path = versions[number], Path(folder.strip()).expanduser().absolute()
        yield markup.status(f"Saving in {path} …"), gr.Button(interactive=False)
        told = ""
        try:
            _told(found.save)(path)
            named = next((name for name in found.shattered.names if name), None)
            which = ["--cluster", named] if named else []
            command = shlex.join(["pgmkit", "sample", str(path), *which, "-o", "samples.png"])
            told = markup.status(f"Saved in {path}. Samples of it are drawn by", command)
        finally:
            yield told, gr.Button(interactive=True)

    given = [version, history, cluster]
    rename.click(do_rename, [*given, name], outputs)
    name.submit(do_rename, [*given, name], outputs)
    hide.click(do_hide, given, outputs)
    merge.click(do_merge, [*given, others], outputs)
    split.click(do_split, [*given, parts], outputs)
    undo.click(do_undo, given, outputs)
    save.click(do_save, [version, folder], [status, save], show_progress="hidden")
    return selectors


def _removed(exhibit: ShatteredExhibit, versions: _Versions, version: gr.State) -> None:
    names = exhibit.densities()
    start = float(exhibit.shattered.origin.settings["remove"])
    with gr.Row():
        density = gr.Dropdown(names, value=names[0], label="Density estimator")
        remove = gr.Slider(
            0, 0.95, start, step=0.01, label="Share of prior mass removed", elem_id="remove"
        )
    shown = gr.HTML("", css_template=markup.STYLE, elem_id="removal")

    @_told
    def show(number: int, density: str, remove: float) -> str:
        found: ShatteredExhibit = versions[number]
        sizes = found.shattered.cluster_sizes
        return markup.removal(found.removal(remove, density), found.called, sizes)

    shown.value = show(0, names[0], start)
    for trigger in (density.change, remove.change):
        trigger(
            show,
            [version, density, remove],
            shown,
            show_progress="hidden",
            trigger_mode="always_last",
        )


def _methods(
    exhibit: ShatteredExhibit,
    versions: _Versions,
    version: gr.State,
    history: gr.State,
    heading: gr.Markdown,
    selectors: list[gr.Dropdown],
) -> None:
    origin = exhibit.shattered.origin
    gr.Markdown(
        "What other methods find on the same spectrum. What a partitioner learns of the images is "
        "learned once, which may take minutes; after that other numbers and densities take a "
        "moment."
    )
    watch = _Watch()
    densities, partitioners = exhibit.densities(), exhibit.partitioners()
    mappers = exhibit.mappers()
    with gr.Row():
        density = gr.Dropdown(densities, value=densities[0], label="Density estimator")
        partitioner = gr.Dropdown(
            partitioners, value=partitioners[0], label="Partitioner", elem_id="partitioner"
        )
        mapper = gr.Dropdown(
            mappers, value="rejection" if "rejection" in mappers else mappers[0], label="Mapper"
        )
    with gr.Row():
        clusters = gr.Slider(
            1, 40, int(origin.settings["clusters"]), step=1, label="Clusters", elem_id="clusters"
        )
        remove = gr.Slider(0, 0.95, float(origin.settings["remove"]), step=0.01, label="Removed")
    with gr.Row():
        look = gr.Button("Try it", elem_id="try")
        make = gr.Button("Make it the result", elem_id="make")
        stop = gr.Button("Stop", elem_id="stop")
    shown = gr.HTML("", css_template=markup.STYLE, elem_id="preview")
    status = gr.Markdown("")

    @_told
    def preview(
        number: int,
        density: str,
        partitioner: str,
        clusters: int,
        remove: float,
        request: gr.Request,
        told: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        found: ShatteredExhibit = versions[number]
        with watch.following(told, request):
            return markup.preview(found.preview(density, partitioner, int(clusters), remove))

    @_told
    def do_make(
        number: int,
        before: list[int],
        density: str,
        partitioner: str,
        mapper: str,
        clusters: int,
        remove: float,
        request: gr.Request,
        told: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        with watch.following(told, request):
            made = versions[number].made(density, partitioner, mapper, int(clusters), remove)
        new = versions.add(made)
        choices = gr.Dropdown(_choices(made), value=0)
        done = "It is the result now: see Clusters. Undo is there, too."
        return [new, [*before, number], _heading(made), done, *([choices] * len(selectors))]

    stop.click(watch.stop, queue=False)
    look.click(preview, [version, density, partitioner, clusters, remove], shown)
    make.click(
        do_make,
        [version, history, density, partitioner, mapper, clusters, remove],
        [version, history, heading, status, *selectors],
    )


def _map(exhibit: ShatteredExhibit, versions: _Versions, version: gr.State, tab: gr.Tab) -> None:
    layouts = LAYOUTS if has_umap() else LAYOUTS[:1]
    with gr.Row():
        by = gr.Radio(list(markup.COLOURS), value="cluster", label="Colour by", elem_id="colour")
        layout = gr.Radio(
            list(layouts),
            value=layouts[0],
            label="Laid out by",
            elem_id="layout",
            info=None if has_umap() else "by UMAP, too, with pip install 'pgmkit[umap]'",
        )
        of = gr.Radio(
            [IMAGES, FEATURES],
            value=IMAGES,
            label="Of",
            elem_id="mapped",
            info="features are what the clusters were found by",
            visible=exhibit.has_features,
        )
    shown = gr.HTML("", css_template=markup.STYLE, js_on_load=markup.MAP_SCRIPT, elem_id="map")

    @_told
    def show(
        number: int,
        by: str,
        layout: str,
        of: str,
        request: gr.Request,
        told: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        found: ShatteredExhibit = versions[number]
        with _Watch().following(told, request):
            made = found.map(layout, of)
        if by == "class" and made.classes is None:
            raise gr.Error(
                "no classifier took part, so classes are not known",
                duration=6,
                print_exception=False,
            )
        return markup.latents_map(made, found.called, by)

    given = [version, by, layout, of]
    tab.select(show, given, shown)
    for trigger in (layout.change, of.change):
        trigger(show, given, shown, trigger_mode="always_last")
    by.change(show, given, shown, show_progress="hidden")


def _walk(
    exhibit: ShatteredExhibit, versions: _Versions, version: gr.State, selectors: list[gr.Dropdown]
) -> None:
    choices = _choices(exhibit)
    with gr.Row():
        start = gr.Dropdown(choices, value=0, label="From", elem_id="from")
        end = gr.Dropdown(choices, value=min(1, len(choices) - 1), label="To", elem_id="to")
        steps = gr.Slider(3, 32, 12, step=1, label="Steps")
        seed = gr.Slider(0, 15, 0, step=1, label="Which samples")
    walk = gr.Button("Walk", elem_id="walk")
    shown = gr.HTML("", css_template=markup.STYLE, elem_id="strip")

    @_told
    def show(number: int, start: int, end: int, steps: int, seed: int) -> str:
        found: ShatteredExhibit = versions[number]
        images, clusters = found.walk(int(start), int(end), int(steps), int(seed))
        return markup.strip(images, [found.called[cluster] for cluster in clusters])

    given = [version, start, end, steps, seed]
    walk.click(show, given, shown)
    for trigger in (start.input, end.input, steps.release, seed.release):
        trigger(show, given, shown, show_progress="hidden")
    version.change(
        lambda number: [gr.Dropdown(_choices(versions[number]))] * 2, version, [start, end]
    )


def _directions(
    exhibit: ShatteredExhibit, versions: _Versions, version: gr.State, selectors: list[gr.Dropdown]
) -> None:
    gr.Markdown(
        "Directions of the latent space that change the image the most at one latent: singular "
        "vectors of the Jacobian there."
    )
    held = gr.State(None)
    with gr.Row(equal_height=True):
        cluster = gr.Dropdown(_choices(exhibit), value=0, label="Cluster", elem_id="of")
        place = gr.Slider(1, 64, 1, step=1, label="Sample, the clearest first")
        begin = gr.Button("Begin here", elem_id="begin")
    with gr.Row():
        with gr.Column(scale=1):
            shown = gr.HTML("", css_template=markup.STYLE, elem_id="steered")
        with gr.Column(scale=2):
            sliders = [
                gr.Slider(
                    -4,
                    4,
                    0,
                    step=0.1,
                    label=f"direction {number + 1}",
                    elem_id=f"direction-{number}",
                    visible=False,
                )
                for number in range(_SLIDERS)
            ]

    @_told
    def start(number: int, cluster: int, place: int) -> Any:
        found: ShatteredExhibit = versions[number]
        some = found.samples(int(cluster), 64)
        index = min(int(place), len(some)) - 1
        assert some.latents is not None
        made = found.directions(some.latents[index], _SLIDERS)
        updates = [
            gr.Slider(
                value=0,
                visible=rank < len(made.values),
                label=f"direction {rank + 1}, σ = {float(made.values[rank]):.3g}"
                if rank < len(made.values)
                else "",
            )
            for rank in range(_SLIDERS)
        ]
        return [made, markup.large([(found.called[int(cluster)], some.images[index])]), *updates]

    @_told
    def steer(number: int, made: Any, *amounts: float) -> str:
        if made is None:
            return ""
        found: ShatteredExhibit = versions[number]
        count = len(made.values)
        before, _ = found.steered(made, [0.0] * count)
        image, cluster = found.steered(made, amounts[:count])
        return markup.large([("before", before), (f"now: {found.called[cluster]}", image)])

    begin.click(start, [version, cluster, place], [held, shown, *sliders])
    for slider in sliders:
        slider.change(
            steer,
            [version, held, *sliders],
            shown,
            show_progress="hidden",
            trigger_mode="always_last",
        )
    version.change(lambda number: gr.Dropdown(_choices(versions[number])), version, cluster)


def _plane(exhibit: PartitionerExhibit | ConditionalExhibit) -> None:
    part = gr.Dropdown(
        [("no part", -1), *_choices(exhibit)], value=-1, label="Guide of", elem_id="guide"
    )
    shown = gr.HTML(_drawn(exhibit, -1), css_template=markup.STYLE, elem_id="plane")
    part.change(_told(lambda part: _drawn(exhibit, int(part))), part, shown)


def _drawn(exhibit: PartitionerExhibit | ConditionalExhibit, part: int) -> str:
    data = base64.b64encode(exhibit.plane(None if part < 0 else part)).decode()
    what = "points in the colours of their parts" + (
        f", and where part {part} pulls" if part >= 0 else ""
    )
    return f'<div class="pk-plane"><img alt="{what}" src="data:image/png;base64,{data}"></div>'
