"""What was fitted before, wherever a partitioner or features may stand."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import name_of, singular
from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSource, ImageSpec
from pgmkit.partition.fitted import FittedPartitioner, load_partitioner
from pgmkit.plugins import build
from pgmkit.states import parts_of

_HUB = "hf-hub:"


class _Fixed:
    """A component of one kind from the folder of a fitted partitioner."""

    kind: str

    def __init__(
        self, source: str | None, component: Any, image: Sequence[int] | None, sha256: str | None
    ) -> None:
        self.source = source if source is not None and source.startswith(_HUB) else None
        if component is None:
            if source is None:
                raise ParameterError(
                    f"source must say which {singular(self.kind)}, such as local-dir:parts"
                )
            fitted = load_partitioner(source)
            component, image, sha256 = self.taken(fitted), fitted.image.shape, fitted.sha256
        self.component = build(self.kind, component)
        self.image = None if image is None else tuple(image)
        self.sha256 = sha256
        self.space = contracts.space_of(self.component)

    def taken(self, fitted: FittedPartitioner) -> Any:
        """Returns the component that a fitted partitioner is, or is made of."""
        raise NotImplementedError

    @property
    def parts(self) -> Mapping[str, Any]:
        """The component that was fitted."""
        return {singular(self.kind): self.component}

    def get_params(self) -> dict[str, Any]:
        """Returns what it is on record as; folders of one's own machine have no place there."""
        own = {name: getattr(self, name) for name in ("source", "image", "sha256")}
        return {**own, **self.parts}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Does nothing but look at the shape of the images."""
        self.check_image(source.image)

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing: all is in the component."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""

    def check_image(self, image: ImageSpec) -> None:
        """Raises ParameterError if it was fitted to images of another shape."""
        if self.space == "images" and self.image not in (None, image.shape):
            raise ParameterError(
                f"the {name_of(self.component)!r} was fitted to images of {self.image}, and "
                f"these are {image.shape}; fit it to images of that size (--size)"
            )


class FixedPartitioner(_Fixed):
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
        order: its parts by new numbers (k,); None leaves their numbers.

    Raises:
        ParameterError: neither source nor partitioner is given, or the order is none.
        LoadError: the source holds no partitioner, or a damaged one.
    """

    kind = "partitioners"
    least_images = 1
    was_fitted = True

    def __init__(
        self,
        source: str | None = None,
        num_partitions: int | None = None,
        partitioner: Any = None,
        image: Sequence[int] | None = None,
        sha256: str | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(source, partitioner, image, sha256)
        self.order = None if order is None else list(order)
        if self.order is not None and sorted(self.order) != list(range(self.num_partitions)):
            raise ParameterError(
                f"order must name each of {self.num_partitions} parts once, not {self.order!r:.60}"
            )
        self._places = torch.tensor(self.order or [])

    def get_params(self) -> dict[str, Any]:
        """Returns what it is on record as."""
        return {**super().get_params(), "order": self.order}

    @property
    def num_partitions(self) -> int:
        """The number of parts, k."""
        return contracts.num_partitions_of(self.component)

    def taken(self, fitted: FittedPartitioner) -> Any:
        """Returns the partitioner."""
        return fitted.partitioner

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the partitioner."""
        logits = contracts.logits_of(self.component, x)
        if self.order is None:
            return logits
        self._places = self._places.to(logits.device)
        return logits.index_select(1, self._places)


class FixedFeatures(_Fixed):
    """Features that were learned before, with the partitioner that looks at them.

    Written "local-dir:..." or "hf-hub:..." they are those of the partitioner in that folder, so
    that what took hours to learn serves many partitioners. A result that is made of them holds all
    of them.

    Args:
        source: the reference of a fitted partitioner; None where all that follows is given, as a
            record has it.
        features: those that were learned, as an object or a table.
        image: shape (C, H, W) of the images that they look at.
        sha256: of the partitioner's tensors; None where they cannot be saved.

    Raises:
        ParameterError: neither source nor features are given, or the partitioner looks at none.
        LoadError: the source holds no partitioner, or a damaged one.
    """

    kind = "features"

    def __init__(
        self,
        source: str | None = None,
        features: Any = None,
        image: Sequence[int] | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__(source, features, image, sha256)

    def taken(self, fitted: FittedPartitioner) -> Any:
        """Returns the outermost features that the partitioner is made of."""
        layer = [fitted.partitioner]
        while layer:
            for part in layer:
                if "features" in parts_of(part):
                    return parts_of(part)["features"]
            layer = [inner for part in layer for inner in parts_of(part).values()]
        raise ParameterError(
            f"the {name_of(fitted.partitioner)!r} is not made of features; name a partitioner that "
            "is, such as 'kmeans'"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Returns points (B, d) of images x (B, C, H, W) in [-1, 1]."""
        found: Tensor = self.component(x)
        return found
