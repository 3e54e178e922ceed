"""The benchmark of partition-guided GANs: methods can be prepared, and one command runs them."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import write_tiny_classifier, write_tiny_images

import pgmkit
from pgmkit.config import read_toml
from pgmkit.files import read_json
from pgmkit.images import load_images
from pgmkit.jobs.train import prepare
from pgmkit.partition import FittedPartitioner
from pgmkit.train.gan import GANTask

HERE = Path(__file__).parent.parent / "benchmarks" / "pgmgan"
METHODS = [
    (path.stem, method)
    for path in sorted((HERE / "configs").glob("*.toml"))
    for method in read_toml(path)["methods"]
]
TINY = ["training.steps=4", "training.batch_size=10", "training.model.latent.dim=2"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(HERE)
    sys.modules.pop("run", None)  # that of another benchmark
    yield importlib.import_module("run")
    sys.modules.pop("run")


@pytest.fixture
def quick(no_pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave no report.html, and pictures of points show few."""
    monkeypatch.setattr("pgmkit.train.samples._POINTS", 300)


@pytest.fixture(scope="module")
def few_parts(tmp_path_factory: pytest.TempPathFactory) -> FittedPartitioner:
    """A partitioner of three parts, in place of those that were fitted before."""
    path = tmp_path_factory.mktemp("noise") / "noise.npz"
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    np.savez(path, images=noise)
    table = {"name": "random", "features": {"name": "pca", "num_dims": 2}}
    return pgmkit.fit_partitioner(table, load_images(str(path)), partitions=3, seed=0)


def invoke(script: ModuleType, *words: object, overrides: list[str] = TINY) -> Any:
    more = [word for override in overrides for word in ("--set", override)]
    given = [*map(str, words), "--results", "results", *more]
    result = CliRunner().invoke(script.cli, ["run", *given], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("name", "method"), METHODS, ids=str)
def test_every_method_can_be_prepared(
    script: ModuleType, few_parts: FittedPartitioner, tmp_path: Path, name: str, method: str
) -> None:
    config = script.configs()[name]
    shape = (1_000, 32, 32, 3) if name.startswith("cifar10") else (1_000, 28, 28)
    np.savez(
        tmp_path / "data.npz", images=np.zeros(shape, dtype=np.uint8), label=np.arange(1_000) % 10
    )
    data = config["data"].format(data=tmp_path / "data.npz")
    table = config["methods"][method]
    partitions, fitted = table.get("partitions"), str(table.get("partitioner"))
    if "{parts}/" in fitted:
        partitions = 3
        few_parts.save_pretrained(tmp_path / fitted.partition("{parts}/")[2])
    values = script.training_of({**config, "data": data, "parts": tmp_path}, method, 3, "cpu")
    if values["model"]["backbone"] == "sngan-32":
        args = values["model"].get("backbone_args", {})
        values["model"]["backbone_args"] = {**args, "width": 4}
    task = prepare(values).task
    assert isinstance(task, GANTask)
    assert task.num_partitions == partitions
    assert task.guide.is_off == (method in ("without-guide", "random-parts"))


@pytest.mark.usefixtures("quick")
def test_points_are_scored_and_a_result_that_is_there_is_left(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*TINY, "data=points:ring:n=300", "samples=300"]
    overrides += ["training.model.backbone_args.width=8"]
    words = ["ring", "--only", "guided", "--seed", 0]
    invoke(script, *words, "--only", "without-partitions", overrides=overrides)
    path = tmp_path / "results" / "ring" / "guided-0.json"
    cell = read_json(path, "a result")
    assert cell["partitions"] == 8
    assert cell["steps"] == 4
    assert 0 <= cell["scores"]["redraws 20"]["high_quality"] <= 1
    assert {p.name for p in path.parent.glob("*.png")} == {
        "data.png",
        "guided.png",
        "parts.png",
        "without-partitions.png",
    }
    before = path.read_bytes()
    invoke(script, *words, "--seed", 1, overrides=overrides)
    assert path.read_bytes() == before
    page = (tmp_path / "results" / "README.md").read_text()
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| ")}
    assert rows["| `guided`"].endswith("| 0, 1 |")
    assert rows["| Partition-Guided GANs, published"].split(" | ")[1:4] == [
        "8.0",
        "0.998",
        "0.0006",
    ]
    assert "| `without-partitions`, redraws 20" not in rows


