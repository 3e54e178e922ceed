"""`pgmkit partition`: fitted to images, read back, used, and what a stop leaves."""

import contextlib
import csv
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import snapshot_download
from matplotlib.axes import Axes
from PIL import Image
from processes import run_forked
from safetensors.torch import load_file, save_file
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
from pgmkit.errors import LoadError, ParameterError
from pgmkit.evaluate import figures
from pgmkit.evaluate.partition_report import write_partition_report
from pgmkit.evaluate.partitions import partition_scores
from pgmkit.images import ArrayImages, GeneratedImages, load_images
from pgmkit.jobs import partition as job
from pgmkit.learning import trial
from pgmkit.partition import load_partitioner
from pgmkit_plugins.features import contrastive

pytestmark = pytest.mark.usefixtures("one_thread")

STATE = "partitioner.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark noise: with labels, without, as a folder, and of another size."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    bright = np.arange(60) % 2
    pixels = random.integers(0, 90, (60, 32, 32)) + 150 * bright[:, None, None]
    images = pixels.astype(np.uint8)
    np.savez(folder / "labelled.npz", images=images, labels=bright)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "small.npz", images=images[:, :16, :16])
    for index, pixels in enumerate(images):
        place = folder / "pictures" / f"class-{bright[index]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:02d}.png")
    write_tiny_generator(folder / "tiny")
    return folder


def fit(data: object, out: Path, *more: object) -> Finished:
    partitions = () if "--partitions" in more else ("--partitions", 2)
    return run_pgmkit("partition", "fit", "--data", data, "-o", out, *partitions, *more)


