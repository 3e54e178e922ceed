"""Singular values of the Jacobian of a generator, exact, for any module."""

import copy
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pgmkit.errors import GeneratorError
from pgmkit.generator import Generator
from pgmkit.references import first_line
from pgmkit.spectrum.tangents import TangentProgram

_CACHE_BYTES = 2**24
"""Tangents of one batch in the widest layer: few enough to stay in a core's cache."""

_PIXELS = 2**14
"""Rows of a Jacobian that are held in float64 at a time."""

_MEMORY_BYTES = 2**28
"""Tangents in the widest layer that may be held at once when one latent alone exceeds the cache."""


_FORWARD_MODE = threading.Lock()
"""Forward-mode autograd keeps its level in a global of torch: one thread at a time."""


@dataclass(frozen=True)
class JacobianPlan:
    """How the Jacobians of one generator are computed; recorded with every spectrum.

    Args:
        mode: "layers" pushes tangents through layer by layer, for networks of common layers;
            "forward" pushes them by forward-mode autograd, through any module that has a forward
            derivative; "reverse" pulls back one row of J after the other, for all others.
        batch_size: latents at a time.
        tangents: latent directions at a time.
    """

    mode: str
    batch_size: int
    tangents: int


class JacobianSpectra:
    """Computes singular values of J = ∂G/∂z for batches of latents.

    Args:
        generator: stays as it is; a prepared copy of its module does the work, in float32 where
            the weights are of lower precision.
        plan: one that was chosen before; None chooses by trying.

    Attributes:
        plan: how.

    Raises:
        GeneratorError: the module can be differentiated neither way, or not as planned.
    """

    def __init__(self, generator: Generator, *, plan: JacobianPlan | None = None) -> None:
        self.generator = _prepare(generator)
        self._program: TangentProgram | None = None
        if plan is None:
            self.plan = self._choose_plan()
        else:
            self.plan = plan
            self._follow_plan()

    @property
    def parallel(self) -> bool:
        """Whether several threads gain anything: not in forward mode, and not on an accelerator."""
        return self.plan.mode != "forward" and self.generator.device.type == "cpu"

    def compute(self, z: Tensor) -> dict[str, Tensor]:
        """Returns what a spectrum records of each latent z (B, M), each tensor (B, ...)."""
        return {"singular_values": self.singular_values(z)}

    def singular_values(self, z: Tensor) -> Tensor:
        """Returns the singular values of J for each latent.

        From the Jacobian product on, everything is float64. A float32 module leaves noise of about
        1e-7 times the largest singular value.

        Args:
            z: latents (B, M).

        Returns:
            (B, min(M, C·H·W)), descending, float64, on the CPU. A latent whose Jacobian is not
            finite has NaN throughout.
        """
        batches = z.to(self.generator.device, self.generator.dtype).split(self.plan.batch_size)
        return torch.cat([_singular_values(self._jacobians(batch)).cpu() for batch in batches])

    def _jacobians(self, z: Tensor) -> Tensor:
        """Returns Jᵀ for each latent, (B, M, C·H·W)."""
        if self._program is not None:
            return self._program.push_forward(z)
        if self.plan.mode == "reverse":
            return torch.stack([self._pull_back(latent) for latent in z])
        directions = torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
        return self._push_forward(z, directions).transpose(0, 1)

    @torch.no_grad()
    def _push_forward(self, z: Tensor, directions: Tensor) -> Tensor:
        """Returns J·d for each of the directions (D, M), as (D, B, C·H·W)."""

        def push(direction: Tensor) -> Tensor:
            tangent: Tensor = torch.func.jvp(self._flat, (z,), (direction.expand_as(z),))[1]
            return tangent

        chunk = self.plan.tangents if self.plan.tangents < len(directions) else None
        with _FORWARD_MODE:
            pushed: Tensor = torch.func.vmap(push, chunk_size=chunk)(directions)
        return pushed

    def _pull_back(self, latent: Tensor) -> Tensor:
        """Needs nothing but ordinary autograd."""
        with torch.enable_grad():
            rows = torch.autograd.functional.jacobian(
                lambda value: self._flat(value[None])[0], latent
            )
        return torch.as_tensor(rows).T

    def _flat(self, z: Tensor) -> Tensor:
        return self.generator(z).flatten(1)

    def _choose_plan(self) -> JacobianPlan:
        dim = self.generator.latent.dim
        bytes_per_tangent = _widest_layer_bytes(self.generator)
        on_cpu = self.generator.device.type == "cpu"
        batch_bytes = _CACHE_BYTES if on_cpu else _MEMORY_BYTES
        batch_size = max(1, min(64, batch_bytes // (dim * bytes_per_tangent)))
        tangents = max(1, min(dim, _MEMORY_BYTES // bytes_per_tangent))
        z = self.generator.sample_latents(1, seed=0)
        z = z.to(self.generator.device, self.generator.dtype)
        tries: dict[str, Callable[[], object]] = {
            "forward": lambda: self._push_forward_once(z, torch.eye(dim).to(z)[:2]),
            "reverse": lambda: self._pull_back_once(z[0]),
        }
        if tangents == dim:
            tries = {"layers": lambda: self._trace(z), **tries}
        reasons = []
        self.plan = JacobianPlan("forward", batch_size, tangents)
        for mode, attempt in tries.items():
            try:
                attempt()
            except Exception as error:
                reasons.append(f"{mode}: {first_line(error)[:160]}")
            else:
                return JacobianPlan(mode, batch_size, tangents)
        raise GeneratorError(
            f"the generator {self.generator.name!r} cannot be differentiated "
            f"({'; '.join(reasons)}); remove no_grad, detach and numpy from its forward pass"
        )

    def _follow_plan(self) -> None:
        if self.plan.mode != "layers":
            return
        z = self.generator.sample_latents(1, seed=0)
        try:
            self._trace(z.to(self.generator.device, self.generator.dtype))
        except Exception as error:
            raise GeneratorError(
                f"the generator {self.generator.name!r} cannot be differentiated as the spectrum "
                f"was begun ({first_line(error)}); compute it again elsewhere"
            ) from error

    def _trace(self, z: Tensor) -> None:
        """Takes up a layer-by-layer program if it agrees with reverse-mode autograd."""
        program = TangentProgram(self.generator.module)
        z = torch.cat([z, 1.5 * z])
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            images = self._flat(leaf)
            probe = torch.linspace(-1, 1, images.shape[1]).to(images)
            (expected,) = torch.autograd.grad((images * probe).sum(), leaf)
        actual = program.push_forward(z) @ probe
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)
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

    def _pull_back_once(self, latent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = latent.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self._flat(leaf[None]).sum(), leaf)
        return gradient


def _singular_values(jacobians: Tensor) -> Tensor:
    """Returns the singular values of each Jᵀ (B, M, N), descending, float64."""
    rank = min(jacobians.shape[1:])
    finite = jacobians.isfinite().all(dim=2).all(dim=1)
    jacobians = torch.where(finite[:, None, None], jacobians, 0.0)
    if jacobians.device.type == "mps":  # has no float64
        jacobians = jacobians.cpu()
        finite = finite.cpu()
    if jacobians.dtype == torch.float64:
        values = torch.linalg.svdvals(jacobians)
    else:
        # JᵀJ squares the condition number, which float64 has room for: a float32 J carries noise
        # of 1e-7 of its largest singular value, and the product adds 1e-8.
        product = sum(
            wide @ wide.transpose(1, 2)
            for wide in (part.double() for part in jacobians.split(_PIXELS, dim=2))
        )
        values = torch.linalg.eigvalsh(product).flip(1)[:, :rank].clamp(min=0.0).sqrt()
    return torch.where(finite[:, None], values, math.nan)


def _prepare(generator: Generator) -> Generator:
    """Returns a copy that computes the same, faster: batch norms folded, channels last.

    Falls back to the generator itself where the copy does not agree with it.
    """
    if generator.dtype in (torch.float16, torch.bfloat16):
        module = copy.deepcopy(generator.module).float()
        generator = Generator(module, generator.latent, generator.image, name=generator.name)
    z = generator.sample_latents(2, seed=0)
    with torch.no_grad():
        expected = generator(z)
        try:
            module = copy.deepcopy(generator.module)
            _fold_batch_norms(module)
            module = module.to(memory_format=torch.channels_last)
            for part in module.modules():
                if getattr(part, "inplace", False):
                    part.inplace = False  # type: ignore[assignment]
            prepared = Generator(module, generator.latent, generator.image, name=generator.name)
            torch.testing.assert_close(prepared(z), expected, rtol=1e-4, atol=1e-5)
        except Exception:
            return generator
    return prepared


def _fold_batch_norms(module: nn.Module) -> None:
    """Folds batch norms that directly follow a convolution in a `Sequential` into its weights."""
    uses = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    for sequence in module.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for (first, convolution), (second, norm) in pairwise(list(sequence.named_children())):
            if (
                isinstance(convolution, _ConvNd)
                and isinstance(norm, _BatchNorm)
                and norm.running_mean is not None
                and uses[id(convolution)] == uses[id(norm)] == 1
                and not (isinstance(convolution, _ConvTransposeNd) and convolution.groups > 1)
                and not hasattr(convolution, "parametrizations")
            ):
                fused = fuse_conv_bn_eval(
                    convolution, norm, transpose=isinstance(convolution, _ConvTransposeNd)
                )
                setattr(sequence, first, fused)
                setattr(sequence, second, nn.Identity())


def _widest_layer_bytes(generator: Generator) -> int:
    """Returns the bytes of the largest tensor that any submodule puts out for one latent."""
    sizes = [math.prod(generator.image.shape)]

    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [part.register_forward_hook(record) for part in generator.module.modules()]
    try:
        with torch.no_grad():
            generator(generator.sample_latents(1, seed=0))
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes) * torch.finfo(generator.dtype).bits // 8
