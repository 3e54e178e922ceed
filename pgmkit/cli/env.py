"""`pgmkit env`."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import pgmkit
from pgmkit.cache import cache_limit, cache_root, entries
from pgmkit.cli.output import examples, in_bytes, json_option, print_json, print_table
from pgmkit.components import OWN_DISTRIBUTION, stdout_to_stderr
from pgmkit.errors import first_line
from pgmkit.loading.requests import client_constants, endpoint, why_unreachable, without_secrets
from pgmkit.plugins import installed

_SECONDS = 3.0
"""How long the Hub is waited for."""

_VARIABLES = re.compile(
    r"(PGMKIT|HF|XDG_CACHE|CUDA|OMP|MKL|PYTORCH|TORCH|PYTHON)_?\w*|(HTTPS?|NO|ALL)_PROXY"
    r"|SSL_CERT_FILE|VIRTUAL_ENV|CONDA_DEFAULT_ENV|NO_COLOR",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


@click.command(epilog=examples("pgmkit env", "pgmkit env --json > environment.json"))
@json_option
def env(as_json: bool) -> None:
    """Tell what belongs in a report of a fault: versions, devices, plugins, cache, and the Hub.

    The Hub is asked for an answer, for three seconds at most. Tokens and passwords are left out.
    """
    told: dict[str, Any] = {}
    with stdout_to_stderr():
        for name, tell in _TOLD.items():
            try:
                told[name] = tell()
            except Exception as error:  # a report of a fault goes on, whatever is wrong
                told[name] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    if as_json:
        print_json(told)
        return
    for name, facts in told.items():
        click.echo(f"{name}:")
        rows = [(f"  {fact}", _shown(value)) for fact, value in facts.items()] or [("  none", "")]
        print_table(rows[1:], rows[0])


def _shown(value: Any) -> str:
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


def _versions() -> Mapping[str, Any]:
    return {
        "pgmkit": pgmkit.__version__,
        "at": str(Path(pgmkit.__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "run by": sys.executable,
        "system": platform.platform(),
    }


def _packages() -> Mapping[str, Any]:
    """Returns the versions of what pgmkit needs, and of what it can use and is there."""
    found: dict[str, Any] = {}
    lines = importlib.metadata.requires(OWN_DISTRIBUTION) or []
    for line in (line for line in lines if not re.search(r"extra == .dev\b", line)):
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if "extra ==" not in line:
                found[name] = "missing"
    return found


def _devices() -> Mapping[str, Any]:
    import torch

    from pgmkit.machine import available_memory, check_device, machine

    memory = available_memory()
    found = {"machine": machine(), "memory left": "-" if memory is None else in_bytes(memory)}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {in_bytes(properties.total_memory)}"
    found["CUDA of torch"] = torch.version.cuda or "none"
    return {**found, "taken by default": str(check_device("auto"))}


def _plugins() -> Mapping[str, Any]:
    """Returns the plugins of others, and those of pgmkit that are not loaded."""
    return {
        f"{record.name} {record.version}": record.error or record.status
        for record in installed().records
        if record.name.partition(":")[0] != OWN_DISTRIBUTION or record.status != "loaded"
    }


def _cache() -> Mapping[str, Any]:
    found = {"folder": str(cache_root()), "limit": in_bytes(cache_limit())}
    sizes: dict[str, list[int]] = {}
    for entry in entries():
        sizes.setdefault(entry.part, []).append(entry.size)
    for part, all_sizes in sizes.items():
        found[part] = f"{len(all_sizes)} entries, {in_bytes(sum(all_sizes))}"
    return found


def _hub() -> Mapping[str, Any]:
    from huggingface_hub import get_token

    reason = why_unreachable(_SECONDS)
    return {
        "endpoint": endpoint(),
        "answers": not reason,
        **({"because": reason} if reason else {}),
        "token": get_token() is not None,
        "cache": str(client_constants().HF_HUB_CACHE),
    }


def _variables() -> Mapping[str, Any]:
    return {
        name: "set" if _SECRET.search(name) else without_secrets(value)
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name)
    }


_TOLD: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "versions": _versions,
    "packages": _packages,
    "devices": _devices,
    "plugins": _plugins,
    "cache": _cache,
    "hub": _hub,
    "variables": _variables,
}
