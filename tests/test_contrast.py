"""The contrastive loss, and where steps read from."""

import math

import pytest
import torch

from pgmkit.learning.contrast import contrastive_loss
from pgmkit.machine import near


def test_the_loss_agrees_with_a_case_worked_out_by_hand() -> None:
    """Two pairs of unit vectors at right angles: each partner has cosine 1, all others 0."""
    left = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    loss = contrastive_loss(left, 3 * left, temperature=0.5)
    assert float(loss) == pytest.approx(math.log(math.exp(2.0) + 2.0) - 2.0)
    swapped = contrastive_loss(left, left.flip(0), temperature=0.5)
    assert float(swapped) == pytest.approx(math.log(math.exp(2.0) + 2.0))


def test_what_steps_read_lies_on_the_device_if_it_takes_little_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, there = torch.zeros(100, dtype=torch.uint8), torch.device("meta")
    for free, place in ((None, "cpu"), (399, "cpu"), (400, "meta")):
        monkeypatch.setattr("pgmkit.machine.free_device_memory", lambda _, free=free: free)
        assert near(pool, there).device.type == place
