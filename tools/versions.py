"""Tries pgmkit with the lowest and newest versions of what it needs, on each Python that is here.

    python tools/versions.py
    python tools/versions.py --python 3.11 --resolution lowest-direct

For each combination uv makes an environment in build/versions and installs pgmkit there with the
versions that pyproject.toml allows at one end; then a part of the tests runs. A table says what was
seen. Environments are made anew; with torch's CUDA builds each may take 6 GB.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "versions"
SHOWN = ("torch", "torchvision", "numpy", "scikit-learn", "scipy")
TESTS = (
    "tests/test_density.py",
    "tests/test_generator.py",
    "tests/test_spectrum.py",
    "tests/test_testing.py",
)
_CLASSIFIER = "Programming Language :: Python :: "


def pythons() -> list[str]:
    """Returns the versions of Python that pyproject.toml lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        c.removeprefix(_CLASSIFIER) for c in project["classifiers"] if c.startswith(_CLASSIFIER)
    ]


@click.command()
@click.option("--python", "chosen", multiple=True, default=pythons(), help="Versions of Python.")
@click.option(
    "--resolution",
    "ends",
    multiple=True,
    default=["lowest-direct", "highest"],
    help="Which of the versions that are allowed: uv's lowest-direct or highest.",
)
@click.argument("tests", nargs=-1)
def main(chosen: tuple[str, ...], ends: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """Prints a table in Markdown, and ends with 1 if a test or an installation failed."""
    columns = ["Python", "versions", *SHOWN, "outcome", "seconds"]
    click.echo(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    failed = False
    for version in chosen:
        for end in ends:
            begun = time.monotonic()
            outcome, versions = tried(version, end, tests or TESTS)
            failed |= "passed" not in outcome and outcome != "no such Python here"
            cells = [version, end.partition("-")[0], *(versions.get(name, "") for name in SHOWN)]
            seconds = f"{time.monotonic() - begun:.0f}"
            click.echo(f"| {' | '.join([*cells, outcome, seconds])} |")
    sys.exit(failed)


def tried(version: str, end: str, tests: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Returns what came of one combination, and the versions that it had."""
    place = PLACE / f"{version}-{end}"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    python = place / "bin" / "python"
    if _run("uv", "venv", "--python", interpreter(version), "--no-python-downloads", place)[0]:
        return "no such Python here", {}
    pip = ("uv", "pip")
    install = ("install", "--python", python, "--resolution", end, "--editable")
    code, told = _run(*pip, *install, ".[diffusers,test]")
    if code:
        return f"not installed: {_last_line(told)}", {}
    listed = json.loads(_run(*pip, "list", "--python", python, "--format", "json")[1])
    versions = {entry["name"]: entry["version"] for entry in listed}
    told = _run(
        python,
        "-m",
        "pytest",
        "-q",
        "--durations=0",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        *tests,
    )[1]
    return _last_line(told).strip("= "), versions


def interpreter(version: str) -> str:
    """Returns a path that uv takes: its own search stops at shims of pyenv that lead nowhere."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    return str(found[-1]) if found else version


def _run(*words: object) -> tuple[int, str]:
    found = shutil.which(str(words[0]), path=Path(sys.executable).parent) or str(words[0])
    done = subprocess.run(
        [found, *map(str, words[1:])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _last_line(told: str) -> str:
    return (told.strip().splitlines() or ["nothing was said"])[-1]


if __name__ == "__main__":
    main()
