"""Ablations: what they compute, what they survive, and that their tables are those of the cells."""

import csv
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from plain import draw_in_full
from processes import FORKS, forked, serve
from safetensors.torch import load_file, save, save_file
from tiny import (
    every_file,
    let_no_sample_of_cluster_1_be_drawn,
    run_pgmkit,
    write_tiny_classifier,
    write_tiny_generator,
    write_tiny_images,
)

import pgmkit
from pgmkit.engines.processes import in_processes
from pgmkit.errors import (
    DataError,
    ParameterError,
    PgmkitError,
    UnknownNameError,
)
from pgmkit.evaluate.ablation import cells, measures
from pgmkit.evaluate.ablation.tables import Entry, escape_latex
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.diagnostics import diagnose, reproducibility
from pgmkit.evaluate.fidelity import ShatteringFidelity, shattering_fidelity
from pgmkit.evaluate.fidelity_scores import FidelityScores
from pgmkit.evaluate.figures import png
from pgmkit.evaluate.metrics import score_latents, score_samples
from pgmkit.images import load_images
from pgmkit.jobs.ablate import Job, prepare
from pgmkit.plugins import build, installed
from pgmkit.states import table_of
from pgmkit_plugins.samplers.kmeans_gmm import kmeans_gmm

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*clusters have fewer latents"),
]

METRICS = {
    "Homogeneity": "homogeneity",
    "Completeness": "completeness",
    "V Measure": "v_measure",
    "Adjusted MI": "adjusted_mutual_information",
}

MAPPERS = (("mixture", ""), ("rejection", "0.5"), ("rejection", "1.0"))

