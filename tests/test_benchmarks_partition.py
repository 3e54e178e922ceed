"""The benchmark of partitioners on data sets: methods can be built, and one command runs them."""

import importlib
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from tiny import write_tiny_classifier, write_tiny_generator, write_tiny_images

from pgmkit.config import read_toml
from pgmkit.files import read_json
from pgmkit.partition.fitted import build_partitioner

HERE = Path(__file__).parent.parent / "benchmarks" / "partition"
CONFIGS = sorted((HERE / "configs").glob("*.toml"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    sys.modules.pop("run", None)  # that of another benchmark
    yield importlib.import_module("run")
    sys.modules.pop("run")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_method_can_be_built(config: Path) -> None:
    methods = read_toml(config)["methods"]
    # Features of another fit are not there yet.
    fits = re.findall(r"local-dir:{fits}/([\w-]+)-\d+-{seed}", config.read_text())
    assert {*fits} <= {*methods}
    text = re.sub(r"local-dir:{fits}/[\w-]+-{seed}", "pca", config.read_text())
    text = re.sub(r"local-dir:{gans}/[\w-]+-{seed}/model", "mnist-pgmgan", text)
    values = tomllib.loads(text)
    for table in values["methods"].values():
        numbers = table.pop("partitions", values["partitions"])
        for number in numbers if isinstance(numbers, list) else [numbers]:
            assert build_partitioner(table, number).num_partitions == number


@pytest.mark.filterwarnings("ignore:.*clusters have fewer latents")
@pytest.mark.filterwarnings("ignore:.*took none of the trial proposals")
@pytest.mark.filterwarnings("ignore:.*is empty")
@pytest.mark.usefixtures("no_pages")
def test_one_command_fits_and_writes_the_page(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_images(tmp_path / "digits.npz", count=80, size=28)
    monkeypatch.chdir(tmp_path)
    write_tiny_generator(tmp_path / "tiny")
    small = {"generator": f"local-dir:{tmp_path / 'tiny'}"}
    small["classifier"] = write_tiny_classifier(tmp_path / "classifier", image_size=32)
    configs = script.configs()
    monkeypatch.setattr(script, "configs", lambda: {**configs, "mnist": configs["mnist"] | small})
    monkeypatch.setattr(script, "LATENTS", 100)
    monkeypatch.setattr(script, "SAMPLES", 20)
    assert script.filled({"a": [1], "b": "{fits}-{seed}"}, fits="x", seed=3) == {
        "a": [1],
        "b": "x-3",
    }
    words = ["fit", "mnist", "--data", "digits.npz", "--results", "results"]
    for seed in ("0", "1"):
        more = ["--only", "kmeans-pixels", "--only", "single", "--seed", seed]
        result = CliRunner().invoke(script.cli, [*words, *more], catch_exceptions=False)
        assert result.exit_code == 0
    cell = read_json(tmp_path / "results" / "mnist" / "kmeans-pixels-10-1.json", "a result")
    assert cell["partitions"] == 10
    assert cell["scores"]["num_images"] == 80
    assert -0.5 < cell["shattered"] <= 1
    single = read_json(tmp_path / "results" / "mnist" / "single-1-0.json", "a result")
    assert isinstance(single["shattered"], float)
    page = (tmp_path / "results" / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `kmeans-pixels`")]
    assert row.endswith("| 0/0 | 0.0 | cpu | 0, 1 |")
    assert "| Partition-Guided GANs, published |  | 0.480 |" in page
    gan = tmp_path / "runs" / "pgmgan" / "mnist" / "without-partitions-0" / "model"
    shutil.copytree(Path(__file__).parent.parent / "registry" / "mnist-pgmgan", gan)
    more = ["--only", "kmeans-discriminator"]
    assert CliRunner().invoke(script.cli, [*words, *more], catch_exceptions=False).exit_code == 0
    kept = (tmp_path / "results" / "mnist" / "kmeans-discriminator-10-0.json").read_text()
    assert '"local-dir:{gans}/without-partitions-0/model"' in kept
    assert str(tmp_path) not in kept
    refused = CliRunner().invoke(script.cli, [*words, "--only", "kmean-pixels"])
    assert "did you mean 'kmeans-pixels'" in str(refused.exception)
