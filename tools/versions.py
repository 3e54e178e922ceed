"""Tries pgmkit with the lowest and newest versions of what it needs, on each Python that is here.

    python tools/versions.py
    python tools/versions.py --python 3.11 --end lowest --out versions.md

For each Python and each end uv makes an environment in build/versions and installs pgmkit there,
with the versions that pyproject.toml allows at that end, of those that have wheels for this Python.
Then a part of the tests runs, which has to import every dependency. A row of the table says what
was seen; build/versions has what uv and pytest said.

What passed with the same code is not tried again, so that a run that was stopped goes on; --anew
tries all. With torch's CUDA builds an environment takes some 6 GB, and so do the downloads that uv
keeps. The environment of tests that passed is removed.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "versions"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENDS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "timm")
COLUMNS = ("Python", "versions", *SHOWN, "outcome", "seconds")
TESTS = (
    "tests/test_density.py",
    "tests/test_diffusers.py",
    "tests/test_evaluate.py",
    "tests/test_fidelity.py",
    "tests/test_generator.py",
    "tests/test_images.py",
    "tests/test_progress.py",
    "tests/test_report.py",
    "tests/test_samplers.py",
    "tests/test_sources.py",
    "tests/test_spectrum.py",
    "tests/test_testing.py",
)
LISTED = """
import importlib.metadata, json, platform
versions = {d.name: d.version for d in importlib.metadata.distributions()}
print(json.dumps({**versions, "Python": platform.python_version()}))
"""
RUN = """
import sys
from importlib.metadata import packages_distributions
import pytest

names, *tests = sys.argv[1:]
code = pytest.main(["-q", "-W", "default", "-p", "no:cacheprovider", *tests])
found = {d for module, ds in packages_distributions().items() if module in sys.modules for d in ds}
missing = set(names.split()) - {d.lower().replace("_", "-") for d in found}
if missing and not code:
    print(f"passed, but never imported {', '.join(sorted(missing))}")
sys.exit(code or len(missing))
"""
"""Runs tests in an environment, whose last line is pytest's or says what no test has imported."""
_CLASSIFIER = "Programming Language :: Python :: "


def pythons() -> list[str]:
    """Returns the versions of Python that pyproject.toml lists."""
    return [
        c.removeprefix(_CLASSIFIER) for c in PROJECT["classifiers"] if c.startswith(_CLASSIFIER)
    ]


@click.command()
@click.option("--python", "chosen", multiple=True, default=pythons(), help="Versions of Python.")
@click.option("--end", "ends", multiple=True, default=[*ENDS], type=click.Choice([*ENDS]))
@click.option("--anew", is_flag=True, help="Try again what passed with the same code.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the page there as well.")
@click.argument("tests", nargs=-1)
def main(
    chosen: tuple[str, ...],
    ends: tuple[str, ...],
    anew: bool,
    out: Path | None,
    tests: tuple[str, ...],
) -> None:
    """Prints a page in Markdown, and ends with 1 if a test or an installation failed.

    TESTS are files; without them a part that imports every dependency.
    """
    tests = tests or TESTS
    lines = [*_heading(tests)]
    click.echo("\n".join(lines))
    failed = False
    for version in chosen:
        for end in ends:
            click.echo(f"Python {version}, {end}: see {PLACE}/{version}-{end}.log", err=True)
            row = remembered(version, end, tests, anew=anew)
            failed |= row["failed"]
            lines.append(f"| {' | '.join(row['cells'])} |")
            click.echo(lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    sys.exit(failed)


def remembered(version: str, end: str, tests: tuple[str, ...], *, anew: bool) -> dict:
    """Returns the row of a combination, which is tried unless it passed with the same code."""
    file = PLACE / f"{version}-{end}.json"
    row = json.loads(file.read_text()) if file.exists() else {}
    state = _code(tests)
    if row.get("state") == state and not anew:
        return row
    begun = time.monotonic()
    failed, outcome, versions = tried(version, end, tests)
    cells = [
        *(versions.get("Python", version), end),
        *(versions.get(name, "") for name in SHOWN),
        *(outcome, f"{time.monotonic() - begun:.0f}"),
    ]
    row = {"state": state, "failed": failed, "cells": cells}
    if versions and not failed:
        file.write_text(json.dumps(row))
    return row


def tried(version: str, end: str, tests: tuple[str, ...]) -> tuple[bool, str, dict[str, str]]:
    """Returns whether a combination failed, the words for it, and the versions that it had."""
    place = PLACE / f"{version}-{end}"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    log = place.with_name(f"{place.name}.log")
    log.unlink(missing_ok=True)
    python = place / "bin" / "python"
    if _run("uv", "venv", "--python", interpreter(version), "--no-python-downloads", place)[0]:
        return False, "no such Python here", {}
    wanted = place.with_name(f"{place.name}.txt")
    chosen = ("--extra", "diffusers", "--extra", "test", "--resolution", ENDS[end], "--output-file")
    for step in (
        ("compile", "pyproject.toml", "--no-build", *chosen, wanted),
        ("install", "--no-build", "--requirements", wanted),
        ("install", "--no-deps", "--editable", "."),
    ):
        code, told = _run("uv", "pip", *step, "--python", python, log=log)
        if code:
            return True, f"not installed: {_last_line(told)}", {"Python": version}
    versions = json.loads(_run(python, "-c", LISTED)[1])
    needed = " ".join(re.split(r"[<>=~!\[; ]", line)[0] for line in PROJECT["dependencies"])
    code, told = _run(python, "-c", RUN, needed, *tests, log=log)
    if not code:
        shutil.rmtree(place)
    return bool(code), _last_line(told).partition(" in ")[0], versions


def interpreter(version: str) -> str:
    """Returns a path that uv takes: its own search stops at shims of pyenv that lead nowhere."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    return str(found[-1]) if found else version


def _heading(tests: tuple[str, ...]) -> list[str]:
    names = ", ".join(Path(name).stem.removeprefix("test_") for name in tests)
    about = (
        "`make versions` installs pgmkit with the lowest and with the newest versions that "
        "pyproject.toml allows, of those that have wheels for the Python in question. Then it runs "
        f"a part of the tests, which imports every dependency: {names}. It writes this page."
    )
    return [
        "# Versions",
        "",
        textwrap.fill(about, 120),
        "",
        f"Seen on {platform.system()}, {platform.machine()}, {os.cpu_count()} cores.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]


def _code(tests: tuple[str, ...]) -> str:
    """Returns a digest of the code, committed or not, and of the tests' names."""
    parts = ("pgmkit", "plugins", "registry", "tests", "pyproject.toml")
    committed = _run("git", "rev-parse", *(f"HEAD:{part}" for part in parts))
    changed = _run("git", "diff", "HEAD", "--", *parts)
    return hashlib.sha256(repr((committed, changed, tests)).encode()).hexdigest()


def _run(*words: object, log: Path | None = None) -> tuple[int, str]:
    """Runs a command to its end; a log gets what it says while it runs.

    Returns:
        The exit code and what was said, stripped.
    """
    found = shutil.which(str(words[0]), path=Path(sys.executable).parent) or str(words[0])
    with log.open("a+") if log else tempfile.TemporaryFile("w+") as file:
        begin = file.tell()
        command = [found, *map(str, words[1:])]
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode
        file.seek(begin)
        return code, file.read().strip()


def _last_line(told: str) -> str:
    return (told.splitlines() or ["nothing was said"])[-1]


if __name__ == "__main__":
    main()
