"""One part, which is everything: no partition at all."""

from collections.abc import Mapping

from torch import Tensor

from pgmkit.errors import ParameterError
from pgmkit.images import ImageSource
from pgmkit.partition import one_part


class Single:
    """One part that holds every image, so that what is conditional elsewhere is unconditional.

    Args:
        num_partitions: must be 1.
    """

    def __init__(self, num_partitions: int = 1) -> None:
        if num_partitions != 1:
            raise ParameterError(
                "the partitioner 'single' has one part, so num_partitions must be 1 or left out, "
                f"not {num_partitions!r}"
            )
        self.num_partitions = 1

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Learns nothing."""

    def logits(self, x: Tensor) -> Tensor:
        """Returns 0 for each image, float32 (B, 1); its gradient is 0, too."""
        return one_part(x)

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
