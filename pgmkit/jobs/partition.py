"""A partitioner that is fitted to images, as a run."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts, defaults, files, pictures, progress, runs
from pgmkit.components import name_of
from pgmkit.config import IMAGES, check_count, check_seed, make_settings, with_names
from pgmkit.errors import ParameterError
from pgmkit.evaluate import figures
from pgmkit.evaluate.partition_report import CURVES, write_partition_report
from pgmkit.evaluate.partitions import score_partition
from pgmkit.images import check_source, load_images
from pgmkit.images.source import ImageSource
from pgmkit.learning import keeping
from pgmkit.learning.trial import seconds_of
from pgmkit.loading.folders import PARTITIONER_CONFIG
from pgmkit.machine import check_device, check_memory
from pgmkit.partition.fitted import (
    FittedPartitioner,
    build_partitioner,
    check_fit,
    fit_partitioner,
    load_partitioner,
)
from pgmkit.partition.fixed import FixedPartitioner
from pgmkit.partition.parts import gathered_logits, margins_of
from pgmkit.states import table_of, why_not_saved

_LEARNING = "learning"
_FEW, _FEW_LOOKED_AT = 80, 8
_DRAWN = 24
"""Bytes for each value of an image that is drawn: in float32, and on the way to a picture."""


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """All settings of `pgmkit partition fit`, as they stand in a config file.

    Args:
        data: images, see `pgmkit.images.load_images`.
        partitioner: a name, or a table of `name` and parameters.
        partitions: k, at least 1; None is as many as the partitioner has by itself.
        split: "train" or "test", where the data have both.
        size: side to which images are padded or resized; None leaves them.
        seed: of everything random.
        device: where networks run, such as "cpu" or "cuda:1"; "auto" is CUDA, then MPS, then the
            CPU.
    """

    data: str
    partitioner: str | Mapping[str, Any] = defaults.PARTITIONER
    partitions: int | None = None
    split: str = "train"
    size: int | None = None
    seed: int = defaults.SEED
    device: str = "auto"


class Job:
    """A fit whose settings have been checked and whose images are at hand.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """

    def __init__(self, settings: PartitionSettings) -> None:
        self.settings = settings
        check_seed(settings.seed)
        self.partitioner = build_partitioner(settings.partitioner, settings.partitions)
        reason = why_not_saved(self.partitioner)
        if reason is not None:
            raise ParameterError(
                f"a partitioner that cannot be saved would be lost: {reason}; fit it in Python, "
                "with pgmkit.fit_partitioner"
            )
        check_source(settings.data)
        self.source: ImageSource = load_images(
            settings.data, split=settings.split, size=settings.size
        ).to(check_device(settings.device))
        check_fit(self.partitioner, self.source)

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to the images."""
        return {
            **asdict(self.settings),
            "partitioner": table_of(self.partitioner),
            "partitions": self.partitioner.num_partitions,
            "data": self.source.summary(),
            "device": str(self.source.device),
        }

    def estimate(self) -> float:
        """Returns about how many seconds the fit would take, by trying it on a few images."""
        settings = self.settings

        def fit(count: int) -> None:
            partitioner = build_partitioner(settings.partitioner, settings.partitions)
            few = self.source.subset(torch.arange(count))
            fit_partitioner(partitioner, few, seed=settings.seed, device=few.device)

        return seconds_of(fit, len(self.source), few_images(self.partitioner))

    def run(self, out: Path) -> dict[str, Any]:
        """Fits into `out`; a run that was stopped continues, a complete one is read back.

        What was logged where something was trained is left in `curves`, a folder for each loop.

        Returns:
            Sizes of the parts, scores where the images have labels, and how it was made.

        Raises:
            OutputError: `out` holds something else, is in use, or cannot be written.
        """
        runs.check_folder(out)
        with files.single_writer(out):
            return self.run_within(out)

    def run_within(self, out: Path) -> dict[str, Any]:
        """Does as `run` in a folder that belongs to another run, which holds its lock."""
        settings = {k: v for k, v in self.resolved().items() if k != "device"}
        done = (out / PARTITIONER_CONFIG).exists()
        runs.record(out, settings, device="" if done else str(self.source.device))
        if done:
            progress.tell(f"{out} is complete; nothing was computed")
            return describe(load_partitioner(out))
        with contextlib.ExitStack() as stack:
            stack.enter_context(keeping(out / _LEARNING))
            stack.enter_context(progress.phase(f"parts by {name_of(self.partitioner)}"))
            fitted = fit_partitioner(
                self.partitioner,
                self.source,
                seed=self.settings.seed,
                device=self.source.device,
            )
        assert fitted.labels is not None
        scores = score_partition(fitted.labels, self.source)
        fitted = fitted.with_origin(settings=dict(settings), scores=scores)
        for log in sorted((out / _LEARNING).glob("*/*.csv")):
            files.write_text(out / CURVES / log.parent.name / log.name, log.read_text())
        with progress.phase("saving, with samples of each part"):
            write_partition_report(out, fitted, self.source, scores)
            fitted.save_pretrained(out)
        files.remove_folder(out / _LEARNING)
        return describe(fitted)


