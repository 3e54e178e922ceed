"""At the prompt: help with examples, what folders and methods are, the environment, the cache."""

import io
import json
import os
import pty
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.shell_completion import ShellComplete
from hub_server import HubServer
from PIL import Image
from tiny import (
    install,
    run_pgmkit,
    write_tiny_classifier,
    write_tiny_generator,
    write_tiny_images,
)

import pgmkit
from pgmkit import cache, progress
from pgmkit.cli import cli
from pgmkit.cli.output import print_message
from pgmkit.components import parameters_taken_by
from pgmkit.conditional import ConditionalGenerator
from pgmkit.errors import UnknownNameError
from pgmkit.evaluate.classifier import Classifier
from pgmkit.images.source import ImageSpec
from pgmkit.jobs.sample import Judged, judged_by
from pgmkit.loading.requests import why_unreachable
from pgmkit.plugins import build, installed
from pgmkit.priors import LatentSpec

GAN = """
task = "gan"
steps = 1
batch_size = 8

[model]
backbone = "dcgan"
backbone_args = { channels = [8] }
latent = { dim = 4 }
"""


class Shades(torch.nn.Module):
    """Images of one brightness for each partition: the first two dark, the third bright."""

    num_partitions = 3

    def __init__(self) -> None:
        super().__init__()
        self.shades = torch.nn.Parameter(torch.tensor([-1.0, -1.0, 1.0]))

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        noise = 0.01 * z.mean(dim=1)[:, None, None, None]
        return (self.shades[y][:, None, None, None] + noise).expand(-1, 1, 8, 8).clamp(-1, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that pgmkit writes."""
    place = tmp_path_factory.mktemp("place")
    write_tiny_generator(place / "generator")
    write_tiny_classifier(place / "classifier")
    images = write_tiny_images(place / "images.npz", count=24, size=8)
    (place / "gan.toml").write_text(GAN)
    small = ("--latents", 40, "--clusters", 2, "--sampler", "kmeans-gmm", "-q")
    judge = ("--classifier", f"local-dir:{place / 'classifier'}")
    for words in (
        ("shatter", place / "generator", *small, *judge, "-o", place / "shattered"),
        ("partition", "fit", "kmeans", "--data", images, "--partitions", 2, "-o", place / "parts"),
        ("spectrum", "compute", place / "generator", "--latents", 9, "-o", place / "spectrum"),
        ("train", place / "gan.toml", "--data", images, "-o", place / "training"),
    ):
        finished = run_pgmkit(*words)
        assert finished.code == 0, finished.stderr
    model_args = {"latent_dim": 4, "channels": [4], "num_partitions": 3}
    network = build("generator-loaders", "dcgan", **model_args)
    ConditionalGenerator(
        network,
        LatentSpec(4),
        ImageSpec((1, 8, 8)),
        [0.5, 0.3, 0.2],
        architecture="dcgan",
        model_args=model_args,
    ).save_pretrained(place / "conditional")
    shutil.copytree(place / "training", place / "stopped")
    shutil.rmtree(place / "stopped" / "model")
    (place / "nothing").mkdir()
    (place / "nothing" / "notes.txt").write_text("")
    return place


# Help


def commands(group: click.Group = cli, path: str = "pgmkit") -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS)
def test_the_examples_of_a_command_are_in_its_help_and_are_valid(path: str) -> None:
    told = run_pgmkit(*path.split()[1:], "--help").stdout
    examples = re.findall(r"^    (pgmkit .*)$", told.partition("Examples:")[2], flags=re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(path)
        assert len(example) <= 96
        words = shlex.split(example.partition(" |")[0].partition(" >")[0])[1:]
        command: click.Command = cli
        context = click.Context(cli, info_name="pgmkit")
        while isinstance(command, click.Group):
            name, found, words = command.resolve_command(context, words)
            assert found is not None
            command = found
        with command.make_context(name, words):
            pass


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["shater"], "Did you mean 'shatter' or"),
        (["partition", "ft"], "Did you mean 'fit'?"),
        (["sample", "x", "--clas", "7"], "--class"),
    ],
)
def test_what_is_misspelt_is_told_with_what_is_like_it(words: list[str], near: str) -> None:
    finished = run_pgmkit(*words)
    assert finished.code == 2
    assert near in finished.stderr


def test_words_are_completed() -> None:
    def offered(*words: str) -> list[str]:
        *before, last = words
        completion = ShellComplete(cli, {}, "pgmkit", "_PGMKIT_COMPLETE")
        return [item.value for item in completion.get_completions(before, last)]

    assert offered("sh") == ["shatter"]
    assert offered("shatter", "mnist-d") == ["mnist-dcgan"]
    assert offered("shatter", "x", "--density", "l") == ["lash"]
    assert offered("components", "info", "self") == ["self-trained"]
    assert offered("sample", "x", "--classifier", "fash") == ["fashion-mnist-classifier"]


def test_the_version_is_told_with_those_of_plugins(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGMKIT_STRICT_PLUGINS", "0")
    install(site, "acme-good", "")
    install(site, "acme-broken", "import a_module_that_is_not_there")
    told = run_pgmkit("--version").stdout.splitlines()
    assert told == [
        f"pgmkit {pgmkit.__version__}",
        "acme-broken:main 1.0 failed",
        "acme-good:main 1.0",
    ]


# What there is


HELD = {
    "shattered": ("a shattered generator", "kept         32 of 40 latents", "--class"),
    "conditional": ("a conditional generator", "masses from 0.2 to 0.5", "--partition 0"),
    "generator": ("a generator", "image         1×32×32", "pgmkit shatter"),
    "classifier": ("a classifier", "lash-classifier", "--classifier"),
    "parts": ("a partitioner", "pgmkit:kmeans", "--partitioner local-dir:"),
    "spectrum": ("a spectrum", "blocks on record  1 of 1", "--spectrum"),
    "training": ("a training, complete", "last checkpoint  step 1", "pgmkit info"),
    "training/model": ("a generator", "4 normal", "pgmkit shatter"),
    "stopped": ("a training, stopped or going on", "channels 8", "run the same command again"),
}
"""What is told of each folder: what it holds, one of the facts, and what to do next."""


@pytest.mark.parametrize("name", HELD)
def test_info_tells_what_a_folder_holds_and_what_to_do_with_it(name: str, place: Path) -> None:
    kind, fact, following = HELD[name]
    told = run_pgmkit("info", place / name)
    assert told.code == 0, told.stderr
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in told.stdout.splitlines()}
    assert lines["holds"] == kind
    assert " ".join(fact.split()) in " ".join(told.stdout.split())
    assert following in told.stdout.partition("\nnext\n")[2]
    record = json.loads(run_pgmkit("info", place / name, "--json").stdout)
    assert (record["reference"], record["kind"]) == (str(place / name), kind)


def test_info_tells_of_each_cluster_what_a_classifier_finds(place: Path) -> None:
    report = json.loads((place / "shattered" / "report.json").read_text())
    told = run_pgmkit("info", place / "shattered").stdout
    for cluster in report["clusters"]:
        majority = cluster["name"].rpartition(" ")[2]
        row = [str(cluster["index"]), str(cluster["size"]), f"{cluster['share']:.1%}", majority]
        assert re.search(r"^" + r" +".join(map(re.escape, row)), told, flags=re.MULTILINE)


def test_info_tells_of_names_and_says_where_there_is_nothing(place: Path) -> None:
    assert "10, with masses from" in run_pgmkit("info", "mnist-pgmgan").stdout
    assert "test_accuracy 0.9907" in run_pgmkit("info", "mnist-classifier").stdout
    nothing = run_pgmkit("info", place / "nothing")
    assert nothing.code == 1
    assert "holds nothing that pgmkit knows, but notes.txt" in nothing.stderr


@pytest.mark.parametrize("name", ["sampler.json", "manifest.json", "partitioner.json", "run.json"])
def test_info_on_a_damaged_folder_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"settings": [], "cluster_sizes": 3, "sizes": {}}')
    told = run_pgmkit("info", tmp_path)
    assert (told.code, told.stdout) == (1, "")
    assert told.stderr.startswith(f"error: {name} of {tmp_path} is damaged")
    assert told.stderr.count("\n") == 1


def test_components_are_described_with_their_parameters() -> None:
    told = run_pgmkit("components", "info", "lash").stdout
    assert "pgmkit:lash" in told
    assert "Latent Shattering, Eq. 1 and 2" in told
    assert "null: Literal['floor', 'drop'] = \"floor\"\n    \"floor\" counts null" in told
    assert "pgmkit shatter SOURCE -o OUT --density lash --set" in told
    both = json.loads(run_pgmkit("components", "info", "mixture", "--json").stdout)
    assert [found["kind"] for found in both] == ["partitioners", "mappers"]
    (parameter,) = both[1]["parameters"]
    assert parameter == {
        "name": "num_components",
        "kind": "int",
        "default": 2,
        "needed": False,
        "meaning": "Gaussians per cluster, at least 1.",
    }
    (one,) = json.loads(run_pgmkit("components", "info", "mappers/mixture", "--json").stdout)
    assert one == both[1]
    assert "did you mean 'lash'" in run_pgmkit("components", "info", "lahs").stderr
    assert "num_partitions: int (needed)" not in told


def test_every_parameter_of_what_ships_has_a_type_and_a_meaning() -> None:
    for component in installed().components:
        if component.distribution == "pgmkit" and component.name not in (
            "ray",
            "diffusers-decoder",
        ):
            for parameter in parameters_taken_by(component.resolve()):
                assert parameter.kind, (component.name, parameter.name)
                assert parameter.meaning, (component.name, parameter.name)


def test_generators_are_listed_with_classifiers_sizes_and_quality() -> None:
    listed = json.loads(run_pgmkit("generators", "ls", "--json").stdout)
    kinds = {found["name"]: found["kind"] for found in listed}
    assert kinds["mnist-dcgan"] == "generator"
    assert kinds["mnist-pgmgan"] == "conditional generator"
    assert kinds["mnist-classifier"] == "classifier"
    assert all(found["bytes"] > 100_000 and found["measured"] for found in listed)
    table = run_pgmkit("generators", "ls").stdout
    assert re.search(
        r"mnist-dcgan .* 3\.5 MiB +FID \d+\.\d, precision 0\.\d+, recall 0\.\d+", table
    )
    assert "test accuracy 0.991" in table


# Sampling


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> ConditionalGenerator:
    return ConditionalGenerator(
        Shades(), LatentSpec(2), ImageSpec((1, 8, 8)), [0.6, 0.2, 0.2], name="shades"
    )


def test_several_partitions_are_mixed_by_their_masses(shades: ConditionalGenerator) -> None:
    drawn = shades.draw(400, [0, 2]).partitions.bincount()
    assert drawn[1] == 0
    assert 0.68 < float(drawn[0]) / 400 < 0.82
    assert shades.draw(40, [1]).latents.equal(shades.draw(40, 1).latents)


def test_several_clusters_are_mixed_by_their_sizes(place: Path) -> None:
    shattered = pgmkit.ShatteredGenerator.from_pretrained(place / "shattered")
    both = shattered.sample_latents(20, [0, 1], seed=3)
    assert both.equal(shattered.sample_latents(20, seed=3))
    one = shattered.sample_latents(20, [1], seed=3)
    assert one.equal(shattered.sample_latents(20, 1, seed=3))
    with pytest.raises(pgmkit.PgmkitError, match="no cluster 2"):
        shattered.sample_latents(20, [1, 2])


def test_a_class_is_sampled_from_the_clusters_that_are_mostly_of_it(
    place: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(place / "shattered", tmp_path / "shattered")
    report = json.loads((out / "report.json").read_text())
    for cluster, name in zip(report["clusters"], ("boot", "bag"), strict=True):
        cluster["mostly"] = name
    (out / "report.json").write_text(json.dumps(report))
    words = ("sample", out, "-n", 5, "--json", "-o")
    told = run_pgmkit(*words, tmp_path / "bags.npz", "--class", "bag")
    assert told.stderr.startswith("class bag: 1 (")
    record = json.loads(told.stdout)
    assert (record["class"], record["cluster"]) == ("bag", [1])
    plain = run_pgmkit(*words, tmp_path / "plain.npz", "--cluster", 1)
    assert plain.code == 0
    assert (tmp_path / "bags.npz").read_bytes() == (tmp_path / "plain.npz").read_bytes()
    other = run_pgmkit(*words, tmp_path / "x.npz", "--class", "bog")
    assert other.code == 1
    assert "is called 'bog'; did you mean 'bag' or" in other.stderr
    (out / "report.json").unlink()
    unknown = run_pgmkit(*words, tmp_path / "x.npz", "--class", "bag")
    assert "no classifier has looked at" in unknown.stderr
    judged = run_pgmkit(
        *(*words, tmp_path / "x.npz", "--class", "nothing"),
        *("--classifier", f"local-dir:{place / 'classifier'}"),
    )
    assert "no class that a cluster or partition is mostly of is called 'nothing'" in judged.stderr


class Brightness(torch.nn.Module):
    """Tells dark images from bright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 2, 3))[:, None] * self.scale


