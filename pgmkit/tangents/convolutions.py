"""Convolutions of tangents, in five ways of which the fastest is found by trying.

A convolution meets the tangents of all latent directions at once. Three things are special about
them. Behind a ReLU the same units are zero in every direction, and in trained generators often four
of five are: "live" multiplies by the weights of the other units only, and "live-channels-last"
leaves its output in memory as torch's own convolutions want it. The last layer has one or three
output channels, too few for a convolution to be quick: "taps" multiplies by all taps of the kernel
at once and adds the products up where they belong. "dense" is torch's own convolution. Some
accelerators multiply in TF32, with 11 bits, eight times as fast as in float32; "split" has each
number as the sum of two such, and makes three products of one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pgmkit.machine import has_tf32, rounded_to_tf32, seconds_for

LIVE = ("live", "live-channels-last")
"""The kernels that look at which units are live."""

_GATHERED = 2**19
"""Numbers gathered for one batch of products: few enough for a cache, enough for few batches.

Threads take turns to begin them.
"""

_TAPPED = 2**18
"""Products of all taps that are held at once, on a CPU: few enough to stay in a core's cache."""

_TERMS = 2**18
"""Terms listed at once at most: bounds the memory for large images."""

_FEW_TAPS = 128
"""With more products than this for each input pixel, taps are never the quickest."""

_TF32_REST = 13
"""Bits of a float32 that TF32 has no room for."""


