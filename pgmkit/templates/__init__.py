"""New plugins from templates: a folder `common`, and one for each kind that adds or replaces files.

Templates are files with `$name` and the like in them, and the suffix `.in`.
"""

import ast
import importlib.util
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from pgmkit import files
from pgmkit.components import KINDS
from pgmkit.errors import OutputError, ParameterError, UnknownNameError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".in"
_COMPONENT = Path("PACKAGE", "component.py.in")


def new_plugin(name: str, kind: str, out: Path) -> list[Path]:
    """Writes a distribution with one component, which passes its own tests.

    Args:
        name: of the distribution and of the component, such as "acme-halves".
        kind: of the component, one of `pgmkit.components.KINDS`.
        out: the folder, which must not be there.

    Returns:
        The files, in order.

    Raises:
        ParameterError: the name is none, or a module of that name is installed.
        UnknownNameError: there is no such kind.
        OutputError: the folder is there, or cannot be written.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of component", kind, KINDS)
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package):
        raise ParameterError(
            f"the name of a plugin is lower-case letters and digits with '-' between, such as "
            f"acme-halves, not {name!r:.60}"
        )
    if importlib.util.find_spec(package) is not None:
        raise ParameterError(
            f"there is a Python module {package!r} already; choose another name, such as yours "
            f"before it: acme-{name}"
        )
    if out.exists():
        raise OutputError(f"{out} is there already; choose another folder with -o, or remove it")
    sources = _sources(kind)
    component = ast.parse(sources[_COMPONENT].read_text())
    values = {
        "name": name,
        "package": package,
        "kind": kind,
        "hook": KINDS[kind],
        "factory": _last_definition(component),
        "summary": _summary(component),
    }
    paths = {
        str(path).replace("PACKAGE", package).removesuffix(_SUFFIX): source
        for path, source in sorted(sources.items())
    }
    with files.replaced_folder(out) as folder:
        for path, source in paths.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(place, Template(source.read_text()).substitute(values))
    return [out / path for path in paths]


def _sources(kind: str) -> Mapping[Path, Path]:
    """Returns the templates of a kind, by their paths within the distribution."""
    here = Path(__file__).parent
    return {
        path.relative_to(folder): path
        for folder in (here / "common", here / kind)
        for path in folder.rglob(f"*{_SUFFIX}")
    }


def _last_definition(module: ast.Module) -> str:
    """Returns the name of the factory: the last class or function of a component's module."""
    found = [node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return next(name for name in reversed(found) if not name.startswith("_"))


def _summary(module: ast.Module) -> str:
    """Returns what the module says of itself, as part of a sentence."""
    text = (ast.get_docstring(module) or "").rstrip(".")
    return text[:1].lower() + text[1:]