def test_a_classifier_says_which_partitions_are_of_a_class(
    shades: ConditionalGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Classifier(Brightness(), "brightness", ("dark", "bright"))
    monkeypatch.setattr("pgmkit.jobs.sample.load_classifier", lambda name: judge)
    judged = judged_by(shades, "brightness")
    assert judged == Judged(["dark", "dark", "bright"], [1.0, 1.0, 1.0])
    assert judged.of_class("dark") == [0, 1]
    with pytest.raises(UnknownNameError, match="there is 'bright', 'dark'"):
        judged.of_class("7")


def test_a_class_of_a_conditional_generator_is_sampled(place: Path, tmp_path: Path) -> None:
    model, judge = pgmkit.load(place / "conditional"), f"local-dir:{place / 'classifier'}"
    assert isinstance(model, ConditionalGenerator)
    majority = judged_by(model, judge).majority
    words = ("--class", majority[1], "--classifier", judge, "-n", 9, "--json")
    out = tmp_path / "images.npz"
    told = run_pgmkit("sample", place / "conditional", *words, "-o", out)
    assert told.code == 0, told.stderr
    parts = [part for part, name in enumerate(majority) if name == majority[1]]
    assert json.loads(told.stdout)["partition"] == parts
    assert {*np.load(out)["partitions"].tolist()} <= {*parts}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--class", "7", "--cluster", "1", "-o", "x.png"], "leave one out"),
        (["--classifier", "mnist-classifier", "-o", "x.png"], "add --class"),
        (["-o", "-", "--json"], "both print on stdout"),
        (["-q", "-v", "-o", "x.png"], "leave one out"),
    ],
)
def test_what_is_said_twice_is_wrong_usage(words: list[str], said: str) -> None:
    finished = run_pgmkit("sample", "mnist-dcgan", *words)
    assert (finished.code, finished.stdout) == (2, "")
    assert said in finished.stderr


