"""A partitioner that was fitted: its parts, its folder, and the way to both."""

import hashlib
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pgmkit import contracts, files, pictures
from pgmkit.components import called, name_of
from pgmkit.config import check_count, check_seed, fits, mismatch
from pgmkit.errors import LoadError, ParameterError, first_line
from pgmkit.images.rows import Images
from pgmkit.images.source import ImageSource, ImageSpec, check_batch
from pgmkit.loading.cards import SAMPLES_FILE, partitioner_card
from pgmkit.loading.folders import (
    FORMAT_VERSION,
    PARTITIONER_CONFIG,
    ModelFolder,
    check_version,
)
from pgmkit.loading.hub import check_push, push_folder
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.loading.saving import CARD_FILE
from pgmkit.loading.weights import read_weights, serialise
from pgmkit.machine import check_device, check_memory, machine
from pgmkit.partition.parts import assign, check_values, gathered_logits, guide, margins_of
from pgmkit.plugins import build
from pgmkit.states import load_state_of, state_of, table_of, versions_of, why_not_saved

PARTITIONER_STATE = "partitioner.safetensors"
_PER_PART = 8
_BYTES = 16
"""For each value of an image that is looked at: in float32 and, for a moment, in float64."""

_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("partitioner", "image", "data"), Mapping),
    "sizes": list[int],
    "seed": int,
    "seconds": float,
    "machine": str,
    "versions": Mapping[str, str],
    "findings": Mapping[str, bool | int | float | str],
    "scores": Mapping[str, float] | None,
}
"""What `partitioner.json` says, with the types; scores alone may be left out."""


@dataclass(frozen=True)
class FittedPartitioner:
    """A partitioner with what it was fitted to.

    Args:
        partitioner: fitted.
        image: what its images are like.
        sizes: how many of the fitted images lie in each part.
        origin: `partitioner` (name and parameters), `data`, `seed`, `findings`, `seconds`, ...
        samples: some images of each part, (k · 8, C, H, W) in [-1, 1]; None after loading.
        labels: part of each image that it was fitted to, int64 (n,); None after loading.
    """

    partitioner: Any
    image: ImageSpec
    sizes: list[int]
    origin: Mapping[str, Any] = field(default_factory=dict)
    samples: Tensor | None = None
    labels: Tensor | None = None

    @property
    def num_partitions(self) -> int:
        """The number of parts, k."""
        return contracts.num_partitions_of(self.partitioner)

    @property
    def sha256(self) -> str | None:
        """What tells it from others: of its tensors; None where they cannot be saved."""
        if why_not_saved(self.partitioner) is not None:
            return None
        return hashlib.sha256(serialise(state_of(self.partitioner))).hexdigest()

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits (B, k) of images x (B, C, H, W) in [-1, 1]."""
        self._check(x)
        return contracts.logits_of(self.partitioner, x)

    def assign(self, x: Tensor) -> Tensor:
        """Returns the part of each image; see `pgmkit.partition.assign`."""
        self._check(x)
        return assign(self.partitioner, x)

    def guide(self, x: Tensor, part: int | Tensor) -> Tensor:
        """Returns the guide R_i(x), (B,); see `pgmkit.partition.guide`."""
        self._check(x)
        return guide(self.partitioner, x, part)

    def margins(self, x: Tensor) -> Tensor:
        """Returns by how much each image lies in its part rather than in another, (B,)."""
        return margins_of(self.logits(x))

    def check_images(self, shape: tuple[int, ...], whose: str | None = None) -> None:
        """Raises ParameterError unless images have the shape that the parts were found in.

        Args:
            shape: (C, H, W).
            whose: the generator that makes them; None if they are given.
        """
        if tuple(shape) != self.image.shape:
            these, cure = "these", f"give images of {self.image.shape} (--size changes the size)"
            if whose is not None:
                these, cure = f"those of {whose!r}", "fit it to images of that size (--size)"
            raise ParameterError(
                f"the {name_of(self.partitioner)!r} was fitted to images of {self.image.shape}, "
                f"and {these} are {tuple(shape)}; {cure}"
            )

    def _check(self, x: Tensor) -> None:
        check_values(x)
        self.check_images(tuple(x.shape[1:]))

    def with_origin(self, **facts: Any) -> Self:
        """Returns the same with more in its origin."""
        return replace(self, origin={**self.origin, **facts})

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes it as a Hub folder, in safetensors and JSON, with a card and samples.

        Raises:
            PluginError: it cannot be saved.
            OutputError: the folder cannot be written.
        """
        self._save(Path(folder), None)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        message: str | None = None,
        picture: Path | None = None,
    ) -> str:
        """Uploads to the Hugging Face Hub as "org/name" and returns the address.

        Args:
            repository: "org/name"; it is created if it is not there.
            private: whether a new repository is private.
            message: of the commit.
            picture: of samples, for the card of one that was loaded.

        Raises:
            LoadError: the Hub is out of reach, or refuses.
            PluginError: it cannot be saved.
        """
        check_push(repository)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), repository)
            if self.samples is None and picture is not None:
                shutil.copyfile(picture, Path(folder) / SAMPLES_FILE)
            return push_folder(Path(folder), repository, private=private, message=message)

    def _save(self, folder: Path, repository: str | None) -> None:
        state = serialise(state_of(self.partitioner))
        files.remove(folder / PARTITIONER_CONFIG)
        files.write_bytes(folder / PARTITIONER_STATE, state)
        if self.samples is not None:
            pictures.write_rows(
                folder / SAMPLES_FILE, self.samples, self.image.range, _PER_PART, scale=2
            )
        config = {
            "format_version": FORMAT_VERSION,
            **self.origin,
            "image": asdict(self.image),
            "sizes": self.sizes,
        }
        files.write_text(folder / CARD_FILE, partitioner_card(config, repository))
        # Last, since its presence says that the folder is whole.
        files.write_json(folder / PARTITIONER_CONFIG, config)


