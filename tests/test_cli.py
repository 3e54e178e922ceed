"""The command line: what it accepts, what it prints, and what it refuses in one line."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import (
    LATENT_DIM,
    TRAIN_CONFIG,
    Finished,
    command,
    environment,
    every_file,
    run_pgmkit,
    write_tiny_generator,
    write_tiny_images,
)

import pgmkit
from pgmkit.config import IMAGES
from pgmkit.errors import DataError, UnknownNameError
from pgmkit.images import load_images

SMALL = ("--latents", 200, "--clusters", 3, "--sampler", "kmeans-gmm")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny generator, one with NaN in its weights, data and configs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_generator(folder / "tiny")
    write_tiny_generator(folder / "nan")
    weights = load_file(folder / "nan" / "model.safetensors")
    weights["layers.0.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, folder / "nan" / "model.safetensors")
    write_tiny_images(folder / "noise.npz")
    write_tiny_images(folder / "large.npz", size=20)
    write_tiny_images(folder / "few.npz", count=3)
    np.savez(folder / "numbers.npz", numbers=np.zeros(3))
    np.savez(folder / "floats.npz", images=np.zeros((9, 16, 16)))
    np.savez(folder / "unlabelled.npz", images=np.zeros((9, 28, 28), np.uint8))
    (folder / "empty").mkdir()
    (folder / "train.toml").write_text(TRAIN_CONFIG)
    (folder / "judge.toml").write_text('task = "classifier"\nepochs = 1\nbatch_size = 4\n')
    (folder / "not.toml").write_text("clusters = = 3")
    (folder / "unknown.toml").write_text("cluster = 3")
    (folder / "words.toml").write_text('density = "polarity"\nclusters = 5\nseed = 1\nremove = 0.5')
    return folder


@pytest.fixture(scope="module")
def tiny(inputs: Path) -> str:
    return f"local-dir:{inputs / 'tiny'}"


@pytest.fixture(scope="module")
def result(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete shattering with scores, whose JSON lies beside it."""
    out = tmp_path_factory.mktemp("result") / "out"
    scores = ("--classifier", "mnist-classifier")
    finished = run_pgmkit("shatter", tiny, "-o", out, *SMALL, *scores, "--json")
    assert finished.code == 0, finished.stderr
    out.with_name("stdout.json").write_text(finished.stdout)
    return out


@pytest.mark.parametrize(
    "words", [("partition", "fit"), ("partition", "plot"), "train", "evaluate"]
)
def test_the_help_names_all_that_images_are_read_from(words: str | tuple[str, ...]) -> None:
    finished = run_pgmkit(*([words] if isinstance(words, str) else words), "--help")
    assert IMAGES in " ".join(finished.stdout.split())
    assert "zip or tar archive" in IMAGES
    with pytest.raises(DataError, match=re.escape(f"give {IMAGES}")):
        load_images("nothing.txt")


def one_error(finished: Finished) -> str:
    """Returns the error of a run that printed nothing but one line on stderr."""
    assert finished.code == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.endswith("\n")
    assert finished.stderr.count("\n") == 1
    return finished.stderr


