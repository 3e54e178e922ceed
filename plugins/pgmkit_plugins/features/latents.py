"""Latents as they are."""

from collections.abc import Mapping

from torch import Tensor

from pgmkit.images import ImageSource


class Latents:
    """The latents z (B, M) themselves, as the LASH paper clusters them (section 3.2)."""

    space = "latents"

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Learns nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns latents x (B, M), float64."""
        return x.double()

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""
