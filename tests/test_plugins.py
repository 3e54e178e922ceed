"""Discovery, isolation, provenance, disabling and name conflicts of plugins."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save
from tiny import install, run_pgmkit, write_tiny_generator

from pgmkit.components import KINDS, Component, check_parameters
from pgmkit.errors import LoadError, ParameterError, PluginError, UnknownNameError
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.extractors import load_extractor
from pgmkit.plugins import InstalledPlugins, build, installed, list_components

GOOD = """
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_density_estimators():
    return [Component("NAME", "MODULE:Flat", "all the same")]

class Flat:
    def __init__(self, height=0.0):
        self.height = height
    def log_weights(self, spectrum):
        return spectrum.log_prior * 0 + self.height
"""


def load(**options: object) -> InstalledPlugins:
    entry_points = importlib.metadata.entry_points(group="pgmkit.plugins")
    return InstalledPlugins(entry_points, **options)  # type: ignore[arg-type]


def names(loaded: InstalledPlugins) -> list[str]:
    return [c.name for c in loaded.of_kind("density-estimators")]


def test_the_documented_methods_come_in_through_entry_points() -> None:
    built_in = [r for r in installed().records if r.name.startswith("pgmkit:")]
    assert {r.status for r in built_in} == {"loaded"}
    assert {c.distribution for c in list_components("density-estimators")} == {"pgmkit"}
    assert load(disabled=["pgmkit:density"]).of_kind("density-estimators") == []


def test_a_third_party_plugin_is_found_built_and_listed_after_ours(site: Path) -> None:
    install(site, "acme-flat", GOOD.replace("NAME", "flat"))
    loaded = load()
    assert names(loaded)[-1] == "flat"
    component = loaded.find("density-estimators", "flat")
    assert component.plugin == "acme-flat:main"
    assert component.build(height=2.0).height == 2.0
    assert loaded.find("density-estimators", "acme-flat:flat") == component
    record = loaded.records[-1]
    assert (record.status, record.version) == ("loaded", "1.0")
    assert record.components == ("density-estimators/flat",)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("this is no Python", "SyntaxError"),
        (GOOD.replace('[Component("NAME", "MODULE:Flat", "all the same")]', "[3]"), "not a pgmkit"),
        (GOOD.replace("():", "(unknown_argument):", 1), "unknown_argument"),
        (GOOD.replace("NAME", "Not A Name"), "lower-case"),
    ],
)
def test_a_broken_plugin_is_recorded_and_breaks_nothing_else(
    site: Path, code: str, reason: str
) -> None:
    install(site, "aaa-broken", code.replace("NAME", "broken"))
    install(site, "zzz-good", GOOD.replace("NAME", "good"))
    loaded = load()
    broken = next(r for r in loaded.records if r.name == "aaa-broken:main")
    assert broken.status == "failed"
    assert reason in broken.error
    assert names(loaded) == [*names(load(third_party=False)), "good"]
    with pytest.raises(PluginError, match="aaa-broken"):
        load(strict=True)


def test_plugins_are_disabled_by_distribution_name_or_pattern(site: Path) -> None:
    install(site, "acme-flat", GOOD.replace("NAME", "flat"))
    for pattern in ("acme-flat", "acme-flat:main", "acme-*"):
        loaded = load(disabled=[pattern])
        assert "flat" not in names(loaded)
        assert loaded.records[-1].status == "disabled"
    assert names(load(third_party=False)) == ["lash", "jbt", "polarity", "none"]


def test_a_plugin_cannot_change_what_a_name_of_ours_means(site: Path) -> None:
    install(site, "aaa-lash", GOOD.replace("NAME", "lash"))
    loaded = load()
    assert loaded.find("density-estimators", "lash").distribution == "pgmkit"
    assert loaded.find("density-estimators", "aaa-lash:lash").distribution == "aaa-lash"


def test_one_name_from_two_other_plugins_is_an_error_that_names_both(site: Path) -> None:
    install(site, "acme-flat", GOOD.replace("NAME", "flat"))
    install(site, "other-flat", GOOD.replace("NAME", "flat"))
    loaded = load()
    with pytest.raises(PluginError, match="acme-flat:main and by other-flat:main") as error:
        loaded.find("density-estimators", "flat")
    assert "'acme-flat:flat' or 'other-flat:flat'" in str(error.value)
    assert loaded.find("density-estimators", "acme-flat:flat").distribution == "acme-flat"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "class Flat:\n    def __init__(self): raise OSError('libfoo.so.3: no such file')",
            "libfoo",
        ),
        ("class Flat:\n    def __init__(self): raise SystemExit('bye')", "SystemExit: bye"),
        ("def Flat(): return [][0]", "IndexError"),
    ],
)
def test_a_method_that_cannot_be_built_is_named_with_its_plugin(
    site: Path, broken: str, said: str
) -> None:
    install(site, "acme-flat", GOOD.replace("NAME", "flat").partition("class")[0] + broken)
    with pytest.raises(PluginError, match="density-estimator 'acme-flat:flat' failed") as error:
        load().find("density-estimators", "flat").build()
    assert said in str(error.value)


def test_a_method_that_cannot_be_imported_is_named_with_its_plugin(site: Path) -> None:
    install(site, "acme-flat", GOOD.replace("NAME", "flat").replace("MODULE:Flat", "acme_abi:Flat"))
    (site / "acme_abi.py").write_text("raise ValueError('numpy.dtype size changed')")
    with pytest.raises(PluginError, match=r"acme-flat:flat cannot be imported .*size changed"):
        load().find("density-estimators", "flat").build()


def test_a_plugin_that_stalls_is_named_and_then_left_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pgmkit.plugins._ALARM_SECONDS", 0.1)
    monkeypatch.setattr("pgmkit.plugins._MOST_SECONDS", 0.3)
    install(site, "aaa-loop", "while True: pass")
    install(site, "zzz-good", GOOD.replace("NAME", "good"))
    loaded = load()
    assert "the plugin aaa-loop:main has been importing" in capfd.readouterr().err
    assert "importing for more than" in next(
        r.error for r in loaded.records if r.name == "aaa-loop:main"
    )
    assert "good" in names(loaded)


def test_what_a_plugin_prints_goes_to_stderr(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os\nprint('please cite us')\nos.write(1, b'from C')\n"
    code += GOOD.replace("NAME", "loud").replace("self.height = height", "print('built')")
    install(site, "acme-loud", code)
    load().find("density-estimators", "loud").build()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert all(text in printed.err for text in ("please cite us", "from C", "built"))


def test_with_all_plugins_disabled_the_error_says_so() -> None:
    with pytest.raises(UnknownNameError, match="these plugins are disabled: pgmkit:backbones"):
        load(disabled=["*"]).find("engines", "local")


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lash'"):
        installed().find("density-estimators", "lahs")
    with pytest.raises(UnknownNameError, match="did you mean 'density-estimators'"):
        list_components("density-estimator")


def test_parameters_are_checked_before_the_method_is_built() -> None:
    lash = installed().find("density-estimators", "lash")
    with pytest.raises(ParameterError, match="no parameter 'prior_tern'; did you mean"):
        lash.build(prior_tern=False)


@pytest.mark.parametrize(
    ("kind", "name", "parameters", "said"),
    [
        (
            "density-estimators",
            "lash",
            {"prior_term": "False"},
            "true or false, not 'False'; write",
        ),
        ("density-estimators", "lash", {"prior_term": "maybe"}, "true or false, not 'maybe'"),
        ("density-estimators", "lash", {"prior_term": 1}, "true or false, not 1"),
        ("density-estimators", "lash", {"rank_rtol": "1e-6"}, "a number, not '1e-6'; write it"),
        ("density-estimators", "lash", {"rank_rtol": True}, "a number, not True"),
        ("density-estimators", "lash", {"null": "flor"}, "'floor' or 'drop', not 'flor'; did you"),
        ("density-estimators", "polarity", {"top_k": 3.0}, "a whole number or nothing, not 3.0"),
        ("partitioners", "clusterer", {"clusterer_args": [1]}, r"a table or nothing, not \[1\]"),
        ("partitioners", "most-stable", {"candidates": "kmeans"}, "a list"),
        ("cluster-samplers", "partition", {"num_clusters": "3"}, "a whole number or nothing, not"),
        ("generator-loaders", "dcgan", {"channels": [8, "4"]}, "each part a whole number"),
        ("engines", "local", {"workers": "2"}, "a whole number or nothing, not '2'"),
    ],
)
def test_parameters_are_of_the_types_that_their_methods_say(
    kind: str, name: str, parameters: dict[str, object], said: str
) -> None:
    with pytest.raises(ParameterError, match=said) as error:
        installed().find(kind, name).build(**parameters)
    assert next(iter(parameters)) in str(error.value)


def test_types_are_checked_as_far_as_they_are_known() -> None:
    def lenient(a: "NotThere", b=True, c: int = None, d: "bool" = False): ...  # type: ignore  # noqa

    check_parameters(lenient, {"a": "anything", "b": False, "c": None, "d": True}, "it")
    for wrong in ({"b": "False"}, {"c": "3"}, {"d": 1}):
        with pytest.raises(ParameterError, match=r"it takes [bcd] = "):
            check_parameters(lenient, {"a": 1, **wrong}, "it")


def test_a_missing_requirement_says_what_to_install(site: Path) -> None:
    code = GOOD.replace('"all the same"', '"needs much", requires=("umap-learn-not-there>=0.5",)')
    install(site, "acme-needs", code.replace("NAME", "needs"))
    with pytest.raises(PluginError, match=r"pip install umap-learn-not-there>=0\.5"):
        load().find("density-estimators", "needs").build()


@pytest.mark.parametrize(
    "arguments", [("Upper", "a:b"), ("", "a:b"), ("name", "a.b"), ("name", "a:b:c"), (3, "a:b")]
)
def test_components_have_proper_names_and_factories(arguments: tuple[str, str]) -> None:
    with pytest.raises(ParameterError):
        Component(*arguments)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-c", "from pgmkit.cli import main; main()"]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PGMKIT_STRICT_PLUGINS": "0", **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("plugins", "ls", "--json"), ("components", "ls"), ("generators", "ls")],
)
def test_help_and_listings_import_no_torch(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 0
    assert result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "pgmkit.cli" in imported
    assert not imported & {"torch", "numpy", "sklearn", "matplotlib", "huggingface_hub"}


def test_the_command_line_obeys_its_switches(site: Path) -> None:
    install(site, "acme-broken", "import a_module_that_is_not_there")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    switched_off = run("--no-plugins", "plugins", "ls", "--json", PYTHONPATH=path)
    assert json.loads(switched_off.stdout)[-1]["status"] == "disabled"
    by_name = run("plugins", "ls", PYTHONPATH=path, PGMKIT_DISABLE_PLUGINS="acme-broken")
    assert "disabled" in by_name.stdout
    strict = run("plugins", "ls", PYTHONPATH=path, PGMKIT_STRICT_PLUGINS="1")
    assert strict.returncode == 1
    assert "error: the plugin 'acme-broken:main' failed" in strict.stderr


def test_what_is_wrong_with_a_command_of_a_plugin_names_it(site: Path) -> None:
    code = """