BAD_SHATTER: dict[str, tuple[list[object], str]] = {
    "unknown generator": (["mnist-dcgna"], "'mnist-dcgna'; did you mean 'mnist-dcgan'"),
    "no generator": ([], "no generator is given"),
    "folder that is no folder": (["{inputs}/none"], "there is no folder or file"),
    "folder that is not there": (["local-dir:{inputs}/none"], "there is no folder"),
    "generator that is a classifier": (
        ["mnist-classifier"],
        "did you mean 'mnist-dcgan' or 'mnist-pgmgan'?",
    ),
    "generator of nan": (
        ["local-dir:{inputs}/nan"],
        "not finite: infinite or no numbers are among the weights",
    ),
    "unknown density": (["{tiny}", "--density", "lsah"], "'lsah'; did you mean 'lash'"),
    "unknown sampler": (["{tiny}", "--sampler", "kmeans"], "did you mean 'kmeans-gmm'"),
    "unknown partitioner": (["{tiny}", "--partitioner", "kmean"], "did you mean 'kmeans'"),
    "unknown mapper": (["{tiny}", "--mapper", "rejecting"], "did you mean 'rejection'"),
    "unknown features": (
        ["{tiny}", "--partitioner", "kmeans", "--set", "partitioner.features=pac"],
        "did you mean 'pca'",
    ),
    "partitioner beside a sampler that has none": (
        ["{tiny}", "--sampler", "kmeans-gmm", "--partitioner", "kmeans"],
        "has no parameter 'partitioner'",
    ),
    "partitioner that is no folder": (
        ["{tiny}", "--partitioner", "local-dir:{inputs}/tiny"],
        "holds no partitioner",
    ),
    "unknown density parameter": (
        ["{tiny}", "--set", "density.foo=1"],
        "'lash' has no parameter 'foo'",
    ),
    "density parameter of another type": (
        ["{tiny}", "--set", "density.rank_rtol=high"],
        "rank_rtol",
    ),
    "density parameter out of range": (["{tiny}", "--set", "density.rank_rtol=2"], "not 2"),
    "density parameter that is no choice": (["{tiny}", "--set", "density.null=keep"], "'keep'"),
    "top_k of zero": (["{tiny}", "--density", "polarity", "--set", "density.top_k=0"], "top_k"),
    "unknown sampler parameter": (["{tiny}", "--set", "sampler.num_cluster=1"], "num_cluster"),
    "clusters given twice": (["{tiny}", "--set", "sampler.num_clusters=4"], "num_clusters"),
    "parts given twice": (
        ["{tiny}", "--clusters", 3, "--set", "partitioner.num_partitions=4"],
        "has 4 parts, and 3 are asked for",
    ),
    "unknown setting": (["{tiny}", "--set", "latent=9"], "no setting 'latent'; did you mean"),
    "unknown config key": (["{tiny}", "--config", "{inputs}/unknown.toml"], "'clusters'"),
    "config that is not there": (["{tiny}", "--config", "{inputs}/none.toml"], "none.toml"),
    "config that is not toml": (["{tiny}", "--config", "{inputs}/not.toml"], "not valid TOML"),
    "setting without value": (["{tiny}", "--set", "clusters"], "--set takes name=value"),
    "setting below a value": (["{tiny}", "--set", "seed.a=1", "--set", "seed.a.b=1"], "no parts"),
    "number as a word": (["{tiny}", "--set", "latents=many"], "not 'many'"),
    "seed as a word": (["{tiny}", "--set", "seed=lucky"], "not 'lucky'"),
    "block size of zero": (["{tiny}", "--set", "spectrum.block_size=0"], "block_size"),
    "workers as a word": (["{tiny}", "--set", "spectrum.engine.workers=all"], "workers"),
    "device that is not there": (["{tiny}", "--set", "device=abacus"], "'abacus'"),
    "more clusters than latents": (["{tiny}", "--clusters", 9, "--latents", 10], "leaves 8 of 10"),
    "clusters 0": (["{tiny}", "--clusters", 0], "the number of clusters"),
    "latents 0": (["{tiny}", "--latents", 0], "the number of latents"),
    "remove 1": (["{tiny}", "--remove", "1.0"], "in [0, 1), such as 0.2, not 1.0"),
    "remove below 0": (["{tiny}", "--remove", "-0.1"], "not -0.1"),
    "remove nan": (["{tiny}", "--remove", "nan"], "not nan"),
    "missing classifier": (["{tiny}", "--classifier", "mnist-classifer"], "'mnist-classifier'"),
    "classifier that is a generator": (["{tiny}", "--classifier", "{tiny}"], "is no classifier"),
}


@pytest.mark.parametrize("case", BAD_SHATTER)
def test_a_bad_shatter_is_one_line_and_leaves_no_folder(
    case: str, inputs: Path, tiny: str, tmp_path: Path
) -> None:
    words, said = BAD_SHATTER[case]
    words = [str(word).format(inputs=inputs, tiny=tiny) for word in words]
    error = one_error(run_pgmkit("shatter", *words, "-o", tmp_path / "out"))
    assert said in error
    assert not list(tmp_path.iterdir())


