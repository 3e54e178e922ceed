"""What holds in all tests, and what several of them need.

What takes long to import is imported where it is used: the process that hands out tests needs none.
"""

import gc
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import HubServer

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background lacks

gc.disable()  # until all tests are collected: what they import stays

_caches = itertools.count()

_FIRST = (
    "test_shatter",
    *("test_requests", "test_progress", "test_publishing", "test_engines"),
    *("test_docs", "test_new_plugins", "test_ablate", "test_partitioners", "test_inference"),
    *("test_choosing", "test_testing", "test_programs", "test_faults", "test_train"),
    *("test_tangents", "test_contracts", "test_iresnet", "test_spectrum", "test_partition"),
)
"""Files that take the longest come first, so that no process is left alone with one at the end.

With the first, which has one test of a minute on two threads, those that wait for others.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Gives networks that nobody seeds the same weights in whatever order tests run."""
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed notes where it was called


@pytest.fixture(scope="session", autouse=True)
def _short_trials() -> Iterator[None]:
    """Tries batch sizes for Jacobians for a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgmkit.spectrum.differentiation._CALIBRATION_SECONDS", 0.2)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps fixtures of whole modules out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _plain_figures() -> Iterator[None]:
    """Draws figures in less than half of the time; see `full_figures`."""
    from plain import draw_plainly

    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        yield


@pytest.fixture
def full_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn as users see them."""
    from plain import draw_in_full

    draw_in_full(monkeypatch)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives each test a cache of its own, so that none depends on another."""
    cache = tmp_path_factory.getbasetemp() / "caches" / str(next(_caches))
    monkeypatch.setenv("PGMKIT_CACHE", str(cache))


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs tell a second for everything, without trying."""
    for module in ("shatter", "partition"):
        monkeypatch.setattr(f"pgmkit.jobs.{module}.seconds_of", lambda *_, **__: 1.0)
    tried = "pgmkit.spectrum.settings.SpectrumSettings.tried"
    monkeypatch.setattr(tried, lambda *_, **__: (None, 1.0))


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and fits of partitioners leave no report.html."""
    for name in ("evaluate.training_report.write_training", "jobs.partition.write_partition"):
        monkeypatch.setattr(f"pgmkit.{name}_report", lambda *_: None)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perceptrons that assign points are trained at once."""
    for name, value in (("_WIDTH", 16), ("_BATCH", 64)):
        monkeypatch.setattr(f"pgmkit.learning.assigner.{name}", value)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, as workers and subprocesses do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from, for distributions that a test installs; none stays."""
    from pgmkit.plugins import installed

    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    installed.cache_clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[HubServer]":
    """A Hub on loopback, which the client is told to use."""
    from hub_server import HubServer, use_hub
    from huggingface_hub import close_session

    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as running:
        use_hub(monkeypatch, running.url, tmp_path / "home")
        yield running
    close_session()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Does to the client what HF_HUB_OFFLINE=1 does before it is imported."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets requests and downloads be repeated at once."""
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("pgmkit.loading.requests.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    return pauses
