"""What the Tab key offers for a word, where a shell was told to ask; see `pgmkit --help`."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from pgmkit.loading.references import registry_configs
from pgmkit.plugins import installed

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_components(*kinds: str) -> _Complete:
    """Returns what offers the names of installed components, of some kinds or of all."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [
            CompletionItem(component.name, help=component.component.summary)
            for component in installed().components
            if (component.kind in kinds or not kinds) and component.name.startswith(incomplete)
        ]

    return complete


def complete_models(what: str) -> _Complete:
    """Returns what offers the generators, or classifiers, that ship, and else files."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in registry_configs(what) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]

    return complete
