"""Networks in a precision that is enough to learn in."""

import torch
from torch import Tensor, nn


class InBfloat16(nn.Module):
    """A module that runs under autocast in bfloat16, and returns float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Returns what the module makes of x, and of what else it takes."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y: Tensor = self.module(x, *more)
        return y.float()