def few_images(partitioner: Any) -> int:
    """Returns to how many images a partitioner is fitted in a trial; a fitted one looks at few."""
    if isinstance(partitioner, FixedPartitioner):
        return _FEW_LOOKED_AT
    least = contracts.least_images_of(partitioner)
    return max(2 * contracts.num_partitions_of(partitioner), _FEW, least)


def prepare(values: Mapping[str, Any]) -> Job:
    """Checks all settings (`PartitionSettings`) and opens the images; writes nothing.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    if "data" not in values:
        raise ParameterError(f"no images are given; name {IMAGES}")
    values = with_names(values, partitioner=defaults.PARTITIONER)
    return Job(make_settings(PartitionSettings, values, "the config"))


def describe(fitted: FittedPartitioner) -> dict[str, Any]:
    """Returns what is known of a fitted partitioner as plain values."""
    return {"partitions": fitted.num_partitions, "sizes": fitted.sizes, **fitted.origin}


def assign_images(fitted: FittedPartitioner, source: ImageSource) -> dict[str, Any]:
    """Assigns all images of a source.

    Returns:
        `parts` and `margins`, tensors (n,); `scores` against labels, or None.

    Raises:
        ParameterError: the images are of another shape than those it was fitted to.
    """
    fitted.check_images(source.image.shape)
    logits = gathered_logits(fitted.partitioner, source, "assigning images")
    parts = logits.argmax(dim=1)
    return {
        "parts": parts,
        "margins": margins_of(logits),
        "scores": score_partition(parts, source),
    }


def draw_plane(
    path: Path, fitted: FittedPartitioner, source: ImageSource, part: int | None
) -> None:
    """Draws points of the plane in the colours of their parts, and a guide, as a PNG.

    See `pgmkit.evaluate.figures.plane`.
    """
    files.write_bytes(path, figures.plane(fitted, source, part))


def draw(
    path: Path, source: ImageSource, parts: Tensor, margins: Tensor, number: int, count: int
) -> None:
    """Draws the images that lie the most clearly in each part, one row for each, as a PNG.

    Args:
        path: of the picture.
        source: the images.
        parts: of the images, (n,).
        margins: of the images, (n,); see `pgmkit.partition.margins_of`.
        number: of parts.
        count: the most images of a part; no row is longer than the largest part.

    Raises:
        ParameterError: there is not enough memory for so many.
    """
    check_count("the number of images of each part", count)
    count = min(count, int(parts.bincount().max()))
    size = _DRAWN * number * count * math.prod(source.image.shape)
    check_memory(size, f"rows of {count:,} images", "draw fewer (-n)")
    rows = []
    for part in range(number):
        index = (parts == part).nonzero().flatten()
        index = index[margins[index].argsort(descending=True)][:count]
        images = source.batch(index).cpu() if len(index) else torch.empty(0, *source.image.shape)
        blank = torch.full((count - len(images), *source.image.shape), source.image.range[1])
        rows += [images, blank]
    pictures.write_rows(path, torch.cat(rows), source.image.range, count)
