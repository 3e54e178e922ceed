"""Derivatives of a generator along many latent directions at once, for any module."""

import contextlib
import copy
import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pgmkit.errors import GeneratorError, first_line
from pgmkit.generator import Generator
from pgmkit.machine import is_out_of_memory, seconds_for, sent, tensor_threads
from pgmkit.seeds import random_generator
from pgmkit.tangents import (
    FORWARD_MODE,
    TangentProgram,
    UnsupportedModuleError,
    check_independent,
    checkpoints_run_through,
    without_undefined,
)

_LAYERS_AT_ONCE = 4
"""Tensors of a layer's size that exist while it runs: input, masked copy, output, workspace."""

_CHECKED = 4
"""With how many random directions a program is checked against reverse mode."""

_CALIBRATION_TANGENTS = 128
"""With how many directions kernels are tried, at most."""

_CALIBRATION_ROWS = 1024
"""With how many latents times directions kernels are tried on an accelerator, about."""

_CALIBRATION_SECONDS = 1.0
"""How long batch sizes are tried."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_ACCELERATOR_BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
"""Latents at a time that are tried; an accelerator and small layers want many."""

_REASON = 200
"""How many characters of a reason are told."""

_ADVICE = {
    r"does not require grad|derivative is zero|numpy\(\)|data pointer": (
        "no derivative leaves its forward pass: remove detach, .data, .item(), numpy, no_grad and "
        "inference_mode from it"
    ),
    r"custom autograd\.Function|setup_context|vjp method": (
        "give its custom autograd.Function a backward, or write it in functions of torch"
    ),
    r"inplace operation|in-place operation": (
        "let its forward pass make new tensors where it changes some in place"
    ),
    r"not implemented|[Nn]o derivative|not differentiable": (
        "replace the function that is named there by one that has a derivative"
    ),
}
"""What helps, by what torch says."""

_CALIBRATED: "dict[tuple[object, ...], JacobianPlan]" = {}
"""Plans by generator and circumstances: one process calibrates once, and so repeats its results."""


@dataclass(frozen=True)
class JacobianPlan:
    """How the Jacobians of one generator are computed; recorded with every spectrum.

    Args:
        mode: "layers" pushes tangents through layer by layer, for networks of common layers;
            "forward" pushes them by forward-mode autograd, through any module that has a forward
            derivative; "reverse" pulls back one row of J after the other, for all others.
        batch_size: latents at a time.
        tangents: latent directions at a time.
        kernels: of the convolutions that are not done in torch's own way, by layer; see
            `pgmkit.tangents.convolutions`.
        generic: functions without a rule of their own, which "layers" differentiates one by one.
        declined: the ways before `mode` with why they were not taken.
    """

    mode: str
    batch_size: int
    tangents: int
    kernels: Mapping[str, str] = field(default_factory=dict)
    generic: Sequence[str] = ()
    declined: Sequence[str] = ()


class Differentiator:
    """Pushes latent directions through a generator, and pulls image directions back.

    Args:
        generator: stays as it is; a prepared copy of its module does the work.
        memory: bytes that tangents may take at a time.
        num_directions: with how many directions plans are tried; M by default.
        plan: one that was chosen before; found by trying if None.
        tangent_dtype: precision of tangents, where it is lower than that of the weights; for
            generators that can be done layer by layer.
        tf32: whether products of tangents may be in TF32; for such generators, too.

    Attributes:
        plan: how.

    Raises:
        GeneratorError: the module can be differentiated neither way.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        memory: int,
        num_directions: int | None = None,
        plan: JacobianPlan | None = None,
        tangent_dtype: torch.dtype | None = None,
        tf32: bool = False,
    ) -> None:
        self.generator = _prepare(generator)
        self._tangent_dtype = tangent_dtype
        self._tf32 = tf32
        self._num_directions = num_directions or generator.latent.dim
        self._program: TangentProgram | None = None
        self._layer_bytes = _widest_layer_bytes(self.generator) * _LAYERS_AT_ONCE
        if plan is None:
            self.plan = self._plan_within(memory)
        else:
            rows = max(1, memory // self._layer_bytes)
            batch_size = max(1, min(plan.batch_size, rows // plan.tangents))
            self.plan = replace(plan, batch_size=batch_size, tangents=min(plan.tangents, rows))
            if plan.mode == "layers":
                self._program = self._trace(plan.kernels)

    @property
    def parallel(self) -> bool:
        """Whether several threads gain anything: not in forward mode, and not on an accelerator."""
        return self.plan.mode != "forward" and self.generator.device.type == "cpu"

    @property
    def bytes_needed(self) -> int:
        """How many bytes tangents take at a time, about."""
        return self.plan.batch_size * self.plan.tangents * self._layer_bytes

    def batches(self, z: Tensor) -> Iterator[Tensor]:
        """Yields latents (n, M) in the plan's batches, on the generator's device."""
        there = sent(z, self.generator.device, self.generator.dtype)
        yield from there.split(self.plan.batch_size)

    def halve(self) -> bool:
        """Takes half as many latents, or else directions, at a time; False if there is one."""
        plan = self.plan
        if plan.batch_size > 1:
            self.plan = replace(plan, batch_size=plan.batch_size // 2)
        elif plan.tangents > 1:
            self.plan = replace(plan, tangents=plan.tangents // 2)
        return plan != self.plan

    def push(self, z: Tensor, directions: Tensor, near: Tensor | None = None) -> Tensor:
        """Returns J·d at latents z (B, M) for directions (D, M), as (B, D, C·H·W).

        Args:
            z: latents.
            directions: to go along.
            near: in mode "layers", see `TangentProgram.push_forward`.
        """
        directions = directions.to(z)
        if self.plan.mode == "reverse":
            pushed = torch.stack([directions @ self._jacobian(latent).T for latent in z])
            with torch.no_grad():
                return without_undefined(pushed, self._flat(z))
        step: Callable[[Tensor, Tensor], Tensor] = self._push_forward
        if self._program is not None:
            step = functools.partial(self._push_layers, near=near)
        size = self.plan.tangents  # once, as another thread may find that memory runs out
        if len(directions) <= size:
            return step(z, directions)
        pushed = z.new_empty(len(z), len(directions), math.prod(self.generator.image.shape))
        parts = zip(
            pushed.split(size, dim=1),
            directions.split(size),
            strict=True,
        )
        for result, part in parts:
            result.copy_(step(z, part))
        return pushed

    def pull(self, z: Tensor, images: Tensor) -> Tensor:
        """Returns Jᵀ·x at latents z (B, M) for image directions (B, D, C·H·W), as (B, D, M)."""
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            flat = self._flat(leaf)
            rows = [
                torch.autograd.grad(flat, leaf, image, retain_graph=True)[0]
                for image in images.to(z).unbind(1)
            ]
        return torch.stack(rows, dim=1)

    def _push_layers(self, z: Tensor, directions: Tensor, near: Tensor | None) -> Tensor:
        assert self._program is not None
        return self._program.push_forward(z, directions, near).to(z.dtype)

    @torch.no_grad()
    def _push_forward(self, z: Tensor, directions: Tensor) -> Tensor:
        def push(direction: Tensor) -> Tensor:
            tangent: Tensor = torch.func.jvp(self._flat, (z,), (direction.expand_as(z),))[1]
            return tangent

        with FORWARD_MODE:
            pushed: Tensor = torch.func.vmap(push)(directions)
        return without_undefined(pushed.transpose(0, 1), self._flat(z))

    def _jacobian(self, latent: Tensor) -> Tensor:
        """Needs nothing but ordinary autograd; (C·H·W, M)."""
        with torch.enable_grad():
            rows = torch.autograd.functional.jacobian(
                lambda value: self._flat(value[None])[0], latent
            )
        return torch.as_tensor(rows)

    def _latents(self, count: int, seed: int) -> Tensor:
        """Draws latents (count, M) to try things with, where the generator computes."""
        z = self.generator.sample_latents(count, seed)
        return z.to(self.generator.device, self.generator.dtype)

    def _flat(self, z: Tensor) -> Tensor:
        with checkpoints_run_through():
            return self.generator(z.clone()).flatten(1)  # as the module may work in place

    def _plan_within(self, memory: int) -> JacobianPlan:
        """Returns a plan for as much of the memory as there turns out to be."""
        while True:
            try:
                return self._choose_plan(memory)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or memory <= self._layer_bytes:
                    raise
                memory //= 2

    def _choose_plan(self, memory: int) -> JacobianPlan:
        z = self._latents(1, seed=0)
        directions = torch.eye(z.shape[1]).to(z)
        tangents = max(1, min(self._num_directions, memory // self._layer_bytes))
        tries: dict[str, Callable[[], object]] = {
            "layers": self._take_up_program,
            "forward": lambda: self._push_forward_once(z, directions[:2]),
            "reverse": lambda: self.pull(
                z, torch.ones(1, 1, math.prod(self.generator.image.shape))
            ),
        }
        if self._is_rounded:
            tries = {"layers": tries["layers"]}
        self._check_independent()
        reasons: list[str] = []
        for mode, attempt in tries.items():
            self.plan = JacobianPlan(mode, 1, tangents, declined=list(reasons))
            try:
                attempt()
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reasons.append(f"{mode}: {textwrap.shorten(first_line(error), _REASON)}")
            else:
                return self._calibrated(memory)
        raise GeneratorError(
            f"the generator {self.generator.name!r} cannot be differentiated "
            f"({'; '.join(reasons)}); {_advice(reasons)}"
        )

    def _calibrated(self, memory: int) -> JacobianPlan:
        """Returns the plan with the sizes, and the kernels, that were quickest when tried."""
        if self.plan.mode == "reverse":
            return self.plan
        if self._program is not None:
            # Activations that are no module's output, too.
            widest = self._program.widest * torch.finfo(self.generator.dtype).bits // 8
            self._layer_bytes = max(self._layer_bytes, widest * _LAYERS_AT_ONCE)
        key = (
            self.generator.fingerprint(),
            self.generator.device,
            self._tangent_dtype,
            self._tf32,
            self._num_directions,
            memory,
            self.plan.mode,
        )
        if key not in _CALIBRATED:
            # Workers have one thread each, where several gain anything.
            with tensor_threads(1) if self.parallel else contextlib.nullcontext():
                _CALIBRATED[key] = self._calibrate(memory)
        plan = _CALIBRATED[key]
        if self._program is not None:
            # Workers have the plan alone. What was written down in trying is of other kernels.
            self._program = self._trace(plan.kernels)
        return plan

    def _calibrate(self, memory: int) -> JacobianPlan:
        dim = self._num_directions
        rows = memory // self._layer_bytes
        accelerated = self.generator.device.type != "cpu"
        batch_sizes = _ACCELERATOR_BATCH_SIZES if accelerated else _BATCH_SIZES
        z = self._latents(batch_sizes[-1], seed=1)
        if self._program is not None:
            tangents = max(1, min(dim, rows))
            directions = torch.eye(z.shape[1]).to(z)[: min(tangents, _CALIBRATION_TANGENTS)]
            fitting = min(rows, _CALIBRATION_ROWS) if accelerated else 1
            self._program.calibrate(z[: max(1, fitting // len(directions))], directions)
            self.plan = replace(
                self.plan,
                tangents=tangents,
                kernels=self._program.kernels,
                generic=list(self._program.generic),
            )
        first = self.plan
        sizes = [(batch, dim) for batch in batch_sizes if batch * dim <= rows]
        sizes += [(1, part) for part in {dim // 2, dim // 4, 16} if 8 <= part < min(dim, rows)]
        if self._program is not None and self._program.one_latent_at_a_time:
            sizes = [size for size in sizes if size[0] == 1]
        best, best_seconds = first, self._seconds(first, z)
        spent = best_seconds
        for batch_size, tangents in sizes:
            # Slow generators have large layers, for which more latents at a time gain nothing.
            if spent + 2 * batch_size * best_seconds > _CALIBRATION_SECONDS:
                continue
            plan = replace(first, batch_size=batch_size, tangents=tangents)
            seconds = min(self._seconds(plan, z) for _ in range(2))
            spent += 2 * batch_size * seconds
            if seconds < best_seconds:
                best, best_seconds = plan, seconds
        return best

    def _seconds(self, plan: JacobianPlan, z: Tensor) -> float:
        """Returns the seconds for one latent under a plan."""
        self.plan = plan
        batch = z[: plan.batch_size]
        directions = torch.eye(z.shape[1]).to(z)[: plan.tangents]
        share = len(directions) / self._num_directions
        return seconds_for(lambda: self.push(batch, directions), z.device) / len(batch) / share

    def _trace(self, kernels: Mapping[str, str] | None = None) -> TangentProgram:
        return TangentProgram(
            self.generator.network(),
            kernels=kernels,
            tangent_dtype=self._tangent_dtype,
            tf32=self._tf32,
        )

    @property
    def _is_rounded(self) -> bool:
        """Whether tangents are less exact than the weights."""
        return self._tangent_dtype is not None or self._tf32

    def _check_independent(self) -> None:
        """Raises GeneratorError unless the image of a latent depends on that latent alone."""
        z = self._latents(2, seed=0)
        try:
            with torch.no_grad():
                check_independent(self._flat, z)
        except UnsupportedModuleError as error:
            raise GeneratorError(
                f"the generator {self.generator.name!r} cannot be differentiated: {error}"
            ) from error

    def _take_up_program(self) -> None:
        """Takes up a layer-by-layer program if it agrees with reverse-mode autograd."""
        program = self._trace()
        z = self._latents(2, seed=0)
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            images = self._flat(leaf)
            probe = torch.linspace(-1, 1, images.shape[1]).to(images)
            (gradient,) = torch.autograd.grad((images * probe).sum(), leaf)
        directions = torch.randn(_CHECKED, z.shape[1], generator=random_generator(0, "check"))
        directions = directions.to(z)
        expected = gradient @ directions.T
        actual = program.push_forward(z, directions).to(z.dtype) @ probe
        scale = float(expected.abs().max())
        tolerance = 0.1 if self._is_rounded else 1e-3
        if not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance / 10 * scale):
            raise GeneratorError("layer by layer the derivative is another than autograd's")
        self._program = program

    def _push_forward_once(self, z: Tensor, directions: Tensor) -> None:
        """Pushes some directions; one and all come out as zero where the module detaches."""
        if self._push_forward(z, directions).any():
            return
        step = 0.01
        with torch.no_grad():
            images, moved = self._flat(z), self._flat(z + step * directions)
        if ((moved - images).abs().max() > 1e-3 * step * images.abs().max()).item():
            raise GeneratorError("the derivative is zero where the images change")


def _advice(reasons: Sequence[str]) -> str:
    """Returns what helps against the first reason for which that is known."""
    for reason in reasons:
        for pattern, advice in _ADVICE.items():
            if re.search(pattern, reason):
                return advice
    return (
        "torch.autograd.grad has to get through its forward pass; try it on one latent to see "
        "where it stops"
    )


def _prepare(generator: Generator) -> Generator:
    """Returns a copy that computes the same, faster: channels last.

    Falls back to the generator itself where the copy does not agree with it. A compiled module is
    taken as it was written, since each way and size of running it would be compiled anew.
    """
    written = getattr(generator.module, "_orig_mod", None)
    if isinstance(written, nn.Module):
        generator = Generator(written, generator.latent, generator.image, name=generator.name)
    z = generator.sample_latents(2, seed=0)
    with torch.no_grad():
        expected = generator(z)
        try:
            module = copy.deepcopy(generator.module)
            module = module.to(memory_format=torch.channels_last)
            for part in module.modules():
                if getattr(part, "inplace", False):
                    part.inplace = False  # type: ignore[assignment]
            prepared = Generator(module, generator.latent, generator.image, name=generator.name)
            agree = torch.allclose(prepared(z), expected, rtol=1e-4, atol=1e-5)
        except Exception:
            return generator
    return prepared if agree else generator


def _widest_layer_bytes(generator: Generator) -> int:
    """Returns the bytes of the largest tensor that any submodule puts out for one latent."""
    sizes = [math.prod(generator.image.shape)]

    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [
        part.register_forward_hook(record)
        for part in generator.module.modules()
        if not isinstance(part, torch.jit.ScriptModule)  # which takes none
    ]
    try:
        with torch.no_grad():
            generator(generator.sample_latents(1, seed=0))
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes) * torch.finfo(generator.dtype).bits // 8
