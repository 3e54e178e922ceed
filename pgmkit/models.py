"""Whatever a reference names, loaded as what it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pgmkit import files
from pgmkit.conditional import ConditionalGenerator
from pgmkit.errors import LoadError, ParameterError
from pgmkit.generator import Generator
from pgmkit.loading.folders import CONDITIONAL_CONFIG, PARTITIONER_CONFIG
from pgmkit.loading.generators import generator_from_folder
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.runs import RUN_FILE
from pgmkit.shattering import SAMPLER_CONFIG, ShatteredGenerator

_KEPT = ("architecture", "model_args")
"""The options that a shattered or a conditional generator takes: its folder says all the rest."""


def load(
    reference: Path | str, *, device: torch.device | str = "auto", **options: Any
) -> Generator | ShatteredGenerator | ConditionalGenerator:
    """Loads what a reference names: a generator, one that was shattered, or a conditional one.

    Args:
        reference: as for `load_generator`; a `Path` is never a name of the registry.
        device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.
        **options: further arguments of `load_generator`; a shattered or a conditional generator
            takes `architecture` and `model_args` alone, since its folder says all the rest. With
            `partition` that partition of a conditional one is loaded, as a generator.

    Raises:
        PgmkitError: see `load_generator` and `from_pretrained` of the other two.

    Example:
        >>> load("mnist-dcgan")
        Generator('mnist-dcgan': 64 normal latents -> 1×32×32 images, 919,424 parameters)
    """
    given = GeneratorOptions.from_table(options, "pgmkit.load")
    folder = open_folder(reference_of(reference))
    if folder.fetch(SAMPLER_CONFIG) is not None:
        _check_kept(options, f"{reference} is a shattered generator")
        return ShatteredGenerator.from_pretrained(reference, device=device, **options)
    if folder.fetch(CONDITIONAL_CONFIG) is not None and given.partition is None:
        options.pop("partition", None)
        _check_kept(options, f"{reference} is a conditional generator")
        return ConditionalGenerator.from_pretrained(reference, device=device, **options)
    if folder.fetch(RUN_FILE) is not None and folder.fetch(PARTITIONER_CONFIG) is None:
        raise LoadError(
            f"{reference} holds no generator, or a run that was stopped: it has no "
            f"{SAMPLER_CONFIG}; {files.CONTINUES}"
        )
    return generator_from_folder(folder, given, device=device)


def _check_kept(options: Mapping[str, Any], what: str) -> None:
    """Raises ParameterError for an option that a folder says itself."""
    for name in options:
        if name not in _KEPT:
            raise ParameterError(f"{what}, whose folder says its {name}; leave it out")
