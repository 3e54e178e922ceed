"""Convolutions of tangents against torch's own, in double precision."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from pgmkit.machine import seconds_for, tensor_threads
from pgmkit.tangents import convolutions
from pgmkit.tangents.convolutions import LIVE, Convolution, in_tf32

KERNELS = ("dense", "taps", *LIVE)
SHAPES = [
    (kernel_size, stride, padding, dilation)
    for kernel_size, stride, padding, dilation in itertools.product(
        (1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (1, 2)
    )
    if padding <= dilation * (kernel_size - 1) and dilation * (kernel_size - 1) < 6
]


def convolution_of(module: nn.Module) -> Convolution:
    return Convolution(
        module.weight.detach(),
        module.stride,
        module.padding,
        module.dilation,
        module.output_padding,
        module.groups,
        module.transposed,
    )


def assert_all_kernels_agree(module: nn.Module, size: tuple[int, int] = (6, 9)) -> None:
    torch.manual_seed(0)
    module = module.double()
    tangents = torch.randn(2, 7, 5, *size, dtype=torch.float64)
    live = torch.rand(2, 5, *size) > 0.7
    with torch.no_grad():
        if module.bias is not None:
            module.bias.zero_()
        expected = module((tangents * live[:, None]).flatten(0, 1)).unflatten(0, (2, 7))
        shared = module((tangents[:1] * live[:, None]).flatten(0, 1)).unflatten(0, (2, 7))
    units_first = tangents.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    convolution = convolution_of(module)
    for convolution.kernel in KERNELS:
        for layout in (tangents, units_first):
            torch.testing.assert_close(convolution(layout, live), expected, rtol=0, atol=1e-11)
            torch.testing.assert_close(convolution(layout[:1], live), shared, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kernel_size", "stride", "padding", "dilation"), SHAPES)
def test_every_kernel_is_the_convolution(kernel_size, stride, padding, dilation):
    assert_all_kernels_agree(nn.Conv2d(5, 3, kernel_size, stride, padding, dilation))


@pytest.mark.parametrize(("kernel_size", "stride", "padding", "dilation"), SHAPES)
def test_every_kernel_is_the_transposed_convolution(kernel_size, stride, padding, dilation):
    assert_all_kernels_agree(
        nn.ConvTranspose2d(5, 3, kernel_size, stride, padding, dilation=dilation)
    )


def test_kernels_may_be_oblong():
    assert_all_kernels_agree(nn.ConvTranspose2d(5, 3, (2, 3), (2, 1), (0, 1), (1, 0)))
    assert_all_kernels_agree(nn.Conv2d(5, 3, (1, 4), (1, 2), (0, 1)))


def test_terms_are_listed_piece_by_piece(monkeypatch):
    monkeypatch.setattr(convolutions, "_TERMS", 40)
    monkeypatch.setattr(convolutions, "_GATHERED", 300)
    assert_all_kernels_agree(nn.ConvTranspose2d(5, 3, 4, 2, 1))


@pytest.mark.parametrize("products", [1, 10_000])
def test_taps_are_multiplied_a_few_images_at_a_time(monkeypatch, products):
    """Each by itself, and three of fourteen, which leaves two for the end."""
    monkeypatch.setattr(convolutions, "_TAPPED", products)
    assert_all_kernels_agree(nn.ConvTranspose2d(5, 3, 4, 2, 1))


def test_units_that_are_all_dead_give_zero():
    convolution = convolution_of(nn.ConvTranspose2d(5, 3, 4, 2, 1))
    live = torch.zeros(1, 5, 4, 4, dtype=torch.bool)
    for convolution.kernel in LIVE:
        assert convolution(torch.randn(1, 2, 5, 4, 4), live).eq(0).all()


def test_tangents_are_left_alone_unless_owned():
    convolution = convolution_of(nn.Conv2d(5, 3, 3))
    tangents = torch.randn(1, 2, 5, 4, 4)
    before = tangents.clone()
    for convolution.kernel in KERNELS:
        convolution(tangents, torch.rand(1, 5, 4, 4) > 0.5)
    assert torch.equal(tangents, before)


def test_a_sparse_layer_is_quicker_by_its_live_units():
    """One unit of twenty is alive: the dense kernel does twenty times the work."""
    convolution = convolution_of(nn.Conv2d(256, 128, 3, padding=1))
    tangents = torch.randn(1, 64, 256, 8, 8)
    (saved, kernel), *_ = convolution.faster_kernels(tangents, torch.rand(1, 256, 8, 8) < 0.05)
    assert kernel in LIVE
    assert saved > 0


def test_what_live_units_give_has_directions_or_channels_last_in_memory():
    convolution = convolution_of(nn.ConvTranspose2d(5, 3, 4, 2, 1))
    tangents, live = torch.randn(1, 2, 5, 4, 4), torch.rand(1, 5, 4, 4) > 0.5
    for convolution.kernel, innermost in zip(LIVE, (1, 2), strict=True):
        assert convolution(tangents, live).stride(innermost) == 1


def test_a_kernel_is_timed_by_what_its_thread_does_whatever_else_runs():
    with tensor_threads(1):
        assert seconds_for(lambda: time.sleep(0.1), torch.device("cpu")) < 0.05


def test_there_is_no_other_kernel_for_groups():
    convolution = convolution_of(nn.Conv2d(4, 4, 3, groups=2))
    live = torch.ones(1, 4, 5, 5, dtype=torch.bool)
    assert convolution.faster_kernels(torch.randn(1, 2, 4, 5, 5), live) == []


def test_tf32_keeps_eleven_bits_and_rounds_to_the_nearest():
    values = torch.tensor([1.0, 1 + 2**-11 + 2**-20, 1 + 2**-11 - 2**-20, -3.0e38, 0.0, torch.inf])
    expected = torch.tensor([1.0, 1 + 2**-10, 1.0, -3.0e38, 0.0, torch.inf])
    found = in_tf32(values)
    torch.testing.assert_close(found, expected, rtol=2**-11, atol=0)
    assert found.view(torch.int32).bitwise_and((1 << 13) - 1).eq(0).all()
    assert found[1:3].tolist() == expected[1:3].tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_split_numbers_are_as_exact_in_tf32_as_float32_is(transposed, monkeypatch):
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = kind(16, 6, 4, 2, 1, bias=False)
    tangents = torch.randn(2, 3, 16, 8, 8)
    with torch.no_grad():
        exact = module.double()(tangents.double().flatten(0, 1)).unflatten(0, (2, 3))
    convolution = convolution_of(module.float())

    def error() -> float:
        return float((convolution(tangents) - exact).abs().max() / exact.abs().max())

    in_float32, dense = error(), Convolution._dense

    def rounding(self, tangents):  # as an accelerator does that was told so
        there = replace(self, weight=in_tf32(self.weight))
        return dense(there, in_tf32(tangents))

    monkeypatch.setattr(Convolution, "_dense", rounding)
    monkeypatch.setattr(convolutions, "has_tf32", lambda _: True)
    assert error() > 50 * in_float32
    convolution.kernel = "split"
    assert error() < 4 * in_float32
    monkeypatch.undo()
    assert error() == in_float32  # where there is none, and a plan says so that is of elsewhere