def test_a_class_of_a_generator_without_clusters_is_told(place: Path) -> None:
    told = run_pgmkit("sample", place / "generator", "--class", "7", "-o", "x.png")
    assert told.code == 1
    assert "leave --class out, or find clusters first: pgmkit shatter" in told.stderr


def test_a_grid_goes_to_stdout(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("sample", place / "shattered", "-n", 10)
    assert run_pgmkit(*words, "-o", tmp_path / "grid.png").code == 0
    stdout = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "argv", ["pgmkit", *map(str, words), "-o", "-"])
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as stop:
        pgmkit.cli.main()
    assert stop.value.code == 0
    assert isinstance(stdout.buffer, io.BytesIO)
    assert stdout.buffer.getvalue() == (tmp_path / "grid.png").read_bytes()
    Image.open(io.BytesIO(stdout.buffer.getvalue())).load()


# How much is said


def test_verbose_tells_how_long_each_phase_took(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(), progress.verbose(), progress.phase("counting"):
        pass
    with progress.shown(), progress.phase("silent"):
        pass
    assert re.fullmatch(r"counting: 0\.\d\d s\n", capsys.readouterr().err)


def test_a_command_says_more_or_less(place: Path, tmp_path: Path) -> None:
    words = ("spectrum", "compute", place / "generator", "--latents", 5, "--no-cache", "--json")
    loud = run_pgmkit(*words, "-v", "-o", tmp_path / "loud")
    assert re.search(r"^\S.*: \d+\.\d\d s$", loud.stderr, flags=re.MULTILINE)
    assert run_pgmkit(*words, "-q", "-o", tmp_path / "quiet").stderr == ""
    assert not progress.is_verbose()


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_words_are_coloured_on_a_terminal_alone(
    variables: dict[str, str],
    is_coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    print_message("error", "piped")
    assert capsys.readouterr().err == "error: piped\n"
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        print_message("error", "shown")
        terminal.flush()
        said = os.read(ours, 1000).decode()
    os.close(ours)
    assert ("\x1b[31m" in said) == is_coloured
    assert "shown" in said


# The environment and the cache


def test_the_environment_is_told_for_reports(site: Path, server: HubServer) -> None:
    install(site, "acme-broken", "import a_module_that_is_not_there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGMKIT_STRICT_PLUGINS", "0")
        patch.setenv("HF_TOKEN", "hf_" + "x" * 30)
        patch.setenv("HTTPS_PROXY", "http://me:secret@proxy:1")
        patch.setenv("HF_HUB_ETAG_TIMEOUT", "9")
        told = run_pgmkit("env", "--json")
        words = run_pgmkit("env")
    assert told.code == words.code == 0
    assert "secret" not in told.stdout + words.stdout
    assert "xxxx" not in told.stdout + words.stdout
    found = json.loads(told.stdout)
    assert found["versions"]["pgmkit"] == pgmkit.__version__
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert "ModuleNotFoundError" in found["plugins"]["acme-broken:main 1.0"]
    assert found["hub"]["answers"] is True
    assert found["hub"]["endpoint"] == server.url
    assert found["cache"]["folder"] == os.environ["PGMKIT_CACHE"]
    assert found["variables"]["HF_TOKEN"] == "set"
    assert found["variables"]["HTTPS_PROXY"] == "http://proxy:1"
    assert re.search(r"^  answers +yes$", words.stdout, flags=re.MULTILINE)


def test_the_environment_is_told_whatever_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pgmkit.cli.env.why_unreachable", lambda seconds: "it is silent")
    monkeypatch.setenv("PGMKIT_CACHE_SIZE", "big")
    found = json.loads(run_pgmkit("env", "--json").stdout)
    assert (found["hub"]["answers"], found["hub"]["because"]) == (False, "it is silent")
    assert found["cache"]["failed"].startswith("ParameterError: PGMKIT_CACHE_SIZE")


def test_a_hub_that_gives_no_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, offline: Callable[[], None]
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        started = time.monotonic()
        assert why_unreachable(0.2).startswith(f"{address} cannot be reached (no answer")
        assert time.monotonic() - started < 2
    assert why_unreachable(2.0).startswith(f"{address} cannot be reached (")
    offline()
    assert why_unreachable(2.0) == "HF_HUB_OFFLINE is set"


def test_the_cache_is_listed_and_emptied(place: Path) -> None:
    for seed in (0, 1):
        words = ("spectrum", "compute", place / "generator", "--latents", 5, "--seed", seed)
        assert run_pgmkit(*words, "-q", "-o", place / f"cached-{seed}").code == 0
    kept = cache.cache_entry("unpacked", {"of": "an archive"})
    cache.publish_file(kept, lambda file: file.write(b"content"), 7, what="archive")
    listed = json.loads(run_pgmkit("cache", "ls", "--json").stdout)
    first, second, archive = listed["entries"]
    assert first["holds"] == second["holds"] == f"{place / 'generator'}, 5 latents"
    assert archive["bytes"] == 7 + 64
    assert listed["limit"] == 2 * 2**30
    assert "3 entries, " in run_pgmkit("cache", "ls").stdout
    assert run_pgmkit("cache", "rm").code == 2
    assert "no entry of the cache is called 'x'" in run_pgmkit("cache", "rm", "x").stderr
    gone = run_pgmkit("cache", "rm", first["name"][:8], "--json")
    assert json.loads(gone.stdout) == {"removed": [first["name"]], "bytes": first["bytes"]}
    assert run_pgmkit("cache", "rm", "unpacked").stdout == "1 entries removed, 71 bytes\n"
    assert [entry.folder.name for entry in cache.entries()] == [second["name"]]
    assert run_pgmkit("cache", "rm", "--all").code == 0
    assert cache.entries() == []
