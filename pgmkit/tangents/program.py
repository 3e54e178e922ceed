"""Pushes all latent directions through a network layer by layer.

Forward-mode autograd pushes tangents through any module, but it carries the primal along with every
tangent and its state is global to the process. For networks made of common layers there is a
shorter way: run the primal once, and send the tangents of all directions through each layer's
derivative as one batch. That uses plain tensor operations, so several threads can do it at once.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.machine import is_out_of_memory, rounded_to_tf32
from pgmkit.tangents.dual import Application, Dual, LatentsMoveError
from pgmkit.tangents.generic import push_generic
from pgmkit.tangents.recording import record
from pgmkit.tangents.rules import COMPOSITIONS, CONSTANTS, KINKED, LINEAR, PRIMITIVES, RULES
from pgmkit.tangents.rules_products import PRODUCTS
from pgmkit.tangents.simplify import simplified
from pgmkit.tangents.tape import (
    Call,
    Slot,
    Tape,
    UnsupportedModuleError,
    map_values,
    values_of,
)

_CALIBRATION_SECONDS = 5.0
"""How long combinations of kernels are tried."""

_KINK_NOISE = 2**-20
"""What rounding leaves in a float32 value before a kink, relative to the layer's mean size."""

_KINK_NATS = 0.01
"""A unit counts if it moves the log-volume by more than this when it switches, on average."""


