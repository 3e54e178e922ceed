"""Tapes with less arithmetic do the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pgmkit.tangents import TangentProgram
from pgmkit.tangents.convolutions import LIVE

BLOCK = nn.Sequential(nn.Linear(5, 4 * 3 * 3), nn.Unflatten(1, (4, 3, 3)))


def with_statistics(module: nn.Module) -> nn.Module:
    """Batch norms get a mean and a variance that matter, and weights."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module.double().eval()


def names_of(module: nn.Module) -> list[str]:
    program = TangentProgram(module)
    program.push_forward(torch.randn(2, 5, dtype=torch.float64))
    return [call.name for call in next(iter(program._tapes.values())).calls]


def assert_exact(module: nn.Module) -> None:
    z = torch.randn(2, 5, dtype=torch.float64)
    actual = TangentProgram(module).push_forward(z)
    for latent, pushed in zip(z, actual, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None]).flatten(), latent)
        torch.testing.assert_close(pushed.T, jacobian, rtol=1e-9, atol=1e-10)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Sequential(BLOCK, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ELU()),
    "without bias": lambda: nn.Sequential(
        BLOCK, nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.ELU()
    ),
    "groups": lambda: nn.Sequential(
        BLOCK, nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ELU()
    ),
    "transposed": lambda: nn.Sequential(
        BLOCK, nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ELU()
    ),
    "transposed groups": lambda: nn.Sequential(
        BLOCK, nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ELU()
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_becomes_part_of_the_weights_before_it(name: str) -> None:
    module = with_statistics(NORMS[name]())
    assert "batch_norm" not in names_of(module)
    assert_exact(module)


class Shared(nn.Module):
    """Uses what comes before the norm once more."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.convolution, self.norm = BLOCK, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, z: Tensor) -> Tensor:
        x = self.convolution(self.block(z))
        return self.norm(x).tanh() + x


def test_a_norm_stays_if_its_input_is_used_elsewhere() -> None:
    module = with_statistics(Shared())
    assert "batch_norm" in names_of(module)
    assert_exact(module)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_doubling_and_3x3_become_one_transposed_convolution(groups: int, bias: bool) -> None:
    module = with_statistics(
        nn.Sequential(
            BLOCK,
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias),
            nn.Tanh(),
        )
    )
    assert "interpolate" not in names_of(module)
    assert_exact(module)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_1x1_convolution_comes_before_upsampling(mode: str) -> None:
    up = nn.Upsample(scale_factor=3, mode=mode)
    module = with_statistics(nn.Sequential(BLOCK, up, nn.Conv2d(4, 6, 1), nn.Tanh()))
    names = names_of(module)
    assert names.index("conv2d") < names.index("interpolate")
    assert_exact(module)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Upsample(scale_factor=3), nn.Conv2d(4, 6, 3, padding=1)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=0)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1, stride=2)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 6, 3, padding=1)),
        (nn.Upsample(size=(5, 7)), nn.Conv2d(4, 6, 3, padding=1)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
    ],
)
def test_other_upsampling_stays_and_is_exact(layers: tuple[nn.Module, ...]) -> None:
    module = with_statistics(nn.Sequential(BLOCK, *layers, nn.Tanh()))
    assert "interpolate" in names_of(module)
    assert_exact(module)


@pytest.mark.parametrize("kernel", [*LIVE, "taps", "dense"])
def test_kernels_change_nothing_in_a_whole_network(kernel: str) -> None:
    module = with_statistics(
        nn.Sequential(
            BLOCK,
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 4, 2, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 2, 4, 2, 1),
            nn.Tanh(),
        )
    )
    z = torch.randn(3, 5, dtype=torch.float64)
    program = TangentProgram(module, kernels={"3": kernel, "5": kernel})
    expected = TangentProgram(module).push_forward(z)
    torch.testing.assert_close(program.push_forward(z), expected, rtol=1e-10, atol=1e-12)
    calls = next(iter(program._tapes.values())).calls
    kernels = [c.state["convolution"][1].kernel for c in calls if "convolution" in c.state]
    assert kernels == [kernel, kernel]


class Functional(nn.Module):
    """Doubles and convolves by functions, with options in short forms."""

    def __init__(self, *options: int) -> None:
        super().__init__()
        self.block, self.options = BLOCK, options
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

    def forward(self, z: Tensor) -> Tensor:
        x = nn.functional.interpolate(self.block(z), scale_factor=2)
        return nn.functional.conv2d(x, self.weight, None, *self.options).tanh()


@pytest.mark.parametrize(("options", "merged"), [((1, 1), True), ((1, 1, 1, 1), True), ((), False)])
def test_options_may_be_short(options: tuple[int, ...], merged: bool) -> None:
    module = with_statistics(Functional(*options))
    assert ("conv_transpose2d" in names_of(module)) == merged
    assert_exact(module)
