"""`pgmkit plugins new`: what it writes is installed from a wheel, used, broken and uninstalled."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import environment, run_pgmkit, write_tiny_generator, write_tiny_images

import pgmkit
from pgmkit import templates
from pgmkit.components import KINDS
from pgmkit.errors import OutputError
from pgmkit.loading.saving import write_generator
from pgmkit.templates import new_plugin

DRIVE = Path(__file__).parent / "drive.py"
BUILD = """
import os, sys
from setuptools import build_meta
for folder in sys.argv[1:]:
    os.chdir(folder)
    sys.argv[1:] = []
    build_meta.build_wheel("dist")
"""
GAN = """
task = "gan"
steps = 2
batch_size = 8

[model]
backbone = "fresh-backbones"
latent = { dim = 8 }
"""
CLASSIFIER = """
task = "classifier"
epochs = 1
batch_size = 8

[model]
name = "fresh-classifiers"
"""
NAMES = {kind: f"fresh-{kind}" for kind in KINDS}
EXAMPLES_FOLDER = Path(__file__).parent.parent / "examples" / "plugins"
EXAMPLES = {path.name: path for path in sorted(EXAMPLES_FOLDER.glob("pgmkit-*"))}


@dataclass
class Place:
    """A fresh environment that sees the packages of this one, and the distributions for it."""

    folder: Path
    sources: dict[str, Path] = field(default_factory=dict)
    driver: "subprocess.Popen[str] | None" = None

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def site(self) -> Path:
        (site,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return site

    def drive(self, *commands: Sequence[object]) -> list[dict[str, Any]]:
        """Runs command lines in one process of the environment; nothing else is on its stdout."""
        path = self.folder / "commands.json"
        path.write_text(json.dumps([[str(word) for word in words] for words in commands]))
        if self.driver is None:
            self.driver = subprocess.Popen(
                [self.python, DRIVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(PGMKIT_STRICT_PLUGINS="0"),
            )
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(f"{path}\n")
        self.driver.stdin.flush()
        answer = self.driver.stdout.readline()
        assert answer == "0\n", path.with_suffix(".stderr").read_text()
        assert path.with_suffix(".stdout").read_text() == ""
        outcomes: list[dict[str, Any]] = json.loads(path.read_text())
        return outcomes

    def close(self) -> None:
        """Ends what runs command lines."""
        if self.driver is not None:
            self.driver.communicate(timeout=200)

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.python), *map(str, words)],
            capture_output=True,
            text=True,
            timeout=200,
            env=environment(PGMKIT_STRICT_PLUGINS="0"),
            check=False,
        )

    def records(self) -> dict[str, Any]:
        """Returns what `plugins ls` lists of the distributions, by kind."""
        found = self.run("-m", "pgmkit", "plugins", "ls", "--json")
        records = {record["name"]: record for record in json.loads(found.stdout)}
        return {
            kind: records[f"{name}:main"]
            for kind, name in NAMES.items()
            if f"{name}:main" in records
        }

    def change(self, kind: str, path: str, old: str, new: str) -> None:
        """Changes an installed file."""
        file = self.site / NAMES[kind].replace("-", "_") / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    def install(self, source: Path) -> None:
        """Unpacks the wheel of a distribution, as pip does."""
        (wheel,) = (source / "dist").glob("*.whl")
        zipfile.ZipFile(wheel).extractall(self.site)

    def uninstall(self, kind: str) -> None:
        """Removes all that the record of the distribution lists."""
        (record,) = self.site.glob(f"{NAMES[kind].replace('-', '_')}-*.dist-info/RECORD")
        for line in record.read_text().splitlines():
            (self.site / line.split(",")[0]).unlink(missing_ok=True)
        shutil.rmtree(record.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("authors"))
    for kind, name in NAMES.items():
        place.sources[kind] = place.folder / name
        told = run_pgmkit("plugins", "new", name, "--kind", kind, "-o", place.sources[kind])
        assert told.code == 0, told.stderr
    copies = [shutil.copytree(path, place.folder / name) for name, path in EXAMPLES.items()]
    sources = [*place.sources.values(), *copies]
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, *map(str, sources)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )
    assert built.returncode == 0, built.stderr
    venv.create(place.folder / "venv", with_pip=False, symlinks=True)
    ours = sysconfig.get_path("purelib")
    (place.site / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for source in sources:
        place.install(source)
    yield place
    place.close()


@pytest.fixture(scope="module")
def tiny(place: Place) -> str:
    return write_tiny_generator(place.folder / "tiny")


def shattering(tiny: str, *words: object) -> list[object]:
    sizes = ["--latents", 40, "--clusters", 2, "--json", "-q", "--no-cache"]
    return ["shatter", tiny, *sizes, *words]


ABLATION = """
latents = 40
clusters = 2
seeds = [0]
jobs = 1
measures = ["selection"]
densities = ["fresh-density-estimators"]
samplers = [{ name = "partition", partitioner = "fresh-partitioners", mapper = "fresh-mappers" }]

