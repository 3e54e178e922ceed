"""Pixels as they are."""

from collections.abc import Mapping

from torch import Tensor

from pgmkit.config import check_count
from pgmkit.images import ImageSource, shrunk


class Pixels:
    """The pixels of images, or the coordinates of points.

    Args:
        image_size: longest side of the images that are compared, in pixels, at least 1; larger ones
            are shrunk first, smoothed against aliasing.
    """

    def __init__(self, image_size: int = 32) -> None:
        check_count("image_size", image_size)
        self.image_size = image_size

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Learns nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the pixels (B, D), float64, of images x (B, C, H, W)."""
        return shrunk(x.float(), self.image_size).flatten(1).double()

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
