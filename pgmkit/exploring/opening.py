"""From a reference to what can be explored."""

import warnings
from pathlib import Path

import torch

from pgmkit import files
from pgmkit.conditional import ConditionalGenerator
from pgmkit.errors import LoadError, ParameterError, PgmkitError, first_line
from pgmkit.exploring.conditional import ConditionalExhibit
from pgmkit.exploring.exhibit import Exhibit
from pgmkit.exploring.parts import PartitionerExhibit
from pgmkit.exploring.shattered import ShatteredExhibit
from pgmkit.loading.folders import CONDITIONAL_CONFIG, PARTITIONER_CONFIG
from pgmkit.loading.options import GeneratorOptions, shatter_command
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.models import load
from pgmkit.partition import load_partitioner
from pgmkit.runs import RUN_FILE
from pgmkit.shattering import ShatteredGenerator
from pgmkit.spectrum import Spectrum, load_spectrum

_SPECTRUM = "spectrum"


def open_exhibit(reference: Path | str, *, device: torch.device | str = "auto") -> Exhibit:
    """Opens what `pgmkit shatter`, `partition fit` or `train` wrote, or what was published.

    Args:
        reference: a folder, a name of the registry, "local-dir:..." or
            "hf-hub:org/name[@revision]".
        device: where to put the weights.

    Raises:
        ParameterError: it is a generator without clusters.
        LoadError: there is nothing, or what is there is damaged or of another version.
    """
    text, where = reference_of(reference), place_of(reference)
    model = where / "model" / CONDITIONAL_CONFIG
    if (where / RUN_FILE).is_file() and model.is_file():  # of a training
        where = model.parent
        text = reference_of(where)
    opened = open_folder(text)
    folder = where if where.is_dir() else None
    if opened.weights is None and opened.fetch(PARTITIONER_CONFIG) is not None:
        return PartitionerExhibit(load_partitioner(text), folder)
    found = load(text, device=device)
    if isinstance(found, ConditionalGenerator):
        return ConditionalExhibit(found, folder)
    if isinstance(found, ShatteredGenerator):
        spectrum, notes = _spectrum_of(folder)
        return ShatteredExhibit(found, spectrum, folder=folder, notes=notes)
    command = shatter_command(text, GeneratorOptions())
    raise ParameterError(f"{reference} has no clusters to explore; find them first: {command}")


def place_of(reference: Path | str) -> Path:
    """Returns where a reference is on this machine, if it is here at all."""
    return Path(str(reference).removeprefix("local-dir:"))


def _spectrum_of(folder: Path | None) -> tuple[Spectrum | None, list[str]]:
    """Returns the spectrum of a result; None, and a note, where it is not there."""
    told = (
        "Its spectrum is not there, so what was removed, the map and other methods cannot be shown"
    )
    if folder is None:
        return None, [f"{told}."]
    where = folder / _SPECTRUM
    try:
        if not where.exists():
            run = files.read_json(folder / RUN_FILE, str(folder))
            given = run["settings"]["spectrum"].get("folder")
            if given is None:
                raise LoadError(f"there is no {where}")
            where = Path(given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_spectrum(where), []
    except (PgmkitError, OSError, KeyError, TypeError, AttributeError) as error:
        return None, [f"{told}: {first_line(error)}."]