@pytest.mark.usefixtures("quick")
def test_images_are_scored_by_a_classifier(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_images(tmp_path / "digits.npz", count=60, size=28)
    judge = write_tiny_classifier(tmp_path / "judge")
    overrides = [
        *TINY,
        "samples=50",
        "training.model.backbone_args={width=4, image_channels=3}",
        "methods.guided.partitioner={name='kmeans', features='pixels', num_starts=1}",
        "methods.guided.partitions=3",
    ]
    words = ["stacked-mnist", "--data", "digits.npz:n=90", "--only", "guided", "--seed", 0]
    words += ["--classifier", judge, "--features", f"classifier:{judge}"]
    invoke(script, *words, overrides=overrides)
    scores = read_json(tmp_path / "results" / "stacked-mnist" / "guided-0.json", "a result")[
        "scores"
    ]["redraws 0"]
    assert set(scores) == {"modes", "reverse_kl", "nmi", "fid", "diversity", "inside"}
    assert 1 <= scores["modes"] <= 50
    assert scores["fid"] > 0
    page = (tmp_path / "results" / "README.md").read_text()
    assert "![guided.png](stacked-mnist/guided.png)" in page


def test_a_grey_classifier_sees_each_channel_and_its_classes_are_digits(script: ModuleType) -> None:
    scorer: Any = object.__new__(script.Scorer)

    class Judge:
        classes = tuple("0123456789")
        module = type("Module", (), {"image_channels": 1})

        def labels(self, images: torch.Tensor, value_range: object) -> torch.Tensor:
            assert images.shape[1] == 1
            return images[:, 0, 0, 0].long()

    scorer.judge, scorer.source = Judge(), type("Source", (), {"image": type("", (), {"range": 0})})
    images = torch.tensor([[4, 0, 7], [9, 9, 9]]).float()[:, :, None, None].expand(-1, -1, 2, 2)
    classes, number = scorer.classes(images)
    assert classes.tolist() == [407, 999]
    assert number == 1000


def test_diversity_is_that_of_pairs(script: ModuleType) -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=random, dtype=torch.float64)
    parts = torch.arange(40) % 3
    features[parts == 1] += 4
    squares = torch.cdist(features, features).square()
    others = ~torch.eye(40, dtype=torch.bool)
    within = squares[(parts[:, None] == parts) & others].mean()
    expected = (within / squares[others].mean()).sqrt()
    assert script.diversity(features, parts) == pytest.approx(float(expected))


def test_pgmkit_and_the_loop_by_hand_train_the_same_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(HERE)
    speed = importlib.import_module("speed")
    case = speed.replace(speed.cases(torch.device("cpu"))[0], steps=2)
    fitted = speed.fit_partitioner(case.settings.partitioner, case.images, partitions=2)
    tasks = [speed.task_of(case, fitted, torch.device("cpu"), speed.Guide()) for _ in range(2)]
    monkeypatch.setattr(speed, "task_of", lambda *_: tasks[0])
    before = {n: p.clone() for n, p in tasks[0].generator.state_dict().items()}
    speed.by_hand(case, fitted, torch.device("cpu"), guided=True)()
    speed.by_pgmkit(case, tasks[1])()
    for task in tasks:
        after = task.generator.state_dict()
        assert all(not torch.equal(after[n], p) for n, p in before.items())
        for optimizer in (task.generator_optimizer, task.discriminator_optimizer):
            assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
