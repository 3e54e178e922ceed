"""Optimizers that are those of torch, and that its compiler is left alone."""

import pytest
import torch
from processes import run_forked
from torch import nn

from pgmkit.learning.optimizers import eager

KINDS = [
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"fused": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
]

LEARNING = """
import sys
import torch
from pgmkit.images import ArrayImages
from pgmkit.plugins import build

pixels = torch.randint(256, (40, 1, 16, 16), dtype=torch.uint8)
base = {"name": "kmeans", "features": {"name": "contrastive", "steps": 2}}
asked = {"name": "self-trained", "base": base, "steps": 2}
build("partitioners", asked, num_partitions=2).fit(ArrayImages(pixels, name="noise"), seed=0)
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""

LOADING = """
import sys
from pgmkit.models import load

load("mnist-pgmgan")
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_steps_are_those_of_torch_to_the_bit(
    kind: type[torch.optim.Optimizer], settings: dict[str, float]
) -> None:
    ends = []
    for how in (kind, eager(kind)):
        torch.manual_seed(0)
        module = nn.Linear(5, 3)
        optimizer = how(module.parameters(), lr=0.1, **settings)  # type: ignore[call-arg]
        for step in range(6):
            optimizer.zero_grad()
            module(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            if step == 3:
                optimizer.load_state_dict(optimizer.state_dict())
        assert module.weight.grad is not None
        ends.append((module.weight.detach(), optimizer.state_dict()["state"]))
    assert torch.equal(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0, atol=0)


@pytest.mark.parametrize("code", [LEARNING, LOADING], ids=["learning", "loading"])
def test_no_compiler_is_imported(code: str) -> None:
    """It would take seconds of every process."""
    finished = run_forked("-c", code)
    assert finished.stdout.splitlines() == ["[]"], finished.stdout + finished.stderr