[[generators]]
source = "TINY"
"""


@pytest.fixture(scope="module")
def outcomes(place: Place, tiny: str) -> dict[str, dict[str, Any]]:
    """What comes of command lines, by what each shows; all run in one process."""
    folder, images = place.folder, write_tiny_images(place.folder / "images.npz", size=8)
    for name in ("fresh-backbones", "coordinates"):
        (folder / f"{name}.toml").write_text(GAN.replace("fresh-backbones", name))
    (folder / "classifier.toml").write_text(CLASSIFIER)
    (folder / "ablation.toml").write_text(ABLATION.replace("TINY", tiny))
    torch.save(component_of("pgmkit-own-network")["Net"]().state_dict(), folder / "net.pt")
    write_own_generator(folder / "own")
    train = ["train", "--data", images, "--device", "cpu", "--json", "-q"]
    alone = ["pytest", "-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    alone += ["--import-mode=importlib"]
    given = f'partitioner.features={{name="own-network", weights="{folder / "net.pt"}"}}'
    commands: dict[str, list[object]] = {
        f"check {name}": ["plugins", "check", name, "--json", "-q"] for name in NAMES.values()
    }
    commands |= {
        "whole": shattering(
            tiny,
            *("--density", "fresh-density-estimators", "--partitioner", "fresh-partitioners"),
            *("--mapper", "fresh-mappers", "--set", "spectrum.engine=fresh-engines"),
            *("-o", folder / "whole"),
        ),
        "features": shattering(
            tiny,
            *("--partitioner", "kmeans", "--set", "partitioner.features=fresh-features"),
            *("-o", folder / "by-features"),
        ),
        "slices": shattering(tiny, "--sampler", "fresh-cluster-samplers", "-o", folder / "slices"),
        "ablation": ["ablate", folder / "ablation.toml", "-o", folder / "ablation", "--json", "-q"],
        "gan": [*train, folder / "fresh-backbones.toml", "-o", folder / "gan"],
        "classifier": [*train, folder / "classifier.toml", "-o", folder / "classifier"],
        "of own": shattering(
            f"local-dir:{folder / 'own'}",
            *("--sampler", "kmeans-gmm", "-o", folder / "of-own"),
            *("--classifier", f"local-dir:{folder / 'classifier' / 'model'}"),
        ),
        "inspection": ["generators", "inspect", f"local-dir:{folder / 'gan' / 'model'}", "--json"],
        "command": ["fresh-commands", "features", "engines"],
        "check with": ["plugins", "check", "fresh-mappers:fresh-mappers", "--set", "scale=0.5"],
        "help": ["--help"],
        "tests": [*alone, *(source / "tests" for source in place.sources.values())],
        "use of pgmkit-rank-volume": shattering(
            tiny, "--density", "rank-volume", "--sampler", "kmeans-gmm", "-o", folder / "volume"
        ),
        "use of pgmkit-flows": shattering(
            tiny,
            *("--partitioner", "kmeans", "--mapper", "rejection", "--set"),
            *("mapper.proposal={name='flows', steps=2}", "-o", folder / "flows"),
        ),
        "use of pgmkit-own-network": shattering(
            tiny, "--partitioner", "kmeans", "--set", given, "-o", folder / "own-network"
        ),
        "use of pgmkit-kmedoids": shattering(
            tiny, "--partitioner", "kmedoids", "--mapper", "mixture", "-o", folder / "kmedoids"
        ),
        "use of pgmkit-coordinates": [
            *(*train, folder / "coordinates.toml", "-o", folder / "coordinates"),
            *("--set", "model.backbone_args={side=8, width=4, image_channels=1}"),
        ],
    }
    examples = [path / "tests" for name, path in EXAMPLES.items() if not missing(name)]
    commands["tests of examples"] = [*alone, "-rA", *examples]
    return dict(zip(commands, place.drive(*commands.values()), strict=True))


def test_a_new_plugin_of_every_kind_is_installed_checked_and_used(
    place: Place, outcomes: dict[str, dict[str, Any]]
) -> None:
    records = place.records()
    assert {kind: record["status"] for kind, record in records.items()} == dict.fromkeys(
        KINDS, "loaded"
    )
    folder = place.folder
    for kind, name in NAMES.items():
        assert f"{kind}/{name}" in records[kind]["components"]
        outcome = outcomes[f"check {name}"]
        found = json.loads(outcome["stdout"])
        failed = [
            c for part in found["components"] for c in part["outcomes"] if c["status"] == "failed"
        ]
        assert (outcome["code"], failed) == (0, []), kind
        assert found["counts"]["passed"] == found["counts"]["run"] >= 7
        assert outcome["stderr"] == ""
    used = {name: found for name, found in outcomes.items() if "of pgmkit-" not in name}
    del used["tests of examples"]
    assert {name: found for name, found in used.items() if found["code"]} == {}
    whole = json.loads((folder / "whole" / "sampler.json").read_text())
    assert (
        whole["sampler"]["params"]["partitioner"]["name"] == "fresh-partitioners:fresh-partitioners"
    )
    for name in ("whole", "features", "slices", "ablation", "gan", "classifier", "of own"):
        json.loads(used[name]["stdout"])
    (cell,) = (folder / "ablation" / "cells").iterdir()
    assert json.loads(cell.read_text())["error"] is None
    assert used["command"]["stdout"] == "features: 11\nengines: 4\n"
    assert used["check with"]["stdout"].splitlines()[-1] == "17 run, 17 passed, 0 failed, 1 skipped"
    assert "counts the installed components of each kind" in used["help"]["stdout"]
    assert " passed" in used["tests"]["stdout"]
    trained = json.loads((folder / "classifier" / "model" / "config.json").read_text())
    assert trained["architecture"] == "fresh-classifiers"
    report = json.loads((folder / "of-own" / "report.json").read_text())
    assert len(report["scores"]) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_plugin_passes_its_tests_and_is_used(
    name: str, outcomes: dict[str, dict[str, Any]]
) -> None:
    if missing(name):
        pytest.skip(f"it needs {missing(name)}, which is not installed; the extra 'dev' has it")
    tests, use = outcomes["tests of examples"], outcomes[f"use of {name}"]
    assert tests["code"] == 0, tests["stdout"]
    assert len(re.findall(rf"^PASSED \S*\b{name}/tests/", tests["stdout"], re.MULTILINE)) > 10
    assert use["code"] == 0, use["stderr"]
    json.loads(use["stdout"])


def test_every_example_plugin_is_on_their_page() -> None:
    page = (EXAMPLES_FOLDER / "README.md").read_text()
    assert set(re.findall(r"\((pgmkit-[\w-]+)\)", page)) == set(EXAMPLES)
    for path in EXAMPLES.values():
        component = path / path.name.replace("-", "_") / "component.py"
        assert len(component.read_text().splitlines()) <= 160


def missing(name: str) -> str:
    """Returns what an example plugin needs and is not installed, if anything."""
    text = (EXAMPLES[name] / "pyproject.toml").read_text()
    needs = [re.split(r"[<>=]", line)[0] for line in tomllib.loads(text)["project"]["dependencies"]]
    return ", ".join(need for need in needs if importlib.util.find_spec(need) is None)


def component_of(name: str) -> dict[str, Any]:
    """Returns what the code of an example's component defines."""
    path = EXAMPLES[name] / name.replace("-", "_") / "component.py"
    names: dict[str, Any] = {"__name__": name}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names


