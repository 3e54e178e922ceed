"""`pgmkit cache`."""

import time
from collections.abc import Sequence

import click

from pgmkit import files
from pgmkit.cache import PARTS, Entry, cache_limit, cache_root, entries, remove
from pgmkit.cli.output import examples, in_bytes, json_option, print_json, print_table
from pgmkit.errors import LoadError, UnknownNameError


@click.group(
    epilog=examples(
        "pgmkit cache ls", "pgmkit cache rm spectra", "pgmkit cache rm 1b6a6fdd 58d5e208"
    )
)
def cache() -> None:
    """Look at the cache, and empty it.

    It keeps finished spectra, features of reference images and unpacked archives for later runs.
    PGMKIT_CACHE names its folder, and PGMKIT_CACHE_SIZE bounds it, in GiB: what was used longest
    ago goes first.
    """


@cache.command("ls", epilog=examples("pgmkit cache ls", "pgmkit cache ls --json"))
@json_option
def list_entries(as_json: bool) -> None:
    """List what the cache keeps, and when it was used last."""
    found = entries()
    if as_json:
        print_json(
            {
                "folder": str(cache_root()),
                "limit": cache_limit(),
                "entries": [
                    {
                        "part": entry.part,
                        "name": entry.folder.name,
                        "bytes": entry.size,
                        "used": entry.used,
                        "holds": _held(entry),
                    }
                    for entry in found
                ],
            }
        )
        return
    rows = [
        (
            entry.part,
            entry.folder.name,
            in_bytes(entry.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
            _held(entry),
        )
        for entry in found
    ]
    print_table(rows, ("part", "name", "size", "last used", "holds"))
    total = in_bytes(sum(entry.size for entry in found))
    click.echo(f"\n{len(found)} entries, {total} of {in_bytes(cache_limit())}, in {cache_root()}")


@cache.command(
    "rm",
    epilog=examples("pgmkit cache rm spectra", "pgmkit cache rm 1b6a6fdd", "pgmkit cache rm --all"),
)
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all entries.")
@json_option
def remove_entries(names: Sequence[str], everything: bool, as_json: bool) -> None:
    """Remove entries from the cache.

    NAMES are those of `pgmkit cache ls`, or what they begin with, or a part: spectra, references
    or unpacked. A run that is using one computes what it needs again.
    """
    if bool(names) == everything:
        raise click.UsageError("Give names of entries or of parts, or --all.")
    found = entries()
    gone = found if everything else [entry for entry in found if _is_named(entry, names)]
    for name in names:
        if name not in PARTS and not any(_is_named(entry, [name]) for entry in found):
            raise UnknownNameError(
                "entry of the cache", name, [*PARTS, *(entry.folder.name for entry in found)]
            )
    remove(gone)
    size = sum(entry.size for entry in gone)
    if as_json:
        print_json({"removed": [entry.folder.name for entry in gone], "bytes": size})
    else:
        click.echo(f"{len(gone)} entries removed, {in_bytes(size)}")


def _is_named(entry: Entry, names: Sequence[str]) -> bool:
    return any(
        name and (name == entry.part or entry.folder.name.startswith(name)) for name in names
    )


def _held(entry: Entry) -> str:
    """Returns what an entry holds, as far as it says."""
    try:
        settings = files.read_json(entry.folder / "manifest.json", entry.folder.name)["settings"]
        return f"{settings['generator_name']}, {settings['num_latents']:,} latents"
    except (LoadError, KeyError, TypeError, ValueError):
        return "-"