def build_partitioner(partitioner: Any, partitions: int | None = None) -> Any:
    """Returns a partitioner that is named, with so many parts, or the object itself.

    Args:
        partitioner: a name, a table of `name` and parameters, an object, or what was fitted before.
        partitions: k, at least 1; None is as many as it has by itself, which for most is 10.

    Raises:
        ParameterError: an object or a table has another number of parts.
    """
    if partitions is not None:
        check_count("the number of partitions", partitions)
    if isinstance(partitioner, FittedPartitioner):
        fitted = partitioner
        partitioner = {"name": "fixed", "partitioner": fitted.partitioner}
        partitioner |= {"image": list(fitted.image.shape), "sha256": fitted.sha256}
    is_asked = partitions is not None and isinstance(partitioner, str | Mapping)
    number = {"num_partitions": partitions} if is_asked else {}
    built = build("partitioners", partitioner, **number)
    if partitions is not None:
        contracts.check_number(built, partitions)
    return built


def check_fit(partitioner: Any, source: ImageSource) -> None:
    """Raises ParameterError if a partitioner cannot be fitted to these images."""
    if contracts.space_of(partitioner) != "images":
        raise ParameterError(
            f"the {name_of(partitioner)!r} looks at latents, and these are images; take other "
            "features"
        )
    if contracts.needs_labels(partitioner) and source.labels is None:
        raise ParameterError(
            f"the {called('partitioners', partitioner)} learns from labels, and the images have "
            "none; sort them into one folder per class, add an array of labels, or choose another"
        )
    contracts.check_images(partitioner, source.image, len(source))
    check_batch(source)


def fit_partitioner(
    partitioner: Any,
    source: ImageSource,
    *,
    partitions: int | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
) -> FittedPartitioner:
    """Fits a partitioner to the images of a source.

    Args:
        partitioner: a name, a table of `name` and parameters, or an object.
        source: such as `pgmkit.images.load_images` returns.
        partitions: k, at least 1; None is as many as the partitioner has by itself, which for most
            is 10.
        seed: of everything random.
        device: where networks look at the images of a file or an array; "auto" is CUDA, then MPS,
            then the CPU. Another source says itself where its images are.

    Raises:
        ParameterError: a value is outside its range, or there are fewer images than parts.
        PluginError: the partitioner fails.

    Example:
        >>> from pgmkit.images import ArrayImages
        >>> x = torch.cat([torch.full((20, 1, 4, 4), value) for value in (-0.5, 0.5)])
        >>> fit_partitioner("kmeans", ArrayImages(x, value_range=(-1, 1)), partitions=2).sizes
        [20, 20]
    """
    check_seed(seed)
    if not hasattr(source, "batch"):
        raise ParameterError(
            "a partitioner is fitted to a source of images, such as pgmkit.images.ArrayImages(x), "
            f"not {type(source).__name__}"
        )
    built = build_partitioner(partitioner, partitions)
    if isinstance(source, Images):
        source = source.to(check_device(device))
    check_fit(built, source)
    started = time.perf_counter()
    contracts.fit("partitioners", built, source, seed)
    labels = gathered_logits(built, source).argmax(dim=1)
    number = contracts.num_partitions_of(built)
    if partitions is not None:
        contracts.tell_of_number(name_of(built), "parts", partitions, number)
    findings = contracts.findings_of("partitioners", built)
    table = table_of(built)
    origin = {
        "partitioner": table,
        "findings": findings,
        "data": source.summary(),
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 2),
        "device": str(source.device),
        "versions": versions_of(table),
        "machine": machine(),
    }
    sizes = labels.bincount(minlength=number).tolist()
    return FittedPartitioner(
        built, source.image, sizes, origin, _samples(source, labels, number), labels
    )