import click
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_commands():
    return [Component(name, f"MODULE:{name}", "fails") for name in ("raises", "leaves", "none")]

@click.command()
def raises():
    raise KeyError("inside")

@click.command()
def leaves():
    raise click.ClickException("on purpose")

def none():
    pass
"""
    install(site, "acme-bad", code)
    told = [run_pgmkit(name) for name in ("raises", "leaves", "none")]
    assert [(found.code, found.stdout) for found in told] == [(1, "")] * 3
    assert told[0].stderr.startswith("error: the command 'acme-bad:raises' failed when it ran: Key")
    assert told[1].stderr == "Error: on purpose\n"
    assert told[2].stderr.startswith("error: the command 'acme-bad:none' is no click.Command but <")
    assert all(found.stderr.count("\n") == 1 for found in told)


def test_what_a_method_prints_while_it_works_goes_to_stderr(
    site: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = GOOD.replace("NAME", "chatty").replace("return spec", "print('hi'); return spec")
    install(site, "acme-chatty", code)
    installed.cache_clear()
    words = ("--latents", 40, "--clusters", 2, "--json", "--sampler", "kmeans-gmm")
    try:
        tiny = write_tiny_generator(site / "tiny")
        for last in (("--dry-run",), ("-o", site / "out")):
            found = run_pgmkit("shatter", tiny, "--density", "chatty", *words, *last)
            assert json.loads(found.stdout)["settings"], found.stderr
            assert "hi" in found.stderr.splitlines()
    finally:
        installed.cache_clear()


LINEAR = """
import torch
from pgmkit import Component, hookimpl