@pytest.fixture(scope="module")
def parts(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k-means of the labelled images, whose summary lies beside it."""
    out = tmp_path_factory.mktemp("parts") / "out"
    finished = fit(inputs / "labelled.npz", out, "kmeans")
    assert finished.code == 0, finished.stderr
    out.with_name("stdout.txt").write_text(finished.stdout)
    return out


def told(*words: object) -> dict[str, Any]:
    finished = run_pgmkit(*words, "--json")
    assert finished.code == 0, finished.stderr
    printed: dict[str, Any] = json.loads(finished.stdout)
    return printed


def one_error(finished: Finished) -> str:
    assert finished.code == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    return finished.stderr


# Scores


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n)


def information(parts: tuple[int, ...], labels: tuple[int, ...]) -> float:
    pairs = list(zip(parts, labels, strict=True))
    joint = [pairs.count(pair) for pair in set(pairs)]
    return (
        entropy([parts.count(part) for part in set(parts)])
        + entropy([labels.count(label) for label in set(labels)])
        - entropy(joint)
    )


def test_scores_against_labels_are_those_computed_by_hand() -> None:
    """AMI by its definition: less the mean over all ways to hand out the labels."""
    parts, labels = (0, 0, 0, 1, 1, 1), (3, 3, 7, 7, 7, 9)
    found = partition_scores(torch.tensor(parts), torch.tensor(labels))
    mean_entropy = (entropy([3, 3]) + entropy([2, 3, 1])) / 2
    shared = information(parts, labels)
    assert found.normalized_mutual_information == pytest.approx(shared / mean_entropy)
    ways = [information(parts, way) for way in itertools.permutations(labels)]
    by_chance = sum(ways) / len(ways)
    expected = (shared - by_chance) / (mean_entropy - by_chance)
    assert found.adjusted_mutual_information == pytest.approx(expected)
    # Pairs together in both: 1 of (0, 3) and 1 of (1, 7); in parts 3 + 3, in labels 1 + 3, of 15.
    assert found.adjusted_rand_index == pytest.approx((2 - 6 * 4 / 15) / ((6 + 4) / 2 - 6 * 4 / 15))
    assert found.matched_accuracy == pytest.approx(4 / 6)  # 0 with 3, and 1 with 7
    assert found.num_images == 6


@pytest.mark.parametrize(
    ("parts", "labels", "accuracy"),
    [
        ([1, 1, 0, 0], [0, 0, 1, 1], 1.0),
        ([0, 1, 2, 3], [0, 0, 1, 1], 0.5),  # two of the four parts have no class left
        ([0, 0, 0, 0], [0, 0, 0, 1], 0.75),
        ([5, 5, 2, 2], [0, 1, 2, 3], 0.5),
    ],
)
def test_each_part_is_matched_with_one_class_at_most(
    parts: list[int], labels: list[int], accuracy: float
) -> None:
    found = partition_scores(torch.tensor(parts), torch.tensor(labels))
    assert found.matched_accuracy == accuracy
    assert (found.adjusted_rand_index == 1) == (accuracy == 1)


# Fitting


def test_fit_leaves_a_hub_folder_and_scores_the_parts_against_labels(parts: Path) -> None:
    names = {path.name for path in parts.iterdir() if path.name != ".lock"}
    files = {"README.md", "partitioner.json", STATE, "report.html", "run.json", "samples.png"}
    assert names == files
    printed = parts.with_name("stdout.txt").read_text()
    assert "NMI 1.0000, AMI 1.0000, ARI 1.0000, accuracy by matching 1.0000 (60 images)" in printed
    assert f"--partitioner local-dir:{parts}" in printed
    assert f"report: {parts / 'report.html'}" in printed
    config = json.loads((parts / "partitioner.json").read_text())
    assert config["sizes"] == [30, 30]
    assert config["partitioner"]["name"] == "pgmkit:kmeans"
    assert config["partitioner"]["params"]["num_partitions"] == 2
    assert config["settings"]["seed"] == 0
    assert config["image"] == {"shape": [1, 32, 32], "range": [-1.0, 1.0]}
    assert "load_partitioner" in (parts / "README.md").read_text()


def test_what_was_fitted_assigns_as_it_did(inputs: Path, parts: Path) -> None:
    images = load_images(str(inputs / "labelled.npz"))
    x = images.batch(torch.arange(60))
    fitted = load_partitioner(parts)
    assert images.labels is not None
    assigned = fitted.assign(x)
    assert (assigned == images.labels).all() or (assigned == 1 - images.labels).all()
    assert fitted.guide(x, assigned).eq(0).all()
    assert fitted.guide(x, 1 - assigned).gt(0).all()
    assert torch.allclose(fitted.margins(x), fitted.guide(x, 1 - assigned))


@pytest.mark.parametrize("data", ["unlabelled.npz", "pictures"])
def test_images_without_labels_and_folders_are_fitted_too(
    data: str, inputs: Path, tmp_path: Path
) -> None:
    finished = fit(inputs / data, tmp_path / "out", "kmeans")
    assert finished.code == 0, finished.stderr
    assert ("against labels" in finished.stdout) == (data == "pictures")
    assert load_partitioner(tmp_path / "out").sizes == [30, 30]


def test_points_are_fitted_assigned_and_drawn(tmp_path: Path) -> None:
    out, picture = tmp_path / "out", tmp_path / "ring.png"
    data = "points:ring:n=400"
    printed = fit(data, out, "kmeans", "--partitions", 8, "--json")
    assert printed.code == 0, printed.stderr
    assert json.loads(printed.stdout)["scores"]["matched_accuracy"] == 1
    found = told("partition", "assign", out, "--data", f"{data}:seed=1")
    assert found["scores"]["adjusted_rand_index"] == 1
    assert (out / "report.html").read_text().count("<img") == 2  # the plane, and sizes
    pixels = []
    for words in ((), ("--part", 3)):
        drawn = run_pgmkit("partition", "plot", out, "--data", data, "-o", picture, *words)
        assert drawn.code == 0, drawn.stderr
        with Image.open(picture) as opened:
            assert opened.width == opened.height
            pixels.append(np.asarray(opened.convert("L")).astype(int))
    assert (pixels[1] < 50).sum() > 2 * (pixels[0] < 50).sum()  # the arrows are black


def test_the_report_shows_each_part_and_needs_no_other_file(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    page = (parts / "report.html").read_text()
    assert re.findall(r"<img[^>]*src=\"(.{14})", page) == ["data:image/png"] * 3
    assert not re.search(r"https?://|<link|<script|@import|url\(|\bhref", page)
    config = json.loads((parts / "partitioner.json").read_text())
    for told_of in (
        *(
            "2 parts of 60 1×32×32 images",
            'part 0</b> <span class="pale">30 images, 50.0 %',
            "Agreement with labels",
        ),
        *(
            "pgmkit:kmeans (num partitions 2",
            'matched accuracy</td><td class="number">1.0000',
            "0 of 2",
        ),
        *(config["data"]["sha256"], config["machine"], f"torch {config['versions']['torch']}"),
    ):
        assert told_of in page, told_of
    assert fit(inputs / "unlabelled.npz", tmp_path / "out", "kmeans").code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "labels" not in page
    assert "what they are is for you to see" in page


def test_the_report_tells_of_supervision_and_of_parts_without_images(
    inputs: Path, tmp_path: Path
) -> None:
    quick = ("--set", "partitioner.steps=3", "--set", "partitioner.width=4")
    finished = fit(inputs / "labelled.npz", tmp_path / "labels", "labels", *quick)
    assert finished.code == 0, finished.stderr
    assert "pgmkit:labels: supervised True, training accuracy" in finished.stdout
    assert "supervised True" in (tmp_path / "labels" / "report.html").read_text()
    assert "supervised" in (tmp_path / "labels" / "README.md").read_text()
    source = load_images(str(inputs / "labelled.npz"))
    fitted = pgmkit.fit_partitioner("kmeans", source, partitions=2)
    page = write_partition_report(tmp_path, replace(fitted, sizes=[60, 0]), source, None)
    assert re.search(
        "part 1</b> <span class=.pale.>0 images, 0 %</span></summary></details>", page.read_text()
    )
    assert "1 of 2" in page.read_text()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """What the axes of a figure are given, by what they draw of it."""
    found: dict[str, tuple[list[Any], dict[str, Any]]] = {}

    def noted(name: str) -> Any:
        return lambda _, *given, **more: found.update({name: (list(given), more)})

    for name in ("quiver", "imshow", "scatter"):
        monkeypatch.setattr(Axes, name, noted(name))
    return found


def test_arrows_of_the_plane_point_where_the_guide_pulls(drawn: dict[str, Any]) -> None:
    """Of two centres, R_0 is by how much nearer the other is, and nothing where it is not."""
    points = torch.tensor([[-1.0, -1.0], [1.0, 0.0]]).repeat(20, 1)
    source = ArrayImages(points, value_range=(-2, 2))
    fitted = pgmkit.fit_partitioner({"name": "kmeans", "features": "pixels"}, source, partitions=2)
    own, other = (fitted.partitioner.centers_[i].numpy() for i in (0, 1))
    figures.plane(fitted, source, part=0)
    columns, _ = drawn["quiver"]
    x, arrows = np.stack(columns[:2], axis=1), np.stack(columns[2:], axis=1)
    assert 24 * 24 / 3 < len(x) < 24 * 24 * 2 / 3
    assert (np.linalg.norm(x - other, axis=1) < np.linalg.norm(x - own, axis=1)).all()
    away, to = x - other, own - x
    pull = away / np.linalg.norm(away, axis=1)[:, None] + to / np.linalg.norm(to, axis=1)[:, None]
    np.testing.assert_allclose(arrows, pull / np.linalg.norm(pull, axis=1)[:, None], atol=1e-3)
    for part in (2, -1):
        with pytest.raises(ParameterError, match="parts are numbered from 0 to 1"):
            figures.plane(fitted, source, part=part)


def test_the_plane_has_the_colours_of_its_parts(drawn: dict[str, Any]) -> None:
    source = load_images("points:grid:n=500")
    fitted = pgmkit.fit_partitioner("kmeans", source, partitions=25)
    figures.plane(fitted, source)
    assert "quiver" not in drawn
    colours = drawn["scatter"][1]["c"]
    found = fitted.assign(source.batch(torch.arange(500)))
    of_parts = [np.unique(colours[found == part], axis=0) for part in range(25)]
    assert [len(own) for own in of_parts] == [1] * 25
    apart = np.abs(np.concatenate(of_parts)[:, None] - np.concatenate(of_parts)).max(axis=2)
    assert apart[~np.eye(25, dtype=bool)].min() > 0.03
    areas = drawn["imshow"][0][0]
    at_mode = areas[round(300 * (4 + 6) / 12), round(300 * (-2 + 6) / 12)]
    (part,) = fitted.assign(torch.tensor([[-2.0, 4.0]])).tolist()
    np.testing.assert_allclose(at_mode, 1 - (1 - of_parts[part][0]) / 4)


@pytest.mark.filterwarnings("error")
def test_a_plane_of_a_single_part_has_no_arrows() -> None:
    source = load_images("points:ring:n=50")
    fitted = pgmkit.fit_partitioner("single", source)
    assert figures.plane(fitted, source, part=0).startswith(b"\x89PNG")


def test_what_is_no_plane_or_has_no_gradient_is_not_drawn(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    source = load_images("points:ring:n=80")
    table = {"name": "clusterer", "features": "pixels"}
    fitted = pgmkit.fit_partitioner(table, source, partitions=8)
    with pytest.raises(ParameterError, match=r"clusterer' have no gradient, so they guide nothing"):
        figures.plane(fitted, source, part=1)
    out = tmp_path / "x.png"
    with pytest.raises(ParameterError, match="holds 1×32×32 images, and no points of the plane"):
        figures.plane(load_partitioner(parts), load_images(str(inputs / "labelled.npz")))
    words = ("partition", "plot", parts, "--data", inputs / "labelled.npz", "-o", out)
    finished = run_pgmkit(*words, "--part", 1)
    assert finished.code == 2
    assert "--part is for points of the plane" in finished.stderr
    fitted.save_pretrained(tmp_path / "ring")
    words = ("partition", "plot", tmp_path / "ring", "--data", "points:ring:n=80", "-o", out)
    assert "-n is for images" in run_pgmkit(*words, "-n", 3).stderr
    assert not out.exists()


def test_the_saving_of_parts_and_samples_is_a_phase_of_its_own(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With large images the picture of samples takes longer than k-means."""
    names, during, phase, save = [], [], job.progress.phase, job.FittedPartitioner.save_pretrained

    @contextlib.contextmanager
    def named(name: str, *rest: Any) -> Iterator[Any]:
        with phase(name, *rest) as part:
            names.append(name)
            yield part
            names.remove(name)

    def saved(fitted: pgmkit.FittedPartitioner, folder: Path) -> None:
        during.extend(names)
        save(fitted, folder)

    monkeypatch.setattr(job.progress, "phase", named)
    monkeypatch.setattr(job.FittedPartitioner, "save_pretrained", saved)
    values = {"data": str(inputs / "labelled.npz"), "partitioner": "kmeans", "partitions": 2}
    job.prepare(values).run(tmp_path / "out")
    assert during == ["saving, with samples of each part"]


def test_a_single_part_is_everything_and_nothing_is_learned(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the default method; and it comes back."""

    def fail(*arguments: object, **more: object) -> None:
        pytest.fail("learned, or judged")

    monkeypatch.setattr("pgmkit_plugins.partitioners.self_trained.learn_labels", fail)
    monkeypatch.setattr("pgmkit_plugins.partitioners.most_stable.MostStable.fit", fail)
    job.prepare({"data": str(inputs / "labelled.npz"), "partitions": 1}).run(tmp_path)
    loaded = load_partitioner(tmp_path)
    assert loaded.sizes == [60]
    assert loaded.origin["partitioner"]["name"] == "pgmkit:self-trained"
    x = load_images(str(inputs / "small.npz"), size=16).batch(torch.arange(3))
    assert loaded.partitioner.logits(x).shape == (3, 1)


def test_the_json_of_a_fit_is_what_info_tells(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = fit(inputs / "labelled.npz", out, "mixture", "--seed", 3, "--json")
    assert finished.code == 0, finished.stderr
    printed = json.loads(finished.stdout)
    assert printed.pop("out") == str(out)
    info = told("partition", "info", out)
    assert info == printed
    assert (info["partitions"], info["seed"]) == (2, 3)
    assert info["data"]["shape"] == [60, 1, 32, 32]
    words = run_pgmkit("partition", "info", out).stdout
    assert "mixture" in words
    assert "accuracy by matching" in words


def test_a_dry_run_tells_all_settings_and_writes_nothing(inputs: Path, tmp_path: Path) -> None:
    data = inputs / "labelled.npz"
    words = ("--dry-run", "--set", "partitioner.features=pixels")
    printed = json.loads(fit(data, tmp_path / "out", "kmeans", *words).stdout)
    assert printed["images"] == 60
    settings = printed["settings"]
    assert settings["partitioner"]["params"]["features"]["name"] == "pgmkit:pixels"
    assert settings["data"]["shape"] == [60, 1, 32, 32]
    assert 0 <= printed["seconds"]["parts"] < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_estimate")
def test_a_config_file_has_the_settings_of_the_flags(inputs: Path, tmp_path: Path) -> None:
    config = tmp_path / "parts.toml"
    config.write_text(
        f'data = "{inputs / "labelled.npz"}"\npartitions = 3\nsize = 16\n'
        '[partitioner]\nname = "kmeans"\nnum_starts = 2\n'
    )
    words = ("partition", "fit", "--config", config, "--dry-run")
    settings = json.loads(run_pgmkit(*words).stdout)["settings"]
    assert settings["partitioner"]["params"]["num_starts"] == 2
    assert (settings["partitions"], settings["data"]["shape"]) == (3, [60, 1, 16, 16])
    flags = json.loads(run_pgmkit(*words, "--partitions", 4).stdout)["settings"]
    assert flags["partitions"] == 4
    words = ("partition", "fit", "--data", inputs / "labelled.npz", "--dry-run")
    default = json.loads(run_pgmkit(*words).stdout)["settings"]
    assert default["partitioner"]["name"] == "pgmkit:self-trained"
    assert default["partitions"] == 10
    words += ("kmeans", "--set", "partitioner.num_partitions=3")
    assert json.loads(run_pgmkit(*words).stdout)["settings"]["partitions"] == 3


@pytest.mark.usefixtures("no_estimate")
def test_a_config_file_may_stand_in_the_place_of_a_name(inputs: Path, tmp_path: Path) -> None:
    config = tmp_path / "parts.toml"
    config.write_text('partitions = 3\n[partitioner]\nname = "kmeans"\nnum_starts = 2\n')
    words = ("partition", "fit", config, "--data", inputs / "labelled.npz", "--dry-run")
    settings = json.loads(run_pgmkit(*words, "--seed", 5).stdout)["settings"]
    assert settings["partitioner"]["name"] == "pgmkit:kmeans"
    assert settings["partitioner"]["params"]["num_starts"] == 2
    assert (settings["partitions"], settings["seed"]) == (3, 5)
    twice = run_pgmkit(*words, "--config", config)
    assert twice.code == 2
    assert "two config files are given" in twice.stderr
    missing = one_error(run_pgmkit("partition", "fit", "none.toml", "--dry-run"))
    assert "cannot read the config file none.toml" in missing


TINY = {
    "network": "{ blocks = [1, 1], width = 4 }",
    "pretext": "{ steps = 4, batch_size = 16, projection = [8, 8] }",
    "partition": "{ steps = 4, batch_size = 16, num_neighbors = 3 }",
}
TINY_WORDS = [
    word for name, table in TINY.items() for word in ("--set", f"partitioner.{name}={table}")
]


def test_a_fit_that_learns_leaves_its_curves(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = fit(inputs / "labelled.npz", out, "iresnet", *TINY_WORDS)
    assert finished.code == 0, finished.stderr
    assert "pretext loss" in finished.stdout
    assert not (out / "learning").exists()
    with (out / "curves" / "partition stage" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert all(0 <= float(row["NMI"]) <= 1 for row in rows)
    with (out / "curves" / "pretext stage" / "measurements.csv").open() as file:
        assert "neighbours of the same label" in next(csv.DictReader(file))
    page = (out / "report.html").read_text()
    assert page.index("Curves of the partition stage") < page.index("Curves of the pretext stage")
    assert load_partitioner(out).num_partitions == 2


def test_curves_are_a_panel_for_each_number_over_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "losses.csv").write_text("step,epoch,loss\n1,1,5\n2,1,4\n3,2,\n")
    (tmp_path / "measurements.csv").write_text("step,NMI\n3,0.5\n")
    drawn: list[Any] = []
    monkeypatch.setattr(Axes, "plot", lambda _, *given, **more: drawn.append(given))
    picture = figures.curves([tmp_path / "losses.csv", tmp_path / "measurements.csv"])
    assert picture.startswith(b"\x89PNG")
    assert drawn == [((1, 2), (5.0, 4.0)), ((3,), (0.5,))]


def test_a_dry_run_of_passes_over_the_images_counts_those_over_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries few images, and the more there are the more steps an epoch has."""
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    random = np.random.default_rng(0)
    for count in (300, 1200):
        images = random.integers(0, 255, (count, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / f"{count}.npz", images=images)
    words = [word.replace("steps = 4", "epochs = 400") for word in TINY_WORDS]
    seconds = [
        told(
            *("partition", "fit", "iresnet", "--partitions", 2, "--dry-run", *words),
            *("--data", tmp_path / f"{count}.npz"),
        )["seconds"]["parts"]
        for count in (300, 1200)
    ]
    assert seconds[1] / seconds[0] == pytest.approx(4, rel=0.02)


BAD: dict[str, tuple[list[object], str]] = {
    "no images": ([], "no images are given"),
    "images that are not there": (["--data", "none.npz"], "there are no images at none.npz"),
    "unknown partitioner": (["kmean", "--data", "LABELLED"], "did you mean 'kmeans'"),
    "unknown setting": (["--data", "LABELLED", "--set", "cluster=2"], "no setting 'cluster'"),
    "no parts": (["kmeans", "--data", "LABELLED", "--partitions", 0], "number of partitions"),
    "more parts than images": (["kmeans", "--data", "LABELLED", "--partitions", 61], "as many"),
    "parts given twice": (
        [
            *("kmeans", "--data", "LABELLED", "--partitions", 10),
            *("--set", "partitioner.num_partitions=3"),
        ],
        "has 3 parts, and 10 are asked for",
    ),
    "no labels": (
        ["labels", "--data", "UNLABELLED"],
        "'pgmkit:labels' learns from labels, and the images have none",
    ),
    "more than a single part": (
        ["single", "--data", "LABELLED", "--partitions", 2],
        "has one part, so num_partitions must be 1 or left out, not 2",
    ),
    "fewer images than a batch": (["iresnet", "--data", "LABELLED"], "needs at least 400 images"),
    "images of a size that cannot be halved": (
        [
            *("iresnet", "--data", "LABELLED", "--size", 28, *TINY_WORDS),
            *("--set", "partitioner.network.blocks=[1, 1, 1, 1]"),
        ],
        "so both must be multiples of 8, and these are 28×28",
    ),
    "features of latents": (
        ["kmeans", "--data", "LABELLED", "--set", "partitioner.features=latents"],
        "looks at latents",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_fit_is_one_line_and_leaves_no_folder(
    case: str, inputs: Path, tmp_path: Path
) -> None:
    words, said = BAD[case]
    data = {name.upper(): inputs / f"{name}.npz" for name in ("labelled", "unlabelled")}
    given = [data.get(str(word), word) for word in words]
    assert said in one_error(run_pgmkit("partition", "fit", *given, "-o", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_fit_without_a_folder_is_wrong_usage(inputs: Path) -> None:
    finished = run_pgmkit("partition", "fit", "kmeans", "--data", inputs / "labelled.npz")
    assert finished.code == 2
    assert "'--out'" in finished.stderr


# Again, and after a stop


def test_a_finished_fit_is_read_back(
    inputs: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(job, "fit_partitioner", never)
    before = every_file(parts)
    again = fit(inputs / "labelled.npz", parts, "kmeans")
    assert again.code == 0
    assert again.stdout == parts.with_name("stdout.txt").read_text()
    assert "is complete; nothing was computed" in again.stderr
    assert every_file(parts) == before
    other = one_error(fit(inputs / "labelled.npz", parts, "kmeans", "--seed", 1))
    assert "holds a run with seed 0, not 1" in other


def test_a_fit_that_was_stopped_continues_and_ends_as_one_that_was_not(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = f"partitioner.features={{name='contrastive', steps={STEPS}, batch_size=16, width=8}}"
    words = ("kmeans", "--set", features)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert fit(inputs / "labelled.npz", whole, *words).code == 0
    arguments = ("partition", "fit", "--data", inputs / "labelled.npz", "--partitions", 2, *words)
    stopped = run_forked("-c", STOP_LEARNING, *arguments, "-o", out)
    assert stopped.code == 1
    assert stopped.stderr.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in stopped.stderr
    assert list((out / "learning").glob("*/checkpoint-*"))
    assert not (out / "partitioner.json").exists()
    steps = []
    loss = contrastive.contrastive_loss

    def counted(*arguments: Any) -> torch.Tensor:
        steps.append(0)
        return loss(*arguments)

    monkeypatch.setattr(contrastive, "contrastive_loss", counted)
    again = fit(inputs / "labelled.npz", out, *words)
    assert again.code == 0, again.stderr
    assert len(steps) == STEPS - STOPPED_AT
    assert not (out / "learning").exists()
    assert (out / STATE).read_bytes() == (whole / STATE).read_bytes()


# Use


def test_assign_writes_the_part_and_the_margin_of_each_image(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "assigned.csv"
    printed = told("partition", "assign", parts, "--data", inputs / "labelled.npz", "-o", out)
    assert printed["sizes"] == [30, 30]
    assert printed["scores"]["matched_accuracy"] == 1
    with out.open() as file:
        rows = list(csv.DictReader(file))
    x = load_images(str(inputs / "labelled.npz")).batch(torch.arange(60))
    fitted = load_partitioner(parts)
    assert [int(row["image"]) for row in rows] == list(range(60))
    assert [int(row["part"]) for row in rows] == fitted.assign(x).tolist()
    margins = [float(row["margin"]) for row in rows]
    assert margins == pytest.approx(fitted.margins(x).tolist(), rel=1e-4)
    alone = told("partition", "assign", parts, "--data", inputs / "unlabelled.npz")
    assert alone["parts"] == fitted.assign(x).tolist()
    assert alone["scores"] is None


def test_images_of_another_size_are_refused_and_size_mends_it(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    for words in (("assign",), ("plot", "-o", tmp_path / "x.png")):
        wrong = ("partition", words[0], parts, "--data", inputs / "small.npz", *words[1:])
        error = one_error(run_pgmkit(*wrong))
        assert "fitted to images of (1, 32, 32)" in error
        assert "these are (1, 16, 16); give images of (1, 32, 32) (--size changes" in error
        assert run_pgmkit(*wrong, "--size", 32).code == 0


def test_plot_draws_the_clearest_images_of_each_part_in_a_row(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts.png"
    finished = run_pgmkit(
        "partition", "plot", parts, "--data", inputs / "labelled.npz", "-n", 3, "-o", out
    )
    assert (finished.code, finished.stdout) == (0, f"{out}\n")
    images = load_images(str(inputs / "labelled.npz"))
    x = images.batch(torch.arange(60))
    fitted = load_partitioner(parts)
    assigned, margins = fitted.assign(x), fitted.margins(x)
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("L"))
    left = pixels.shape[1] - (3 * 33 + 1)
    height = pixels.shape[0] // 2
    for part in range(2):
        members = (assigned == part).nonzero().flatten()
        clearest = members[margins[members].argmax()]
        expected = ((x[clearest, 0] + 1) * 127.5).numpy()
        row = pixels[part * height : (part + 1) * height, left : left + 34]
        # The first picture of the row is the clearest, wherever its border ends.
        best = min(
            float(np.abs(row[top : top + 32, side : side + 32] - expected).max())
            for top in range(height - 31)
            for side in range(3)
        )
        assert best <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plot", "-o", "x.jpg"), "the picture is written as .png, not 'x.jpg'"),
        (("plot", "-o", "folder.png"), "folder.png is a folder; give a file"),
        (("plot", "-o", "x.png", "-n", 0), "the number of images of each part"),
        (("assign", "-o", "x.parquet"), "the list of parts is written as .csv, not 'x.parquet'"),
        (("assign", "-o", "folder.png"), "folder.png is a folder; give a file"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_looked_at(
    words: tuple[Any, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partitioner and the images are not even there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    command, *rest = words
    finished = run_pgmkit("partition", command, "none", "--data", "none.npz", *rest)
    assert said in one_error(finished)


def test_no_more_images_are_drawn_than_there_are(
    inputs: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million pictures of nothing would end the process."""
    words = ("partition", "plot", parts, "--data", inputs / "labelled.npz")
    for count in (30, 1_000_000):
        assert run_pgmkit(*words, "-n", count, "-o", tmp_path / f"{count}.png").code == 0
    assert (tmp_path / "30.png").read_bytes() == (tmp_path / "1000000.png").read_bytes()
    needed = 24 * 2 * 30 * 32 * 32
    monkeypatch.setattr("pgmkit.machine.available_memory", lambda: needed - 1)
    assert "rows of 30 images need about 0.0 GB of memory" in one_error(
        run_pgmkit(*words, "-o", tmp_path / "more.png", "-n", 30)
    )


def test_images_too_large_for_memory_are_one_line(inputs: Path, tmp_path: Path) -> None:
    finished = fit(inputs / "labelled.npz", tmp_path / "out", "kmeans", "--size", 100_000)
    assert "60 images of the shape (1, 100000, 100000) need about 4,800.0 GB" in one_error(finished)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_told(inputs: Path, parts: Path, tmp_path: Path) -> None:
    nothing = one_error(run_pgmkit("partition", "info", inputs / "tiny"))
    assert "holds no partitioner" in nothing
    damaged = shutil.copytree(parts, tmp_path / "damaged")
    (damaged / STATE).write_bytes((damaged / STATE).read_bytes()[:50])
    assert "truncated or damaged" in one_error(run_pgmkit("partition", "info", damaged))
    config = json.loads((parts / "partitioner.json").read_text())
    shutil.copy(parts / STATE, damaged / STATE)
    (damaged / "partitioner.json").write_text(json.dumps({**config, "sizes": [60]}))
    assert "damaged or of another version" in one_error(run_pgmkit("partition", "info", damaged))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "sizes that are texts": ({"sizes": ["x", "y"]}, "'sizes' must be a list, each part a whole"),
    "sizes below zero": ({"sizes": [-5, 5]}, "'sizes' must be numbers from 0"),
    "no sizes at all": ({"sizes": [0, 0]}, "and not all 0"),
    "scores that are a text": ({"scores": "abc"}, "'scores' must be a table or nothing, not 'abc'"),
    "a score that is none": ({"scores": {"matched_accuracy": None}}, "'scores' must be"),
    "seconds that are a text": ({"seconds": "abc"}, "'seconds' must be a number, not 'abc'"),
    "findings that are a list": ({"findings": [1]}, "'findings' must be a table, not [1]"),
    "no seed": ({"seed": None}, "'seed' must be a whole number, not None"),
    "a list as partitioner": ({"partitioner": [1]}, "'partitioner' must be a table"),
    "an unknown format": ({"format_version": 99}, "this pgmkit reads 1; install another version"),
    "images of no machine": (
        {"image": {"shape": [1, 10**6, 10**6], "range": [-1, 1]}},
        "images of the shape (1, 1000000, 1000000) need about 16,000.0 GB of memory",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_partitioner_json_is_one_line(case: str, parts: Path, tmp_path: Path) -> None:
    changes, said = DAMAGED[case]
    damaged = shutil.copytree(parts, tmp_path / "damaged")
    path = damaged / "partitioner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert said in one_error(run_pgmkit("partition", "info", damaged))


def test_tensors_that_nothing_takes_are_refused(parts: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(parts, tmp_path / "damaged")
    save_file({**load_file(parts / STATE), "extra": torch.zeros(1)}, damaged / STATE)
    said = one_error(run_pgmkit("partition", "info", damaged))
    assert "'pgmkit:kmeans' has no tensor 'extra'; fit the partitioner again" in said


def test_a_partitioner_in_the_place_of_a_generator_is_told(parts: Path, tmp_path: Path) -> None:
    said = "holds a partitioner and no generator; see pgmkit partition info, and give it to pgmkit"
    for words in (
        ("generators", "push", parts, "me/parts", "--latent", "8"),
        ("shatter", f"local-dir:{parts}", "-o", tmp_path / "out"),
        ("sample", parts, "-n", "1", "-o", tmp_path / "out.png"),
    ):
        assert said in one_error(run_pgmkit(*words)), words
    for load in (pgmkit.load, pgmkit.load_generator):
        with pytest.raises(LoadError, match=said):
            load(str(parts))
    inspected = run_pgmkit("generators", "inspect", parts)
    assert said in inspected.stdout


def test_a_partitioner_of_images_shatters_a_generator_and_stays_as_it_is(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    given = shutil.copytree(parts, tmp_path / "parts")
    out = tmp_path / "shattered"
    words = ("--latents", 60, "--mapper", "mixture", "--set", "mapper.num_components=1")
    source = f"local-dir:{inputs / 'tiny'}"
    whose = ("--partitioner", f"local-dir:{given}")
    printed = told("shatter", source, *whose, "-o", out, *words, "-q")
    assert printed["settings"]["clusters"] == 2
    own = {
        name.removeprefix("partitioner.partitioner."): value
        for name, value in load_file(out / "sampler.safetensors").items()
        if name.startswith("partitioner.partitioner.")
    }
    before = load_file(given / STATE)
    assert own.keys() == before.keys()
    assert all(torch.equal(own[name], before[name]) for name in before)
    shutil.rmtree(given)  # the result needs it no more
    shattered = pgmkit.ShatteredGenerator.from_pretrained(out)
    fitted = load_partitioner(parts)
    z = shattered.generator.sample_latents(20, seed=1)
    assert torch.equal(shattered.predict(z), fitted.assign(shattered.images(z)))
    more = one_error(
        run_pgmkit(
            *("shatter", source, "--partitioner", f"local-dir:{parts}"),
            *("--clusters", 3, "-o", tmp_path / "three"),
        )
    )
    assert "has 2 parts, and 3 are asked for" in more


def test_parts_of_another_fit_are_another_run(inputs: Path, parts: Path, tmp_path: Path) -> None:
    given, out = shutil.copytree(parts, tmp_path / "parts"), tmp_path / "out"
    words = ("shatter", f"local-dir:{inputs / 'tiny'}", "--partitioner", f"local-dir:{given}")
    words += ("--latents", 60, "--mapper", "mixture", "--set", "mapper.num_components=1", "-o", out)
    told(*words)
    record = json.loads((out / "run.json").read_text())["settings"]["sampler"]["params"]
    assert record["partitioner"]["name"] == "pgmkit:fixed"
    assert str(tmp_path) not in json.dumps(record)
    card = (out / "README.md").read_text()
    assert "--partitioner local-dir:path/to/its/partitioner --mapper" in card
    weights = load_file(given / STATE)
    save_file({name: value + 1 for name, value in weights.items()}, given / STATE)
    assert "out holds a run with sampler" in one_error(run_pgmkit(*words))


def test_a_reference_stands_wherever_a_partitioner_may(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    reference, source = f"local-dir:{parts}", f"local-dir:{inputs / 'tiny'}"
    fitted = load_partitioner(parts)
    generator = pgmkit.load_generator(source, device="cpu")
    images = GeneratedImages(generator, generator.sample_latents(60, seed=0))
    x = images.batch(torch.arange(60))
    for whole in (
        reference,
        {"name": reference},
        {"name": "fixed", "source": reference},
        {"name": "most-stable", "candidates": [reference]},
    ):
        same = pgmkit.fit_partitioner(whole, images, partitions=2)
        assert torch.equal(same.assign(x), fitted.assign(x))
    own = {"name": "self-trained", "base": reference, "steps": 3, "width": 4, "rounds": 1}
    assert pgmkit.fit_partitioner(own, images, partitions=2).num_partitions == 2
    config = tmp_path / "ablation.toml"
    config.write_text(
        f'generators = ["{source}"]\npartitioners = ["{reference}"]\nclusters = 2\nseeds = [0]\n'
        'latents = 60\nmeasures = ["selection"]\njobs = 1\n'
    )
    finished = run_pgmkit("ablate", config, "-o", tmp_path / "out")
    assert finished.code == 0, finished.stderr


def test_a_partitioner_of_other_images_is_one_error_before_anything_is_computed(
    inputs: Path, tmp_path: Path
) -> None:
    assert fit(inputs / "small.npz", tmp_path / "small", "kmeans").code == 0
    words = ("--partitioner", f"local-dir:{tmp_path / 'small'}", "-o", tmp_path / "out")
    error = one_error(run_pgmkit("shatter", f"local-dir:{inputs / 'tiny'}", *words))
    assert "fitted to images of (1, 16, 16)" in error
    assert "(1, 32, 32)" in error
    assert not (tmp_path / "out").exists()
    tiny = pgmkit.load_generator(f"local-dir:{inputs / 'tiny'}")
    with pytest.raises(ParameterError, match="fitted to images of"):
        pgmkit.shatter(tiny, partitioner=load_partitioner(tmp_path / "small"))


def test_a_partitioner_goes_to_the_hub_and_comes_back(
    server: HubServer, parts: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)
    again = load_partitioner(parts).push_to_hub("me/again")
    assert again.endswith("me/again")
    finished = run_pgmkit("generators", "push", parts, "me/parts", "--private")
    assert finished.code == 0, finished.stderr
    assert finished.stdout.strip().endswith("me/parts")
    assert server.repositories["me/parts"].private
    pushed = server.files("me/parts")
    assert pushed[STATE] == (parts / STATE).read_bytes()
    assert pushed["samples.png"] == (parts / "samples.png").read_bytes()
    assert pushed.keys() == {*server.files("me/again"), "samples.png"}
    card = pushed["README.md"].decode()
    assert "hf-hub:me/parts" in card
    assert str(parts) not in card
    assert str(inputs) not in json.dumps(json.loads(pushed["partitioner.json"])["partitioner"])
    assert snapshot_download("me/parts", allow_patterns="*.json")
    x = load_images(str(inputs / "labelled.npz")).batch(torch.arange(60))
    loaded = load_partitioner("hf-hub:me/parts")
    assert torch.equal(loaded.logits(x), load_partitioner(parts).logits(x))
    assigned = told(
        *("partition", "assign", "hf-hub:me/parts", "--data", inputs / "labelled.npz"),
    )
    assert assigned["sizes"] == [30, 30]
    out = tmp_path / "out"
    finished = run_pgmkit(
        *("shatter", f"local-dir:{inputs / 'tiny'}", "--partitioner", "hf-hub:me/parts"),
        *("--latents", 60, "--mapper", "mixture", "--set", "mapper.num_components=1", "-o", out),
    )
    assert finished.code == 0, finished.stderr


def test_features_that_were_learned_serve_other_partitioners(inputs: Path, tmp_path: Path) -> None:
    learned = "partitioner.features={name='contrastive', steps=3, batch_size=16, width=4}"
    data, given, out = inputs / "labelled.npz", tmp_path / "given", tmp_path / "out"
    assert fit(data, given, "kmeans", "--set", learned).code == 0
    before = load_file(given / STATE)
    taken = f"partitioner.features=local-dir:{given}"
    assert fit(data, out, "mixture", "--partitions", 3, "--set", taken).code == 0
    shutil.rmtree(given)  # the result needs it no more
    after = load_file(out / STATE)
    learned_names = [name for name in before if name.startswith("features.")]
    assert learned_names
    for name in learned_names:
        assert torch.equal(after[f"features.{name}"], before[name])
    assert load_partitioner(out).num_partitions == 3
    assert str(tmp_path) not in (out / "partitioner.json").read_text()


def test_features_of_a_partitioner_that_has_none_or_other_images_are_one_error(
    inputs: Path, parts: Path, tmp_path: Path
) -> None:
    data = inputs / "labelled.npz"
    assert fit(data, tmp_path / "one", "single", "--partitions", 1).code == 0
    taken = f"partitioner.features=local-dir:{tmp_path / 'one'}"
    error = one_error(fit(data, tmp_path / "out", "kmeans", "--set", taken))
    assert "'pgmkit:single' is not made of features" in error
    taken = f"partitioner.features=local-dir:{parts}"
    error = one_error(fit(inputs / "small.npz", tmp_path / "out", "kmeans", "--set", taken))
    assert "fitted to images of (1, 32, 32), and these are (1, 16, 16)" in error
