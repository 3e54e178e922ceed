"""A fitted partitioner to explore: its parts, with images of the data that it was fitted to."""

from pathlib import Path
from typing import Any

import torch

from pgmkit import files
from pgmkit.errors import DataError, PgmkitError, first_line
from pgmkit.evaluate import figures
from pgmkit.exploring.exhibit import Samples, sorted_samples, to_show
from pgmkit.images import ImageSource, load_images
from pgmkit.partition import FittedPartitioner, gathered_logits, margins_of
from pgmkit.runs import RUN_FILE
from pgmkit.seeds import random_generator

_MOST_LOOKED_AT = 4_000


class PartitionerExhibit:
    """A partitioner; see `Exhibit`.

    Images are read again from where they came, if they are there.
    """

    def __init__(self, fitted: FittedPartitioner, folder: Path | None = None) -> None:
        self.fitted, self.folder = fitted, folder
        self.image = fitted.image
        name = fitted.origin["partitioner"]["name"]
        self.title = f"{fitted.num_partitions} parts by {name}"
        self.lead = f"{name} found {fitted.num_partitions} parts of {fitted.image}."
        self.notes: list[str] = []
        self._source = self._read()
        self._logits: Any = None

    @property
    def called(self) -> list[str]:
        """Returns the names of the parts."""
        return [f"part {number}" for number in range(self.fitted.num_partitions)]

    @property
    def shares(self) -> list[float]:
        """Returns how much of the images lies in each."""
        return [size / sum(self.fitted.sizes) for size in self.fitted.sizes]

    def samples(self, cluster: int, n: int, *, fresh: bool = False, seed: int = 0) -> Samples:
        """Returns at most n images of the data that lie in a part; those of others with `fresh`."""
        if self._source is None:
            return Samples(torch.empty(0, *self.image.shape), None, None)
        if self._logits is None or fresh:
            count = min(_MOST_LOOKED_AT, len(self._source))
            random = random_generator(seed, "explore")
            index = torch.randperm(len(self._source), generator=random)[:count]
            some = self._source.subset(index)
            self._logits = some, gathered_logits(self.fitted.partitioner, some)
        some, logits = self._logits
        inside = (logits.argmax(dim=1) == cluster).nonzero().flatten()
        margins = margins_of(logits[inside])
        chosen = margins.argsort(descending=True)[:n]
        images = (
            some.batch(inside[chosen]).cpu() if len(chosen) else torch.empty(0, *self.image.shape)
        )
        return sorted_samples(to_show(images, self.image), margins[chosen], None)

    @property
    def is_plane(self) -> bool:
        """Whether these are points of the plane, with their images at hand."""
        return self.image.shape == (2,) and self._source is not None

    def plane(self, part: int | None) -> bytes:
        """Returns a PNG of the plane, with the field of the guide to a part.

        Raises:
            ParameterError: the logits have no gradient.
        """
        assert self._source is not None
        return figures.plane(self.fitted, self._source, part)

    def _read(self) -> ImageSource | None:
        """Returns the images that it was fitted to; None, and a note, if they are gone."""
        try:
            if self.folder is None:
                raise DataError("they are where it was fitted")
            run = files.read_json(self.folder / RUN_FILE, str(self.folder))["settings"]
            told = run["data"]
            name = told["source"]
            if name.startswith("points:"):
                name += f":n={told['shape'][0]}"
            source = load_images(name, split=run["split"], size=run["size"])
            if source.summary()["sha256"] != told["sha256"]:
                raise DataError(f"{told['source']} has changed since")
            return source
        except (PgmkitError, OSError, KeyError, TypeError) as error:
            self.notes.append(
                f"The images that it was fitted to cannot be read ({first_line(error)}), so none "
                "are shown."
            )
            return None
