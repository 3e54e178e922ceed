"""How convolutions push tangents forward; the one place for a faster kernel."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Convolution:
    """A (transposed) convolution without its bias.

    Args:
        weight: (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) if transposed.
        stride, dilation, output_padding: for each spatial dimension.
        padding: of zeros, for each spatial dimension, or "same" or "valid".
        groups: blocks of channels.
        transposed: whether it is a transposed convolution.
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1
    transposed: bool = False


def convolve_tangents(convolution: Convolution, tangents: Tensor) -> Tensor:
    """Returns tangents (B', D, C_out, ...) behind a convolution of tangents (B', D, C_in, ...)."""
    rows = tangents.flatten(0, 1)
    weight, stride, padding = convolution.weight, convolution.stride, convolution.padding
    dims = weight.ndim - 2
    options: tuple[object, ...] = (convolution.dilation, convolution.groups)
    apply = getattr(nn.functional, f"conv{dims}d")
    if convolution.transposed:
        options = (convolution.output_padding, convolution.groups, convolution.dilation)
        apply = getattr(nn.functional, f"conv_transpose{dims}d")
    pushed: Tensor = apply(rows, weight, None, stride, padding, *options)
    result: Tensor = pushed.unflatten(0, tangents.shape[:2])
    return result
