"""Optimizer settings that every training task shares."""

from dataclasses import dataclass

import torch
from torch import nn

from pgmkit.errors import ParameterError


@dataclass(frozen=True)
class Adam:
    """Settings of an Adam optimizer.

    Args:
        learning_rate: step size, above 0.
        betas: decay of the two moments, each in [0, 1).

    Raises:
        ParameterError: a value is outside its range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ParameterError(
                f"optimizer.learning_rate must be above 0, not {self.learning_rate}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ParameterError(
                f"optimizer.betas must be two numbers in [0, 1), not {self.betas!r}"
            )

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimizer over the module's parameters."""
        first, second = self.betas
        return torch.optim.Adam(
            module.parameters(), lr=self.learning_rate, betas=(first, second), fused=True
        )