@dataclass
class Convolution:
    """A (transposed) convolution without its bias, applied to tangents.

    Args:
        weight: (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) if transposed.
        stride, dilation, output_padding: for each spatial dimension.
        padding: of zeros, for each spatial dimension, or "same" or "valid".
        groups: blocks of channels.
        transposed: whether it is a transposed convolution.
        kernel: "dense", "taps", "live", "live-channels-last" or "split".
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    kernel: str = "dense"
    _maps: dict[tuple[int, int], "_TapMap"] = field(default_factory=dict, repr=False)

    def __call__(self, tangents: Tensor, live: Tensor | None = None) -> Tensor:
        """Convolves tangents.

        Args:
            tangents: (B or 1, D, C_in, *size) for D directions.
            live: which units of each latent are not zero, bool (B, C_in, *size); None for all.

        Returns:
            (B or 1, D, C_out, *size).
        """
        if self.kernel in LIVE and live is not None:
            return self._live(tangents, live)
        if live is not None:
            tangents = tangents * live[:, None]
        if self.kernel == "split" and _may_split(tangents):
            return self._split(tangents)
        return self._taps(tangents) if self.kernel == "taps" else self._dense(tangents)

    def faster_kernels(
        self, tangents: Tensor, live: Tensor | None = None
    ) -> list[tuple[float, str]]:
        """Returns the kernels that beat "dense" on such tangents, each with the seconds it saves.

        The one that saves the most comes first.
        """
        candidates = [*self._candidates(tangents, live)]
        if len(candidates) == 1:
            return []
        seconds = self.seconds_by(candidates, lambda: self(tangents, live), tangents.device)
        self.kernel = "dense"
        dense = seconds.pop("dense")
        saved = [(dense - taken, kernel) for kernel, taken in seconds.items() if taken < dense]
        return sorted(saved, reverse=True)

    def seconds_by(
        self,
        kernels: Sequence[str],
        function: Callable[[], object],
        device: torch.device,
        rounds: int = 3,
    ) -> dict[str, float]:
        """Returns the least seconds of a function that uses this convolution, by its kernel.

        Kernels take turns, since what else runs makes all of them slower; the last one stays.
        """
        seconds = dict.fromkeys(kernels, math.inf)
        for kernel in [*kernels] * rounds:
            self.kernel = kernel
            seconds[kernel] = min(seconds[kernel], seconds_for(function, device))
        return seconds

    def _candidates(self, tangents: Tensor, live: Tensor | None) -> Iterator[str]:
        yield "dense"
        if self.weight.ndim == 4 and self.groups == 1 and not isinstance(self.padding, str):
            one_pixel = tangents.shape[3:].numel() == 1
            few = min(_FEW_TAPS, 2 * tangents.shape[2])  # products are no larger than tangents
            if one_pixel or math.prod(self._kernel_size) * self._channels_out <= few:
                yield "taps"
            # It makes many small calls, which accelerators are slow at.
            if live is not None and tangents.device.type == "cpu":
                yield from LIVE
        if self.groups == 1 and not torch.backends.cudnn.allow_tf32 and _may_split(tangents):
            yield "split"

    @property
    def _kernel_size(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def _channels_out(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    def _dense(self, tangents: Tensor) -> Tensor:
        batch = tangents.flatten(0, 1)
        if self.weight.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        dims = self.weight.ndim - 2
        options: tuple[Any, ...] = (self.dilation, self.groups)
        if self.transposed:
            apply = getattr(functional, f"conv_transpose{dims}d")
            options = (self.output_padding, self.groups, self.dilation)
        else:
            apply = getattr(functional, f"conv{dims}d")
        pushed = apply(batch, self.weight, None, self.stride, self.padding, *options)
        result: Tensor = pushed.unflatten(0, tangents.shape[:2])
        return result

    def _split(self, tangents: Tensor) -> Tensor:
        """Convolves in TF32 what it has no room for, too, but for the product of two rests.

        The sums of tensor cores are cut off, which costs large ones 1e-6; so the small products
        have sums of their own.
        """
        batch = tangents.flatten(0, 1)
        if self.weight.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        high = in_tf32(batch)
        both = torch.cat([high, batch - high], dim=1)
        first, second = self._of_parts
        shape = tangents.shape[:2]
        with rounded_to_tf32():
            return first._dense(high.unflatten(0, shape)).add_(
                second._dense(both.unflatten(0, shape))
            )

    @cached_property
    def _of_parts(self) -> "tuple[Convolution, Convolution]":
        """The same for values in TF32, and for them and their rests, one after the other."""
        high = in_tf32(self.weight)
        rests = torch.cat([self.weight - high, high], dim=0 if self.transposed else 1)
        return replace(self, weight=high), replace(self, weight=rests)

    def _taps(self, tangents: Tensor) -> Tensor:
        """Multiplies by all taps at once, then shifts and adds; for few output channels."""
        tap_map = self._map(tangents)
        weights = self._tap_major.flatten(0, 1)  # (taps · C_out, C_in)
        latents, directions = tangents.shape[:2]
        channels = self._channels_out
        # Slices of one tap are to lie in memory in long runs.
        if tangents.stride(1) == 1:  # directions innermost
            products = weights @ tangents.permute(0, 3, 4, 2, 1)
            products = products.unflatten(3, (-1, channels))
            result = tangents.new_zeros(latents, *tap_map.size_out, channels, directions)
            for tap, out, into in tap_map.slices():
                result[:, out[0], out[1]] += products[:, into[0], into[1], tap]
            return result.permute(0, 4, 3, 1, 2)
        images = tangents.flatten(0, 1).permute(0, 2, 3, 1)
        result = tangents.new_zeros(channels, len(images), *tap_map.size_out)
        count = len(images)
        if tangents.device.type == "cpu":
            count = max(1, _TAPPED // (len(weights) * images[0, :, :, 0].numel()))
        for some, sums in zip(images.split(count), result.split(count, dim=1), strict=True):
            products = (weights @ some.flatten(0, 2).T).view(-1, channels, *some.shape[:3])
            for tap, out, into in tap_map.slices():
                sums[..., out[0], out[1]] += products[tap][..., into[0], into[1]]
        by_latent: Tensor = result.unflatten(1, (latents, directions))
        return by_latent.permute(1, 2, 0, 3, 4)

    def _live(self, tangents: Tensor, live: Tensor) -> Tensor:
        """Gathers the live units that each output position sees, with their weights."""
        tap_map = self._map(tangents)
        # One row of D numbers for each unit; free if the tangents lie in memory like that.
        units = tangents.permute(0, 3, 4, 2, 1).contiguous().flatten(1, 3)
        positions = live.permute(0, 2, 3, 1).flatten(1, 2)
        outputs = math.prod(tap_map.size_out)
        shape = (len(live), outputs, self._channels_out, units.shape[2])
        pushed = units.new_empty(shape)
        if self.kernel == "live-channels-last":
            pushed = pushed.view(*shape[:2], shape[3], shape[2]).mT
        tap_map.multiply(units, self._weight_rows, positions, pushed)
        by_pixel: Tensor = pushed.unflatten(1, tap_map.size_out)
        return by_pixel.permute(0, 4, 3, 1, 2)

    @property
    def _tap_major(self) -> Tensor:
        """The weights as (taps, C_out, C_in)."""
        weight = self.weight.flatten(2)
        return weight.permute(2, 1, 0) if self.transposed else weight.permute(2, 0, 1)

    @cached_property
    def _weight_rows(self) -> Tensor:
        """The weights as (taps · C_in + 1, C_out), the last row zero."""
        rows = self._tap_major.transpose(1, 2).flatten(0, 1)
        return torch.cat([rows, rows.new_zeros(1, self._channels_out)])

    def _map(self, tangents: Tensor) -> "_TapMap":
        assert not isinstance(self.padding, str)
        size = (tangents.shape[3], tangents.shape[4])
        if size not in self._maps:
            axes = tuple(
                _Axis(
                    size[dim],
                    self._kernel_size[dim],
                    self.stride[dim],
                    self.padding[dim],
                    self.dilation[dim],
                    self.output_padding[dim],
                    self.transposed,
                )
                for dim in range(2)
            )
            self._maps[size] = _TapMap(axes, tangents.device)
        return self._maps[size]


def _may_split(tangents: Tensor) -> bool:
    """Whether there is TF32 for them; a plan may come from another device, or be in float64."""
    return tangents.dtype == torch.float32 and has_tf32(tangents.device)


def in_tf32(values: Tensor) -> Tensor:
    """Returns float32 rounded to what TF32 has room for."""
    bits = values.view(torch.int32) + (1 << (_TF32_REST - 1))
    return bits.bitwise_and_(-1 << _TF32_REST).view(torch.float32)


@dataclass(frozen=True)
class _Axis:
    """Which input and which output each tap connects, along one spatial dimension."""

    size_in: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int
    output_padding: int
    transposed: bool

    @property
    def size_out(self) -> int:
        reach = self.dilation * (self.kernel_size - 1) + 1
        if self.transposed:
            return (self.size_in - 1) * self.stride - 2 * self.padding + reach + self.output_padding
        return (self.size_in + 2 * self.padding - reach) // self.stride + 1

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Yields, tap by tap, the outputs and the inputs that it connects."""
        # Position n of the coarse side meets position n · stride + offset of the fine side.
        coarse, fine = self.size_in, self.size_out
        if not self.transposed:
            coarse, fine = fine, coarse
        for tap in range(self.kernel_size):
            offset = tap * self.dilation - self.padding
            first = max(0, -(offset // self.stride))
            end = max(first, min(coarse, (fine - 1 - offset) // self.stride + 1))
            start = first * self.stride + offset
            fine_slice = slice(start, start + (end - first) * self.stride, self.stride)
            coarse_slice = slice(first, end)
            yield (fine_slice, coarse_slice) if self.transposed else (coarse_slice, fine_slice)


class _TapMap:
    """All (output position, tap, input position) that a two-dimensional convolution connects."""

    def __init__(self, axes: tuple[_Axis, ...], device: torch.device) -> None:
        self.axes = axes
        self.size_out = tuple(axis.size_out for axis in axes)
        inputs = torch.arange(axes[0].size_in * axes[1].size_in).view(axes[0].size_in, -1)
        outputs = torch.arange(math.prod(self.size_out)).view(self.size_out)
        links = torch.cat(
            [
                torch.stack(
                    [outputs[out].flatten(), inputs[into].flatten(), torch.full([count], tap)]
                )
                for tap, out, into in self.slices()
                if (count := outputs[out].numel())
            ],
            dim=1,
        )
        links = links[:, links[0].argsort(stable=True)].to(device)
        self._input, self._tap = links[1].contiguous(), links[2].contiguous()
        self._links_before = torch.searchsorted(
            links[0].contiguous(), torch.arange(outputs.numel() + 1, device=device)
        )

    def slices(self) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Yields each tap with the slices of outputs and of inputs that it connects."""
        pairs = product(self.axes[0].slices(), self.axes[1].slices())
        for tap, ((out_y, in_y), (out_x, in_x)) in enumerate(pairs):
            yield tap, (out_y, out_x), (in_y, in_x)

    def multiply(self, units: Tensor, weights: Tensor, live: Tensor, result: Tensor) -> None:
        """Convolves the tangents of B latents.

        An output of a latent is one row of products; all are done in the order of their lengths,
        so that rows that are multiplied at once are about as long as each other.

        Args:
            units: tangents (B or 1, positions · C_in, D).
            weights: (taps · C_in + 1, C_out), the last row zero.
            live: bool (B, positions, C_in).
            result: takes up the output (B, output positions, C_out, D).
        """
        terms = _Terms(self._input, self._tap, self._links_before, live, shared=len(units) == 1)
        own, rows = units.flatten(0, 1), result.flatten(0, 1)
        start = 0
        while start < len(rows):
            end = terms.end_of_range(start)
            self._multiply_range(own, weights, terms.of_rows(start, end), rows[start:end])
            start = end

    def _multiply_range(
        self,
        units: Tensor,
        weights: Tensor,
        terms: tuple[Tensor, Tensor, Tensor],
        result: Tensor,
    ) -> None:
        """Computes some rows (rows, C_out, D) from their terms."""
        unit, weight, lengths = terms
        ordered, order = lengths.sort(descending=True, stable=True)
        groups = list(_groups(ordered.tolist(), units.shape[1] + weights.shape[1]))
        rows, parts = [group.rows for group in groups], [group.terms for group in groups]
        length = torch.tensor([group.length for group in groups], device=order.device)
        padded = length.repeat_interleave(torch.tensor(rows, device=order.device))
        begins = padded.cumsum(0) - padded
        # Where each term goes, in lists that are padded to the length of the longest of a group.
        shift = torch.empty_like(begins)
        shift[order] = begins
        shift -= lengths.cumsum(0) - lengths
        place = torch.arange(len(unit), device=order.device) + shift.repeat_interleave(
            lengths, output_size=len(unit)
        )
        total = sum(parts)
        padded_unit = unit.new_zeros(total).scatter_(0, place, unit)
        padded_weight = unit.new_full((total,), len(weights) - 1).scatter_(0, place, weight)

        channels_last = result.stride(1) == 1
        of_groups = zip(
            padded_unit.split(parts),
            padded_weight.split(parts),
            order.split(rows),
            groups,
            strict=True,
        )
        for unit, weight, places, group in of_groups:
            shape = (group.rows, group.length, -1)
            gathered = units.index_select(0, unit).view(shape)
            factors = weights.index_select(0, weight).view(shape)
            if channels_last:
                result.mT.index_copy_(0, places, torch.bmm(gathered.mT, factors))
            else:
                result.index_copy_(0, places, torch.bmm(factors.mT, gathered))


class _Group(NamedTuple):
    """Rows that are multiplied at once: how many, and the longest length."""

    rows: int
    length: int

    @property
    def terms(self) -> int:
        """How many terms they have where all are as long as the longest."""
        return self.rows * self.length


def _groups(lengths: list[int], width: int) -> Iterator[_Group]:
    """Yields groups of rows of descending lengths, each with few numbers to be gathered."""
    first = 0
    while first < len(lengths):
        length = max(1, lengths[first])
        count = min(max(1, _GATHERED // (length * width)), len(lengths) - first)
        yield _Group(count, length)
        first += count


class _Terms:
    """The live units that each output of each latent sees, row by row.

    Args:
        inputs: the input position of each link, in the order of the outputs.
        taps: the tap of each link.
        links_before: how many links come before each output, and in all.
        live: bool (B, positions, C_in).
        shared: whether all latents have their units in the same places.
    """

    def __init__(
        self, inputs: Tensor, taps: Tensor, links_before: Tensor, live: Tensor, *, shared: bool
    ) -> None:
        self._inputs, self._taps = inputs, taps
        latents, self._positions, self._channels = live.shape
        self._shared = shared
        # Units are numbered through all latents: (latent · positions + position) · C_in + channel.
        self._units = live.flatten().nonzero().squeeze(1)
        self._counts = live.flatten(0, 1).sum(dim=1)
        self._first = self._counts.cumsum(0) - self._counts
        latent = torch.arange(latents, device=live.device)[:, None]
        before = (latent * len(inputs) + links_before[:-1]).flatten()
        self._links_before = torch.cat([before, before.new_tensor([latents * len(inputs)])])
        # By index_select, which is quicker than brackets.
        per_link = self._counts.view(latents, -1).index_select(1, inputs).flatten()
        sums = torch.cat([per_link.new_zeros(1), per_link.cumsum(0)])
        self._before = sums.index_select(0, self._links_before)

    def end_of_range(self, start: int) -> int:
        """Returns up to which row there are few enough terms from `start`; one at least."""
        limit = int(self._before[start]) + _TERMS
        end = int(torch.searchsorted(self._before, limit, right=True)) - 1
        return max(start + 1, min(end, len(self._before) - 1))

    def of_rows(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rows of units and of weights, each (terms,), and how many each output has."""
        lengths = self._before[start : end + 1].diff()
        first, last = self._links_before[[start, end]].tolist()
        link = torch.arange(first, last, device=lengths.device)
        latent, own = link // len(self._inputs), link % len(self._inputs)
        position = latent * self._positions + self._inputs.index_select(0, own)
        per_link = self._counts.index_select(0, position)
        total = int(lengths.sum())
        begins = self._first.index_select(0, position) - (per_link.cumsum(0) - per_link)
        # A unit and the weight by which it goes to an output differ by the same for a whole link.
        shift = (self._taps.index_select(0, own) - position) * self._channels

        def each_term(of_link: Tensor) -> Tensor:
            return of_link.repeat_interleave(per_link, output_size=total)

        place = each_term(begins) + torch.arange(total, device=lengths.device)
        unit = self._units.index_select(0, place)
        weight = unit + each_term(shift)
        if self._shared:
            unit = unit - each_term(latent * (self._positions * self._channels))
        return unit, weight, lengths
