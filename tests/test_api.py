"""What is public: the names of docs/api.md, and no others."""

import ast
import doctest
import importlib
import re
from pathlib import Path
from typing import Literal, get_origin

import pytest

import pgmkit

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()
ROWS = dict(re.findall(r"^\| `(pgmkit[\w.]*)` \| (.*) \|$", PAGE, re.MULTILINE))


def test_the_names_of_pgmkit_itself_are_on_the_page() -> None:
    assert re.findall(r"`(\w+)`", ROWS["pgmkit"]) == sorted(pgmkit.__all__, key=str.lower)


@pytest.mark.parametrize("module", [name for name in ROWS if name != "pgmkit"])
def test_public_modules_have_the_names_on_the_page(module: str) -> None:
    names = re.findall(r"`(\w+)`", ROWS[module])
    found = importlib.import_module(module)
    assert names == sorted(names, key=str.lower)
    for name in names:
        assert hasattr(found, name), name
        assert getattr(found, name).__doc__ or get_origin(getattr(found, name)) is Literal, name
    if hasattr(found, "__all__"):
        assert set(found.__all__) == set(names)


def test_the_built_in_methods_use_public_names_alone() -> None:
    plugins = Path(__file__).parent.parent / "plugins" / "pgmkit_plugins"
    hidden = [
        f"{path.relative_to(plugins)}: {node.module}.{alias.name}"
        for path in plugins.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "pgmkit"
        for alias in node.names
        if f"{node.module}.{alias.name}" not in ROWS
        and f"`{alias.name}`" not in ROWS.get(str(node.module), "")
    ]
    assert not hidden


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "pgmkit").rglob("*.py")) if ">>> " in path.read_text()],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
