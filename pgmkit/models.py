"""Whatever a reference names, loaded as what it is."""

from pathlib import Path
from typing import Any

import torch

from pgmkit import files
from pgmkit.errors import LoadError, ParameterError
from pgmkit.generator import Generator
from pgmkit.loading.folders import PARTITIONER_CONFIG
from pgmkit.loading.generators import generator_from_folder
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.runs import RUN_FILE
from pgmkit.shattering import SAMPLER_CONFIG, ShatteredGenerator

_OF_SHATTERED = ("architecture", "model_args")
"""The options that a shattered generator takes: its folder says all the rest."""


def load(
    reference: Path | str, *, device: torch.device | str = "auto", **options: Any
) -> Generator | ShatteredGenerator:
    """Loads what a reference names: a generator, or one that was shattered.

    Args:
        reference: as for `load_generator`; a `Path` is never a name of the registry.
        device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.
        **options: further arguments of `load_generator`; a shattered generator takes `architecture`
            and `model_args` alone, since its folder says all the rest.

    Raises:
        PgmkitError: see `load_generator` and `ShatteredGenerator.from_pretrained`.

    Example:
        >>> load("mnist-dcgan")
        Generator('mnist-dcgan': 64 normal latents -> 1×32×32 images, 919,424 parameters)
    """
    given = GeneratorOptions.from_table(options, "pgmkit.load")
    folder = open_folder(reference_of(reference))
    if folder.fetch(SAMPLER_CONFIG) is None:
        if folder.fetch(RUN_FILE) is not None and folder.fetch(PARTITIONER_CONFIG) is None:
            raise LoadError(
                f"{reference} holds no generator, or a run that was stopped: it has no "
                f"{SAMPLER_CONFIG}; {files.CONTINUES}"
            )
        return generator_from_folder(folder, given, device=device)
    for name in options:
        if name not in _OF_SHATTERED:
            raise ParameterError(
                f"{reference} is a shattered generator, whose folder says its {name}; leave it out"
            )
    return ShatteredGenerator.from_pretrained(reference, device=device, **options)