@hookimpl
def pgmkit_classifiers():
    return [Component("linear", "MODULE:Linear", "one layer on pixels")]

class Linear(torch.nn.Module):
    def __init__(self, num_classes: int = 10, num_pixels: int = 1024):
        super().__init__()
        self.num_classes = num_classes
        self.layer = torch.nn.Linear(num_pixels, num_classes)

    def forward(self, x):
        assert -1 <= x.min() and x.max() <= 1
        return self.layer(x.flatten(1))

"""


@pytest.fixture
def linear(site: Path) -> Iterator[Path]:
    """A distribution that offers the classifier "linear"."""
    install(site, "acme-linear", LINEAR)
    installed.cache_clear()
    yield site
    installed.cache_clear()


def test_what_is_wrong_with_a_classifier_is_said_where_it_is_loaded(linear: Path) -> None:
    folder = linear / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(build("classifiers", "linear").state_dict()))

    def load_as(**config: Any) -> Classifier:
        (folder / "config.json").write_text(json.dumps({"architecture": "linear", **config}))
        return load_classifier(f"local-dir:{folder}")

    classifier = load_as()
    assert classifier.classes == tuple("0123456789")
    with pytest.raises(PluginError, match="failed on images of 1×4×4: RuntimeError"):
        classifier.check_images((1, 4, 4))
    with pytest.raises(ParameterError, match=r"has no features\(x\), which fidelity"):
        load_extractor(f"classifier:local-dir:{folder}")
    with pytest.raises(LoadError, match="has no parameter 'depth'"):
        load_as(model_args={"depth": 3})
    with pytest.raises(LoadError, match="architecture is 'dcgan', and plugins offer classifiers"):
        load_as(architecture="dcgan")


def test_every_kind_has_a_hook() -> None:
    hooks = {c for c in dir(installed().manager.hook) if c.startswith("pgmkit_")}
    assert hooks == set(KINDS.values())
