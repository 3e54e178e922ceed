"""The exponential moving average of a module, as generators are sampled from."""

import copy
from typing import Any

import torch
from torch import nn

from pgmkit.errors import ParameterError
from pgmkit.learning.clock import Clock


class Average:
    """A copy of a module whose weights and buffers follow those of the module slowly.

    It is a part of a checkpoint like any module. Whole numbers among the buffers, which have no
    average, are those of the module.

    Args:
        module: what is averaged; the copy starts as it is.
        decay: share that the average keeps in one step, in [0, 1).

    Attributes:
        module: the copy, in evaluation mode and without gradients.

    Raises:
        ParameterError: the decay is outside its range.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ParameterError(f"the decay of an average must be in [0, 1), not {decay}")
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, clock: Clock) -> None:
        """Follows the module by one step.

        The decay is at most `(1 + step) / (10 + step)`, so that the first weights, which are
        chance, are soon forgotten.
        """
        decay = min(self.decay, (1 + clock.step) / (10 + clock.step))
        theirs = module.state_dict()
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns weights and buffers of the average by name."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.module.load_state_dict(state)
