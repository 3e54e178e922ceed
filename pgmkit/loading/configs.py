"""What the `config.json` of a model folder says, whoever wrote it. Nothing here imports torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgmkit import files
from pgmkit.config import fits, mismatch
from pgmkit.errors import LoadError, ParameterError, nearest_names
from pgmkit.loading.folders import (
    CONDITIONAL_CONFIG,
    CONFIG_FILE,
    PARTITIONER_CONFIG,
    ModelFolder,
    check_version,
)

FIELDS: Mapping[str, type] = {
    **dict.fromkeys(("architecture", "weights", "weights_key", "weights_prefix"), str),
    **dict.fromkeys(("model_args", "latent", "image", "measured", "provenance"), dict),
    **dict.fromkeys(("name", "license", "paper"), str),
    "format_version": int,
}
"""What `config.json` of a generator may hold, with the types."""

_SLACK = 1e-6
_OURS = ("format_version", "architecture", "model_args", "latent", "image", "weights_key")
_OF_OTHERS = {
    *("_name_or_path", "architectures", "model_type", "torch_dtype", "dtype", "library_name"),
    *("transformers_version", "license", "license_name", "license_link", "tags", "pipeline_tag"),
    *("repo_url", "docs_url", "paper_url", "coders", "datasets", "language", "model_card"),
}
"""What stands in configs of other libraries and says nothing about how a network is built."""


@dataclass(frozen=True)
class FolderConfig:
    """What the `config.json` of a folder says.

    Args:
        ours: fields of the format of pgmkit.
        others: all further fields; arguments of the architecture, where a library wrote them flat.
        where: "config.json of REFERENCE", for messages.
    """

    ours: Mapping[str, Any]
    others: Mapping[str, Any]
    where: str

    def check_unknown(self) -> None:
        """Raises LoadError if there are fields that nobody has understood."""
        for name in self.others:
            raise LoadError(
                f"{self.where} has no field {name!r}; {nearest_names(name, FIELDS)} (facts of your "
                "own belong under 'provenance')"
            )


def read_config(folder: ModelFolder) -> FolderConfig:
    """Reads `config.json` and checks the types of its fields; it may be missing.

    Raises:
        LoadError: it is damaged, or a field is of another type.
    """
    config = folder.config()
    where = f"{CONFIG_FILE} of {folder.reference}"
    if not any(name in config for name in _OURS):
        if folder.weights is None and folder.fetch(PARTITIONER_CONFIG) is not None:
            raise LoadError(
                f"{folder.reference} holds a partitioner and no generator; see pgmkit partition "
                "info, and give it to pgmkit shatter as --partitioner"
            )
        others = {name: value for name, value in config.items() if name not in _OF_OTHERS}
        return FolderConfig({}, others, where)
    ours = {name: config[name] for name in FIELDS if config.get(name) is not None}
    for name, value in ours.items():
        if not fits(value, FIELDS[name]):
            raise LoadError(f"{name!r} in {where} must be {mismatch(value, FIELDS[name])}")
    others = {k: v for k, v in config.items() if k not in FIELDS and k not in _OF_OTHERS}
    return FolderConfig(ours, others, where)


def facts_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns in texts what a config says of a generator: its network, latents, images, licence."""
    latent, image = config.get("latent", {}), config.get("image", {})
    shape = image.get("shape")
    return {
        "architecture": str(config.get("architecture", "-")),
        "latent": f"{latent.get('dim', '?')} {latent.get('distribution', 'normal')}",
        "image": "×".join(map(str, shape)) if isinstance(shape, list) else "?",
        "license": str(config.get("license", "-")),
    }


def read_masses(folder: ModelFolder) -> tuple[float, ...] | None:
    """Returns the masses of the partitions of a conditional generator; None if it is none.

    Raises:
        LoadError: its `conditional.json` is damaged.
    """
    path = folder.fetch(CONDITIONAL_CONFIG)
    if path is None:
        return None
    described = files.read_json(path, folder.reference)
    check_version(described, folder.reference)
    try:
        return checked_masses(described.get("masses"))
    except ParameterError as error:
        raise LoadError(
            f"{CONDITIONAL_CONFIG} of {folder.reference} is damaged or of another version: "
            f"{error}; save the generator again"
        ) from error


def checked_masses(masses: Any) -> tuple[float, ...]:
    """Returns the masses of partitions, how often each is drawn, as numbers.

    Raises:
        ParameterError: they are no numbers from 0 that sum to 1.
    """
    if not fits(masses, list[float]) or not masses:
        raise ParameterError(f"masses are numbers, one for each partition, not {masses!r:.60}")
    if not all(0 <= mass <= 1 for mass in masses) or abs(math.fsum(masses) - 1) > _SLACK:
        raise ParameterError(f"masses are numbers from 0 that sum to 1, not {masses!r:.60}")
    return tuple(map(float, masses))
