"""The folder of a conditional generator: a generator's, with masses and perhaps a partitioner."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pgmkit import files, pictures
from pgmkit.errors import LoadError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.loading.cards import PER_CLUSTER, SAMPLES_FILE, conditional_card
from pgmkit.loading.configs import read_masses
from pgmkit.loading.folders import (
    CONDITIONAL_CONFIG,
    FORMAT_VERSION,
    PARTITIONER_FOLDER,
    sub_folder,
)
from pgmkit.loading.generators import name_of, provenance_of
from pgmkit.loading.networks import Network, read_network
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.partitions import check_number
from pgmkit.loading.references import open_folder
from pgmkit.loading.saving import CARD_FILE, write_generator
from pgmkit.partition import FittedPartitioner
from pgmkit.partition.fitted import partitioner_from_folder
from pgmkit.states import why_not_saved


@dataclass(frozen=True)
class ReadFolder:
    """What the folder of a conditional generator holds."""

    network: Network
    name: str
    masses: Sequence[float]
    partitioner: FittedPartitioner | None
    provenance: Mapping[str, Any]


def write_folder(
    folder: Path,
    network: Generator,
    masses: Sequence[float],
    partitioner: FittedPartitioner | None,
    samples: Tensor,
    repository: str | None,
) -> None:
    """Writes a conditional generator; a partitioner that cannot be saved is left out, and told.

    Args:
        folder: where to.
        network: holds the conditional module, and is not called.
        masses: of the k partitions.
        partitioner: what found them, or None.
        samples: images of the first partitions, 8 of each, (m · 8, C, H, W).
        repository: "org/name" on the Hub, or None.

    Raises:
        OutputError: the folder cannot be written.
    """
    why = None if partitioner is None else why_not_saved(partitioner.partitioner)
    if why is not None:
        warnings.warn(
            f"the partitioner of {network.name!r} cannot be saved and is left out: {why}",
            PgmkitWarning,
            stacklevel=4,
        )
        partitioner = None
    files.remove(folder / CONDITIONAL_CONFIG)
    write_generator(folder, network)
    files.remove_folder(folder / PARTITIONER_FOLDER)
    if partitioner is not None:
        partitioner.save_pretrained(folder / PARTITIONER_FOLDER)
    pictures.write_rows(folder / SAMPLES_FILE, samples, network.image.range, PER_CLUSTER, scale=2)
    table = None if partitioner is None else partitioner.origin.get("partitioner")
    files.write_text(folder / CARD_FILE, conditional_card(network, masses, table, repository))
    description = {
        "format_version": FORMAT_VERSION,
        "masses": masses,
        "partitioner": partitioner is not None,
    }
    # Last, since its presence says that the folder is whole.
    files.write_json(folder / CONDITIONAL_CONFIG, description)


def read_folder(reference: str, options: GeneratorOptions) -> ReadFolder:
    """Reads what `write_folder` wrote.

    Args:
        reference: as for `pgmkit.load_generator`.
        options: what the user says of the network.

    Raises:
        LoadError: the folder holds something else, or is damaged.
        UnknownNameError: no installed plugin offers the architecture or the partitioner.
    """
    folder = open_folder(reference)
    masses = read_masses(folder)
    if masses is None:
        raise LoadError(
            f"{reference} holds no conditional generator: it has no {CONDITIONAL_CONFIG}; load "
            "others with pgmkit.load"
        )
    network = read_network(folder, options)
    check_number(network, masses, reference)
    partitioner = None
    if files.read_json(folder.path(CONDITIONAL_CONFIG), reference).get("partitioner"):
        partitioner = partitioner_from_folder(
            sub_folder(folder, PARTITIONER_FOLDER), f"{reference}, in {PARTITIONER_FOLDER},"
        )
    return ReadFolder(
        network, name_of(folder, network), masses, partitioner, provenance_of(folder, network)
    )
