"""`pgmkit partition`: fitted to images, read back, used, and what a stop leaves."""

import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file
from tiny import (
    STEPS,
    STOP_LEARNING,
    STOPPED_AT,
    Finished,
    environment,
    every_file,
    run_pgmkit,
    write_tiny_generator,
)

import pgmkit
from pgmkit.errors import LoadError, ParameterError
from pgmkit.evaluate.partitions import partition_scores
from pgmkit.images import load_images
from pgmkit.jobs import partition as job
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
    assert names == {"README.md", "partitioner.json", STATE, "run.json", "samples.png"}
    printed = parts.with_name("stdout.txt").read_text()
    assert "NMI 1.0000, AMI 1.0000, ARI 1.0000, accuracy by matching 1.0000 (60 images)" in printed
    assert f"--partitioner local-dir:{parts}" in printed
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
    assert run_pgmkit("partition", "plot", out, "--data", data, "-o", picture).code == 0
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height / 8


def test_a_single_part_is_everything_and_nothing_is_learned(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the default method; and it comes back."""

    def fail(*arguments: object, **more: object) -> None:
        pytest.fail("learned, or judged")

    monkeypatch.setattr("pgmkit_plugins.partitioners.self_trained.minimise", fail)
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
    assert load_partitioner(out).num_partitions == 2


def test_a_dry_run_of_passes_over_the_images_counts_those_over_all_of_them(tmp_path: Path) -> None:
    """It tries few images, and the more there are the more steps an epoch has."""
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
    assert 2 < seconds[1] / seconds[0] < 8


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
    given = [inputs / "labelled.npz" if word == "LABELLED" else word for word in words]
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
    command = [sys.executable, "-c", STOP_LEARNING, *map(str, arguments), "-o", str(out)]
    stopped = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=280
    )
    assert stopped.returncode == 1
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
        assert "(1, 16, 16)" in error
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


def test_a_partitioner_in_the_place_of_a_generator_is_told(parts: Path, tmp_path: Path) -> None:
    said = "holds a partitioner and no generator; see pgmkit partition info, and give it to pgmkit"
    for words in (
        ("generators", "info", parts),
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
        name.removeprefix("partitioner."): value
        for name, value in load_file(out / "sampler.safetensors").items()
        if name.startswith("partitioner.")
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
