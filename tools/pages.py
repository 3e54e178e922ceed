"""What the documentation site has beside docs/: pages made of the code, and of other files here.

A hook of mkdocs. Commands come from click, methods from the installed components, names of Python
from the table of docs/api.md with their docstrings. Links that lead from one file of the repository
to another lead from page to page, and formulas become MathML, so that no script draws them.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from textwrap import dedent
from typing import Any

import click
import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from pgmkit.cli import cli
from pgmkit.components import KINDS
from pgmkit.plugins import disable_third_party_plugins, list_components

ROOT = Path(__file__).parent.parent
PROJECT = ["CHANGELOG.md", "CONTRIBUTING.md"]
MEASURED = (".md", ".png", ".csv", ".json", ".tex")
COMPONENT = "{ members: false, show_root_heading: false, show_root_toc_entry: false }"
ELSEWHERE: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the generated pages and puts them into the navigation."""
    disable_third_party_plugins()
    ELSEWHERE.clear()
    groups: dict[str, dict[str, str]] = {
        "commands": dict(command_pages()),
        "components": dict(component_pages()),
        "python": dict(python_pages()),
    }
    places: dict[str, list[Any]] = {
        "benchmarks": [p for p in measured() if p.endswith(".md") and p.count("/") < 3]
    }
    for group, pages in groups.items():
        ELSEWHERE.update({f"{group}/{name}.md": text for name, text in pages.items()})
        places[group] = [{name: f"{group}/{name}.md"} for name in pages]
    places["python"].insert(0, {"What is public": "api.md"})
    (reference,) = [entry["Reference"] for entry in config.nav or [] if "Reference" in entry]
    for entry in reference:
        for title, (group,) in entry.items():
            entry[title] = places[group]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and those of other folders of the repository."""
    for path, text in ELSEWHERE.items():
        files.append(File.generated(config, path, content=text))
    for path in (*PROJECT, *examples(), *measured()):
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    path = page.file.src_uri
    at = path if (ROOT / path).is_file() else f"docs/{path}"

    def moved(match: re.Match[str]) -> str:
        named = normpath(join(dirname(at), match[1]))
        if (ROOT / named).is_dir():
            named += "/README.md"
        target = named.removeprefix("docs/")
        return f"]({relpath(target, dirname(path) or '.')}{match[2] or ''})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)]*)?\)", moved, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Turns \(...\) and \[...\] into MathML."""
    for left, right, display in ((r"\(", r"\)", "inline"), (r"\[", r"\]", "block")):
        content = re.sub(
            rf'(class="arithmatex">){re.escape(left)}(.*?){re.escape(right)}',
            lambda match, display=display: (
                match[1] + convert(html.unescape(match[2]).strip(), display=display)
            ),
            content,
            flags=re.DOTALL,
        )
    return content


class Examples(griffe.Extension):  # type: ignore[misc]
    """Tells griffe that what follows `Example:` in a docstring is an example."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Calls the section by the name that griffe knows."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def measured() -> list[str]:
    """Returns the files with what was measured."""
    found = sorted(path for path in ROOT.glob("benchmarks/**/*") if path.suffix in MEASURED)
    return [str(path.relative_to(ROOT)) for path in found]


def examples() -> list[str]:
    """Returns the pages of the example plugins."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/plugins/**/*.md"))


def command_pages() -> Iterator[tuple[str, str]]:
    """Makes a page for each command, with its options and those of its sub-commands."""
    context = click.Context(cli, info_name="pgmkit")
    rows = ["", "| command | does |", "|---|---|"]
    pages = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        text = command_text(command, context)
        if isinstance(command, click.Group):
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                group = click.Context(command, info_name=name, parent=context)
                text += f"\n## pgmkit {name} {inner}\n\n{command_text(found, group)}"
        rows.append(f"| [`{name}`]({name}.md) | {cell(command.get_short_help_str(200))} |")
        pages[name] = f"# pgmkit {name}\n\n{text}"
    yield "pgmkit", "\n".join(["# pgmkit\n", command_text(cli, None), *rows])
    yield from pages.items()


def command_text(command: click.Command, parent: click.Context | None) -> str:
    """Says of a command what its `--help` does, in Markdown."""
    context = click.Context(command, info_name=command.name if parent else "pgmkit", parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = ["```text", usage, "```", "", *help_text(command.help), ""]
    records = [parameter.get_help_record(context) for parameter in command.params]
    options = [record for record in records if record and record[1]]
    if options:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| {code(name)} | {cell(text)} |" for name, text in options]
    lines += ["", *help_text(command.epilog)]
    return "\n".join(lines) + "\n"


def help_text(help_: str | None) -> Iterator[str]:
    """Yields the paragraphs of a help text; what click leaves as it stands is a block."""
    for paragraph in re.split(r"\n\s*\n", (help_ or "").strip()):
        if paragraph.lstrip().startswith("\b"):
            head, _, block = paragraph.replace("\b", "").strip("\n").partition("\n")
            yield f"{head}\n\n```text\n{dedent(block)}\n```\n"
        else:
            yield html.escape(" ".join(paragraph.split()), quote=False) + "\n"


def component_pages() -> Iterator[tuple[str, str]]:
    """Makes a page for each kind of component that comes with pgmkit."""
    for kind in KINDS:
        own = [c for c in list_components(kind) if c.plugin.startswith("pgmkit")]
        parts = [f"# {kind.capitalize().replace('-', ' ')}\n"]
        for found in own:
            component = found.component
            parts.append(f"## {found.name}\n")
            if component.requires:
                parts.append(f"Needs {', '.join(map(code, component.requires))}.\n")
            if component.citation:
                parts.append(f"Source: {component.citation}\n")
            module, _, attribute = str(component.factory).partition(":")
            parts.append(f"::: {module}.{attribute}\n    options: {COMPONENT}\n")
        if own:
            yield kind, "\n".join(parts)


def python_pages() -> Iterator[tuple[str, str]]:
    """Makes a page for each public module at the top, with all names of docs/api.md."""
    table = (ROOT / "docs" / "api.md").read_text()
    parts: dict[str, list[str]] = {}
    for module, row in re.findall(r"^\| `(pgmkit[\w.]*)` \| (.*) \|$", table, re.MULTILINE):
        top = ".".join(module.split(".")[:2])
        part = parts.setdefault(top, [f"# {top}\n"])
        if module != top:
            part.append(f"## {module}\n")
        part += [f"::: {module}.{name}\n" for name in re.findall(r"`(\w+)`", row)]
    return ((name, "\n".join(part)) for name, part in parts.items())


def code(text: str) -> str:
    """Returns text as code, in a cell of a table, too."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def cell(text: str) -> str:
    """Returns text for a cell of a table."""
    return (
        html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("*", "\\*")
    )