class TangentProgram:
    """The Jacobian of a module as a program of plain tensor operations.

    The first latents of each batch size are run through the module to write down what it does. What
    does not depend on latents is kept from then on, so a module whose weights change wants a new
    program.

    Args:
        module: in eval mode; maps latents (B, M) to images.
        kernels: of convolutions, by their place among the calls; see
            `pgmkit.tangents.convolutions`.
        tangent_dtype: the type that tangents are pushed in, such as `torch.bfloat16`; the primal
            stays in the type of the module. By default tangents are of that type, too.
        tf32: whether factors of their products may be rounded to TF32, where there is such
            arithmetic; those of the primal are not.

    Attributes:
        one_latent_at_a_time: whether the module moves the dimension that counts latents, or looks
            at values to decide what to do. Larger batches are then split up, so they gain nothing.
            Known after the first push of two or more latents.
        widest: numbers in the largest value that one latent has led to so far.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        kernels: Mapping[str, str] | None = None,
        tangent_dtype: torch.dtype | None = None,
        tf32: bool = False,
    ) -> None:
        self.module = module
        self.kernels = dict(kernels or {})
        self.tangent_dtype = tangent_dtype
        self.tf32 = tf32
        self.one_latent_at_a_time = False
        self.widest = 0
        self._checked = False
        self._generic: set[str] = set()
        self._tapes: dict[Any, Tape] = {}

    @property
    def generic(self) -> tuple[str, ...]:
        """The functions that have had no rule and were differentiated automatically so far."""
        return tuple(sorted(self._generic))

    @torch.no_grad()
    def push_forward(
        self, z: Tensor, directions: Tensor | None = None, near: Tensor | None = None
    ) -> Tensor:
        """Returns J·d for each direction, (B, D, C·H·W).

        Args:
            z: latents (B, M).
            directions: (D, M); by default the M unit vectors.
            near: bool (B,), on the device of z; becomes true for latents at which a unit that
                matters is so near to its kink that rounding may have put it on the other side.

        Raises:
            UnsupportedModuleError: the module does something that cannot be written down or
                differentiated, or its image of one latent depends on the others (which shows for
                two latents or more).
        """
        dtype = self.tangent_dtype or z.dtype
        if directions is None:
            directions = torch.eye(z.shape[1])
        directions = directions.to(z.device, dtype)
        if not self._checked and len(z) > 1:
            check_independent(self.module, z)
            self._checked = True
        if not self.one_latent_at_a_time:
            try:
                return self._push(z, directions, near, batched=True)
            except LatentsMoveError:
                self.one_latent_at_a_time = True
        flags = [None] * len(z) if near is None else near.split(1)
        return torch.cat(
            [
                self._push(latent, directions, flag, batched=False)
                for latent, flag in zip(z.split(1), flags, strict=True)
            ]
        )

    def calibrate(self, z: Tensor, directions: Tensor) -> None:
        """Finds and takes up the quickest kernels for such latents (B, M) and directions (D, M).

        What counts is the time for all layers, since some kernels leave their output in memory in
        a way that slows down what follows.
        """
        calls = self._tape(z).calls
        for call in calls:
            call.state["calibrate"] = True
        self.push_forward(z, directions)
        trials = [
            (saved, place, kernel)
            for place, call in enumerate(calls)
            for saved, kernel in call.state.pop("faster", [])
        ]
        trials.sort(reverse=True)
        started = time.perf_counter()
        # A second round, since a layer may gain only once its neighbours have changed.
        for _, place, kernel in trials * 2:
            _, convolution = calls[place].state["convolution"]
            before = convolution.kernel
            if kernel == before or time.perf_counter() - started > _CALIBRATION_SECONDS:
                continue
            seconds = convolution.seconds_by(
                (before, kernel), lambda: self.push_forward(z, directions), z.device, rounds=2
            )
            convolution.kernel = min(seconds, key=lambda tried: seconds[tried])
        kernels = {
            str(place): calls[place].state["convolution"][1].kernel for _, place, _ in trials
        }
        self.kernels = {place: kernel for place, kernel in kernels.items() if kernel != "dense"}
        # They have other kernels, and the weights of layers in forms that were only tried.
        self._tapes = {}

    def _push(self, z: Tensor, directions: Tensor, near: Tensor | None, *, batched: bool) -> Tensor:
        """Pushes in one of the layouts of `Dual`."""
        tape = self._tape(z)
        start = directions[None] if batched else directions[:, None]
        values: list[Any] = [None] * tape.size
        values[0] = Dual(z, start, batched, constant=batched)
        for call in tape.calls:
            result = self._apply(tape, call, values)
            if near is not None and call.name in KINKED and isinstance(result, Dual):
                source = values[values_of(Slot, (call.args, call.kwargs))[0].number]
                near |= _near_kink(source.primal.reshape(len(z), -1), z.shape[1])
            _store(values, call.result, result)
            if isinstance(result, Dual):
                self.widest = max(self.widest, result.primal.numel() // len(z))
            for slot in call.last_uses:
                values[slot.number] = None
        images = values[tape.output.number]
        if not isinstance(images, Dual):
            raise UnsupportedModuleError("no derivative reaches its output")
        if not batched:
            return without_undefined(images.tangents.flatten(1)[None], images.primal[None])
        tangents = images.tangents.flatten(2).expand(len(z), -1, -1)
        return without_undefined(tangents, images.primal)

    def _tape(self, z: Tensor) -> Tape:
        key = (len(z), z.dtype, z.device)
        tape = self._tapes.get(key)
        if tape is None:
            tape = simplified(record(self.module, z, PRIMITIVES, COMPOSITIONS))
            for place, call in enumerate(tape.calls):
                call.state["kernel"] = self.kernels.get(str(place), "dense")
            if not tape.data_dependent:
                tape = self._tapes.setdefault(key, tape)
        if tape.data_dependent and len(z) > 1:
            raise LatentsMoveError("the module looks at the values of several latents")
        return tape

    def _apply(self, tape: Tape, call: Call, values: list[Any]) -> Any:
        args, kwargs = map_values(
            lambda leaf: values[leaf.number] if isinstance(leaf, Slot) else leaf,
            (call.args, call.kwargs),
        )
        application = Application(call.name, call.function, args, kwargs, tape.cast, call.state)
        duals = application.duals
        outputs = values_of(Tensor, (application.primal,))
        if any(output.is_complex() for output in outputs):
            raise UnsupportedModuleError(f"{call.name} makes complex numbers")
        differentiable = call.differentiable and call.name not in CONSTANTS
        if not (duals and differentiable and any(map(torch.is_floating_point, outputs))):
            return application.primal
        last = {id(values[slot.number]) for slot in call.last_uses}
        for dual in duals:
            used_once = sum(other is dual for other in duals) == 1
            dual.spare = not dual.shared and used_once and id(dual) in last
        if not (duals[0].constant and len(duals) == 1 and call.name in LINEAR):
            return self._settle(self._push_through(application), duals)
        return self._constant(application)

    def _constant(self, call: Application) -> Any:
        """Pushes what stays the same as long as the directions do, and keeps it."""
        primal, start = call.primal, call.dual.stored
        key = (start.data_ptr(), start.shape, start.stride())
        kept = call.state.get("constant")
        if kept is None or kept[0] != key:
            result = self._settle(self._push_through(call), [call.dual])
            if not isinstance(result, Dual) or len(result.stored) != 1:
                return result
            # With the tangents that it came from, so that their memory is not used again.
            kept = call.state["constant"] = (key, start, result.stored)
        return Dual(primal, kept[2], constant=True)

    def _push_through(self, call: Application) -> Any:
        rounded = self.tf32 and call.name in PRODUCTS
        try:
            with rounded_to_tf32() if rounded else nullcontext():
                return RULES[call.name](call)
        except (LatentsMoveError, UnsupportedModuleError):
            raise
        except Exception as error:  # there is no rule, or it does not know these arguments
            if is_out_of_memory(error):
                raise
            self._generic.add(call.name)
        return push_generic(call)

    def _settle(self, result: Any, inputs: list[Dual]) -> Any:
        """Puts results into the type of tangents and notes which share their memory."""
        outputs = values_of(Dual, (result,))
        for output in outputs:
            dtype = self.tangent_dtype or output.primal.dtype
            output.stored = output.stored.to(dtype)
            strides = zip(output.stored.stride(), output.stored.shape, strict=True)
            expanded = any(stride == 0 and size > 1 for stride, size in strides)
            output.shared = expanded or len(outputs) > 1
            for dual in inputs:
                if _memory(output) == _memory(dual):
                    output.shared = output.shared or not dual.spare
                    dual.shared = True
        return result


def check_independent(function: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Raises UnsupportedModuleError if what a function makes of two latents depends on both."""
    pair = z[:2].clone()  # since the module may work in place
    try:
        together = function(pair.clone())
        if not isinstance(together, Tensor):
            return  # refused when it is written down
        alone = torch.cat([function(latent[None].clone()) for latent in pair])
        scale = float(together.abs().nan_to_num(posinf=0.0).max())
        rtol = max(1e-3, 8 * torch.finfo(together.dtype).eps)
        agree = alone.shape == together.shape and torch.allclose(
            alone, together, rtol=rtol, atol=rtol / 10 * scale, equal_nan=True
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        message = f"it does not run on one and two latents: {error}"
        raise UnsupportedModuleError(message) from error
    if not agree:
        raise UnsupportedModuleError(
            "it mixes latents or is random: two latents give another image than one"
        )


def without_undefined(tangents: Tensor, images: Tensor) -> Tensor:
    """Returns tangents (B, D, ...), NaN for latents whose images (B, ...) are not finite.

    Behind a ReLU a value of NaN has no live units, and its tangents come out as zero.
    """
    undefined = ~images.flatten(1).isfinite().all(dim=1)
    # To look would be to wait for an accelerator.
    if tangents.device.type == "cpu" and not undefined.any():
        return tangents
    return tangents.masked_fill(undefined[:, None, None], math.nan)


def _near_kink(x: Tensor, latent_dim: int) -> Tensor:
    """Returns for which latents a unit x (B, K) before a kink at zero may be on either side, (B,).

    Of a map from M latents through K units to an image, Σ_k s_k b_k J⁺ a_k = M, where s_k is the
    slope of a unit, b_k its tangents and a_k the derivative of the image by it. So one that
    switches moves log √det JᵀJ by about M / K nats, where K are those with a slope. Latents where
    that is next to nothing are not looked at.
    """
    counts = (x > 0).sum(dim=1) * _KINK_NATS < latent_dim
    sizes = x.abs()
    return counts & (sizes.amin(dim=1) < _KINK_NOISE * sizes.mean(dim=1))


def _memory(dual: Dual) -> int:
    return dual.stored.untyped_storage().data_ptr()


def _store(values: list[Any], slots: Any, result: Any) -> None:
    """Puts results where later calls look for them."""
    if isinstance(slots, Slot):
        values[slots.number] = result
    elif isinstance(slots, tuple | list):
        for slot, part in zip(slots, result, strict=True):
            _store(values, slot, part)
