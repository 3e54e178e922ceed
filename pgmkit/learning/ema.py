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
        mine, theirs = self.module.state_dict(), module.state_dict()
        names = [name for name, value in mine.items() if value.is_floating_point()]
        followed = [mine[name] for name in names]
        leading = [theirs[name].to(mine[name].dtype) for name in names]
        torch._foreach_lerp_(followed, leading, 1 - decay)  # in a few kernels instead of hundreds
        for name in mine.keys() - names:
            mine[name].copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns weights and buffers of the average by name."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.module.load_state_dict(state)
