"""What the README and the docs say is true."""

import contextlib
import dataclasses
import inspect
import json
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import pluggy
import pytest
import torch
from click.testing import CliRunner
from hub_server import HubServer, use_hub
from tiny import install, run_pgmkit, write_tiny_images

import pgmkit
from pgmkit import hookspecs
from pgmkit.cli import cli
from pgmkit.components import KINDS
from pgmkit.config import make_settings, read_toml
from pgmkit.evaluate.ablation.measures import MEASURES
from pgmkit.evaluate.ablation.plan import AblationSettings
from pgmkit.evaluate.diagnostics import Diagnostics, ReturnRate
from pgmkit.evaluate.fidelity_scores import FidelityScores
from pgmkit.evaluate.metrics import ClusterScores
from pgmkit.jobs.shatter import prepare
from pgmkit.jobs.train import prepare as prepare_training
from pgmkit.loading import requests
from pgmkit.loading.configs import FIELDS
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.weights import read_weights
from pgmkit.partition import load_partitioner
from pgmkit.plugins import build, installed, list_components
from pgmkit.priors import DISTRIBUTIONS
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.train.gan import GANSettings
from pgmkit.train.settings import TrainSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FEWER_LATENTS = {"8000": "200", "8_000": "200", "2_000": "200", "--latents 300": "--latents 200"}
LESS_TRAINING = shlex.split(
    "--set partitioner.base=kmeans --set partitioner.steps=40 --set partitioner.batch_size=32"
)
"""The two liberties that are taken with the pages' blocks, but for the processes of ablations."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*clusters have fewer latents"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages find each other's spectra, as a reader's own cache would have them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGMKIT_CACHE", str(cache))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def quick(block: str) -> str:
    for many, few in FEWER_LATENTS.items():
        block = block.replace(many, few)
    return block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_modules_are_imported_from_them(page: Path) -> None:
    """`import pgmkit` alone brings none of its modules."""
    text = page.read_text()
    for call in re.findall(r"pgmkit\.([a-z_]+\.[A-Za-z_]+)\(", text):
        assert f"import pgmkit.{call.partition('.')[0]}" in text, call


@pytest.mark.parametrize("index", range(2))
def test_the_python_recipes_run(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "README.md", "python")
    assert len(found) == 2
    names: dict[str, object] = {}
    exec(compile(quick(found[index]), "README.md", "exec"), names)
    if "images" in names:
        assert names["images"].shape == (16, 1, 28, 28)  # type: ignore[attr-defined]
        assert (tmp_path / "mine" / "sampler.json").exists()
    else:
        printed = capsys.readouterr().out
        for density in ("none", "polarity", "jbt", "lash"):
            assert f"pgmkit:{density}" in printed or f"{density} kept" in printed


def run_commands(page: Path, folder: Path) -> None:
    for line in quick("".join(blocks(page, "bash"))).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "pgmkit"
        if arguments[0] == "shatter" and not {"--partitioner", "--sampler"} & {*arguments}:
            arguments += LESS_TRAINING
        with contextlib.chdir(folder):
            finished = run_pgmkit(*arguments)
        assert finished.code == 0, finished.stderr


def write_weights(path: Path) -> Path:
    """Writes the weights of the shipped generator as a file that says nothing else."""
    weights = read_weights(ROOT / "registry" / "mnist-dcgan" / "model.safetensors")
    path.parent.mkdir(exist_ok=True)
    torch.save({n.replace("layers.", "main."): value for n, value in weights.items()}, path)
    return path


def test_the_shell_recipes_run(tmp_path: Path) -> None:
    write_weights(tmp_path / "netG.pth")
    run_commands(ROOT / "README.md", tmp_path)
    assert (tmp_path / "found" / "report.html").exists()
    assert (tmp_path / "shattered" / "report.html").exists()
    assert (tmp_path / "by-jbt" / "report.html").exists()
    assert (tmp_path / "cluster-3.png").stat().st_size > 1000


def test_the_page_on_spectra_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "spectra.md"
    run_commands(page, tmp_path)
    assert (tmp_path / "by-lash" / "report.html").exists()
    assert (tmp_path / "spectrum.png").stat().st_size > 1000
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    exec(compile(block, page.name, "exec"), {})
    assert "Spectrum(200 latents of 64 dimensions" in capsys.readouterr().out


PARTITIONERS = ROOT / "docs" / "partitioners.md"


def test_the_page_on_partitioners_runs(tmp_path: Path) -> None:
    write_tiny_images(tmp_path / "images.npz", count=60, size=32)
    run_commands(PARTITIONERS, tmp_path)
    for name in ("by-default", "by-pixels", "by-paper"):
        assert (tmp_path / name / "report.html").exists()
    assert (tmp_path / "parts.png").stat().st_size > 1000
    assert len((tmp_path / "parts.csv").read_text().splitlines()) == 1 + 60
    assert load_partitioner(tmp_path / "parts").num_partitions == 3


def indented(page: Path) -> list[str]:
    """Returns the blocks that are told apart by their indentation alone."""
    return [
        textwrap.dedent(block)
        for block in re.findall(r"(?:^(?:    .*)?\n)+", page.read_text(), flags=re.MULTILINE)
        if block.strip()
    ]


@pytest.mark.filterwarnings("ignore:.*took none of the trial proposals")
def test_the_tables_and_programs_on_the_page_on_partitioners_are_valid(tmp_path: Path) -> None:
    found = indented(PARTITIONERS)
    tables = [tomllib.loads(block) for block in found if block.lstrip().startswith("[")]
    assert len(tables) == 4
    for table in tables:
        values = {"source": "mnist-dcgan", "latents": 100, **table}
        assert prepare(values).resolved()["sampler"]["params"]["partitioner"]["num_partitions"]
    by_hand, on_data = [block for block in found if not block.lstrip().startswith("[")]
    net = torch.nn.Sequential(torch.nn.Linear(4, 1024), torch.nn.Tanh())
    toy = pgmkit.Generator(net, latent=pgmkit.LatentSpec(4), image=pgmkit.ImageSpec((1, 32, 32)))
    few = 'latents=200, partitioner={"name": "kmeans", "features": {"name": "contrastive", '
    few += '"batch_size": 16, "steps": 6}},'
    told = 'partitioner={"name": "kmeans", "features": {"name": "contrastive", "steps": 1200}},'
    assert told in by_hand
    exec(
        compile(by_hand.replace(told, few), "by hand", "exec"), {"pgmkit": pgmkit, "generator": toy}
    )
    write_tiny_images(tmp_path / "images.npz", count=60, size=32)
    names = {"generator": toy, "x": torch.zeros(2, 1, 32, 32)}
    with contextlib.chdir(tmp_path):
        exec(compile(on_data, "on data", "exec"), names)
    assert names["shattered"].num_clusters == 3  # type: ignore[attr-defined]
    assert (names["pull"] >= 0).all()  # type: ignore[attr-defined, operator]


@pytest.mark.parametrize("kind", ["features", "partitioners", "mappers"])
def test_every_method_is_a_row_of_the_page_on_partitioners(kind: str) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", PARTITIONERS.read_text(), flags=re.MULTILINE)
    own = {c.name for c in list_components(kind) if c.plugin.startswith("pgmkit:")}
    assert own <= {*rows}


def test_the_page_on_generators_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "generators.md"
    write_weights(tmp_path / "runs" / "netG.pth")
    run_commands(page, tmp_path)
    shipped = pgmkit.load_generator("mnist-dcgan")
    z = shipped.sample_latents(4, seed=0)
    shattered = pgmkit.load(tmp_path / "shattered")
    assert torch.allclose(shattered.generator(z), shipped(z))  # type: ignore[union-attr]
    (block,) = blocks(page, "toml")
    table = tomllib.loads(block)
    assert table.pop("source") == "runs/checkpoints"
    assert GeneratorOptions.from_table(table).latent == pgmkit.LatentSpec(128, std=0.5)
    (block,) = blocks(page, "json")
    (tmp_path / "config.json").write_text(block)
    weights = (ROOT / "registry" / "mnist-dcgan" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert torch.equal(pgmkit.load_generator(str(tmp_path))(z), shipped(z))


def test_the_page_on_conditional_generators_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "conditional.md"
    (block,) = blocks(page, "python")
    (tmp_path / "rings.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block, page.name, "exec"), names)
    assert "tensor([0.2000, 0.2000]" in capsys.readouterr().out
    assert (names["third"] - names["ring"].module.corners[3]).abs().max() < 0.15  # type: ignore[attr-defined, operator]
    run_commands(page, tmp_path)
    assert (tmp_path / "third.png").stat().st_size > 500
    table = re.findall(r"^\| (`[\w./]+`.*?) \|", page.read_text(), flags=re.MULTILINE)
    files = {name.rstrip("/") for row in table for name in re.findall(r"`([\w./]+)`", row)}
    assert {path.name for path in (tmp_path / "ring").iterdir()} == files - {"partitioner"}
    sys.modules.pop("rings", None)


def test_every_option_and_field_of_generators_is_documented() -> None:
    text = (ROOT / "docs" / "generators.md").read_text()
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`.*?) \|", text, re.M)]
    documented = {name for row in rows for name in row}
    options = {field.name for field in dataclasses.fields(GeneratorOptions)}
    assert options | set(FIELDS) <= documented


def test_the_page_on_the_hub_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "hub.md"
    with HubServer() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        run_commands(page, tmp_path)
        assert (tmp_path / "cluster-3.png").stat().st_size > 1000
        (block,) = blocks(page, "python")
        names: dict[str, object] = {}
        exec(compile(block, page.name, "exec"), names)
        assert names["images"].shape == (16, 1, 32, 32)  # type: ignore[attr-defined]
        assert hub.repositories["me/digits"].private
        assert "config.json" in hub.files("me/digits-generator")
    for name, value in (
        ("HF_HUB_ETAG_TIMEOUT", requests.ANSWER_SECONDS),
        ("HF_HUB_DOWNLOAD_TIMEOUT", requests.STALL_SECONDS),
    ):
        (row,) = [line for line in page.read_text().splitlines() if f"| `{name}`" in line]
        assert f"here {value:g} by default" in row


def test_the_page_on_metrics_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "metrics.md"
    run_commands(page, tmp_path)
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers["scores"]["mapper samples"]["num_samples"] == 300
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    exec(compile(block, page.name, "exec"), {})
    assert "FidelityScores(extractor='Flatten'" in capsys.readouterr().out


def test_the_page_on_theory_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "theory.md"
    write_tiny_images(tmp_path / "images.npz", count=60, size=32)
    run_commands(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    exec(compile(block, page.name, "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == ["0.1472", "0.0432 0.0432", "1.5"]
    assert printed[3].startswith("False True [1")


def test_the_page_on_images_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "images.md"
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out == (
        "20 3×32×32 images {0: 'cat', 1: 'dog'}\nTrue\n"
        "torch.Size([1, 32, 32]) torch.Size([8, 1, 32, 32])\n"
    )


def test_the_page_on_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "training.md"
    (config,) = blocks(page, "toml")
    (tmp_path / "digits.toml").write_text(config)
    write_tiny_images(tmp_path / "digits.npz", count=128, size=28)
    run_commands(page, tmp_path)
    assert (tmp_path / "digits.png").stat().st_size > 1000
    described = re.findall(r"^\| (`.*?`) \|", page.read_text(), flags=re.MULTILINE)
    files = {name.rstrip("/") for row in described for name in re.findall(r"`([\w./*-]+)`", row)}
    for path in (tmp_path / "runs" / "digits").iterdir():
        assert any(path.match(name) for name in files) or path.name == ".lock", path.name
    settings = {name for row in described for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in dataclasses.fields(TrainSettings)} <= settings
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    capsys.readouterr()
    exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out == "3.0 2.0\n3.0 2.0\n"
    assert len(list((tmp_path / "runs" / "line").glob("checkpoint-*"))) == 1


def test_the_page_on_guided_gans_runs(tmp_path: Path) -> None:
    page = ROOT / "docs" / "guided.md"
    (config,) = blocks(page, "toml")
    (tmp_path / "rings.toml").write_text(config.replace("steps = 300", "steps = 10"))
    run_commands(page, tmp_path)
    assert (tmp_path / "third.npz").stat().st_size > 1000
    assert (tmp_path / "shattered" / "report.html").exists()
    rows = re.findall(r"^\| (`.*?`) \|", page.read_text(), flags=re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    settings = {field.name for field in dataclasses.fields(GANSettings)}
    assert described == settings - {"optimizer"}
    (table,) = [tomllib.loads(block) for block in indented(page)]
    task = {"task": "gan", "steps": 10, "batch_size": 10, "data": "points:ring:n=100", **table}
    task["model"] |= {"backbone": "mlp-2d", "latent": {"dim": 2}}
    assert prepare_training(task).task.settings.recluster_steps == 10_000  # type: ignore[attr-defined]


def test_the_page_on_priors_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "priors.md"
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    printed = capsys.readouterr().out
    assert "of 20 dimensions, numeric rank 10 to 10 of 10" in printed
    assert "tensor([1., 1., 1., 1., 1.])" in printed
    assert "torch.Size([5, 2])" in printed
    tables = [json.loads(block) for block in blocks(page, "json")]
    tables += [tomllib.loads(block) for block in blocks(page, "toml")]
    kinds = {"latent": pgmkit.LatentSpec, "image": pgmkit.ImageSpec}
    specs = [
        make_settings(kinds[key], values, key) for table in tables for key, values in table.items()
    ]
    assert len(specs) == 6
    assert specs[0] == pgmkit.LatentSpec(64)
    assert specs[2] == specs[-1] == names["prior"]


def test_every_distribution_of_a_prior_is_documented_with_its_settings() -> None:
    text = (ROOT / "docs" / "priors.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*)$", text, flags=re.MULTILINE))
    found = {name: tuple(re.findall(r"`(\w+)`", row)) for name, row in rows.items()}
    del found["distribution"]  # the table's head
    found["categorical"] = found["categorical"][1:]  # its row tells of `dim`, too
    assert found == DISTRIBUTIONS


def test_every_score_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text().lower()
    for record in (FidelityScores, ReturnRate, Diagnostics, ClusterScores):
        documentation = inspect.getdoc(record) or ""
        for field in dataclasses.fields(record):
            assert f"{field.name}:" in documentation
    for field in ("fid", "kid", "precision", "recall", "density", "coverage", "homogeneity"):
        assert f"| {field} |" in text
    for name in ("inception", "classifier:", "timm:"):
        assert f"| `{name}" in text


def test_the_page_on_choices_runs(tmp_path: Path) -> None:
    page = ROOT / "docs" / "choices.md"
    run_commands(page, tmp_path)
    report = json.loads((tmp_path / "chosen" / "report.json").read_text())
    assert report["settings"]["chosen"].keys() == {"clusters", "remove"}
    (block,) = blocks(page, "toml")
    values = {"source": "mnist-dcgan", **tomllib.loads(block)}
    settings = prepare(values).settings
    assert settings.clusters["candidates"] == [2, 5, 10, 20]  # type: ignore[index, call-overload]


def test_the_page_on_ablations_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "ablations.md"
    (config,) = blocks(page, "toml")
    (tmp_path / "ablation.toml").write_text(f"jobs = 1\n{config}")
    run_commands(page, tmp_path)
    assert len((tmp_path / "ablation" / "cells.csv").read_text().splitlines()) == 1 + 9
    summary = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert (summary["cells"], summary["computed"], summary["failed"]) == (9, 3, 0)
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(page, "python")
    exec(compile(block, page.name, "exec"), {"__name__": "__main__"})
    assert "['jbt', 'lash']" in capsys.readouterr().out


def test_the_settings_of_ablations_are_documented_with_their_defaults() -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    text, _, rest = page.partition("## Measures")
    rows = re.compile(r"^\| `(\w+)` \|", flags=re.MULTILINE)
    assert set(rows.findall(text)) == {f.name for f in dataclasses.fields(AblationSettings)}
    assert {*rows.findall(rest), "choices"} == set(MEASURES)
    for field in dataclasses.fields(SpectrumSettings):
        assert f"`{field.name}`" in text
    for field in dataclasses.fields(AblationSettings):
        if isinstance(field.default, int | float):
            row = next(x for x in text.splitlines() if x.startswith(f"| `{field.name}`"))
            assert row.endswith(f"| {field.default} |")


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (block,) = blocks(ROOT / "README.md", "")[:1]
    for line in block.splitlines():
        program, target, *_ = line.split()
        assert program == "make"
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_plugin_of_ten_minutes_is_written_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it then does in an environment of its own is shown in tests/test_new_plugins.py."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "hooks.md").read_text()
    (line,) = re.findall(r"^    (pgmkit plugins new .*)$", text, flags=re.MULTILINE)
    assert run_pgmkit(*shlex.split(line)[1:]).code == 0
    written = {str(path.relative_to("acme-halves")) for path in Path("acme-halves").rglob("*.*")}
    named = set(re.findall(r"`([\w/]+\.\w+)`", text.partition("## By hand")[0]))
    assert named - {"component.py"} <= written
    assert len(named & written) == 5


def test_the_example_plugin_of_the_docs_is_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks(ROOT / "docs" / "hooks.md", "python")
    (tmp_path / "my_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_plugin  # type: ignore[import-not-found]

    manager = pluggy.PluginManager("pgmkit")
    manager.add_hookspecs(hookspecs)
    manager.register(my_plugin)
    manager.check_pending()
    ((component,),) = manager.hook.pgmkit_density_estimators()
    assert component.name == "central"
    assert len(code.splitlines()) <= 30
    sys.modules.pop("my_plugin")


def test_the_backbone_of_its_page_is_a_plugin_and_learns_with_partitions(site: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "backbones.md", "python")
    install(site, "my-networks", code)
    installed.cache_clear()
    for given in ((), (torch.arange(4) % 3,)):
        count = {"num_partitions": 3} if given else {}
        backbone = build("backbones", "tiny", latent_dim=5)
        generator, discriminator = backbone.generator(**count), backbone.discriminator(**count)
        images = generator(torch.randn(4, 5), *given)
        assert images.shape == (4, 1, 8, 8)
        logits = discriminator(images, *given)
        assert logits.shape == (4,)
        logits.sum().backward()
        assert all(weight.grad is not None for weight in generator.parameters())
        loaded = build("generator-loaders", "tiny", latent_dim=5, **count)
        loaded.load_state_dict(generator.state_dict())
    installed.cache_clear()


def test_the_example_sampler_of_the_specification_shatters() -> None:
    text = inspect.getdoc(hookspecs.pgmkit_cluster_samplers) or ""
    code = textwrap.dedent(text[text.index("    class GridSampler") :])
    names: dict[str, object] = {"torch": torch}
    exec(compile(code, "hookspecs.py", "exec"), names)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh())
    toy = pgmkit.Generator(net, latent=pgmkit.LatentSpec(2), image=pgmkit.ImageSpec((1, 4, 4)))
    sampler = names["GridSampler"](num_clusters=3)  # type: ignore[operator]
    shattered = pgmkit.shatter(toy, sampler=sampler, clusters=3, latents=200)
    assert min(shattered.cluster_sizes) > 40
    latents = shattered.sample_latents(20, cluster=1)
    assert (shattered.predict(latents) == 1).all()


def test_every_hook_and_its_arguments_are_documented() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text()
    documented = dict(re.findall(r"^\| `(pgmkit_\w+)\((.*?)\)`", text, flags=re.MULTILINE))
    assert documented.keys() == set(KINDS.values())
    for name, arguments in documented.items():
        specification = getattr(hookspecs, name)
        actual = ", ".join(inspect.signature(specification).parameters)
        assert arguments == actual
        assert "Example:" in (specification.__doc__ or "")


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_room_of_the_design_page_exists() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for path in re.findall(r"`((?:pgmkit|plugins|registry)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_design_page_lists_the_rooms_in_the_order_in_which_they_import() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^    (\w+(?:, \w+)*) {2,}\S", text, flags=re.MULTILINE)
    listed = [room for row in rows for room in row.split(", ")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [found["layers"] for found in contracts["contracts"] if "layers" in found]
    level = {room: n for n, layer in enumerate(layers) for room in layer.split(" : ")}
    assert sorted(listed) == sorted(level)
    assert [level[room] for room in listed] == sorted(level.values())


@pytest.mark.usefixtures("no_estimate")
def test_the_example_config_of_a_shattering_is_valid() -> None:
    path = ROOT / "examples" / "shatter-mnist.toml"
    prepared = prepare(read_toml(path))
    assert prepared.resolved()["density"]["params"]["prior_term"] is True
    flags = ["--seed", "1", "--density", "jbt", "--set", "sampler.num_components=3"]
    assert " ".join(flags) in path.read_text()
    result = CliRunner().invoke(cli, ["shatter", "--config", str(path), *flags, "--dry-run"])
    settings = json.loads(result.stdout)["settings"]
    assert settings["density"] == {"name": "pgmkit:jbt", "params": {}}
    assert settings["sampler"]["params"]["num_components"] == 3
    assert settings["seed"] == 1
    assert prepared.resolved()["generator"]["sha256"] == prepared.generator.provenance["sha256"]