def write_own_generator(folder: Path) -> None:
    """Writes a generator that the loader of the template builds."""
    path = Path(templates.__file__).parent / "generator-loaders" / "PACKAGE" / "component.py.in"
    names: dict[str, Any] = {"__name__": "own"}
    exec(compile(path.read_text(), str(path), "exec"), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = names["Generator"]()
    write_generator(
        folder,
        pgmkit.Generator(
            module,
            latent=pgmkit.LatentSpec(8),
            image=pgmkit.ImageSpec((1, 8, 8)),
            architecture="fresh-generator-loaders",
        ),
    )


FIRST = "from pgmkit import"
BROKEN = {
    "density-estimators": ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module"),
    "features": (
        "raise OSError('libfoo.so.3: cannot open shared object file')\n",
        "OSError: libfoo",
    ),
    "partitioners": ("raise ValueError('numpy.dtype size changed')\n", "ValueError: numpy.dtype"),
    "mappers": ("import sys; sys.exit(3)\n", "SystemExit: 3"),
    "backbones": ("PGMKIT_API_VERSION = 99\n", "is written for plugin API 99"),
    "classifiers": ("import os; os._exit(4)\n", "os._exit(4)"),
}
"""What the module of a plugin does first, and what is on record of it."""


def test_what_is_broken_breaks_nothing_else_and_what_is_uninstalled_is_gone(
    place: Place, tiny: str
) -> None:
    for kind, (code, _) in BROKEN.items():
        place.change(kind, "__init__.py", FIRST, code + FIRST)
    place.change("cluster-samplers", "__init__.py", FIRST, "print('please cite us')\n" + FIRST)
    place.change("generator-loaders", "__init__.py", "def pgmkit_gen", "def pgmkit_a_gen")
    place.change("commands", "__init__.py", "return [", "raise KeyError('inside')\n    return [")
    place.change("engines", "__init__.py", '"fresh-engines",', '"local",')
    records, harmless = place.records(), shattering(tiny, "--sampler", "kmeans-gmm", "--dry-run")
    errors = {kind: record["error"] for kind, record in records.items()}
    for kind, (_, said) in BROKEN.items():
        assert said in errors[kind]
    assert "unknown hook 'pgmkit_a_generator_loaders'" in errors["generator-loaders"]
    assert "KeyError: 'inside'" in errors["commands"]
    loaded = {kind for kind, record in records.items() if record["status"] == "loaded"}
    assert loaded == {"cluster-samplers", "engines"}
    outcomes = place.drive(
        ["plugins", "ls", "--json"],
        ["components", "ls", "--json"],
        [*harmless, "--set", "spectrum.engine=local"],
        shattering(tiny, "--density", "fresh-density-estimators", "--dry-run"),
        ["plugins", "check", "fresh-features", "--json"],
        ["plugins", "check", "fresh-cluster-samplers", "--json"],
        ["plugins", "check", "fresh-engines", "--json"],
    )
    assert [outcome["code"] for outcome in outcomes] == [0, 0, 0, 1, 1, 1, 0]
    assert outcomes[0]["stderr"] == "please cite us\n"
    for outcome in (*outcomes[:3], *outcomes[5:]):
        json.loads(outcome["stdout"])
    for outcome in outcomes[3:5]:
        assert outcome["stdout"] == ""
        assert outcome["stderr"].startswith("error: ")
        assert outcome["stderr"].count("\n") == 1
    assert "these plugins failed to load: fresh-backbones:main, " in outcomes[3]["stderr"]
    assert "'fresh-features:main' failed to load: OSError: libfoo" in outcomes[4]["stderr"]
    found = json.loads(outcomes[5]["stdout"])
    (part,) = found["components"]
    assert found["counts"]["failed"] == 1
    assert [c["check"] for c in part["outcomes"] if c["status"] == "failed"] == [
        "plugin_prints_nothing"
    ]
    for kind in KINDS:
        place.uninstall(kind)
    assert place.records() == {}
    assert not list(place.site.glob("fresh*/*.py"))


def test_a_method_that_fails_is_named_and_a_wrong_result_is_found(place: Place, tiny: str) -> None:
    for source in place.sources.values():
        place.install(source)
    place.change("density-estimators", "component.py", "return -(", "return -1 * (")
    place.change("density-estimators", "component.py", "** self.power)", "** self.power)[1:]")
    place.change(
        "features",
        "component.py",
        "return torch",
        "print('hi'); raise OSError('x')\n        return torch",
    )
    place.change(
        "mappers", "component.py", "random = ", "raise IndexError('none')\n        random = "
    )
    place.change("commands", "component.py", "for kind", "raise KeyError('x')\n    for kind")
    place.change("partitioners", "component.py", "import torch", "import sys\nsys.exit('bye')")
    outcomes = place.drive(
        shattering(tiny, "--density", "fresh-density-estimators", "-o", place.folder / "wrong"),
        shattering(
            tiny,
            *("--partitioner", "kmeans", "--set", "partitioner.features=fresh-features"),
            *("-o", place.folder / "fails"),
        ),
        shattering(
            tiny,
            *("--partitioner", "kmeans", "--set", "partitioner.features=pixels"),
            *("--mapper", "fresh-mappers", "-o", place.folder / "fails-late"),
        ),
        shattering(tiny, "--partitioner", "fresh-partitioners", "--dry-run"),
        ["fresh-commands", "features"],
        ["plugins", "check", "fresh-density-estimators", "--json"],
        ["plugins", "check", "fresh-features"],
        shattering(tiny, "--sampler", "fresh-cluster-samplers", "--dry-run"),
    )
    said = [
        "the density-estimator 'fresh-density-estimators:fresh-density-estimators' returns log",
        "the features 'fresh-features:fresh-features' failed on images: OSError: x; PGMKIT_DEBUG=1",
        "the mapper 'fresh-mappers:fresh-mappers' failed in sample: IndexError: none; PGMKIT_DEBUG",
        "fresh-partitioners:fresh-partitioners cannot be imported from 'fresh_partit",
        "the command 'fresh-commands:fresh-commands' failed when it ran: KeyError: 'x'",
    ]
    for outcome, start in zip(outcomes, said, strict=False):
        assert (outcome["code"], outcome["stdout"]) == (1, ""), outcome
        assert f"error: {start}" in outcome["stderr"]
    wrong = json.loads(outcomes[5]["stdout"])
    (part,) = wrong["components"]
    assert outcomes[5]["code"] == outcomes[6]["code"] == 1
    assert [c["check"] for c in part["outcomes"] if c["status"] == "failed"] == [
        "results_keep_the_contract"
    ]
    assert "results_keep_the_contract" in outcomes[6]["stdout"]
    assert outcomes[6]["stdout"].splitlines()[-1].endswith("skipped")
    assert outcomes[7]["code"] == 0
    assert json.loads(outcomes[7]["stdout"])["settings"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Acme", "--kind", "features"), "the name of a plugin is lower-case letters and digits"),
        (("acme.x", "--kind", "features"), "such as acme-halves, not 'acme.x'"),
        (("lambda", "--kind", "features"), "such as acme-halves, not 'lambda'"),
        (("torch", "--kind", "features"), "there is a Python module 'torch' already; choose anot"),
        (("acme-x", "--kind", "feature"), "no kind of component is called 'feature'; did you mean"),
        (("acme-x", "--kind", "features", "-o", "."), ". is there already; choose another folder"),
    ],
)
def test_what_cannot_be_written_says_why(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    told = run_pgmkit("plugins", "new", *words)
    assert (told.code, told.stdout) == (1, "")
    assert told.stderr.startswith("error: ")
    assert said in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_plugin_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("pgmkit.files.write_text", full)
    with pytest.raises(OutputError, match="full"):
        new_plugin("acme-x", "features", tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kmaens",), "no component or plugin is called 'kmaens'; did you mean 'kmeans'"),
        (("mixture", "--set", "k=1"), "'mixture' stands for 2: partitioners/mixture, mappers/mix"),
        (("kmeans", "--image", "3y8"), "--image"),
        (("kmeans", "--set", "num_starts=0", "--json"), ""),
    ],
)
def test_what_cannot_be_checked_says_why(words: tuple[str, ...], said: str) -> None:
    told = run_pgmkit("plugins", "check", *words)
    assert told.code == 1
    if said:
        assert said in told.stderr
        assert told.stderr.count("\n") == 1
    else:
        assert json.loads(told.stdout)["counts"]["failed"] >= 1


def test_components_are_short_enough_to_be_read_in_a_minute() -> None:
    for kind in KINDS:
        path = Path(templates.__file__).parent / kind / "PACKAGE" / "component.py.in"
        assert len(path.read_text().splitlines()) <= 60, kind