BAD_TRAIN: dict[str, tuple[list[object], str]] = {
    "config that is not there": (["none.toml", "noise.npz"], "none.toml"),
    "data that is not there": (["train.toml", "none.npz"], "there are no images at"),
    "data of no known kind": (["train.toml", "train.toml"], "give an .npz file"),
    "archive without images": (["train.toml", "numbers.npz"], "it needs an array called 'images'"),
    "folder without images": (["train.toml", "empty"], "there are no images in"),
    "images of floats": (["train.toml", "floats.npz"], "they must be uint8"),
    "fewer images than a batch": (["train.toml", "few.npz"], "3 images, fewer than one batch of 8"),
    "images of another shape": (
        ["train.toml", "large.npz", "--set", "image_size=20"],
        "(1, 16, 16) and the data holds (1, 20, 20); set image_size",
    ),
    "unknown task": (["train.toml", "noise.npz", "--set", "task=gna"], "did you mean 'gan'"),
    "unknown setting": (["train.toml", "noise.npz", "--set", "epoch=1"], "did you mean 'epochs'"),
    "no epochs": (["train.toml", "noise.npz", "--set", "epochs=0"], "epochs"),
    "epochs as a word": (["train.toml", "noise.npz", "--set", "epochs=many"], "not 'many'"),
    "unknown backbone": (["train.toml", "noise.npz", "--set", "model.backbone=dcgn"], "'dcgan'"),
    "unknown optimizer setting": (
        ["train.toml", "noise.npz", "--set", "optimizer.rate=1"],
        "'learning_rate'",
    ),
    "learning rate as a word": (
        ["train.toml", "noise.npz", "--set", "optimizer.learning_rate=low"],
        "not 'low'",
    ),
    "device that is not there": (["train.toml", "noise.npz", "--device", "abacus"], "'abacus'"),
    "classifier without labels": (["judge.toml", "unlabelled.npz"], "has no labels"),
    "classifier of small images": (["judge.toml", "noise.npz"], "looks at 28×28 pixels"),
    "classifier of too few classes": (
        ["judge.toml", "noise.npz", "--set", "image_size=28", "--set", "model.num_classes=5"],
        "num_classes",
    ),
    "classifier of other channels": (
        ["judge.toml", "noise.npz", "--set", "image_size=28", "--set", "model.image_channels=3"],
        "channels",
    ),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_a_bad_training_is_one_line_and_leaves_no_folder(
    case: str, inputs: Path, tmp_path: Path
) -> None:
    (config, data, *more), said = BAD_TRAIN[case]
    where = ("--data", inputs / str(data), "-o", tmp_path / "out")
    error = one_error(run_pgmkit("train", inputs / str(config), *where, *more))
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_training_whose_loss_is_not_finite_ends_without_a_model(
    inputs: Path, tmp_path: Path
) -> None:
    where = ("--data", inputs / "noise.npz", "-o", tmp_path / "out")
    rate = ("--set", "optimizer.learning_rate=1e30")
    error = one_error(run_pgmkit("train", inputs / "train.toml", *where, *rate))
    assert re.search(r"loss is (nan|inf|\d\S*e\+\d+) at step \d+; lower the learning rate", error)
    assert not (tmp_path / "out" / "model").exists()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_folder_that_holds_other_files_is_not_written_to(
    inputs: Path, tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = every_file(tmp_path)
    shatter = run_pgmkit("shatter", tiny, "-o", tmp_path, *SMALL)
    assert "holds thesis.tex" in one_error(shatter)
    data = ("--data", inputs / "noise.npz")
    train = run_pgmkit("train", inputs / "train.toml", *data, "-o", tmp_path)
    assert "holds thesis.tex" in one_error(train)
    assert every_file(tmp_path) == before


def test_an_output_path_that_is_a_file_is_not_overwritten(
    inputs: Path, tiny: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    assert "is a file" in one_error(run_pgmkit("shatter", tiny, "-o", path, *SMALL))
    data = ("--data", inputs / "noise.npz")
    train = run_pgmkit("train", inputs / "train.toml", *data, "-o", path)
    assert "is a file" in one_error(train)
    assert path.read_text() == "mine"


def test_a_folder_of_a_run_with_other_settings_is_left_alone(tiny: str, result: Path) -> None:
    before = every_file(result)
    words = ("shatter", tiny, "-o", result, *SMALL, "--classifier", "mnist-classifier")
    error = one_error(run_pgmkit(*words, "--seed", 1))
    assert "holds a run with seed 0, not 1" in error
    assert every_file(result) == before


def test_a_folder_of_a_training_with_other_settings_is_left_alone(
    inputs: Path, tmp_path: Path
) -> None:
    words = ("train", inputs / "train.toml", "--data", inputs / "noise.npz", "-o", tmp_path / "out")
    assert run_pgmkit(*words, "--set", "epochs=1").code == 0
    before = every_file(tmp_path / "out")
    assert "holds a run with epochs 1, not 2" in one_error(run_pgmkit(*words, "--set", "epochs=2"))
    assert every_file(tmp_path / "out") == before


def test_a_damaged_record_of_a_run_is_one_line(tiny: str, result: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_bytes((result / "run.json").read_bytes()[:40])
    assert "run.json" in one_error(run_pgmkit("shatter", tiny, "-o", out, *SMALL))


BAD_SAMPLE: dict[str, tuple[list[object], str]] = {
    "cluster above the last": (["--cluster", 3, "-o", "x.png"], "the clusters are 0 to 2"),
    "cluster below the first": (["--cluster", -1, "-o", "x.png"], "there is no cluster -1"),
    "no images": (["-n", 0, "-o", "x.png"], "from 1, not 0"),
    "unknown suffix": (["-n", 2, "-o", "x.jpeg"], "not 'x.jpeg'"),
}


@pytest.mark.parametrize("case", BAD_SAMPLE)
def test_a_bad_sample_is_one_line_and_writes_nothing(
    case: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, said = BAD_SAMPLE[case]
    assert said in one_error(run_pgmkit("sample", result, *words))
    assert not list(tmp_path.iterdir())


def test_sampling_from_a_folder_without_a_whole_result_says_what_is_missing(
    inputs: Path, result: Path, tmp_path: Path
) -> None:
    words = ("-n", 2, "-o", tmp_path / "x.png")
    nothing = one_error(run_pgmkit("sample", tmp_path / "none", *words))
    assert "there is no folder" in nothing
    assert "has no weights" in one_error(run_pgmkit("sample", inputs / "empty", *words))
    (tmp_path / "stopped").mkdir()
    for name in ("run.json", "config.json", "model.safetensors"):
        (tmp_path / "stopped" / name).write_bytes((result / name).read_bytes())
    stopped = one_error(run_pgmkit("sample", tmp_path / "stopped", *words))
    assert "run the same command again" in stopped
    (tmp_path / "half").mkdir()
    for name in ("sampler.json", "config.json", "model.safetensors"):
        (tmp_path / "half" / name).write_bytes((result / name).read_bytes())
    assert "sampler.safetensors" in one_error(run_pgmkit("sample", tmp_path / "half", *words))
    (tmp_path / "half" / "sampler.safetensors").write_bytes(b"short")
    assert "truncated or damaged" in one_error(run_pgmkit("sample", tmp_path / "half", *words))
    (tmp_path / "half" / "sampler.json").write_text("{}")
    assert "sampler.json is damaged" in one_error(run_pgmkit("sample", tmp_path / "half", *words))
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["shater", "mnist-dcgan"],
        ["shatter", "mnist-dcgan", "--latents", "many"],
        ["shatter", "mnist-dcgan", "--colour", "blue"],
        ["sample", "mnist-dcgan"],
        ["train", "x.toml", "-o", "out"],
        ["info"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    finished = run_pgmkit(*words)
    assert finished.code == 2
    assert finished.stdout == ""
    assert "Usage: " in finished.stderr


def test_shatter_without_an_output_folder_is_wrong_usage(tiny: str) -> None:
    finished = run_pgmkit("shatter", tiny, *SMALL)
    assert finished.code == 2
    assert "'--out'" in finished.stderr


def test_the_console_script_prints_one_line_and_with_debug_a_traceback() -> None:
    words = command("info", "mnist-dcgna")
    plain = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120)
    one_error(Finished(plain.returncode, plain.stdout, plain.stderr))
    debug = environment(PGMKIT_DEBUG="1")
    traced = subprocess.run(words, capture_output=True, text=True, env=debug, timeout=120)
    assert traced.returncode == 1
    assert traced.stderr.startswith("Traceback (most recent call last)")
    assert UnknownNameError.__name__ in traced.stderr


def test_shatter_prints_json_that_is_also_in_the_report(result: Path) -> None:
    printed = json.loads(result.with_name("stdout.json").read_text())
    assert printed.pop("out") == str(result)
    assert printed == json.loads((result / "report.json").read_text())
    assert [cluster["index"] for cluster in printed["clusters"]] == [0, 1, 2]
    assert sum(cluster["size"] for cluster in printed["clusters"]) == 160
    assert set(printed["scores"]) == {"kept latents", "mapper samples"}


def test_the_summary_names_every_cluster_the_scores_and_the_report(tiny: str, result: Path) -> None:
    words = ("shatter", tiny, "-o", result, *SMALL, "--classifier", "mnist-classifier")
    finished = run_pgmkit(*words)
    assert finished.code == 0
    for cluster in json.loads((result / "report.json").read_text())["clusters"]:
        assert f"{cluster['name']}  {cluster['size']}" in finished.stdout
    assert "kept latents: AMI" in finished.stdout
    assert f"report: {result / 'report.html'}" in finished.stdout


def test_a_dry_run_prints_the_settings_and_writes_nothing(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pgmkit.progress._SECONDS", 0.01)
    words = ("shatter", tiny, "-o", tmp_path / "out", *SMALL, "--dry-run")
    finished, quiet = run_pgmkit(*words), run_pgmkit(*words, "-q")
    assert finished.code == 0
    assert (finished.stderr, quiet.stderr) == ("trying a little of each part\n", "")
    printed = json.loads(finished.stdout)
    assert printed["settings"]["latents"] == 200
    assert len(printed["settings"]["generator"]["sha256"]) == 64
    assert printed["generator"].startswith("Generator('tiny'")
    seconds = printed["seconds"]
    assert list(seconds) == ["spectrum", "clusters", "total"]
    assert 0 <= seconds["clusters"] < seconds["total"] < 600
    assert not list(tmp_path.iterdir())


def test_the_partitioner_is_self_trained_unless_another_is_named(tiny: str, tmp_path: Path) -> None:
    words = ("shatter", tiny, "-o", tmp_path / "out", "--latents", 80, "--clusters", 2, "--json")
    words += ("--set", "partitioner.base=mixture", "--set", "partitioner.steps=3")
    words += ("--set", "partitioner.batch_size=16")
    finished = run_pgmkit(*words)
    assert finished.code == 0, finished.stderr
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["sampler"]["name"] == "pgmkit:partition"
    parts = settings["sampler"]["params"]
    assert parts["partitioner"]["name"] == "pgmkit:self-trained"
    assert parts["partitioner"]["base"]["name"] == "pgmkit:mixture"
    assert parts["partitioner"]["num_partitions"] == 2
    assert parts["mapper"]["name"] == "pgmkit:rejection"
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "unchanged" in told["sampler"]["findings"]


@pytest.mark.usefixtures("no_estimate")
def test_flags_go_before_the_config_and_set_before_flags(inputs: Path, tiny: str) -> None:
    words = ("shatter", tiny, "--config", inputs / "words.toml", "--dry-run")

    def settings(*more: object) -> dict[str, object]:
        finished = run_pgmkit(*words, *more)
        assert finished.code == 0, finished.stderr
        found: dict[str, object] = json.loads(finished.stdout)["settings"]
        return found

    alone = settings()
    assert (alone["clusters"], alone["seed"], alone["remove"]) == (5, 1, 0.5)
    polarity = {"name": "pgmkit:polarity", "params": {"rho": -0.1, "top_k": 10, "rank_rtol": 1e-6}}
    assert (alone["density"], alone["latents"]) == (polarity, 20_000)
    flags = settings("--clusters", 6, "--seed", 2, "--density", "jbt")
    assert (flags["clusters"], flags["seed"], flags["remove"]) == (6, 2, 0.5)
    assert flags["density"]["name"] == "pgmkit:jbt"
    both = settings("--clusters", 6, "--set", "clusters=7", "--set", "density.rho=-0.2")
    assert (both["clusters"], both["seed"]) == (7, 1)
    assert both["density"]["params"]["rho"] == -0.2


def test_the_run_records_its_settings_and_plugins(result: Path) -> None:
    recorded = json.loads((result / "run.json").read_text())
    assert recorded["settings"]["density"]["name"] == "pgmkit:lash"
    assert recorded["settings"]["seed"] == 0
    assert recorded["plugins"]["pgmkit:density"] == pgmkit.__version__


def test_the_report_needs_no_other_file(result: Path) -> None:
    page = (result / "report.html").read_text()
    sources = re.findall(r"\bsrc\s*=\s*[\"']?([^\"'\s>]+)", page)
    assert len(sources) == 3 + 2 + 3  # clusters, kept and removed, charts
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.search(r"<link|<script|@import|url\(|\bhref", page)
    assert '<meta name="viewport" content="width=device-width' in page
    assert len(page) < 2_000_000
    assert page.index("<img") < page.index("<table")
    assert all(len(alt) > 5 for alt in re.findall(r"<img alt=\"([^\"]*)\"", page))
    for cluster in json.loads((result / "report.json").read_text())["clusters"]:
        assert cluster["name"] in page


def test_the_pictures_of_the_report_open(result: Path) -> None:
    charts = ["cluster-sizes.png", "log-density.png", "singular-values.png", "samples.png"]
    grids = [f"clusters/cluster-{cluster:02d}.png" for cluster in range(3)]
    assert sorted(str(p.relative_to(result)) for p in result.rglob("*.png")) == sorted(
        charts + grids
    )
    for name in charts + grids:
        with Image.open(result / name) as picture:
            picture.load()
            low, high = picture.convert("L").getextrema()
            assert low < high, f"{name} is blank"


def test_samples_are_written_as_a_grid(result: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    finished = run_pgmkit("sample", result, "-n", 10, "-o", out)
    assert (finished.code, finished.stdout) == (0, f"{out}\n")
    with Image.open(out) as grid:
        assert grid.size == (8 * 33 + 1, 2 * 33 + 1)


def test_samples_are_written_as_arrays_with_their_latents(result: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.npz"
    finished = run_pgmkit("sample", result, "--cluster", 1, "-n", 5, "-o", out, "--json")
    printed = json.loads(finished.stdout)
    assert printed.pop("device")
    assert printed == {"out": str(out), "num": 5, "cluster": 1, "seed": 0}
    with np.load(out) as archive:
        images, latents = archive["images"], archive["latents"]
    assert (images.dtype, images.shape) == (np.uint8, (5, 32, 32, 1))
    assert (latents.dtype, latents.shape) == (np.float32, (5, LATENT_DIM))
    shattered = pgmkit.ShatteredGenerator.from_pretrained(result)
    made = shattered.images(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images, (made + 1) * 127.5, atol=0.51)


def test_samples_are_written_as_a_folder_of_pictures(result: Path, tmp_path: Path) -> None:
    assert run_pgmkit("sample", result, "-n", 11, "-o", tmp_path / "out").code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{index:02d}.png" for index in range(11)]
    with Image.open(tmp_path / "out" / "07.png") as picture:
        assert picture.size == (32, 32)


def _file_bytes(path: Path) -> bytes:
    return path.read_bytes()


def _folder_bytes(path: Path) -> bytes:
    return b"".join(picture.read_bytes() for picture in sorted(path.iterdir()))


@pytest.mark.parametrize(
    ("name", "read"), [("x.png", _file_bytes), ("x.npz", _file_bytes), ("x", _folder_bytes)]
)
def test_the_same_seed_gives_the_same_bytes(
    name: str, read: Callable[[Path], bytes], result: Path, tmp_path: Path
) -> None:
    made = []
    for index, seed in enumerate((7, 7, 8)):
        out = tmp_path / str(index) / name
        assert run_pgmkit("sample", result, "-n", 6, "--seed", seed, "-o", out).code == 0
        made.append(read(out))
    assert made[0] == made[1] != made[2]


def test_generators_are_told_about(inputs: Path, tiny: str) -> None:
    told = json.loads(run_pgmkit("info", tiny, "--json").stdout)
    assert told["reference"] == tiny
    assert told["latent"]["dim"] == LATENT_DIM
    assert told["image"]["shape"] == [1, 32, 32]
    table = run_pgmkit("info", tiny).stdout
    assert "1×32×32" in table


def test_components_are_listed_by_kind() -> None:
    densities = json.loads(run_pgmkit("components", "ls", "density-estimators", "--json").stdout)
    assert {"lash", "jbt", "polarity", "none"} <= {component["name"] for component in densities}
    assert {component["kind"] for component in densities} == {"density-estimators"}
    everything = run_pgmkit("components", "ls").stdout
    assert "kmeans-gmm" in everything
    assert "dcgan" in everything
    unknown = one_error(run_pgmkit("components", "ls", "density-estimator"))
    assert "did you mean 'density-estimators'" in unknown


def test_plugins_are_listed_with_their_state() -> None:
    plugins = json.loads(run_pgmkit("plugins", "ls", "--json").stdout)
    own = {plugin["name"]: plugin for plugin in plugins}
    assert own["pgmkit:density"]["status"] == "loaded"
    assert "density-estimators/lash" in own["pgmkit:density"]["components"]
    assert "pgmkit:density" in run_pgmkit("plugins", "ls").stdout