def load_partitioner(reference: Path | str) -> FittedPartitioner:
    """Loads what `FittedPartitioner.save_pretrained` wrote.

    Args:
        reference: a folder, "local-dir:/path", or "hf-hub:org/name[@revision]".

    Raises:
        LoadError: the folder holds something else, or is damaged.
        UnknownNameError: no installed plugin offers the partitioner.
    """
    text = reference_of(reference)
    return partitioner_from_folder(open_folder(text), text)


def partitioner_from_folder(folder: ModelFolder, text: str) -> FittedPartitioner:
    """Loads the partitioner of an open folder; see `load_partitioner`.

    Args:
        folder: where its files come from.
        text: what the folder is called in messages.
    """
    if folder.fetch(PARTITIONER_CONFIG) is None:
        raise LoadError(
            f"{text} holds no partitioner: it has no {PARTITIONER_CONFIG}; fit one with pgmkit "
            "partition fit"
        )
    path = folder.path(PARTITIONER_CONFIG)
    config = files.read_json(path, text)
    check_version(config, text)
    state = read_weights(folder.path(PARTITIONER_STATE))
    try:
        _check_config(config)
        table = dict(config.pop("partitioner"))
        sizes, image = config.pop("sizes"), config.pop("image")
        spec = ImageSpec(tuple(image["shape"]), tuple(image["range"]))
        needed = _BYTES * math.prod(spec.shape)
        check_memory(needed, f"images of the shape {spec.shape}", "correct image.shape")
        partitioner = build("partitioners", {"name": table["name"], **table["params"]})
        load_state_of(partitioner, state)
        for name in state.keys() - state_of(partitioner).keys():
            raise ParameterError(f"the {name_of(partitioner)!r} has no tensor {name!r:.60}")
        logits = contracts.logits_of(partitioner, torch.zeros(1, *spec.shape))
        if len(sizes) != logits.shape[1]:
            raise ParameterError(f"it has {logits.shape[1]} parts, and sizes {sizes!r:.60}")
    except Exception as error:  # of any kind, since both files may be anything
        if type(error).__name__ == "UnknownNameError":
            raise
        raise LoadError(
            f"{path} is damaged or of another version: {type(error).__name__}: "
            f"{first_line(error)}; fit the partitioner again"
        ) from error
    config.pop("format_version", None)
    return FittedPartitioner(partitioner, spec, sizes, {"partitioner": table, **config})


def _check_config(config: Mapping[str, Any]) -> None:
    """Raises ParameterError unless `partitioner.json` says what it must, in values of its kinds."""
    for name, kind in _KINDS.items():
        value = config.get(name)
        if not fits(value, kind):
            raise ParameterError(f"{name!r} must be {mismatch(value, kind)}")
    sizes = config["sizes"]
    if not all(0 <= size < 2**53 for size in sizes) or not sum(sizes):
        raise ParameterError(f"'sizes' must be numbers from 0, and not all 0, not {sizes!r:.60}")


def _samples(source: ImageSource, labels: Tensor, number: int) -> Tensor:
    """Returns the first images of each part, (k · 8, C, H, W); blank ones where it has fewer."""
    shape = source.image.shape
    blank = torch.full((1, *shape), float(source.image.range[1]))
    rows = []
    for part in range(number):
        index = (labels == part).nonzero().flatten()[:_PER_PART]
        images = source.batch(index).cpu() if len(index) else blank[:0]
        rows += [images, blank.expand(_PER_PART - len(index), *shape)]
    return torch.cat(rows)