FAULTY = '''
import os, signal, time
from pathlib import Path
from pgmkit import Component, hookimpl

def end_or_double(number):
    if number < 0:
        os._exit(-number)
    return 2 * number

@hookimpl
def pgmkit_density_estimators():
    return [Component("faulty", "faulty:Faulty")]

class Faulty:
    """Is what it is told to be for as long as a file is there."""

    def __init__(self, how="raises", flag="", shift=0.0):
        self.how, self.flag = how, flag

    def log_weights(self, spectrum):
        if self.how == "is slow":
            time.sleep(0.15)
        elif Path(self.flag).exists():
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no weights today\\nnor tomorrow")
        return 0 * spectrum.log_prior
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A generator with weights so large that its images look like several digits."""
    folder = tmp_path_factory.mktemp("inputs") / "tiny"
    reference = write_tiny_generator(folder)
    weights = load_file(folder / "model.safetensors")
    large = {name: value * (3 if value.ndim == 4 else 1) for name, value in weights.items()}
    save_file(large, folder / "model.safetensors")
    return reference


@pytest.fixture(autouse=True)
def _charts_are_drawn_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the complete ablation become pictures; others are made, which is a quarter of it."""
    if "done" not in request.fixturenames:
        monkeypatch.setattr("pgmkit.evaluate.ablation.charts.png", lambda _: png(Figure((1, 1))))


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs the plugin above, for subprocesses too, and returns the path of its flag."""
    site = tmp_path / "site"
    info = site / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "faulty.py").write_text(FAULTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pgmkit.plugins]\nmain = faulty\n")
    monkeypatch.syspath_prepend(str(site))
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    importlib.invalidate_caches()
    installed.cache_clear()
    flag = tmp_path / "flag"
    flag.touch()
    yield flag
    installed.cache_clear()
    sys.modules.pop("faulty", None)


def config(source: str, **changes: Any) -> dict[str, Any]:
    return {
        "generators": [{"source": source, "classifier": "mnist-classifier"}],
        "densities": ["none", {"name": "lash", "label": "LASH"}],
        "samplers": ["kmeans-gmm"],
        "clusters": [2, 3],
        "latents": 120,
        "seeds": [0, 1],
        "samples": 60,
        "jobs": 1,
        **changes,
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Writes settings as TOML, whose values are written as in JSON but for tables."""

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        return json.dumps(value)

    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in values.items()))
    return path


def summary_of(job: Job, out: Path) -> dict[str, Any]:
    summary = job.run(out)
    assert summary is not None
    return summary


def table_of_cells(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "cells.csv").read_text())))


@pytest.fixture(scope="module")
def done(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete ablation of 8 cells, whose config and stdout lie beside it."""
    out = tmp_path_factory.mktemp("done") / "out"
    path = write_config(out.with_name("config.toml"), config(tiny))
    with pytest.MonkeyPatch.context() as patch:
        draw_in_full(patch)
        finished = run_pgmkit("ablate", path, "-o", out, "--json")
    assert finished.code == 0, finished.stderr
    out.with_name("stdout.json").write_text(finished.stdout)
    out.with_name("stderr.txt").write_text(finished.stderr)
    return out


def test_each_cell_is_a_line_with_its_place_and_its_numbers(done: Path) -> None:
    lines = table_of_cells(done)
    places = {(line["density"], line["clusters"], line["seed"]) for line in lines}
    assert places == {(d, k, s) for d in ("none", "LASH") for k in "23" for s in "01"}
    nested = json.loads((done / "cells.json").read_text())
    assert len(lines) == len(nested) == len(list((done / "cells").iterdir())) == 8
    for line, record in zip(lines, nested, strict=True):
        for metric, value in record["metrics"].items():
            assert float(line[metric]) == value
        counts = torch.tensor(record["counts"]["clusters"])
        assert counts.shape == (int(line["clusters"]), 10)
        assert counts.sum() == 96
        assert sum(map(sum, record["counts"]["samples"])) == 60
        assert float(line["seconds.total"]) > 0
        assert line["error"] == ""
        assert record["origin"]["versions"]["pgmkit"] == pgmkit.__version__


def test_a_cell_has_the_numbers_of_a_shattering_with_the_same_settings(
    done: Path, tiny: str
) -> None:
    (spectrum,) = (done / "spectra").glob("*seed-1/manifest.json")
    shattered = pgmkit.shatter(
        pgmkit.load_generator(tiny),
        density="lash",
        sampler="kmeans-gmm",
        clusters=3,
        seed=1,
        spectrum=pgmkit.spectrum.load_spectrum(spectrum.parent),
    )
    judge = load_classifier("mnist-classifier")
    (line,) = [
        x
        for x in table_of_cells(done)
        if (x["density"], x["clusters"], x["seed"]) == ("LASH", "3", "1")
    ]
    for protocol, scores in {
        "clusters": score_latents(shattered, judge),
        "samples": score_samples(shattered, judge, num_samples=60, seed=1),
    }.items():
        for metric in (*METRICS.values(), "class_entropy", "mean_cluster_entropy"):
            assert float(line[f"{protocol}.{metric}"]) == pytest.approx(getattr(scores, metric))


def test_the_tables_hold_means_and_deviations_of_the_cells_and_mark_the_best(done: Path) -> None:
    lines, text = table_of_cells(done), (done / "table.md").read_text()
    latex = (done / "table.tex").read_text()
    direct, samples, _ = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    compared = 0
    for protocol, table in {"clusters": direct, "samples": samples}.items():
        drawn = [line for line in table.splitlines()[4:] if line]
        rows = [[part.strip() for part in line.split("|")[1:-1]] for line in drawn]
        titles = [title for title, *_ in rows if title]
        assert titles == ["tiny, clusters 2", "tiny, clusters 3"]
        for number, (_, metric, *shown) in enumerate(rows):
            name = METRICS.get(metric)
            if name is None:
                continue
            found = [
                [
                    float(line[f"{protocol}.{name}"])
                    for line in lines
                    if (line["density"], line["clusters"]) == (density, "23"[number // 7])
                ]
                for density in ("none", "LASH")
            ]
            texts = [f"{mean(values):.4f} ± {stdev(values):.4f}" for values in found]
            best = int(mean(found[1]) > mean(found[0]))
            assert f"{mean(found[0]):.4f}" != f"{mean(found[1]):.4f}"
            assert rf"$\mathbf{{{texts[best]}}}$".replace("±", r"\pm") in latex
            texts[best] = f"**{texts[best]}**"
            assert shown == texts
            compared += 1
    assert compared == 16
    assert text.count("tiny, clusters 2 |") == text.count("tiny, clusters 3 |") == 3
    assert "Remove 0.2, 120 latents; mean ± standard deviation over 2 seeds." in text


def test_the_summary_says_what_ran_and_where(done: Path) -> None:
    summary = json.loads(done.with_name("stdout.json").read_text())
    assert (summary["cells"], summary["computed"], summary["failed"]) == (8, 8, 0)
    del summary["out"]
    assert summary == json.loads((done / "ablation.json").read_text())
    assert summary["settings"]["seeds"] == [0, 1]
    assert len(summary["settings"]["generators"][0]["weights"]["sha256"]) == 64
    assert summary["plugins"]["pgmkit:density"] == pgmkit.__version__
    assert [machine.count("cores") for machine in summary["machines"]] == [1]
    assert summary["versions"]["pgmkit"] == [pgmkit.__version__]
    assert summary["spectra_taken_up"] == 0
    assert [s["seconds"].keys() for s in summary["spectra"].values()] == [
        {"spectrum", "classes"},
        {"spectrum", "classes"},
    ]
    said = done.with_name("stderr.txt").read_text()
    assert sum(line.split()[1:3] == ["of", "8"] for line in said.splitlines()) == 8


def test_one_spectrum_and_one_set_of_labels_serve_all_cells_of_a_seed(done: Path) -> None:
    stem = "tiny-latents-120-seed-"
    assert {path.name for path in (done / "spectra").iterdir()} == {
        f"{stem}{seed}{suffix}" for seed in "01" for suffix in ("", ".json", ".classes.safetensors")
    }


def test_figures_show_each_measure_along_the_axis_and_classes_of_each_method(done: Path) -> None:
    names = {path.name for path in (done / "figures").iterdir()}
    assert names == {
        *(f"tiny-{m}-along-clusters.png" for m in ("clusters", "samples", "selection")),
        *(f"tiny-clusters-{k}-{d}-classes.png" for k in "23" for d in ("none", "LASH")),
    }
    for name in names:
        with Image.open(done / "figures" / name) as image:
            assert image.width > 300


def test_a_complete_ablation_only_rebuilds_tables_and_figures(done: Path) -> None:
    before = every_file(done / "cells") | every_file(done / "spectra")
    table = (done / "table.md").read_text()
    page = (done / "report.html").read_text()
    for name in ("table.md", "report.html"):
        (done / name).unlink()
    finished = run_pgmkit("ablate", done.with_name("config.toml"), "-o", done)
    assert finished.code == 0
    assert "8 cells, 0 of them computed now, 0 failed" in finished.stdout
    assert finished.stderr == ""
    assert (done / "table.md").read_text() == table
    again = (done / "report.html").read_text()
    assert again.count("<img") == page.count("<img") == len(list((done / "figures").iterdir()))
    assert len(again) < 2_000_000
    assert "cells, all done." in again
    assert every_file(done / "cells") | every_file(done / "spectra") == before


def test_an_ablation_may_grow_and_keeps_its_cells(tiny: str, tmp_path: Path) -> None:
    small = config(tiny, densities=["none"], clusters=2, seeds=0)
    assert summary_of(prepare(small), tmp_path / "out")["computed"] == 1
    before = every_file(tmp_path / "out" / "cells")
    grown = {**small, "densities": [{"name": "none", "label": "Original"}, "jbt"], "clusters": [2]}
    summary = summary_of(prepare(grown), tmp_path / "out")
    assert (summary["cells"], summary["computed"]) == (2, 1)
    assert before.items() < every_file(tmp_path / "out" / "cells").items()
    assert table_of_cells(tmp_path / "out")[0]["density"] == "Original"
    with pytest.raises(PgmkitError, match="a run with dtype"):
        prepare({**small, "spectrum": {"dtype": "float64"}}).run(tmp_path / "out")


def test_the_summary_tells_the_machines_and_versions_of_the_cells_and_of_no_other_spectra(
    tiny: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = config(tiny, densities=["none"], clusters=2, seeds=[0, 1], measures=["selection"])
    summary_of(prepare(values), out)
    old = next((out / "cells").glob("*seed-0*"))
    record = json.loads(old.read_text())
    record["machine"] = "an abacus"
    record["origin"]["versions"]["torch"] = "0.1"
    old.write_text(json.dumps(record))
    both = summary_of(prepare(values), out)
    assert both["computed"] == 0
    assert len(both["machines"]) == 2
    assert both["machines"][-1] == "an abacus"
    assert both["versions"]["torch"] == ["0.1", importlib.metadata.version("torch")]
    assert len(both["spectra"]) == 2
    one = summary_of(prepare({**values, "seeds": 0}), out)
    (spectrum,) = one["spectra"].values()
    assert one["seconds"]["spectra"] == pytest.approx(sum(spectrum["seconds"].values()), abs=0.01)


@pytest.mark.parametrize("how", ["cache", "interruption"])
def test_a_spectrum_that_was_taken_up_is_marked(how: str, tiny: str, tmp_path: Path) -> None:
    values = config(tiny, densities=["none"], clusters=2, seeds=5, measures=["selection"])
    out = tmp_path / "out"
    assert (
        summary_of(prepare({**values, "spectrum": {"cache": how == "cache"}}), out)[
            "spectra_taken_up"
        ]
        == 0
    )
    if how == "cache":
        out = tmp_path / "again"
    else:  # after the spectrum, before its record
        for path in (*(out / "cells").iterdir(), *(out / "spectra").glob("*.json")):
            path.unlink()
    summary = summary_of(prepare({**values, "spectrum": {"cache": how == "cache"}}), out)
    assert summary["spectra_taken_up"] == 1
    (spectrum,) = summary["spectra"].values()
    assert (bool(spectrum["from_cache"]), spectrum["continued"]) == (
        how == "cache",
        how == "interruption",
    )


def test_a_damaged_cell_is_computed_again(tiny: str, tmp_path: Path) -> None:
    prepared = prepare(config(tiny, densities=["jbt"], clusters=2, seeds=0))
    summary_of(prepared, tmp_path / "out")
    (path,) = (tmp_path / "out" / "cells").iterdir()
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    assert summary_of(prepared, tmp_path / "out")["computed"] == 1
    assert json.loads(path.read_text())["metrics"] == whole["metrics"]


def test_parameters_and_numbers_are_axes(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = config(
        tiny,
        densities=["none", {"name": "polarity", "label": "P", "rho": {"each": [-0.1, 0.1]}}],
        samplers=[{"name": "kmeans-gmm", "num_starts": {"each": [1, 2]}}],
        clusters=2,
        latents=[60, 120],
        remove=[0.0, 0.5],
        seeds=3,
        measures=["selection"],
    )
    prepared = prepare(values)
    assert len(prepared.cells) == 3 * 2 * 2 * 2
    assert len(prepared.spectra) == 1
    summary_of(prepared, out)
    lines = table_of_cells(out)
    assert {line["density.rho"] for line in lines} == {"", "-0.1", "0.1"}
    for line in lines:
        kept = int(line["latents"]) * (1 - float(line["remove"]))
        assert float(line["selection.num_kept"]) == kept
        assert (line["density.rho"] == "") == (line["density"] == "none")
    header = (out / "table.md").read_text().splitlines()[2]
    assert "| none, num\\_starts 1 |" in header
    assert "| P, rho -0.1, num\\_starts 2 |" in header
    axes = {path.stem.partition("along-")[2] for path in (out / "figures").iterdir()}
    assert axes == {"remove", "latents", "density.rho", "sampler.num_starts"}


def test_all_partitioners_are_compared_with_all_mappers_and_samplers_beside_them(
    tiny: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = config(
        tiny,
        densities=["none"],
        partitioners=[{"name": "kmeans", "features": "latents", "num_starts": {"each": [1, 2]}}],
        mappers=["mixture", {"name": "rejection", "core": {"each": [0.5, 1.0]}}],
        clusters=2,
        seeds=0,
        measures=["selection", "diagnostics"],
    )
    assert summary_of(prepare(values), out)["failed"] == 0
    lines = table_of_cells(out)
    axes = ("sampler", "partitioner.num_starts", "mapper.core")
    assert [tuple(line[axis] for axis in axes) for line in lines] == [
        *((f"kmeans + {m}", s, c) for s in "12" for m, c in MAPPERS),
        ("kmeans-gmm", "", ""),
    ]
    for line in lines[:-1]:
        same = line["mapper.core"] != ""  # what rejection draws lies where it should
        assert (float(line["diagnostics.return_rate"]) == 1) == same
    of_same_parts = {line["selection.smallest_cluster"] for line in lines[:3]}
    assert len(of_same_parts) == 1
    alone = prepare({**values, "mappers": [], "samplers": []})
    assert {cell.sampler.label for cell in alone.cells} == {"kmeans"}
    assert alone.cells[0].sampler.table["mapper"] == {"name": "rejection"}
    default = prepare({**values, "partitioners": [], "samplers": []})
    assert default.cells[0].sampler.table["partitioner"] == {"name": "self-trained"}


def test_fewer_latents_are_the_first_of_the_spectrum(tiny: str) -> None:
    spectrum = pgmkit.compute_spectrum(pgmkit.load_generator(tiny), latents=50, seed=2)
    first = spectrum.first(20)
    assert len(first) == 20
    assert torch.equal(first.latents, pgmkit.load_generator(tiny).sample_latents(20, seed=2))
    assert torch.equal(first.singular_values, spectrum.singular_values[:20])
    assert torch.equal(first.log_prior, spectrum.log_prior[:20])
    for count in (0, 51):
        with pytest.raises(ParameterError, match=f"the first {count} cannot be taken"):
            spectrum.first(count)


def test_generators_have_their_own_numbers_of_clusters(tiny: str) -> None:
    generators = [
        {"source": tiny, "classifier": "mnist-classifier"},
        {"source": tiny, "name": "other", "clusters": [4, 5, 6]},
    ]
    prepared = prepare(config(tiny, generators=generators, measures=["selection"], seeds=0))
    found = {(cell.generator, cell.clusters) for cell in prepared.cells}
    assert found == {("tiny", 2), ("tiny", 3), ("other", 4), ("other", 5), ("other", 6)}


def test_what_is_chosen_is_a_column_and_a_table(tiny: str, tmp_path: Path) -> None:
    by_gap = {"name": "auto", "criterion": "gap", "candidates": [2, 3]}
    mass = {"name": "auto", "candidates": [0.0, 0.2]}
    values = config(tiny, densities=["none"], clusters=[by_gap, 4], remove=[mass, 0.3], seeds=0)
    out = tmp_path / "out"
    assert summary_of(prepare({**values, "measures": ["selection"]}), out)["failed"] == 0
    for line in table_of_cells(out):
        found = line["choices.clusters"], line["choices.remove"]
        assert line["clusters"] in ("auto criterion gap candidates [2, 3]", "4")
        assert found[0] in (("2.0", "3.0", "2", "3") if line["clusters"] != "4" else ("",))
        assert found[1] in (("0.0", "0.2") if line["remove"] != "0.3" else ("",))
        k = float(found[0]) if found[0] else 4
        assert float(line["selection.num_clusters"]) == k
        left = 1 - float(found[1]) if found[1] else 0.7
        assert float(line["selection.num_kept"]) == pytest.approx(120 * left)
        chosen = [name for name in ("clusters", "remove") if line[f"choices.{name}"]]
        assert bool(line["seconds.choices"]) == bool(chosen)
    _, _, choices = re.split(r"^(?=\w)", (out / "table.md").read_text(), flags=re.MULTILINE)
    assert choices.startswith("What was chosen without labels")
    assert choices.count("| Removed mass |") == 3
    assert "clusters 4, remove 0.3" not in choices


def test_auto_with_its_own_candidates_needs_latents_for_them(tiny: str, tmp_path: Path) -> None:
    values = config(tiny, densities=["none"], clusters=["auto", 2], seeds=0, measures=["selection"])
    prepared = prepare({**values, "latents": 200})
    assert [cell.columns()["clusters"] for cell in prepared.cells] == ["auto", 2]
    with pytest.raises(ParameterError, match="choosing up to 20 clusters needs at least"):
        prepare({**values, "latents": 20})


def test_another_classifier_gives_other_labels_and_cells(tiny: str, tmp_path: Path) -> None:
    judges = [write_tiny_classifier(tmp_path / "judges" / name, 28) for name in ("one", "other")]
    weights = tmp_path / "judges" / "one" / "model.safetensors"

    def of(judge: str) -> Job:
        generators = [{"source": tiny, "classifier": judge}]
        values = config(tiny, generators=generators, densities=["none"], clusters=3, seeds=0)
        return prepare({**values, "measures": ["clusters"]})

    def counts(judge: str) -> Any:
        assert summary_of(of(judge), tmp_path / "out")["failed"] == 0
        (record,) = json.loads((tmp_path / "out" / "cells.json").read_text())
        return record["counts"]["clusters"]

    before = counts(judges[0])
    (cell,) = of(judges[0]).cells
    assert of(judges[1]).cells == [cell]  # the same weights at another place
    changed = load_file(weights)
    changed["layers.7.bias"] = torch.arange(10.0).flip(0) * 100
    save_file(changed, weights)
    assert of(judges[0]).cells[0].id != cell.id
    assert counts(judges[0]) != before
    assert [sum(column) for column in zip(*counts(judges[0]), strict=True)] == [96, *[0] * 9]
    described = json.loads((weights.parent / "config.json").read_text())
    names = {**described, "classes": list("abcdefghij")}
    (weights.parent / "config.json").write_text(json.dumps(names))
    assert of(judges[0]).cells[0].id != of(judges[1]).cells[0].id
    assert counts(judges[1]) == before


def test_another_default_gives_other_cells_and_one_that_is_said_does_not(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(sampler: Any) -> list[str]:
        return [cell.id for cell in prepare(config(tiny, samplers=[sampler])).cells]

    before = ids("kmeans-gmm")
    assert ids({"name": "kmeans-gmm", "num_starts": 4}) == before
    monkeypatch.setattr(kmeans_gmm, "__defaults__", (10, 5, 2))
    assert not {*ids("kmeans-gmm")} & {*before}


def test_another_prior_gives_other_cells(tiny: str) -> None:
    def cell(**more: Any) -> str:
        generators = [{"source": tiny, "name": "mine", **more}]
        values = config(tiny, generators=generators, densities=["none"], clusters=3, seeds=0)
        return prepare({**values, "measures": ["selection"]}).cells[0].id

    assert cell() == cell(generator={"latent": 4})
    assert cell() != cell(generator={"latent": "uniform:4"})


def test_labels_of_another_generator_are_not_taken_up(tiny: str, tmp_path: Path) -> None:
    (models,) = prepare(config(tiny, clusters=2, seeds=0)).models.values()
    other = cells.Models(pgmkit.load_generator("mnist-dcgan"), models.classifier)
    shared = cells.SharedFiles(tmp_path, "tiny", 3, 0)
    data = save({"classes": torch.arange(3)}, models.labelled_by())
    (tmp_path / f"{shared.name}.classes.safetensors").write_bytes(data)
    assert shared.classes(3, models) is not None
    assert shared.classes(4, models) is None
    assert shared.classes(3, other) is None


def test_threads_are_those_of_the_settings_and_make_other_cells(
    tiny: str, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def recorded(*_: Any, **__: Any) -> None:
        used.append(torch.get_num_threads())

    monkeypatch.setattr(cells, "shatter", recorded)
    found = [prepare(config(tiny, threads=threads)) for threads in (1, 2)]
    assert not {c.id for c in found[0].cells} & {c.id for c in found[1].cells}
    for prepared in found:
        measurer = cells.Measurer(prepared.ablation, done / "spectra", prepared.models)
        measurer.shatter(prepared.cells[0])
    assert used == [1, 2]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_images(tmp_path_factory.mktemp("real") / "real.npz", count=60, size=28)


@pytest.mark.filterwarnings("ignore:.* FIDs come from no more images")
def test_fidelity_and_diagnostics_are_measures(tiny: str, tmp_path: Path, real: Path) -> None:
    judged = "mnist-classifier"
    generator = {"source": tiny, "classifier": judged, "reference": str(real), "split": "test"}
    small = f"classifier:{write_tiny_classifier(tmp_path / 'small')}"
    generator["extractor"] = small
    measured = ["diagnostics", "reproducibility", "fidelity"]
    values = config(tiny, generators=[generator], clusters=2, seeds=0, measures=measured)
    prepared = prepare(values)
    summary = summary_of(prepared, tmp_path / "out")
    assert summary["failed"] == 0, summary["errors"]
    assert summary["settings"]["generators"][0]["weights"]["reference"]["shape"] == [60, 1, 32, 32]
    none, lash = table_of_cells(tmp_path / "out")
    assert none["fidelity.fid_before"] == lash["fidelity.fid_before"]
    assert none["fidelity.fid_after"] != lash["fidelity.fid_after"]
    (spectrum,) = (tmp_path / "out" / "spectra").glob("*/manifest.json")
    shattered = pgmkit.shatter(
        pgmkit.load_generator(tiny),
        sampler="kmeans-gmm",
        clusters=2,
        spectrum=pgmkit.spectrum.load_spectrum(spectrum.parent),
    )
    expected = shattering_fidelity(
        shattered,
        load_images(str(real), split="test", size=32),
        small,
        classifier=load_classifier(judged),
        num_samples=60,
    )
    for score in ("fid", "kid", "precision", "recall", "density", "coverage"):
        parts = [getattr(part, score) for part in expected.clusters if part is not None]
        for name, value in {
            "before": getattr(expected.before, score),
            "after": getattr(expected.after, score),
            "clusters": mean(parts),
        }.items():
            found = float(lash[f"fidelity.{score}_{name}"])
            assert found == pytest.approx(value, rel=1e-6, abs=1e-9)
    labelled = [part for part in expected.clusters if part.reference.startswith("class ")]
    assert lash["fidelity.clusters_scored"] == "2"
    assert lash["fidelity.clusters_against_class"] == str(len(labelled)) == "2"
    assert float(lash["reproducibility.lowest"]) == pytest.approx(reproducibility(shattered).lowest)
    diagnosed = diagnose(shattered, num_latents=60)
    assert float(lash["diagnostics.return_rate"]) == diagnosed.return_rate.overall
    worst = min(filter(None, diagnosed.return_rate.clusters))
    assert float(lash["diagnostics.worst_return_rate"]) == worst
    assert float(lash["diagnostics.milliseconds_per_accepted"]) > 0
    assert lash["diagnostics.acceptance_rate"] == ""
    assert lash["diagnostics.clusters_without_samples"] == "0"
    text = (tmp_path / "out" / "table.md").read_text()
    for row in (
        "Clusters scored",
        "FID before",
        "Coverage clusters",
        "Return rate, worst",
        "Reproducibility",
    ):
        assert f"| {row} |" in text
    changed = write_tiny_images(tmp_path / "other.npz", count=59, size=28)
    other = prepare({**values, "generators": [{**generator, "reference": str(changed)}]})
    assert not {cell.id for cell in other.cells} & {cell.id for cell in prepared.cells}


def test_fidelity_says_how_many_clusters_it_scored_and_against_what(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = ["all of data", "class 3 of data", "all of data"]
    scored = [FidelityScores("x", name, *[9] * 3, *[0.5] * 3, 4, *[0.5] * 4) for name in against]  # type: ignore[arg-type]
    found = ShatteringFidelity(scored[0], scored[0], [None, *scored])
    monkeypatch.setattr(measures, "shattering_fidelity", lambda *_, **__: found)
    shattered = pgmkit.shatter(
        pgmkit.load_generator(tiny), sampler="kmeans-gmm", clusters=4, latents=60
    )
    subject = measures.Subject(shattered, reference=object())  # type: ignore[arg-type]
    numbers = measures.measure_fidelity(subject)
    assert (numbers["clusters_scored"], numbers["clusters_against_class"]) == (3, 1)


def test_a_cluster_that_cannot_be_sampled_does_not_cost_the_cell(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_no_sample_of_cluster_1_be_drawn(monkeypatch)
    measured = ["samples", "diagnostics"]
    values = config(tiny, densities=["none"], clusters=2, seeds=0, measures=measured)
    assert summary_of(prepare(values), tmp_path / "out")["failed"] == 0
    (line,) = table_of_cells(tmp_path / "out")
    assert 0 < float(line["samples.num_samples"]) < 60
    assert line["diagnostics.clusters_without_samples"] == "1"
    assert line["diagnostics.worst_return_rate"] == "0.0"
    assert float(line["diagnostics.return_rate"]) > 0
    assert "| Clusters without samples | 1 |" in (tmp_path / "out" / "table.md").read_text()
    (record,) = json.loads((tmp_path / "out" / "cells.json").read_text())
    assert record["warnings"] == [
        "cluster 1 cannot be sampled and is left out: took 0 of 80 proposals"
    ]


def test_a_measure_is_one_line(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(subject: measures.Subject) -> dict[str, float]:
        images = subject.shattered.sample(subject.num_samples)
        return {"mean": float(images.mean()), "nothing": float("nan")}

    shown = {"mean": measures.Metric("Mean & more", "low")}
    measure = measures.Measure(brightness, "Brightness", shown)
    monkeypatch.setitem(measures.MEASURES, "brightness", measure)
    values = config(tiny, clusters=2, seeds=0, measures=["brightness"])
    values["generators"] = [tiny]
    summary_of(prepare(values), tmp_path / "out")
    none, lash = table_of_cells(tmp_path / "out")
    assert none["brightness.nothing"] == ""
    best = min(float(none["brightness.mean"]), float(lash["brightness.mean"]))
    assert f"**{best:.4f}**" in (tmp_path / "out" / "table.md").read_text()
    assert r"Mean \& more & " in (tmp_path / "out" / "table.tex").read_text()


def test_a_cell_that_fails_is_a_row_with_its_error_and_is_tried_again(
    tiny: str, tmp_path: Path, faulty: Path
) -> None:
    out = tmp_path / "out"
    label = "50%_a&b {#1} ~^\\$"
    flawed = {"name": "faulty", "label": label, "flag": str(faulty)}
    path = tmp_path / "config.toml"
    write_config(path, config(tiny, densities=[flawed, "none"], clusters=2, seeds=[0, 1]))
    finished = run_pgmkit("ablate", path, "-o", out)
    assert finished.code == 3
    assert "failed in log_weights: RuntimeError: no weights today" in finished.stderr
    assert "4 cells, 4 of them computed now, 2 failed" in finished.stdout
    errors = {line["density"]: line["error"] for line in table_of_cells(out)}
    assert "RuntimeError: no weights today" in errors.pop(label)
    assert errors == {"none": ""}
    failed = json.loads((out / "cells.json").read_text())[0]
    assert "in log_weights" in failed["traceback"]
    assert failed["metrics"] == {}
    latex = (out / "table.tex").read_text()
    assert escape_latex(label) in latex
    assert escape_latex(label) == (
        r"50\%\_a\&b \{\#1\} \textasciitilde{}\textasciicircum{}\textbackslash{}\$"
    )
    assert " & -- & $0." in latex
    alone = tmp_path / "alone"
    only = ("--set", "seeds=0", "--set", f'densities=[{{name="faulty", flag="{faulty}"}}]')
    assert run_pgmkit("ablate", path, "-o", alone, *only).code == 1
    faulty.unlink()
    again = run_pgmkit("ablate", path, "-o", out)
    assert again.code == 0
    assert "4 cells, 2 of them computed now, 0 failed" in again.stdout


def test_a_spectrum_that_fails_costs_only_its_cells(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = cells.SharedFiles.compute

    def broken(self: cells.SharedFiles, *arguments: Any, **rest: Any) -> dict[str, float]:
        if self.name.endswith("seed-1"):
            raise RuntimeError("out of memory")
        return compute(self, *arguments, **rest)

    prepared = prepare(config(tiny, densities=["none"], clusters=2))
    with monkeypatch.context() as patch:
        patch.setattr(cells.SharedFiles, "compute", broken)
        summary = summary_of(prepared, tmp_path / "out")
    assert list(summary["errors"].values()) == ["RuntimeError: out of memory"]
    assert "(1/2)" in (tmp_path / "out" / "table.md").read_text()
    assert summary_of(prepared, tmp_path / "out")["failed"] == 0


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked from one that has the imports."""
    serve()
    monkeypatch.setattr("pgmkit.engines.processes._FRESH", FORKS)


@pytest.mark.usefixtures("_at_once")
def test_two_processes_compute_the_same_cells_and_a_dead_one_costs_its_cell(
    done: Path, tiny: str, tmp_path: Path, faulty: Path
) -> None:
    deadly = {"name": "faulty", "how": "dies", "flag": str(faulty)}
    values = config(tiny, densities=["none", {"name": "lash", "label": "LASH"}, deadly], jobs=2)
    values |= {"clusters": 2, "seeds": 0}
    summary = summary_of(prepare(values), tmp_path / "out")
    assert (summary["cells"], summary["failed"]) == (3, 1)
    *alive, dead = table_of_cells(tmp_path / "out")
    assert "ended by signal 9; if memory ran out" in dead["error"]
    here = [x for x in table_of_cells(done) if (x["clusters"], x["seed"]) == ("2", "0")]
    metrics = [name for name in here[0] if name.startswith(("clusters.", "samples.", "selection."))]
    assert len(metrics) > 12
    for one, other in zip(alive, here, strict=True):
        assert [one[name] for name in metrics] == [other[name] for name in metrics]


@pytest.mark.usefixtures("faulty", "_at_once")
def test_another_process_takes_the_place_of_a_dead_one() -> None:
    from faulty import end_or_double  # type: ignore[import-not-found]

    found = dict(in_processes(end_or_double, [-1, 1, -2, 2, 3], jobs=2))
    assert found == {-1: 1, 1: 2, -2: 2, 2: 4, 3: 6}


@pytest.mark.usefixtures("faulty", "_at_once")
def test_processes_end_with_the_iteration() -> None:
    from faulty import end_or_double

    iteration = in_processes(end_or_double, range(9), jobs=2)
    next(iteration)
    assert len(multiprocessing.active_children()) == 2
    iteration.close()
    assert multiprocessing.active_children() == []


def slow(tiny: str, path: Path, **changes: Any) -> Path:
    densities = [{"name": "faulty", "how": "is slow", "shift": {"each": list(range(8))}}]
    values = config(tiny, densities=densities, clusters=2, seeds=0, **changes)
    return write_config(path, {**values, "measures": ["selection"]})


def wait_for_a_cell(out: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_worker(pid: int) -> bool:
    line = Path(f"/proc/{pid}/cmdline")
    return line.exists() and b"spawn_main" in line.read_bytes()


@pytest.mark.usefixtures("faulty")
def test_after_kill_9_only_missing_cells_are_computed(tiny: str, tmp_path: Path) -> None:
    out, path = tmp_path / "out", slow(tiny, tmp_path / "config.toml")
    with forked("-m", "pgmkit", "ablate", path, "-o", out) as process:
        wait_for_a_cell(out)
        process.send_signal(signal.SIGKILL)
        assert process.finished(60).code == -signal.SIGKILL
    before = every_file(out / "cells")
    whole = {name: stat for name, stat in before.items() if name.endswith(".json")}
    assert 1 <= len(whole) < 8
    assert not (out / "cells.csv").exists()
    finished = run_pgmkit("ablate", path, "-o", out)
    assert f"8 cells, {8 - len(whole)} of them computed now, 0 failed" in finished.stdout
    assert whole.items() < every_file(out / "cells").items()


@pytest.mark.usefixtures("faulty")
def test_ctrl_c_ends_all_processes_with_one_line(tiny: str, tmp_path: Path) -> None:
    out, path = tmp_path / "out", slow(tiny, tmp_path / "config.toml", jobs=2)
    with forked("-m", "pgmkit", "ablate", path, "-o", out) as process:
        wait_for_a_cell(out)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        workers = [int(pid) for pid in children.split() if is_worker(int(pid))]
        assert len(workers) == 2
        for pid in [process.pid, *workers]:  # as a terminal does
            os.kill(pid, signal.SIGINT)
        run = process.finished(60)
    assert run.code == 1
    assert run.stderr.splitlines()[-1].startswith("stopped: run the same command again")
    assert "Traceback" not in run.stderr
    assert not any(map(is_worker, workers))


def test_a_dry_run_counts_and_writes_nothing(tiny: str, tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.toml", config(tiny))
    finished = run_pgmkit("ablate", path, "--dry-run", "--set", "seeds=[0, 1, 2]", "--jobs", 2)
    printed = json.loads(finished.stdout)
    assert (printed["cells"], printed["spectra"]) == (12, 3)
    assert printed["settings"]["jobs"] == 2
    lash = {"label": "LASH", **table_of(build("density-estimators", "lash"))}
    assert lash["params"]
    assert printed["settings"]["densities"][1] == lash
    for sampler in printed["settings"]["samplers"]:
        assert sampler["params"]["num_clusters"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]
    assert run_pgmkit("ablate", path).code == 2


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown setting": ({"seed": 1}, "no setting 'seed'; did you mean 'seeds'"),
    "unknown spectrum setting": ({"spectrum": {"dtpye": "float64"}}, "did you mean 'dtype'"),
    "no generators": ({"generators": []}, "generators is a list of at least one table, not"),
    "generator without source": ({"generators": [{}]}, "generator 1 of the config needs"),
    "unknown generator setting": ({"generators": [{"source": "x", "k": 1}]}, "no setting 'k'"),
    "unknown generator": (
        {"generators": ["mnist-dcgna"], "measures": ["selection"]},
        "mnist-dcgan",
    ),
    "no classifier": ({"generators": ["mnist-dcgan"]}, "has no classifier, which the measures"),
    "no reference": ({"measures": ["fidelity"]}, "has no reference, which the measures fidelity"),
    "reference that is not there": (
        {"generators": [{"source": "mnist-dcgan", "reference": "none.npz"}]}
        | {"measures": ["fidelity"]},
        "there are no images at none.npz",
    ),
    "too few samples for fidelity": (
        {
            "generators": [{"source": "mnist-dcgan", "reference": "none.npz"}],
            "measures": ["fidelity"],
            "samples": 17,
        },
        "17 samples are 5 for each of 3 clusters",
    ),
    "no densities": ({"densities": []}, "densities is a list of at least one table"),
    "densities in one table": ({"densities": {"name": "lash"}}, "densities is a list"),
    "density that is a number": ({"densities": [1]}, "densities holds tables and names, not 1"),
    "density without name": ({"densities": [{"rho": 1}]}, "number 1 of densities needs a name"),
    "unknown density": ({"densities": ["lsah"]}, "did you mean 'lash'"),
    "unknown parameter": ({"densities": [{"name": "lash", "rho": 1}]}, "no parameter 'rho'"),
    "parameter out of range": (
        {"densities": [{"name": "lash", "rank_rtol": {"each": [0.1, 2]}}]},
        "not 2",
    ),
    "axis of a parameter empty": (
        {"densities": [{"name": "polarity", "rho": {"each": []}}]},
        "the axis rho of polarity is empty",
    ),
    "duplicate labels": ({"densities": ["lash", "lash"]}, "two densities are called 'lash'"),
    "the same twice": (
        {"densities": ["lash", {"name": "lash", "label": "L"}]},
        "one cell twice (lash, L, kmeans-gmm)",
    ),
    "unknown sampler": ({"samplers": ["kmeans"]}, "did you mean 'kmeans-gmm'"),
    "unknown partitioner": ({"partitioners": ["kmean"]}, "did you mean 'kmeans'"),
    "unknown mapper": ({"mappers": ["reject"]}, "did you mean 'rejection'"),
    "parts of a partitioner": (
        {"partitioners": [{"name": "kmeans", "num_partitions": 5}]},
        "has 5 parts, and 2 are asked for",
    ),
    "clusters of a sampler": (
        {"samplers": [{"name": "kmeans-gmm", "num_clusters": 3}]},
        "num_clusters stands in the table of the sampler",
    ),
    "empty axis": ({"clusters": []}, "the axis clusters is empty"),
    "value twice": ({"remove": [0.2, 0.2]}, "the axis remove has the value 0.2 twice"),
    "clusters as a word": (
        {"clusters": "many"},
        'number of clusters is a number, "auto", or a table',
    ),
    "more clusters than latents": ({"clusters": [2, 100]}, "remove=0.2 leaves 96 of 120"),
    "remove 1": ({"remove": [0.1, 1.0]}, "in [0, 1), such as 0.2, not 1.0"),
    "latents 0": ({"latents": [0, 10]}, "the number of latents"),
    "seed as a word": (
        {"seeds": ["lucky"]},
        "a seed must be a whole number in [0, 2**63), not 'lucky'",
    ),
    "samples 0": ({"samples": 0}, "samples must be a whole number from 1, not 0"),
    "jobs 0": ({"jobs": 0}, "jobs must be a whole number from 1, not 0"),
    "unknown measure": ({"measures": ["cluster"]}, "no measure is called 'cluster'; did you mean"),
    "no measures": ({"measures": []}, "the axis measures is empty"),
    "unknown engine": ({"spectrum": {"engine": "torch"}}, "did you mean"),
    "block size 0": ({"spectrum": {"block_size": 0}}, "block_size must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused_before_anything_is_computed(case: str, tiny: str) -> None:
    changes, said = BAD[case]
    with pytest.raises((DataError, ParameterError, UnknownNameError)) as caught:
        prepare({**config(tiny), **changes})
    assert said in str(caught.value)


def test_two_generators_with_one_name_are_refused(tiny: str) -> None:
    twice = [{"source": tiny, "classifier": "mnist-classifier"}] * 2
    with pytest.raises(ParameterError, match="two generators are called 'tiny'; give each a name"):
        prepare(config(tiny, generators=twice))


def test_a_folder_of_another_run_is_refused(done: Path, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PgmkitError, match="is in use: it holds notes"):
        prepare(config(tiny)).run(tmp_path)
    error = run_pgmkit("shatter", tiny, "-o", done, "--latents", 100).stderr
    assert "holds a run with" in error


def test_an_entry_without_numbers_is_no_best() -> None:
    assert Entry(None, None, 0, 2).best is False
