"""Optimizer settings that every training task shares."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pgmkit.errors import ParameterError
from pgmkit.learning import Clock
from pgmkit.learning.optimizers import eager
from pgmkit.learning.schedules import linear, set_rate


@dataclass(frozen=True)
class Adam:
    """Settings of an Adam optimizer.

    Args:
        learning_rate: step size, above 0.
        betas: decay of the two moments, each in [0, 1).
        end_learning_rate: in the last step, to which it goes on a straight line, at least 0; None
            keeps `learning_rate`.

    Raises:
        ParameterError: a value is outside its range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    end_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ParameterError(
                f"optimizer.learning_rate must be above 0, not {self.learning_rate}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ParameterError(
                f"optimizer.betas must be two numbers in [0, 1), not {self.betas!r}"
            )

        if self.end_learning_rate is not None and not 0 <= self.end_learning_rate < math.inf:
            raise ParameterError(
                f"optimizer.end_learning_rate must be at least 0, not {self.end_learning_rate}"
            )

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimizer over the module's parameters."""
        first, second = self.betas
        kind = eager(torch.optim.Adam)
        rate = self.learning_rate
        return kind(module.parameters(), lr=rate, betas=(first, second), fused=True)

    def schedule(self, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
        """Gives an optimizer the learning rate of a step."""
        if self.end_learning_rate is not None:
            set_rate(optimizer, linear(clock, self.learning_rate, self.end_learning_rate))
