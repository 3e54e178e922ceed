"""The experiments of the LASH paper: valid, beside the paper's numbers, and each one command."""

import csv
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import write_tiny_generator

from pgmkit.config import read_toml
from pgmkit.errors import LoadError, UnknownNameError
from pgmkit.evaluate.ablation.plan import make_ablation
from pgmkit.evaluate.ablation.tables import make_tables, to_markdown
from pgmkit.jobs.ablate import prepare
from pgmkit.loading.references import registry_configs
from pgmkit.plugins import build
from pgmkit.selection import select
from pgmkit.spectrum import Spectrum

ROOT = Path(__file__).parent.parent
LASH = ROOT / "benchmarks" / "lash"
CONFIGS = {
    path.stem.removeprefix("ablation-"): path
    for path in (
        *sorted((ROOT / "examples").glob("ablation-*.toml")),
        *sorted((LASH / "configs").glob("*/*.toml")),
    )
}
CELLS = {
    "mnist": 4 * 5,
    "fashion-mnist": 4 * 5,
    "faces-flowers": 4 * 5,
    "clusters": 8 * 5,
    "removed": 10 * 5,
    "prior-term": 2 * 3 * 5,
    "rank": 2 * 2 * 3 * 3,
    "kept": 4 * 4 * 3 * 3,
    "polarity": 5 * 2 * 3 * 3,
    "epochs": 4 * 5 * 3,
    "latents": 4 * 2 * 3 * 3,
    "drawn": 2 * 4,
    "partitioners": 7 * 3 * 3,
    "recommended": 2 * 3,
    "densities": 4 * 3 * 3,
    "mappers": 2 * 6 * 3,
}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*clusters have fewer latents"),
]


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The scripts run.py and compare.py, as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LASH))
        yield importlib.import_module("run"), importlib.import_module("compare")
    for name in ("run", "compare"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def done(
    scripts: tuple[ModuleType, ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The experiment `mnist` on a tiny generator, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("lash")
    source = write_tiny_generator(folder / "tiny")
    generator = f'{{ source = "{source}", name = "MNIST", classifier = "mnist-classifier" }}'
    arguments = ["-o", str(folder / "runs"), "--results", str(folder / "results")]
    changes = ("latents=120", "seeds=[0, 1]", "samples=60", "clusters=3", "jobs=1")
    for change in (*changes, f"generators=[{generator}]"):
        arguments += ["--set", change]
    finished = CliRunner().invoke(scripts[0].cli, ["ablate", "mnist", *arguments])
    assert finished.exit_code == 0, finished.output
    return folder, arguments


def invoke(script: ModuleType, *arguments: object) -> Result:
    return CliRunner().invoke(script.cli, list(map(str, arguments)))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_and_says_how_to_run_it(name: str) -> None:
    path = CONFIGS[name]
    values = read_toml(path)
    ablation = make_ablation(values)
    pins: dict[str, dict[str, str]] = {g.name: {"sha256": g.source} for g in ablation.generators}
    assert len(ablation.cells(pins)) == CELLS[name]
    assert path.read_text().startswith("# ")
    assert f"benchmarks/lash/run.py ablate {name}\n" in path.read_text()
    known = {*registry_configs("generator"), *registry_configs("classifier")}
    named = {r for g in ablation.generators for r in (g.source, g.classifier)}
    if named <= known:
        assert len(prepare(values).cells) == CELLS[name]


def test_there_is_a_config_for_every_experiment_and_each_is_told_of() -> None:
    assert CONFIGS.keys() == CELLS.keys()
    page = (ROOT / "docs" / "results.md").read_text()
    for name in CONFIGS:
        assert f"`{name}`" in page
    for group in (LASH / "configs").iterdir():
        assert f"| `{group.name}` |" in page


def test_published_numbers_are_those_of_the_paper() -> None:
    published = read_toml(LASH / "published.toml")
    assert published["methods"] == [
        "Original Generator",
        "Polarity Sampling",
        "JBT Sampling",
        "LASH",
    ]
    ami = "adjusted_mutual_information"
    assert published["clusters"]["MNIST"][ami][3] == [0.4004, 0.0121]
    assert published["clusters"]["Faces + Flowers"]["homogeneity"][1] == [0.1290, 0.0065]
    assert published["samples"]["Fashion-MNIST"]["completeness"][2] == [0.1810, 0.0125]
    assert published["samples"]["Faces + Flowers"][ami][0] == [0.0033, 0.0016]
    checked = 0
    for measure in ("clusters", "samples"):
        assert published[measure].keys() == {"MNIST", "Fashion-MNIST", "Faces + Flowers"}
        for rows in published[measure].values():
            for method in range(4):
                h, c, v = (rows[n][method][0] for n in ("homogeneity", "completeness", "v_measure"))
                assert v == pytest.approx(2 * h * c / (h + c), abs=2e-4)
                assert rows[ami][method][0] <= v
                assert rows[ami][3][0] >= rows[ami][method][0]
                checked += 1
    assert checked == 24


def test_methods_keep_as_many_latents_and_none_twice() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand(500, 8, generator=random, dtype=torch.float64).sort(descending=True).values
    latents = torch.randn(500, 8, generator=random)
    spectrum = Spectrum(latents, values, torch.zeros(500, dtype=torch.float64))
    volume = values.log().sum(dim=1)
    means = {}
    for table in read_toml(CONFIGS["mnist"])["densities"]:
        parameters = {key: value for key, value in table.items() if key not in ("name", "label")}
        estimator = build("density-estimators", table["name"], **parameters)
        chosen = [select(estimator, spectrum, remove=0.2, seed=s).kept for s in range(20)]
        assert all(len(kept) == len(kept.unique()) == 400 for kept in chosen)
        means[table["name"]] = float(torch.stack([volume[kept].mean() for kept in chosen]).mean())
    error = float(volume.std()) / (500 * 20) ** 0.5
    assert means["none"] == pytest.approx(float(volume.mean()), abs=4 * error)
    assert means["lash"] < means["jbt"] < means["polarity"] < means["none"] - 4 * error


def fake_ablation(
    folder: Path,
    scores: dict[str, list[float]],
    measures: Sequence[str] = ("clusters", "samples"),
    **columns: Any,
) -> Path:
    """Writes what an ablation would leave, with one score per method and seed."""
    folder.mkdir(parents=True)
    with (folder / "cells.csv").open("w") as file:
        keys = [f"{measure}.adjusted_mutual_information" for measure in measures]
        place = {"generator": "MNIST", "sampler": "kmeans-gmm", "clusters": "10", **columns}
        place |= {"remove": "0.2", "latents": "100"}
        header = ["density", *place, "seed", *keys, "error"]
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for method, values in scores.items():
            for seed, value in enumerate(values):
                numbers = dict.fromkeys(keys, "" if value < 0 else value)
                writer.writerow({"density": method, **place, "seed": seed, **numbers})
    settings = {
        "latents": [100],
        "remove": [0.2],
        "seeds": [0, 1],
        "samples": 50,
        "densities": [{"label": "LASH", "name": "lash", "prior_term": True}],
        "samplers": [{"label": "kmeans-gmm", "name": "kmeans-gmm"}],
        "generators": [
            {
                "name": "MNIST",
                "source": "mnist-dcgan",
                "classifier": "mnist-classifier",
                "clusters": [10],
                "weights": {"sha256": "0123456789abcdef"},
            }
        ],
    }
    record = {
        "cells": 4,
        "failed": 1,
        "settings": settings,
        "seconds": {"spectra": 1.0, "cells": 2.0},
        "spectra_taken_up": 1,
        "machines": ["a slide rule", "an abacus"],
        "versions": {"pgmkit": ["0", "1"]},
    }
    (folder / "ablation.json").write_text(json.dumps(record))
    return folder


def test_measured_and_published_numbers_stand_side_by_side(
    scripts: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = {"LASH": [0.1, 0.3], "JBT Sampling": [0.3, -1], "Polarity Sampling": [0.0, 0.1]}
    folder = fake_ablation(tmp_path / "fake", scores)
    monkeypatch.setattr(sys, "argv", ["compare.py", str(folder)])
    scripts[1].main()
    printed = capsys.readouterr().out
    assert "| metric |  | LASH | JBT Sampling | Polarity Sampling |" in printed
    assert (
        "| Adjusted MI | paper | 0.4004 ± 0.0121 | 0.3675 ± 0.0150 | 0.1555 ± 0.0074 |" in printed
    )
    assert "|  | measured | 0.2000 ± 0.1414 | 0.3000 (1/2) | 0.0500 ± 0.0707 |" in printed
    assert (
        "paper: LASH (0.4004), JBT Sampling (0.3675), Polarity Sampling (0.1555). Measured: "
        "JBT Sampling (0.3000), LASH (0.2000), Polarity Sampling (0.0500). 2 of 3 pairs are in "
        "the paper's order; the paper's best, LASH, is best in 0 of 1 seeds." in printed
    )
    for part in (
        "mnist-dcgan (weights 0123456789ab)",
        "seeds: 0, 1",
        "a slide rule; an abacus",
        "pgmkit 0 and 1.",
        "or where a run was stopped: 1;",
        "1 of them",
    ):
        assert part in printed


@pytest.mark.parametrize("other", [{"sampler": "kmeans"}, {"generator": "SVHN"}])
def test_what_the_paper_did_not_do_is_not_set_beside_it(
    other: dict[str, str], scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    scores = {"LASH": [0.1, 0.3], "JBT Sampling": [0.3, 0.2]}
    _, rows = scripts[1].read_results(fake_ablation(tmp_path / "fake", scores, **other))
    assert len(rows) == 4
    assert scripts[1].side_by_side(rows) == ""


@pytest.mark.parametrize("measure", ["clusters", "samples"])
def test_what_was_not_measured_is_not_set_beside_the_paper(
    measure: str, scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    scores = {"LASH": [0.1, 0.3], "JBT Sampling": [0.3, 0.2]}
    folder = fake_ablation(tmp_path / "fake", scores, measures=[measure])
    text = scripts[1].side_by_side(scripts[1].read_results(folder)[1])
    assert ("Table 1" in text, "Table 2" in text) == (measure == "clusters", measure == "samples")


def test_a_folder_without_results_is_refused(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match="holds no ablation that is done"):
        scripts[1].read_results(tmp_path)


def test_an_experiment_leaves_its_results_and_pages(done: tuple[Path, list[str]]) -> None:
    folder, _ = done
    results = folder / "results"
    names = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    kept = {f"mnist/{n}" for n in ("README.md", "ablation.json", "cells.csv", "table.md")}
    assert names == {"README.md", "mnist/table.tex", *kept}
    for name in ("cells.csv", "table.md", "table.tex"):
        assert (results / "mnist" / name).read_bytes() == (
            folder / "runs" / "mnist" / name
        ).read_bytes()
    record = json.loads((results / "mnist" / "ablation.json").read_text())
    assert record["command"].startswith(
        "python benchmarks/lash/run.py ablate mnist --set latents=120"
    )
    assert record["classifiers"]["MNIST"]["test_accuracy"] > 0.98
    assert record["told"] == [""] * record["cells"]  # k-means on latents says nothing


def test_pages_hold_the_numbers_of_the_table(done: tuple[Path, list[str]]) -> None:
    results = done[0] / "results"
    line = next(
        line
        for line in (results / "mnist" / "table.md").read_text().splitlines()
        if "Adjusted MI" in line
    )
    measured = re.findall(r"-?\d\.\d{4} ± \d\.\d{4}", line)
    assert len(measured) == 4
    row = f"|  | measured | {' | '.join(measured)} |"
    for page in ("README.md", "mnist/README.md"):
        assert row in (results / page).read_text()
    index = (results / "README.md").read_text()
    assert "| [`mnist`](mnist/README.md) |" in index
    assert "| `partitioners` | Partitioners that look at the images" in index
    for target in re.findall(r"\]\(([^)#:]+)\)", index):
        assert target.startswith("../../docs/") or (results / target).exists()


def test_a_second_run_computes_nothing_and_changes_no_number(
    done: tuple[Path, list[str]], scripts: tuple[ModuleType, ModuleType]
) -> None:
    folder, arguments = done
    before = (folder / "results" / "mnist" / "cells.csv").read_bytes()
    cells = {p: p.stat().st_mtime_ns for p in (folder / "runs" / "mnist" / "cells").iterdir()}
    assert len(cells) == 8
    assert invoke(scripts[0], "ablate", "mnist", *arguments).exit_code == 0
    assert (folder / "results" / "mnist" / "cells.csv").read_bytes() == before
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())


def test_another_experiment_does_not_replace_the_results(
    scripts: tuple[ModuleType, ModuleType],
) -> None:
    result = invoke(scripts[0], "ablate", "mnist", "--set", "latents=100")
    assert result.exit_code == 2
    assert "--set makes another experiment" in result.output
    unknown = invoke(scripts[0], "ablate", "nmist").exception
    assert isinstance(unknown, UnknownNameError)


def test_committed_results_are_small_and_pages_and_tables_are_those_of_their_cells(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    for path in LASH.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.stat().st_size <= 300_000, path
            if path.name in ("ablation.json", "cells.csv"):
                (tmp_path / path.parent.name).mkdir(exist_ok=True)
                (tmp_path / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert invoke(scripts[0], "pages", "--results", tmp_path).exit_code == 0
    assert (tmp_path / "README.md").read_text() == (LASH / "README.md").read_text()
    for name in CONFIGS:
        page = LASH / name / "README.md"
        assert (tmp_path / name / "README.md").read_text() == page.read_text()
        record, rows = scripts[1].read_results(page.parent)
        tables = make_tables(rows, record["settings"]["measures"])
        assert to_markdown(tables) == (page.parent / "table.md").read_text()
