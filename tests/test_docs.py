"""What the README and the docs say is true."""

import dataclasses
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pluggy
import pytest
import torch
from click.testing import CliRunner
from hub_server import HubServer, use_hub
from pages import LANGUAGES, PAGES, ROOT, Ran, blocks, languages, prose, run
from tiny import install

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
from pgmkit.partition import load_partitioner
from pgmkit.plugins import build, installed, list_components
from pgmkit.priors import DISTRIBUTIONS
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.train.gan import GANSettings
from pgmkit.train.settings import TrainSettings
from pgmkit_plugins.partitioners.kmeans import KMeansPartitioner
from pgmkit_plugins.partitioners.manifold import ManifoldPartitioner

DOCS = ROOT / "docs"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*clusters have fewer latents"),
    pytest.mark.filterwarnings("ignore:.*took none of the trial proposals"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages find each other's spectra, as a reader's own cache would have them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGMKIT_CACHE", str(cache))


@pytest.fixture(autouse=True)
def _fewer_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals, repeats, starts, pictures in reports, and trials before a spectrum."""
    monkeypatch.setattr("pgmkit_plugins.mappers.rejection._FEWEST_TRIALS", 8)
    monkeypatch.setattr("pgmkit.choosing._REPEATS", 2)
    monkeypatch.setattr("pgmkit.loading.cards.PER_CLUSTER", 2)
    monkeypatch.setattr("pgmkit.shattering.result.PER_CLUSTER", 2)
    monkeypatch.setattr("pgmkit.evaluate.report._PER_CLUSTER", 4)
    monkeypatch.setattr("pgmkit.evaluate.report._BESIDE", 8)
    monkeypatch.setattr("pgmkit.generator._CHECKED_IMAGES", 16)
    monkeypatch.setattr("pgmkit.spectrum.safety.SAMPLE", 32)
    for partitioner in (KMeansPartitioner, ManifoldPartitioner):
        *others, _ = partitioner.__init__.__defaults__  # type: ignore[misc]
        monkeypatch.setattr(partitioner.__init__, "__defaults__", (*others, 2))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer() as running, pytest.MonkeyPatch.context() as patch:
        use_hub(patch, running.url, tmp_path_factory.mktemp("home"))
        patch.setenv("HF_TOKEN", running.token)
        yield running


@pytest.fixture(scope="module")
def ran(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """What a page left, which runs once."""
    done: dict[str, Ran] = {}

    def left(name: str) -> Ran:
        (page,) = [page for page in PAGES if page.name == name]
        if name not in done:
            done[name] = run(page, tmp_path_factory.mktemp(page.stem))
        return done[name]

    return left


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_every_block_runs(page: str, ran: Callable[[str], Ran]) -> None:
    left = ran(page)
    assert len(left.printed) == len(blocks(*[p for p in PAGES if p.name == page], "python"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_in_a_language_that_runs_or_is_read(page: Path) -> None:
    assert languages(page) <= LANGUAGES
    if page.name not in ("CONTRIBUTING.md", "design.md"):
        assert not re.search(r"^\n    \S", prose(page), flags=re.MULTILINE)


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS.glob("*.md")], ids=lambda p: p.name)
def test_names_of_modules_are_imported_from_them(page: Path) -> None:
    """`import pgmkit` alone brings none of its modules."""
    text = page.read_text()
    for call in re.findall(r"pgmkit\.([a-z_]+\.[A-Za-z_]+)\(", text):
        assert f"import pgmkit.{call.partition('.')[0]}" in text, call


def test_recipes_of_the_readme(ran: Callable[[str], Ran]) -> None:
    left = ran("README.md")
    for density in ("none", "polarity", "jbt", "lash"):
        assert f"pgmkit:{density}" in left.printed[0] or f"{density} kept" in left.printed[0]
    assert (left.folder / "shattered" / "report.html").exists()
    for picture in ("cluster-3.png", "zeros.png"):
        assert (left.folder / picture).stat().st_size > 1000
    assert "make docs test" in (ROOT / ".ci" / "run").read_text()


def test_what_the_page_on_spectra_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("spectra.md")
    assert (left.folder / "by-lash" / "report.html").exists()
    assert (left.folder / "spectrum.png").stat().st_size > 1000
    assert "Spectrum(120 latents of 64 dimensions" in left.printed[0]


def test_what_the_page_on_partitioners_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("partitioners.md")
    for name in ("by-default", "by-pixels", "by-paper"):
        assert (left.folder / name / "report.html").exists()
    assert (left.folder / "parts.png").stat().st_size > 1000
    assert len((left.folder / "parts.csv").read_text().splitlines()) == 1 + 128
    assert load_partitioner(left.folder / "parts").num_partitions == 3
    assert left.names["shattered"].num_clusters == 10  # type: ignore[attr-defined]
    assert (left.names["pull"] >= 0).all()  # type: ignore[attr-defined, operator]


def test_the_tables_on_the_page_on_partitioners_are_valid() -> None:
    tables = [tomllib.loads(block) for block in blocks(DOCS / "partitioners.md", "toml")]
    assert len(tables) == 3
    for table in tables:
        values = {"source": "mnist-dcgan", "latents": 100, **table}
        assert prepare(values).resolved()["sampler"]["params"]["partitioner"]["num_partitions"]


@pytest.mark.parametrize("kind", ["features", "partitioners", "mappers", "density-estimators"])
def test_every_method_is_a_row_of_a_page(kind: str) -> None:
    page = "choose.md" if kind == "density-estimators" else "partitioners.md"
    rows = re.findall(r"^\| `([\w-]+)`", (DOCS / page).read_text(), flags=re.MULTILINE)
    own = {c.name for c in list_components(kind) if c.plugin.startswith("pgmkit:")}
    assert own <= {*rows}


def test_what_the_page_on_generators_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("generators.md")
    assert left.names["images"].shape == (16, 1, 28, 28)  # type: ignore[attr-defined]
    assert (left.folder / "mine" / "sampler.json").exists()
    shipped = pgmkit.load_generator("mnist-dcgan")
    z = shipped.sample_latents(4, seed=0)
    shattered = pgmkit.load(left.folder / "shattered")
    assert torch.allclose(shattered.generator(z), shipped(z))  # type: ignore[union-attr]
    (block,) = blocks(DOCS / "generators.md", "toml")
    table = tomllib.loads(block)
    assert table.pop("source") == "runs/checkpoints"
    assert GeneratorOptions.from_table(table).latent == pgmkit.LatentSpec(128, std=0.5)
    weights = (ROOT / "registry" / "mnist-dcgan" / "model.safetensors").read_bytes()
    (left.folder / "model.safetensors").write_bytes(weights)  # beside config.json of the page
    assert torch.equal(pgmkit.load_generator(f"local-dir:{left.folder}")(z), shipped(z))


def test_every_option_and_field_of_generators_is_documented() -> None:
    text = (ROOT / "docs" / "generators.md").read_text()
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`.*?) \|", text, re.M)]
    documented = {name for row in rows for name in row}
    options = {field.name for field in dataclasses.fields(GeneratorOptions)}
    assert options | set(FIELDS) <= documented


def test_what_the_page_on_the_hub_leaves(ran: Callable[[str], Ran], hub: HubServer) -> None:
    left = ran("hub.md")
    assert (left.folder / "cluster-3.png").stat().st_size > 1000
    assert left.names["images"].shape == (16, 1, 32, 32)  # type: ignore[attr-defined]
    assert hub.repositories["me/digits"].private
    assert "config.json" in hub.files("me/digits-generator")
    for name, value in (
        ("HF_HUB_ETAG_TIMEOUT", requests.ANSWER_SECONDS),
        ("HF_HUB_DOWNLOAD_TIMEOUT", requests.STALL_SECONDS),
    ):
        lines = (DOCS / "hub.md").read_text().splitlines()
        (row,) = [line for line in lines if f"| `{name}`" in line]
        assert f"here {value:g} by default" in row


def test_what_the_page_on_metrics_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("metrics.md")
    numbers = json.loads((left.folder / "evaluation.json").read_text())
    assert numbers["scores"]["mapper samples"]["num_samples"] == 300
    assert "FidelityScores(extractor='Flatten'" in left.printed[0]


def test_what_the_page_on_theory_prints(ran: Callable[[str], Ran]) -> None:
    printed = ran("theory.md").printed[0].splitlines()
    assert printed[:3] == ["0.1472", "0.0432 0.0432", "1.5"]
    assert printed[3].startswith("False True [1")


def test_what_the_page_on_training_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("training.md")
    assert (left.folder / "digits.png").stat().st_size > 1000
    text = (DOCS / "training.md").read_text()
    described = re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
    files = {name.rstrip("/") for row in described for name in re.findall(r"`([\w./*-]+)`", row)}
    for path in (left.folder / "runs" / "digits").iterdir():
        assert any(path.match(name) for name in files) or path.name == ".lock", path.name
    settings = {name for row in described for name in re.findall(r"`(\w+)`", row)}
    assert {field.name for field in dataclasses.fields(TrainSettings)} <= settings
    assert left.printed[0] == "3.0 2.0\n3.0 2.0\n"
    assert len(list((left.folder / "runs" / "line").glob("checkpoint-*"))) == 1


def test_what_the_page_on_guided_gans_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("guided.md")
    assert (left.folder / "third.npz").stat().st_size > 1000
    assert (left.folder / "shattered" / "report.html").exists()
    assert (left.folder / "third.png").stat().st_size > 500
    assert left.printed[0].startswith("tensor([0.2000, 0.2000]")
    third, ring = left.names["third"], left.names["ring"]
    assert (third - ring.module.corners[3]).abs().max() < 0.15  # type: ignore[attr-defined, operator]


def test_settings_and_files_of_guided_gans_are_documented(ran: Callable[[str], Ran]) -> None:
    page = DOCS / "guided.md"
    (text, own) = (page.read_text().partition(f"\n## {head}")[2] for head in ("Sett", "A cond"))
    rows = re.findall(r"^\| (`.*?`) \|", text.partition("\n## ")[0], flags=re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    settings = {field.name for field in dataclasses.fields(GANSettings)}
    assert described == settings - {"optimizer"}
    rows = re.findall(r"^\| (`[\w./]+`.*?) \|", own, flags=re.MULTILINE)
    files = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    assert {path.name for path in (ran("guided.md").folder / "ring").iterdir()} == files - {
        "partitioner"
    }
    table = tomllib.loads(blocks(page, "toml")[-1])
    task = {"task": "gan", "steps": 10, "batch_size": 10, "data": "points:ring:n=100", **table}
    task["model"] |= {"backbone": "mlp-2d", "latent": {"dim": 2}}
    assert prepare_training(task).task.settings.recluster_steps == 10_000  # type: ignore[attr-defined]


def test_what_the_page_on_priors_prints(ran: Callable[[str], Ran]) -> None:
    left, page = ran("priors.md"), DOCS / "priors.md"
    printed = "".join(left.printed)
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
    assert specs[2] == specs[-1] == left.names["prior"]


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


def test_what_the_page_on_choices_leaves(ran: Callable[[str], Ran]) -> None:
    report = json.loads((ran("choices.md").folder / "chosen" / "report.json").read_text())
    assert report["settings"]["chosen"].keys() == {"clusters", "remove"}
    (block,) = blocks(DOCS / "choices.md", "toml")
    settings = prepare({"source": "mnist-dcgan", **tomllib.loads(block)}).settings
    assert settings.clusters["candidates"] == [2, 5, 10, 20]  # type: ignore[index, call-overload]


def test_what_the_page_on_ablations_leaves(ran: Callable[[str], Ran]) -> None:
    left = ran("ablations.md")
    assert len((left.folder / "ablation" / "cells.csv").read_text().splitlines()) == 1 + 9
    summary = json.loads((left.folder / "ablation" / "ablation.json").read_text())
    assert (summary["cells"], summary["computed"], summary["failed"]) == (9, 3, 0)
    assert "['jbt', 'lash']" in left.printed[0]


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


def test_the_plugin_of_ten_minutes_has_the_files_of_the_page(ran: Callable[[str], Ran]) -> None:
    """What it then does in an environment of its own is shown in tests/test_new_plugins.py."""
    left = ran("hooks.md")
    text = (DOCS / "hooks.md").read_text().partition("## Which kind?")[0]
    named = {
        name
        for row in re.findall(r"^\| (`.*?`.*) \|", text, re.MULTILINE)
        for name in row.split("`")[1::2]
    }
    named = {name for name in named if "." in name}
    assert len(named) == 6
    for name in named:
        assert (left.folder / "acme-halves" / name).is_file(), name
    assert (left.folder / "halves" / "report.html").exists()


def test_the_example_plugin_of_the_docs_is_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, code = blocks(DOCS / "hooks.md", "python")
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
    (code,) = blocks(DOCS / "backbones.md", "python")
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
    made = {f"components/{kind}.md" for kind in KINDS}
    made |= {
        f"python/{name}.md"
        for name in re.findall(r"^\| `(pgmkit\.?\w*)", (DOCS / "api.md").read_text(), re.MULTILINE)
    }
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert target in made or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ["design.md", "methods.md"])
def test_the_code_that_a_page_names_is_there(page: str) -> None:
    text = (DOCS / page).read_text()
    found = re.findall(r"`((?:pgmkit|plugins|registry|examples)/[\w/.]*)`", text)
    assert len(found) > 10
    for path in found:
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
