"""A Hugging Face Space of a result: the page of `pgmkit explore`, to be pushed as it is."""

import importlib.metadata
import json
import shutil
from pathlib import Path

from pgmkit import files, runs
from pgmkit.errors import LoadError, OutputError
from pgmkit.loading.folders import CONDITIONAL_CONFIG, PARTITIONER_CONFIG
from pgmkit.runs import RUN_FILE
from pgmkit.shattering import SAMPLER_CONFIG

_APP = '''"""A page to look at a result of pgmkit."""

from pgmkit.exploring.page import build_page, how_it_looks
from pgmkit.exploring.opening import open_exhibit

page = build_page(open_exhibit("result"))
page.launch(**how_it_looks())
'''
_LEFT_BEHIND = (".*", "cells", "checkpoint-*", "learning", "*.log")


def write_space(result: Path, folder: Path) -> Path:
    """Writes a Space: an app, what it needs, and a copy of the result.

    Args:
        result: a folder that `pgmkit shatter`, `train` or `partition fit` wrote.
        folder: a new one.

    Returns:
        The folder.

    Raises:
        LoadError: the first holds no such result.
        OutputError: the second holds something, or cannot be written.
    """
    marks = (SAMPLER_CONFIG, CONDITIONAL_CONFIG, PARTITIONER_CONFIG, f"model/{CONDITIONAL_CONFIG}")
    if not any((result / mark).is_file() for mark in marks):
        raise LoadError(
            f"{result} holds nothing to explore: none of {', '.join(marks)}; give a folder that "
            "pgmkit shatter wrote"
        )
    runs.check_place(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} holds something already; choose a new folder")
    version, gradio = importlib.metadata.version("pgmkit"), _version_of("gradio")
    head = {
        "title": f"{_name(result)} in clusters",
        "sdk": "gradio",
        **({"sdk_version": gradio} if gradio else {}),
        "app_file": "app.py",
        "license": "other",
        "tags": ["pgmkit"],
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""]
    lines += [
        f"# {head['title']}",
        "",
        f"Made by `pgmkit explore --space`, pgmkit {version}. The weights are under the licence "
        "that `result/README.md` names.",
        "",
    ]
    with files.replaced_folder(folder) as new:
        shutil.copytree(
            result, new / "result", ignore=shutil.ignore_patterns(*_LEFT_BEHIND), symlinks=False
        )
        (new / "app.py").write_text(_APP)
        (new / "requirements.txt").write_text(f"pgmkit[explore]=={version}\n")
        (new / "README.md").write_text("\n".join(lines))
    return folder


def _name(result: Path) -> str:
    try:
        return str(files.read_json(result / RUN_FILE, str(result))["settings"]["source"])
    except (LoadError, KeyError, TypeError):
        return result.resolve().name


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
