"""Halves of a batch on two threads: the same as one after the other, and as autograd has it."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from pgmkit.learning.halves import Halves


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_and_gradients_are_those_of_each_half_by_itself(device: str) -> None:
    tested, plain, x = network().to(device), network().to(device), X.to(device)
    halves = Halves(tested)
    halves(lambda half: x[1 - half])
    first, second = halves(lambda half: x[half])
    (first * second).sum().backward()
    expected = [plain(x[0]), copy.deepcopy(plain)(x[1])]
    outputs = [plain(x[0]), plain(x[1])]
    (outputs[0] * outputs[1]).sum().backward()
    for found, known in zip((first, second), expected, strict=True):
        torch.testing.assert_close(found.detach(), known.detach())
    for (name, found), known in zip(tested.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, known.grad, msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_norms_keep_the_mean_of_both_halves(device: str) -> None:
    tested = network().to(device)
    Halves(tested)(lambda half: X[half].to(device))
    ones = [network() for _ in range(2)]
    for one, x in zip(ones, X, strict=True):
        one(x)
    for name in ("running_mean", "running_var"):
        mean = (getattr(ones[0][1], name) + getattr(ones[1][1], name)) / 2
        torch.testing.assert_close(getattr(tested[1], name).cpu(), mean)
    assert tested[1].num_batches_tracked == 1


def test_both_halves_are_made_on_threads_of_their_own_without_gradients() -> None:
    seen: dict[int, tuple[int, bool]] = {}

    def make(half: int) -> Tensor:
        seen[half] = threading.get_ident(), torch.is_grad_enabled()
        return X[half]

    Halves(network())(make)
    assert seen[0][0] != seen[1][0]
    assert not seen[0][1]
    assert not seen[1][1]


@pytest.mark.parametrize("half", [0, 1])
def test_an_error_in_a_half_is_raised(half: int) -> None:
    def make(number: int) -> Tensor:
        if number == half:
            raise ValueError("no images")
        return X[number]

    with pytest.raises(ValueError, match="no images"):
        Halves(network())(make)
