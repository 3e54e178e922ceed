"""What can be told of a reference before it is used: files, weights, guesses, and what it makes."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import PgmkitError, PgmkitNote, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.loading.batch_norm import Drift, drifts
from pgmkit.loading.checkpoints import natural
from pgmkit.loading.configs import read_config
from pgmkit.loading.folders import ModelFolder
from pgmkit.loading.generators import generator_from_folder
from pgmkit.loading.layouts import find_weights
from pgmkit.loading.networks import NoArchitectureError
from pgmkit.loading.options import AUTO, GeneratorOptions, shatter_command
from pgmkit.loading.weights import read_checkpoint

SAMPLES = 64
_SECONDS = 5.0
"""How long latent dimensions are tried, about; what is left then is said to be left."""

_SAME = 1e-5
"""Images that differ by less than this share of their range are the same."""


@dataclass
class Inspection:
    """What there is behind a reference; what could not be found out is told in `problems`.

    Args:
        reference: as the user wrote it.
        files: name and size in bytes (None where that is not known) of the files.
        weights: name of the weight file that is taken; None if there is none.
        config: fields of `config.json` that pgmkit knows.
        entries: what the weight file holds: name, shape and type of each tensor.
        notes: what had to be found or guessed, and why.
        generator: the generator, if it can be loaded.
        norms: how far the statistics of batch norms are from those of the prior.
        behaviour: what its images depend on, and other facts about them.
        warnings: what loading it warns of.
        problems: what stands in the way, each with what to do.
        command: what shatters it.
        samples: images (64, C, H, W), if there is a generator.
    """

    reference: str
    files: list[tuple[str, int | None]] = field(default_factory=list)
    weights: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    entries: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    generator: Generator | None = None
    norms: list[Drift] = field(default_factory=list)
    behaviour: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    command: str | None = None
    samples: Tensor | None = None


def inspect(folder: ModelFolder, options: GeneratorOptions) -> Inspection:
    """Tells what there is in a model folder, as far as can be told.

    Args:
        folder: the open folder.
        options: what the user says of the generator; where neither they nor the folder name an
            architecture, it is inferred.

    Raises:
        LoadError: the folder cannot be read at all.
    """
    found = Inspection(folder.reference)
    sizes = folder.sizes()
    found.files = [(name, sizes.get(name)) for name in folder.names()]
    with _noted(found):
        found.config = dict(read_config(folder).ours)
    with _noted(found):
        _read_weights(found, folder, options)
    if found.weights is not None:
        with _noted(found):
            _load(found, folder, options)
    if found.generator is not None:
        with _noted(found):
            _look(found, found.generator)
    return found


def observe(generator: Generator, z: Tensor, images: Tensor) -> list[str]:
    """Tells what images depend on: the latent and each of its dimensions, chance, their batch.

    Latents z (N, latent.dim) are at least 4, and the images what it made of them. Takes a few
    seconds at most.

    Returns:
        One sentence each.
    """
    return [*_values(generator, images), *_repeats(images), *_dependence(generator, z, images)]


@contextlib.contextmanager
def _noted(found: Inspection) -> Iterator[None]:
    """Takes an expected error for a problem that is told, and goes on behind the block."""
    try:
        yield
    except PgmkitError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))


def _read_weights(found: Inspection, folder: ModelFolder, options: GeneratorOptions) -> None:
    named = options.weights or folder.weights or found.config.get("weights")
    path, _ = find_weights(folder, named)
    found.weights = named or path.name
    checkpoint = read_checkpoint(path)
    found.entries = [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in sorted(_named_tensors(checkpoint), key=lambda pair: natural(pair[0]))
    ]


def _load(found: Inspection, folder: ModelFolder, options: GeneratorOptions) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PgmkitWarning)
        try:
            found.generator = generator_from_folder(folder, options)
        except NoArchitectureError:
            options = replace(options, architecture=AUTO)
            found.generator = generator_from_folder(folder, options)
    found.notes = list(found.generator.provenance.get("notes", ()))
    told = [warning for warning in caught if issubclass(warning.category, PgmkitWarning)]
    found.warnings = [
        str(warning.message) for warning in told if not issubclass(warning.category, PgmkitNote)
    ]
    found.command = shatter_command(found.reference, options)


def _look(found: Inspection, generator: Generator) -> None:
    found.norms = drifts(generator)
    z = generator.sample_latents(SAMPLES, seed=0)
    images = generator.images(z)
    found.behaviour = observe(generator, z, images)
    found.samples = images


def _named_tensors(loaded: Any) -> list[tuple[str, Tensor]]:
    """Returns the tensors of nested dictionaries, each dictionary once, with where they are."""
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    waiting = [("", loaded)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            found.append((place, value))
        elif isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            start = f"{place}/" if place else ""
            waiting += [(f"{start}{key}", part) for key, part in value.items()]
    return found


def _values(generator: Generator, images: Tensor) -> list[str]:
    low, high = generator.image.range
    smallest, largest = float(images.min()), float(images.max())
    edge = 0.01 * (high - low)
    saturated = float(((images < low + edge) | (images > high - edge)).double().mean())
    return [
        f"values from {smallest:.3g} to {largest:.3g}, mean {float(images.mean()):.3g}; the "
        f"range is [{low:g}, {high:g}], and {saturated:.0%} of the values lie at its ends"
    ]


def _repeats(images: Tensor) -> list[str]:
    flat = images.flatten(1).double()
    span = float(flat.max() - flat.min()) or 1.0
    apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5 / span
    same = (apart < 1e-3).sum(dim=1) > 1
    if not same.any():
        return [f"no two of {len(images)} images are the same"]
    return [f"{int(same.sum())} of {len(images)} images are the same as another: it has collapsed"]


@torch.no_grad()
def _dependence(generator: Generator, z: Tensor, images: Tensor) -> list[str]:
    span = float(images.max() - images.min()) or 1.0

    def differ(one: Tensor, other: Tensor) -> bool:
        return bool((one.float() - other.float()).abs().max() > _SAME * span)

    told = []
    if differ(generator.images(z), images):
        told.append(
            "the same latents give other images each time: there is chance inside; switch it off, "
            "since a Jacobian needs a function"
        )
    elif differ(generator.images(z[:1]), images[:1]):
        told.append("images depend on the others of their batch (batch norm in training mode?)")
    ignored, tried = _ignored(generator, z[:4], differ)
    if ignored:
        names = ", ".join(map(str, ignored[:12])) + (" ..." if len(ignored) > 12 else "")
        told.append(f"{len(ignored)} of {tried} latent dimensions change nothing: {names}")
    else:
        which = "" if tried == z.shape[1] else "first "
        told.append(f"each of the {which}{tried} latent dimensions changes the images")
    return told


def _ignored(
    generator: Generator, z: Tensor, differ: Callable[[Tensor, Tensor], bool]
) -> tuple[list[int], int]:
    """Returns which latent dimensions change nothing, and how many there was time to try."""
    base, other = generator.images(z), generator.sample_latents(len(z), seed=1)
    ignored = []
    started = time.perf_counter()
    for dim in range(z.shape[1]):
        moved = z.clone()
        moved[:, dim] = other[:, dim]
        if not differ(generator.images(moved), base):
            ignored.append(dim)
        if time.perf_counter() - started > _SECONDS:
            return ignored, dim + 1
    return ignored, z.shape[1]
