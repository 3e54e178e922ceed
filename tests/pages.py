"""Runs the blocks of a page of the docs, one after the other, as its reader would.

`bash` is typed line by line. `python` runs, each block with the names of those before. What has a
title is written to that file. `text` right after `python` is what that prints. What `sh` names is
there. TOML and JSON are read.
"""

import contextlib
import importlib
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import run_pgmkit, write_tiny_images

from pgmkit.loading.weights import read_weights
from pgmkit.plugins import installed

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LANGUAGES = {"bash", "json", "python", "sh", "text", "toml"}
SHORTER = {
    "8000 --probes": "16 --probes",
    "8000 --dry-run": "16 --dry-run",
    "8000": "120",
    "latents=8_000": "latents=120, cache=True",
    "8_000": "120",
    "    latents=2_000,": '    latents=120, spectrum={"cache": True},',
    "2000": "120",
    "1000 -o": "120 -o",
    "2_000": "120",
    "--latents 300": "--latents 120",
    "--latents 100": "--latents 20",
    "--clusters 4": "--clusters 2",
    "-n 200": "-n 60",
    "-n 64": "-n 16",
    "-n 300\n": "-n 60\n",
    "mnist.npz --set partitioner.preset=tiny": "mnist.npz --size 16 --set partitioner.preset=tiny",
    "points:ring ": "points:ring:n=500 ",
    "steps = 300\n": "steps = 3\n",
    "latents = 200\nclusters = 3\n": "jobs = 1\nlatents = 60\nclusters = 3\n"
    'mappers = ["mixture"]\n',
    "samples = 200\n": "samples = 60\n",
    '"latents": 100': '"latents": 60',
    "features=contrastive": "'features={ name = \"contrastive\", steps = 6, batch_size = 16 }'",
}
LESS_TRAINING = shlex.split(
    "--set partitioner.base=kmeans --set partitioner.rounds=1 "
    "--set partitioner.steps=30 --set partitioner.batch_size=16"
)
LESS_DRAWING = ["--mapper", "mixture"]
"""The liberties that are taken with blocks: smaller numbers, less of `self-trained`, and a mapper
that draws nothing while it is fitted, where a line names none."""

_BLOCK = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass
class Ran:
    """What a page left.

    Args:
        folder: where it ran.
        names: what its Python defined.
        printed: by each block of Python.
    """

    folder: Path
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: list[str] = field(default_factory=list)


def blocks(page: Path, language: str) -> list[str]:
    """Returns the blocks in one language."""
    return [text for found, _, text in _BLOCK.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    """Returns what stands between the blocks."""
    return _BLOCK.sub("", page.read_text())


def languages(page: Path) -> set[str]:
    """Returns the languages of all blocks."""
    return {language for language, _, _ in _BLOCK.findall(page.read_text())}


def run(page: Path, folder: Path) -> Ran:
    """Runs all blocks of a page in a folder that holds what readers bring with them."""
    for name, size in (("images", 32), ("digits", 28), ("mnist", 28)):
        write_tiny_images(folder / f"{name}.npz", count=128, size=size)
    (folder / "runs").mkdir()
    write_weights(folder / "runs" / "netG.pth")
    ran, whole, end_of_python = Ran(folder), page.read_text(), 0
    with _importing_from(folder), contextlib.chdir(folder):
        for block in _BLOCK.finditer(whole):
            language, title, text = block.groups()
            for many, few in SHORTER.items():
                text = text.replace(many, few)
            if title:
                Path(title).write_text(text)
            if language == "python":
                ran.printed.append(_execute(text, title or page.name, ran.names))
                end_of_python = block.end()
            elif language == "text" and whole[end_of_python : block.start()].strip() == "":
                assert ran.printed[-1:] == [text]
            elif language in ("bash", "sh"):
                for line in text.replace("\\\n", " ").splitlines():
                    _type(line) if language == "bash" else _look_at(line)
            elif language in ("json", "toml"):
                json.loads(text) if language == "json" else tomllib.loads(text)
    return ran


def write_weights(path: Path) -> None:
    """Writes the weights of the shipped generator as a file that says nothing else."""
    weights = read_weights(ROOT / "registry" / "mnist-dcgan" / "model.safetensors")
    torch.save({n.replace("layers.", "main."): value for n, value in weights.items()}, path)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    path, modules = [*sys.path], {*sys.modules}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path[:] = path
    for name in {*sys.modules} - modules:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    installed.cache_clear()


def _execute(text: str, name: str, names: dict[str, object]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        exec(compile(text, name, "exec"), names)
    return stdout.getvalue()


def _type(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if (program, *arguments[:2]) == ("pip", "install", "-e"):
        _install(Path(arguments[2].partition("[")[0]))
        return
    assert program == "pgmkit", line
    named = {"--partitioner", "--sampler"} & {*arguments}
    if (arguments[0] == "shatter" and not named) or "self-trained" in arguments:
        arguments += LESS_TRAINING
    if arguments[0] == "shatter" and not {"--mapper", "--sampler"} & {*arguments}:
        arguments += LESS_DRAWING
    finished = run_pgmkit(*arguments)
    assert finished.code == 0, f"{line}\n{finished.stderr}"


def _install(project: Path) -> None:
    """Does what `pip install -e` does, without building."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = project / f"{table['name'].replace('-', '_')}-{table['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {table['name']}\nVersion: {table['version']}\n")
    points = table["entry-points"]["pgmkit.plugins"]
    lines = ["[pgmkit.plugins]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    sys.path.insert(0, str(project.absolute()))
    importlib.invalidate_caches()
    installed.cache_clear()


def _look_at(line: str) -> None:
    program, target, *_ = shlex.split(line, comments=True)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), line
    elif program == "python":
        assert (ROOT / target).is_file(), line
    else:
        assert line == "pip install ."
