"""Model cards for what was trained here."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from pgmkit.loading.cards import SAMPLES_FILE, card_header


def model_card(record: Mapping[str, Any], pipeline_tag: str) -> str:
    """Returns a model card in Markdown.

    Args:
        record: the training config with `card`, `seed`, `epochs`, `steps`, `seconds`, ...
        pipeline_tag: the Hub's name for what the model does.
    """
    card = record.get("card", {})
    title = card.get("title", "A model trained with pgmkit")
    lines = [
        *card_header(card.get("license"), pipeline_tag),
        f"# {title}",
        "",
    ]
    if pipeline_tag == "unconditional-image-generation":
        lines += [f"![Samples]({SAMPLES_FILE})", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in _rows(record)]
    return "\n".join(lines) + "\n"


def _rows(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    card = dict(record.get("card", {}))
    card.pop("title", None)
    optimizer = ", ".join(f"{key} {value}" for key, value in record.get("optimizer", {}).items())
    measured = [(key, f"{value:.4f}") for key, value in record.get("measured", {}).items()]
    length = f"{record['epochs']} epochs, " if record.get("epochs") else ""
    return [
        *measured,
        *card.items(),
        ("recipe", f"{length}batch {record['batch_size']}, Adam {optimizer}"),
        ("model", f"`{dict(record.get('model', {}))}`"),
        ("seed", record.get("seed", 0)),
        ("steps", f"{record['steps']:,}"),
        ("trained in", f"{record['seconds'] / 60:.0f} minutes on {platform.machine()}"),
        ("torch", torch.__version__),
    ]
