"""A partitioner that was fitted before, wherever a partitioner may stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pgmkit import contracts
from pgmkit.components import name_of
from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSource, ImageSpec
from pgmkit.partition.fitted import load_partitioner
from pgmkit.plugins import build

_HUB = "hf-hub:"


class FixedPartitioner:
    """Parts that were found before, in other images; `fit` leaves them as they are.

    Written "local-dir:..." or "hf-hub:..." it is the partitioner of that folder. A result that is
    made of it holds all of it, so the folder is no longer needed.

    Args:
        source: the reference of a fitted partitioner; None where all that follows is given, as a
            record has it.
        num_partitions: not heeded; it has as many parts as were found.
        partitioner: the one that was fitted, as an object or a table.
        image: shape (C, H, W) of the images that it looks at.
        sha256: of its tensors; None where they cannot be saved.

    Raises:
        ParameterError: neither source nor partitioner is given.
        LoadError: the source holds no partitioner, or a damaged one.
    """

    least_images = 1

    def __init__(
        self,
        source: str | None = None,
        num_partitions: int | None = None,
        partitioner: Any = None,
        image: Sequence[int] | None = None,
        sha256: str | None = None,
    ) -> None:
        self.source = source if source is not None and source.startswith(_HUB) else None
        if partitioner is None:
            if source is None:
                raise ParameterError("source must say which partitioner, such as local-dir:parts")
            fitted = load_partitioner(source)
            partitioner, image, sha256 = fitted.partitioner, fitted.image.shape, fitted.sha256
        self.partitioner = build("partitioners", partitioner)
        self.image = None if image is None else tuple(image)
        self.sha256 = sha256
        self.space = contracts.space_of(self.partitioner)

    @property
    def num_partitions(self) -> int:
        """The number of parts, k."""
        return contracts.num_partitions_of(self.partitioner)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The partitioner that was fitted."""
        return {"partitioner": self.partitioner}

    def get_params(self) -> dict[str, Any]:
        """Returns what it is on record as; folders of one's own machine have no place there."""
        names = ("source", "partitioner", "image", "sha256")
        return {name: getattr(self, name) for name in names}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Does nothing but look at the shape of the images."""
        self.check_image(source.image)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the partitioner."""
        return contracts.logits_of(self.partitioner, x)

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing: all is in the partitioner."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""

    def check_image(self, image: ImageSpec) -> None:
        """Raises ParameterError if the parts were found in images of another shape."""
        if self.space == "images" and self.image is not None and image.shape != self.image:
            raise ParameterError(
                f"the {name_of(self.partitioner)!r} was fitted to images of {self.image}, and "
                f"these are {image.shape}; fit it to images of that size (--size)"
            )
