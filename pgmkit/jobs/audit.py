"""The theorems of "Partition-Guided GANs" on a partitioner or a generator, as `pgmkit audit`."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pgmkit.conditional import ConditionalGenerator
from pgmkit.config import IMAGES, check_count
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.images import GeneratedImages, ImageSource, check_source, load_images
from pgmkit.loading.folders import PARTITIONER_CONFIG
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.machine import check_device, machine
from pgmkit.models import load
from pgmkit.partition import load_partitioner
from pgmkit.seeds import derive_seed
from pgmkit.theory import (
    MeasuredParts,
    audit_partitioner,
    lipschitz_estimate,
    measure_parts,
    tv_lower_bound,
)
from pgmkit.theory.distances import IMAGES as IMAGES_LOOKED_AT
from pgmkit.theory.words import Words, audit_in_words, bound_in_words

_OF_DATA = ("split", "size")
_OF_GENERATORS = ("partitioner", "latents")
_OF_PARTITIONERS = ("tries", "steps")


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """All settings of `pgmkit audit`; None is the default, and what is of no use must be None.

    Args:
        source: reference of a fitted partitioner or a generator; of a shattered generator, the
            generator in it is audited.
        generator: what its source does not say; further arguments of `pgmkit.load`.
        partitioner: reference of a fitted one, whose parts a generator is measured by.
        data: images, see `pgmkit.images.load_images`; of a generator its own by default.
        split: "train" or "test", where the data have both.
        size: side to which the data are padded or resized.
        images: at most so many are looked at.
        latents: at which the Jacobian of a generator is computed.
        tries, steps: see `pgmkit.theory.audit_partitioner`.
        seed: of everything random.
        device: where networks run; "auto" is CUDA, then MPS, then the CPU.
    """

    source: str
    generator: Mapping[str, Any] | None = None
    partitioner: str | None = None
    data: str | None = None
    split: str | None = None
    size: int | None = None
    images: int | None = None
    latents: int | None = None
    tries: int | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"

    def given(self, *names: str) -> dict[str, Any]:
        """Returns those of the settings that are not left out."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check(self) -> None:
        """Raises PgmkitError if a value is outside its range, as far as can be told quickly."""
        for name, value in self.given("size", "images", "latents", "tries", "steps").items():
            check_count(name if name == "size" else f"the number of {name}", value)
        check_device(self.device)
        if self.data is not None:
            check_source(self.data)


def audit(settings: AuditSettings) -> dict[str, Any]:
    """Audits a fitted partitioner by Theorem 3, or a generator by Theorem 1.

    Returns:
        Plain values: what was measured of the parts, and for each theorem numbers and words. None
        stands for an infinite number.

    Raises:
        PgmkitError: a setting is missing, unknown, of no use or outside its range.
    """
    settings.check()
    started = time.perf_counter()
    folder = open_folder(reference_of(settings.source))
    is_partitioner = (
        settings.generator is None
        and folder.weights is None
        and folder.fetch(PARTITIONER_CONFIG) is not None
    )
    found = _of_partitioner(settings) if is_partitioner else _of_generator(settings)
    return {
        "source": settings.source,
        **found,
        "seed": settings.seed,
        "device": str(check_device(settings.device)),
        "seconds": round(time.perf_counter() - started, 2),
        "machine": machine(),
    }


def _of_partitioner(settings: AuditSettings) -> dict[str, Any]:
    _refuse(settings, _OF_GENERATORS, f"{settings.source} is a partitioner")
    if settings.data is None:
        raise ParameterError(
            f"a partitioner is audited on images; name {IMAGES} with --data, such as the images "
            "that it was fitted to"
        )
    fitted = load_partitioner(settings.source)
    images = _data(settings)
    options = settings.given("images", *_OF_PARTITIONERS)
    found = audit_partitioner(fitted, images, seed=settings.seed, **options)
    numbers = asdict(found)
    measured = _parts(found.parts)
    measured |= {name: numbers[name] for name in ("starts", "reached", "pairs", "joined")}
    return {
        "images": images.summary(),
        "parts": {**measured, "straight": found.straight},
        "theorem_3": {
            "representation": {**numbers["representation"], "c0": found.representation.c0},
            "smallest_gradient": min(found.gradients),
            "median_gradient_at_starts": float(torch.tensor(found.first_gradients).median()),
            "steps": found.steps,
            "applies": found.applies,
            "keeps": found.keeps,
            **_told(audit_in_words(found)),
        },
    }


def _of_generator(settings: AuditSettings) -> dict[str, Any]:
    _refuse(settings, _OF_PARTITIONERS, f"{settings.source} is no partitioner")
    if settings.partitioner is None:
        _refuse(settings, ("data", "images"), "no --partitioner says what parts they have")
    if settings.data is None:
        _refuse(settings, _OF_DATA, "there are no --data")
    fitted = None if settings.partitioner is None else load_partitioner(settings.partitioner)
    device = check_device(settings.device)
    model = load(settings.source, device=device, **(settings.generator or {}))
    if isinstance(model, ConditionalGenerator):
        raise ParameterError(
            f"{settings.source} is conditional, and Theorem 1 is about one partition at a time; "
            "name it, such as --partition 0"
        )
    generator = model if isinstance(model, Generator) else model.generator
    parts, bound, images = None, None, None
    if fitted is not None:
        fitted.check_images(generator.image.shape, generator.name)
        count = settings.images or IMAGES_LOOKED_AT
        images = _data(settings) if settings.data is not None else _own(generator, count, settings)
        parts = measure_parts(fitted, images, images=count, seed=settings.seed)
    lipschitz = lipschitz_estimate(generator, seed=settings.seed, **settings.given("latents"))
    if parts is not None:
        bound = tv_lower_bound(parts.masses, parts.distances, lipschitz.value)
    words = bound_in_words(lipschitz, parts, bound, are_own=settings.data is None)
    return {
        "images": None if images is None else images.summary(),
        "parts": None if parts is None else _parts(parts),
        "theorem_1": {
            "lipschitz": asdict(lipschitz),
            "bound": None if bound is None else asdict(bound),
            **_told(words),
        },
    }


def _refuse(settings: AuditSettings, names: tuple[str, ...], why: str) -> None:
    """Raises ParameterError if one of these settings is given, which would be ignored."""
    for name in settings.given(*names):
        raise ParameterError(f"--{name} would be ignored, since {why}; leave it out")


def _data(settings: AuditSettings) -> ImageSource:
    assert settings.data is not None
    images = load_images(settings.data, **settings.given(*_OF_DATA))
    return images.to(check_device(settings.device))


def _own(generator: Generator, count: int, settings: AuditSettings) -> ImageSource:
    latents = generator.sample_latents(count, derive_seed(settings.seed, "images"))
    return GeneratedImages(generator, latents)


def _parts(parts: MeasuredParts) -> dict[str, Any]:
    """Returns what is known of the parts as plain values."""
    distances = [None if math.isinf(distance) else distance for distance in parts.distances]
    return {"num_images": parts.num_images, "sizes": parts.sizes, "distances": distances}


def _told(words: Words) -> dict[str, Any]:
    rows = [dict(zip(("what", "found", "measured"), row, strict=True)) for row in words.rows]
    return {"words": rows, "meaning": words.meaning}
