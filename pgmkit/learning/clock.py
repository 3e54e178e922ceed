"""What a step knows of the time."""

from dataclasses import dataclass

import torch

from pgmkit.seeds import derive_seed


@dataclass(frozen=True, eq=False)
class Clock:
    """When a step happens, and its chance; schedules are functions of it.

    Args:
        step: how many steps were made before, from 0.
        steps: how many there are in all.
        epoch: whole passes over the source of images so far; 0 without one.
        seed: of this step, the same in all processes.
        random: a CPU generator of this step alone, the same in all processes.
    """

    step: int
    steps: int
    epoch: int
    seed: int
    random: torch.Generator

    @property
    def fraction(self) -> float:
        """How far the run is, from 0 in its first step to 1 in its last."""
        return min(self.step / max(self.steps - 1, 1), 1.0)


def clock_at(seed: int, step: int, steps: int, epoch: int = 0, purpose: str = "step") -> Clock:
    """Returns the clock of one step of a run.

    Args:
        seed: of the run.
        step: its number, from 0.
        steps: how many there are.
        epoch: see `Clock`.
        purpose: what chance is for; what is done beside the step has another.
    """
    own = derive_seed(seed, purpose, step)
    return Clock(step, steps, epoch, own, torch.Generator().manual_seed(own))
