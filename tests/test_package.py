"""The wheel, the public names, and the docstrings."""

import ast
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import pgmkit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy without git, so that nothing is left in the checkout and nothing old gets in."""
    copy = tmp_path_factory.mktemp("source")
    for folder in ("pgmkit", "plugins", "registry"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """The folder with the source distribution and the wheel that is built from it alone."""
    command = [sys.executable, "-m", "build", "--no-isolation", str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_what_is_published_passes_the_checks_of_pypi(built: Path) -> None:
    names = sorted(path.name for path in built.iterdir())
    assert names == ["pgmkit-0.1.0.dev0-py3-none-any.whl", "pgmkit-0.1.0.dev0.tar.gz"]
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("PASSED") == 2


@pytest.mark.parametrize(
    ("tag", "version"),
    [("v1.2.0", r"1\.2\.0"), ("", r"0\.1(\.0)?\.dev1\+g.*")],
    ids=["tag", "none"],
)
def test_the_version_is_that_of_the_tag(tmp_path: Path, tag: str, version: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--no-gpg-sign"],
        *([["tag", tag]] if tag else []),
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, timeout=60)
    told = subprocess.run(
        [sys.executable, "-m", "setuptools_scm"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert re.fullmatch(version, told.stdout.strip()), told.stdout


def test_how_to_cite_it_is_data() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    page = (ROOT / "docs" / "cite.md").read_text()
    for reference in cited["references"]:
        assert reference["title"].partition(":")[0] in page
        assert reference["authors"][0].get("family-names", "anonymous") in page


def test_workflows_run_what_is_here_on_every_python_that_is_promised() -> None:
    makefile = (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [c.split()[-1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert project["requires-python"] == f">={promised[0]}"
    flows = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / ".github").glob("*/*.yml")}
    assert flows.keys() == {"docs", "release", "test"}
    jobs = {(name, job): flow["jobs"][job] for name, flow in flows.items() for job in flow["jobs"]}
    assert jobs["test", "test"]["strategy"]["matrix"]["python"] == promised
    steps = [step for job in jobs.values() for step in job.get("steps", [])]
    lines = [step["run"] for step in steps if "run" in step]
    targets = {line.removeprefix("make ") for line in lines if line.startswith("make ")}
    assert targets == {"docs", "test", "versions"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert (ROOT / jobs["release", "test"]["uses"]).is_file()
    assert jobs["release", "publish"]["needs"] == ["test", "build"]
    assert jobs["release", "publish"]["permissions"] == {"id-token": "write"}


def test_on_pypi_every_link_leads_to_the_repository_at_the_tag(tmp_path: Path) -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    scripts = [
        step["run"] for step in flow["jobs"]["build"]["steps"] if "Links" in step.get("name", "")
    ]
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    here = {
        "GITHUB_SERVER_URL": "https://host",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_REF_NAME": "v1",
    }
    environment = {"PATH": os.environ["PATH"], **here}
    subprocess.run(["bash", "-ec", *scripts], cwd=tmp_path, env=environment, check=True, timeout=60)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"] == {"Repository": "https://host/a/b"}
    links = re.compile(r"(!?)\[[^]]*\]\(([^)]*)\)")
    before = links.findall((ROOT / "README.md").read_text())
    assert {picture for picture, _ in before} == {"", "!"}
    assert links.findall((tmp_path / "README.md").read_text()) == [
        (picture, f"https://host/a/b/{'raw' if picture else 'blob'}/v1/{link}")
        for picture, link in before
    ]


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("versions", ROOT / "tools" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PLACE", tmp_path)
    return module


def test_versions_that_passed_are_not_tried_again_and_others_are(
    versions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter([(True, "1 failed"), (False, "2 passed"), (False, "3 passed")])
    found = {"Python": "3.11.7", "numpy": "1.26.0"}
    monkeypatch.setattr(versions, "tried", lambda *_: (*next(outcomes), found))
    wanted = [("1 failed", True), ("2 passed", False), ("2 passed", False)]
    for outcome, failed in wanted:
        row = versions.remembered("3.11", "lowest", ("a.py",), anew=False)
        assert row["failed"] == failed
        cells = dict(zip(versions.COLUMNS, row["cells"], strict=True))
        assert cells["Python"] == "3.11.7"
        assert cells["numpy"] == "1.26.0"
        assert cells["outcome"] == outcome
    assert versions.remembered("3.11", "lowest", ("a.py",), anew=True)["cells"][-2] == "3 passed"


def test_a_dependency_that_no_test_imports_is_a_failure_of_versions(
    versions: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text("import numpy\n\ndef test_it():\n    pass\n")
    command = [sys.executable, "-c", versions.RUN, "numpy pillow timm torch-fidelity", "test_it.py"]
    finished = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode, finished.stdout
    last = finished.stdout.splitlines()[-1]
    assert last == "passed, but never imported pillow, timm, torch-fidelity"


def test_the_wheel_installs_exactly_three_top_level_names(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "pgmkit",
        "pgmkit_plugins",
        "pgmkit_registry",
    }


def test_the_wheel_holds_every_module_and_every_shipped_model(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = {
        "pgmkit": ROOT / "pgmkit",
        "pgmkit_plugins": ROOT / "plugins" / "pgmkit_plugins",
        "pgmkit_registry": ROOT / "registry",
    }
    for package, folder in sources.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(folder).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_shipped_weights_are_small() -> None:
    for path in (ROOT / "registry").glob("*/model.safetensors"):
        assert path.stat().st_size <= 4 * 2**20


def test_every_public_name_is_there_and_documented() -> None:
    assert set(pgmkit.__all__) == {
        "Component",
        "ConditionalGenerator",
        "FittedPartitioner",
        "Generator",
        "ImageSpec",
        "LatentSpec",
        "PgmkitError",
        "ShatteredGenerator",
        "Spectrum",
        "compute_spectrum",
        "fit_partitioner",
        "hookimpl",
        "list_components",
        "load",
        "load_generator",
        "load_partitioner",
        "shatter",
    }
    for name in pgmkit.__all__:
        assert inspect.getdoc(getattr(pgmkit, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pgmkit.no_such_name


def test_the_version_is_that_of_the_distribution() -> None:
    assert pgmkit.__version__ == importlib.metadata.version("pgmkit")


def _functions() -> list[tuple[str, ast.FunctionDef, str]]:
    found = []
    for folder in (ROOT / "pgmkit", ROOT / "plugins"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    found.append((path.name, node, ast.get_docstring(node) or ""))
    return found


def test_documented_arguments_are_those_of_the_signature() -> None:
    checked = 0
    for file, node, text in _functions():
        if "Args:" not in text:
            continue
        section = text.split("Args:")[1].split("\n\n")[0]
        documented = [
            line.strip().split(":")[0]
            for line in section.splitlines()
            if line.startswith("    ") and not line.startswith(("     ", "    **")) and ":" in line
        ]
        places = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        arguments = [place.arg for place in places]
        actual = [name for name in arguments if name not in ("self", "cls")]
        assert documented == actual, f"{file}: {node.name}"
        checked += 1
    assert checked > 20


def test_benchmarks_use_names_that_are_there() -> None:
    """They run for minutes or hours, so no other test runs them."""
    for path in ROOT.glob("benchmarks/**/*.py"):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(
                "pgmkit"
            ):
                module = importlib.import_module(str(statement.module))
                for alias in statement.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(
                        f"{module.__name__}.{alias.name}"
                    ), f"{path.name}: {module.__name__}.{alias.name}"
