"""Features of a network of the user's own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.errors import ParameterError, first_line
from pgmkit.images import ImageSource


class Network:
    """What a module of your own sees; it is put into eval mode in place.

    It cannot be saved, since it could not be built again; features of your own that can are a
    plugin of thirty lines, see docs/hooks.md.

    Args:
        module: maps images (B, C, H, W) in [-1, 1] to features (B, ...); wrap it if it wants
            others.
        normalize: whether features are divided by their length.
    """

    def __init__(self, module: Any, normalize: bool = True) -> None:
        if not isinstance(module, nn.Module):
            raise ParameterError(f"module must be a torch.nn.Module, not {module!r:.60}")
        self.module = module
        self.normalize = normalize

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Tries the network on an image, so that what does not fit is said clearly.

        Raises:
            ParameterError: it cannot look at such images.
        """
        self.module.eval().requires_grad_(False)
        try:
            self(source.batch(torch.arange(min(2, len(source)))))
        except Exception as error:
            raise ParameterError(
                f"the network {type(self.module).__name__} cannot look at images of "
                f"{source.image.shape}: {type(error).__name__}: {first_line(error)}; wrap it in a "
                "module that can"
            ) from error

    def __call__(self, x: Tensor) -> Tensor:
        """Returns features (B, D), float32, of images x (B, C, H, W)."""
        found: Tensor = self.module.to(x.device)(x.float()).float().flatten(1)
        return functional.normalize(found, dim=1) if self.normalize else found
