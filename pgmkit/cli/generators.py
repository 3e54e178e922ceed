"""`pgmkit generators`."""

from typing import Any

import click

from pgmkit.cli.output import json_option, print_json, print_table
from pgmkit.loading.references import open_folder, registry_configs


@click.group()
def generators() -> None:
    """List generators and tell about one."""


@generators.command("ls")
@json_option
def list_generators(as_json: bool) -> None:
    """List the generators that ship with pgmkit."""
    found = registry_configs("generator")
    if as_json:
        print_json([{**config, "name": name} for name, config in found.items()])
        return
    rows = [(name, *_facts(config).values()) for name, config in found.items()]
    print_table(rows, ("name", "architecture", "latent", "image", "license"))


@generators.command("info")
@click.argument("reference")
@json_option
def info(reference: str, as_json: bool) -> None:
    """Tell about one generator: a registry name, local-dir:/path or hf-hub:org/name[@revision]."""
    folder = open_folder(reference)
    config = {**folder.config(), **folder.provenance}
    if as_json:
        print_json({"reference": reference, **config})
        return
    rows = [("reference", reference), *_facts(config).items()]
    rows += [(key, str(config[key])) for key in ("paper", "repo", "revision") if key in config]
    print_table(rows, ("field", "value"))


def _facts(config: dict[str, Any]) -> dict[str, str]:
    latent, image = config.get("latent", {}), config.get("image", {})
    return {
        "architecture": str(config.get("architecture", "-")),
        "latent": f"{latent.get('dim', '?')} {latent.get('distribution', 'normal')}",
        "image": "×".join(map(str, image.get("shape", "?"))),
        "license": str(config.get("license", "-")),
    }
