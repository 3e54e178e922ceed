"""Writing generators as Hub folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgmkit import files, pictures
from pgmkit.generator import Generator
from pgmkit.loading.folders import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE
from pgmkit.loading.weights import serialise

CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"


def terms(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a record says of licence and paper, which stand at the top of `config.json`."""
    return {key: record[key] for key in ("license", "paper") if key in record}


def card_header(license_name: Any, pipeline_tag: str) -> list[str]:
    """Returns the lines with which the Hub expects a model card to begin.

    Args:
        license_name: such as "Apache-2.0"; None is unknown.
        pipeline_tag: the Hub's name for what the model does.
    """
    return [
        "---",
        "library_name: pgmkit",
        f"license: {str(license_name or 'unknown').lower()}",
        f"pipeline_tag: {pipeline_tag}",
        "---",
        "",
    ]


def write_generator(folder: Path, generator: Generator) -> None:
    """Writes `config.json` and `model.safetensors` of a generator into `folder`."""
    stated = terms(generator.provenance)
    provenance = {k: v for k, v in generator.provenance.items() if k not in stated}
    cls = type(generator.module)
    if generator.architecture is None and not cls.__module__.startswith("torch."):
        provenance.setdefault("class", f"{cls.__module__}:{cls.__qualname__}")
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": generator.name,
        "architecture": generator.architecture,
        "model_args": generator.model_args,
        **generator.specs(),
        **stated,
        "provenance": provenance,
    }
    files.write_bytes(folder / WEIGHTS_FILE, serialise(generator.module.state_dict()))
    files.write_json(folder / CONFIG_FILE, config)


def save_generator(folder: Path, generator: Generator, *, card: str, samples: Tensor) -> None:
    """Writes a generator as a Hub folder, replacing what was there.

    Args:
        folder: where to.
        generator: what.
        card: the model card, Markdown; it shows `samples.png`.
        samples: images (N, C, H, W) for the grid.

    Raises:
        OutputError: the folder cannot be written.
    """
    with files.replaced_folder(folder) as fresh:
        write_generator(fresh, generator)
        files.write_text(fresh / CARD_FILE, card)
        pictures.write_grid(fresh / SAMPLES_FILE, samples, generator.image.range, scale=2)
