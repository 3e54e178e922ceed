"""`pgmkit shatter` as a run: what a stop leaves, what cannot be saved, and the defaults."""

import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_forked
from tiny import (
    STEPS,
    STOP_LEARNING,
    STOPPED_AT,
    Finished,
    every_file,
    run_pgmkit,
    write_tiny_generator,
)

import pgmkit
from pgmkit import progress
from pgmkit.errors import PluginError
from pgmkit.evaluate.ablation.plan import AblationSettings
from pgmkit.jobs import shatter as job
from pgmkit.plugins import build, installed
from pgmkit.shattering.algorithm import build_sampler
from pgmkit.states import table_of
from pgmkit_plugins.features import contrastive
from pgmkit_plugins.mappers.mixture import MixtureMapper
from pgmkit_plugins.partitioners.kmeans import KMeansPartitioner

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*clusters have fewer latents"),
]

LATENTS = 60
LEARNED = f"partitioner.features={{name='contrastive', steps={STEPS}, batch_size=16, width=8}}"
METHODS = ("--clusters", 2, "--partitioner", "kmeans", "--mapper", "mixture")
METHODS += ("--set", "mapper.num_components=1", "--set", LEARNED)
UNSAVED = '''
import torch
from pgmkit import Component, hookimpl
from pgmkit.images import batches

@hookimpl
def pgmkit_partitioners():
    return [Component("halves", "unsaved:Halves", "dark and bright")]

class Halves:
    """The example of the specification."""

    num_partitions = 2

    def __init__(self, num_partitions=2):
        pass

    def fit(self, source, *, seed):
        self.median = torch.cat([_brightness(x) for x in batches(source)]).median()

    def logits(self, x):
        above = _brightness(x) - self.median
        return torch.stack([-above, above], dim=1)

def _brightness(x):
    return x.mean(dim=(1, 2, 3))
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_generator(tmp_path_factory.mktemp("inputs") / "tiny")


@pytest.fixture(scope="module")
def spectrum(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs, since two that are computed apart may differ in the last bits."""
    out = tmp_path_factory.mktemp("spectrum") / "spectrum"
    generator = pgmkit.load_generator(tiny)
    pgmkit.compute_spectrum(generator, latents=LATENTS, seed=0, out=out)
    return out


@pytest.fixture(scope="module")
def whole(tiny: str, spectrum: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finished = shatter(tiny, spectrum, out)
    assert finished.code == 0, finished.stderr
    return out


def shatter(tiny: str, spectrum: Path, out: Path, *more: object) -> Finished:
    return run_pgmkit("shatter", tiny, "--spectrum", spectrum, "-o", out, *METHODS, *more)


def test_settings_of_a_spectrum_that_is_there_would_be_ignored(
    tiny: str, spectrum: Path, tmp_path: Path
) -> None:
    more = ("--set", "spectrum.engine=local", "--set", "spectrum.probes=2")
    finished = shatter(tiny, spectrum, tmp_path / "out", *more)
    assert finished.code == 1
    assert finished.stderr.startswith("error: engine, probes of the spectrum would be ignored")
    assert not (tmp_path / "out").exists()


DRAWING = """
import sys

for name in list(sys.modules):
    if name.partition(".")[0] in ("pgmkit_plugins", "sklearn"):
        del sys.modules[name]

from pgmkit.models import load
from pgmkit.plugins import build

build("cluster-samplers", "partition")
print(load(sys.argv[1]).sample(2, cluster=1).shape)
print("sklearn" in sys.modules)
"""


def test_a_result_is_drawn_from_without_what_found_its_clusters(whole: Path) -> None:
    """To import scikit-learn takes a second, and the default sampler has it in all its parts."""
    finished = run_forked("-c", DRAWING, whole)
    assert finished.stdout == "torch.Size([2, 1, 32, 32])\nFalse\n", finished.stderr


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each step of the contrastive training."""
    steps: list[int] = []
    loss = contrastive.contrastive_loss

    def counted(*arguments: Any) -> torch.Tensor:
        steps.append(len(steps))
        return loss(*arguments)

    monkeypatch.setattr(contrastive, "contrastive_loss", counted)
    return steps


# Stopped


def test_a_run_stopped_while_it_learned_continues_and_ends_with_the_same_bytes(
    tiny: str, spectrum: Path, whole: Path, tmp_path: Path, learned: list[int]
) -> None:
    out = tmp_path / "out"
    words = ("shatter", tiny, "--spectrum", spectrum, "-o", out, *METHODS)
    stopped = run_forked("-c", STOP_LEARNING, *words)
    assert stopped.code == 1
    assert stopped.stderr.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in stopped.stderr
    assert list((out / "learning").glob("*/checkpoint-*"))
    assert not (out / "sampler.json").exists()
    again = shatter(tiny, spectrum, out)
    assert again.code == 0, again.stderr
    assert len(learned) == STEPS - STOPPED_AT
    assert not (out / "learning").exists()
    for name in ("sampler.safetensors", "sampler.json", "samples.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_stopped_between_saving_and_the_report_does_not_cluster_again(
    tiny: str, spectrum: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(job, "describe", stop)
        stopped = shatter(tiny, spectrum, out)
    assert stopped.code == 1
    assert "stopped" in stopped.stderr
    assert (out / "sampler.json").exists()
    assert not (out / "report.json").exists()
    before = every_file(out)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("clustered again")

    with monkeypatch.context() as patch:
        patch.setattr(KMeansPartitioner, "fit", never)
        again = shatter(tiny, spectrum, out)
    assert again.code == 0, again.stderr
    assert f"clusters read from {out}" in again.stderr
    assert {n: s for n, s in every_file(out).items() if n.startswith("sampler")} == {
        n: s for n, s in before.items() if n.startswith("sampler")
    }
    assert not (out / "learning").exists()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, whole)]
    for key in ("clusters", "scores", "statistics", "sampler", "settings"):
        assert reports[0][key] == reports[1][key]


def test_a_damaged_sampler_is_found_anew_with_a_warning(
    tiny: str, spectrum: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "describe", stop)
        shatter(tiny, spectrum, out)
    state = out / "sampler.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    again = shatter(tiny, spectrum, out)
    assert again.code == 0
    assert "(clusters are found anew)" in again.stderr
    assert state.read_bytes() == (whole / "sampler.safetensors").read_bytes()


# What it says


def test_a_phase_that_takes_long_is_one_line_and_quick_ones_are_not_told(
    tiny: str, spectrum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = MixtureMapper.fit

    def slowly(self: MixtureMapper, *arguments: Any, **rest: Any) -> None:
        time.sleep(0.3 if progress._SECONDS < 1 else 0.0)
        fit(self, *arguments, **rest)

    monkeypatch.setattr(MixtureMapper, "fit", slowly)
    words = ("--clusters", 2, "--sampler", "kmeans-gmm", "--set", "sampler.num_components=1")
    said = []
    for seconds, quiet in ((0.1, ()), (1e6, ()), (0.1, ("-q",))):
        monkeypatch.setattr(progress, "_SECONDS", seconds)
        out = tmp_path / f"{seconds}-{len(quiet)}"
        finished = run_pgmkit("shatter", tiny, "--spectrum", spectrum, "-o", out, *words, *quiet)
        assert finished.code == 0
        said.append(finished.stderr.splitlines())
    assert "draws by pgmkit:mixture" in said[0]
    assert said[1:] == [[], []]


# What cannot be saved


@pytest.fixture
def unsaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs a partitioner that has no state."""
    site = tmp_path / "site"
    info = site / "unsaved-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "unsaved.py").write_text(UNSAVED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unsaved\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pgmkit.plugins]\nmain = unsaved\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    importlib.invalidate_caches()
    installed.cache_clear()
    yield
    installed.cache_clear()
    sys.modules.pop("unsaved", None)


@pytest.mark.usefixtures("unsaved", "no_estimate")
def test_what_cannot_be_saved_works_with_a_note_at_the_start_and_leaves_a_report(
    tiny: str, spectrum: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("shatter", tiny, "--spectrum", spectrum, "--partitioner", "halves", "--clusters", 2)
    words += ("--mapper", "mixture", "--set", "mapper.num_components=1")
    said = "note: the result will have a report but cannot be sampled later, since 'unsaved:halves'"
    dry = run_pgmkit(*words, "--dry-run")  # before anything is computed
    assert dry.code == 0
    assert dry.stderr.startswith(said)
    finished = run_pgmkit(*words, "-o", out)
    assert finished.code == 0, finished.stderr
    assert finished.stderr.startswith(said)
    assert "has neither state() and load_state(), nor is it" in finished.stderr
    assert (out / "report.html").exists()
    sizes = [c["size"] for c in json.loads((out / "report.json").read_text())["clusters"]]
    assert sum(sizes) == 48
    assert min(sizes) >= 20  # halves
    assert not (out / "sampler.json").exists()
    before = every_file(out)
    again = run_pgmkit(*words, "-o", out)
    assert again.code == 0
    assert "is complete; nothing was computed" in again.stderr
    assert every_file(out) == before
    sampled = run_pgmkit("sample", out, "-n", 2, "-o", tmp_path / "x.png")
    assert sampled.code == 1
    assert sampled.stderr.startswith("error: ")


@pytest.mark.usefixtures("unsaved")
def test_a_partitioner_of_data_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    words = ("partition", "fit", "halves", "--data", "points:ring:n=100", "--partitions", 2)
    finished = run_pgmkit(*words, "-o", tmp_path / "out")
    assert finished.code == 1
    assert "a partitioner that cannot be saved would be lost" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_object_of_ones_own_shatters_but_is_not_saved(tiny: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(UNSAVED, names)
    shattered = pgmkit.shatter(
        pgmkit.load_generator(tiny),
        partitioner=names["Halves"](),
        mapper={"name": "mixture", "num_components": 1},
        latents=LATENTS,
    )
    assert shattered.num_clusters == 2
    assert shattered.sample(3, cluster=1).shape == (3, 1, 32, 32)
    with pytest.raises(PluginError, match="this cannot be saved: Halves is an object of your own"):
        shattered.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Defaults


def test_shatter_has_few_parameters() -> None:
    assert len(inspect.signature(pgmkit.shatter).parameters) <= 10


@pytest.mark.usefixtures("no_estimate")
def test_python_the_command_line_and_ablations_have_the_same_defaults(
    tiny: str, tmp_path: Path
) -> None:
    dry = run_pgmkit("shatter", tiny, "--dry-run")
    assert dry.code == 0, dry.stderr
    command = json.loads(dry.stdout)["settings"]
    python = {
        name: parameter.default
        for name, parameter in inspect.signature(pgmkit.shatter).parameters.items()
    }
    density = build("density-estimators", python["density"])
    sampler = build_sampler(python["sampler"], python["partitioner"], python["mapper"], None)
    assert command["density"] == table_of(density)
    assert command["sampler"] == table_of(sampler)
    assert command["clusters"] == sampler.num_clusters
    assert (command["remove"], command["seed"]) == (python["remove"], python["seed"])
    config = tmp_path / "ablation.toml"
    config.write_text(f'generators = ["{tiny}"]\nmeasures = ["selection"]\n')
    dry = run_pgmkit("ablate", config, "--dry-run")
    assert dry.code == 0, dry.stderr
    ablation = json.loads(dry.stdout)["settings"]
    (variant,) = ablation["densities"]
    assert variant.pop("label") == "lash"
    assert variant == command["density"]
    (variant,) = ablation["samplers"]
    assert variant.pop("label")
    assert variant == command["sampler"]
    assert ablation["generators"][0]["clusters"] == [command["clusters"]]
    assert ablation["latents"] == [command["latents"]]
    assert ablation["remove"] == [command["remove"]]
    assert ablation["seeds"] == [command["seed"]]
    assert ablation["spectrum"] == command["spectrum"]
    assert AblationSettings(generators=[tiny]).clusters == command["clusters"]
