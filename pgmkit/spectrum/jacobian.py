"""Singular values of the Jacobian of a generator, for any module."""

import contextlib
import copy
import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pgmkit.errors import GeneratorError, ParameterError, PgmkitWarning, first_line
from pgmkit.generator import Generator
from pgmkit.machine import (
    available_cores,
    fetched,
    free_device_memory,
    full_float32,
    has_tf32,
    is_out_of_memory,
    keep_freed_memory,
)
from pgmkit.seeds import random_generator
from pgmkit.spectrum.differentiation import Differentiator, JacobianPlan
from pgmkit.spectrum.spectrum import RANK_RTOL
from pgmkit.tangents import UnsupportedModuleError

_Part = TypeVar("_Part")

DTYPES = ("auto", "float32", "float64", "tf32", "bfloat16")
_FAST = ("tf32", "bfloat16")
SKETCHES = ("volume", "top")

MEMORY_BUDGET = 2**30
"""Bytes beside the model, by default, where that does not follow from an accelerator's."""

_WEIGHT_COPIES = 4
"""How often the weights are held in other forms: prepared, folded, by taps, in float64."""

_TANGENTS_SHARE = 6
"""Tangents get one part in so many of the memory, a Jacobian that is held whole at most half."""

_LAPACK_COPIES = 3
"""As many times the size of a Jacobian takes the decomposition of it."""

_DOUBLES, _ACCELERATOR_DOUBLES = 2**19, 2**26
"""Numbers of float32 Jacobians that are turned into float64 at a time; a core's cache holds few."""

_AHEAD = 2**29
"""Bytes on the CPU of what an accelerator is ahead with, about."""

_DECOMPOSED = 2**15
"""Numbers that a thread decomposes at once, at least; it takes about a millisecond."""

_CHECKED = 4
"""Along how many random directions J is looked at to see whether it is zero."""

_FLOAT32_NOISE = 2**-20
"""‖E v‖ / σ_1 for the rounding errors E of a float32 J and any unit v, at most."""

_NOISE_LATENTS = 4
"""At how many latents that is measured where the bound above is not good enough."""

_NOISE_DIRECTIONS = 8
"""Along how many random directions, at each of them."""

_FIRST = 8
"""Where float32 is unsafe for the first latents of a block, so many or more, float64 does all."""

_UNSAFE_NATS = 0.01
"""A latent whose log-volume may be off by more than this in float32 is done again in float64."""


@dataclass(frozen=True)
class JacobianSettings:
    """What is computed, and how exactly; part of what identifies a spectrum.

    Args:
        dtype: of the Jacobian. "float32" and "float64" are what they say. "auto" takes the
            precision of the weights, at least float32, and does those latents again in float64
            whose log-volume or numeric rank, as estimators use them by default, float32 may miss.
            "bfloat16" rounds tangents to 8 bits; "tf32" rounds the factors of their products to
            11, on NVIDIA GPUs from Ampere on.
        probes: m, the number of random directions of a sketch, at least 1; None is exact.
        sketch: "volume" takes the m singular values of J on a random m-dimensional subspace of
            the latent space; "top" approximates the m largest singular values of J.
        min_rank_correlation: a fast method (tf32, bfloat16 or a sketch) that agrees less than this
            with the exact one is not used, in [-1, 1]; by default 0.95 for sketches and 0.995 for
            the others.
        memory_budget: bytes to use beside the model, at least 2**20; None is 2**30, and on CUDA
            about half of what is free on the device.

    Raises:
        ParameterError: a value is outside its range.
    """

    dtype: str = "auto"
    probes: int | None = None
    sketch: str = "volume"
    min_rank_correlation: float | None = None
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ParameterError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.sketch not in SKETCHES:
            raise ParameterError(
                f"sketch must be one of {', '.join(SKETCHES)}, not {self.sketch!r}"
            )
        if self.sketch == "top" and self.probes is None:
            raise ParameterError("sketch 'top' needs a number of probes; give it, such as 8")
        if self.probes is not None and self.probes < 1:
            raise ParameterError(f"probes must be at least 1, not {self.probes}")
        if self.probes is not None and self.dtype in _FAST:
            raise ParameterError(
                f"probes and dtype {self.dtype!r} are two fast methods; choose one"
            )
        threshold = self.min_rank_correlation
        if threshold is not None and not -1 <= threshold <= 1:
            raise ParameterError(f"min_rank_correlation must be in [-1, 1], not {threshold}")
        if threshold is not None and not self.is_fast:
            raise ParameterError(
                "min_rank_correlation would be ignored, since only probes and the dtypes "
                f"{' and '.join(map(repr, _FAST))} are compared with the exact method; leave it out"
            )
        if self.memory_budget is not None and self.memory_budget < 2**20:
            raise ParameterError(
                f"memory_budget must be at least 2**20 bytes (1 MiB), not {self.memory_budget}"
            )

    @property
    def is_fast(self) -> bool:
        """Whether it is one that has to be checked against the exact one."""
        return self.probes is not None or self.dtype in _FAST

    @property
    def threshold(self) -> float:
        """The rank correlation that a fast method has to reach."""
        if self.min_rank_correlation is not None:
            return self.min_rank_correlation
        return 0.995 if self.dtype in _FAST else 0.95

    @property
    def exact(self) -> "JacobianSettings":
        """The same without what makes it fast."""
        dtype = "auto" if self.dtype in _FAST else self.dtype
        return JacobianSettings(dtype, memory_budget=self.memory_budget)


@dataclass(frozen=True)
class _Begun(Generic[_Part]):
    """What was begun for a batch of latents.

    Args:
        finish: waits for it and returns it, each tensor (B, ...).
        num_bytes: what it takes on the CPU until then.
    """

    finish: Callable[[], _Part]
    num_bytes: int = 0

    @classmethod
    def done(cls, values: _Part) -> "_Begun[_Part]":
        """Returns what is there already."""
        return cls(lambda: values)


_Step = Callable[[Differentiator, Tensor], _Begun[_Part]]


class JacobianSpectra:
    """Computes singular values of J = ∂G/∂z for batches of latents.

    Args:
        generator: stays as it is.
        settings: what to compute.
        plan: how to compute it, if that was chosen before; found by trying if None.

    Attributes:
        plan: how it is computed.

    Raises:
        GeneratorError: the module cannot be differentiated.
        ParameterError: there are more probes than latent dimensions.
    """

    def __init__(
        self,
        generator: Generator,
        settings: JacobianSettings | None = None,
        plan: JacobianPlan | None = None,
    ) -> None:
        self.generator = generator
        self.settings = settings or JacobianSettings()
        continuous = generator.latent.continuous
        dim = int(continuous.sum())
        if dim == 0:
            raise GeneratorError(
                f"the latents of {generator.name!r} are all categorical, and an image has no "
                "derivative along them; add a continuous part to the prior"
            )
        if self.settings.probes is not None and dim < generator.latent.dim:
            raise ParameterError(
                f"sketches are for latents without categorical parts, and {generator.name!r} has "
                f"{generator.latent} latents; leave probes out"
            )
        if self.settings.probes is not None and self.settings.probes > dim:
            raise ParameterError(
                f"probes must be at most {dim}, the latent dimension of {generator.name!r}, not "
                f"{self.settings.probes}"
            )
        keep_freed_memory()
        device, module = generator.device, generator.module
        if self.settings.dtype == "tf32" and not has_tf32(device):
            raise GeneratorError(
                f"TF32 is arithmetic of NVIDIA GPUs from Ampere on, and {generator.name!r} is on "
                f"{device}"
            )
        budget = self.settings.memory_budget or _default_budget(device)
        weights = sum(part.nbytes for part in (*module.parameters(), *module.buffers()))
        self._memory = max(budget // 4, budget - _WEIGHT_COPIES * weights)
        with self._precisely():
            self._differentiator = Differentiator(
                in_precision(generator, self.settings.dtype),
                memory=self._memory // _TANGENTS_SHARE,
                num_directions=self.settings.probes or dim,
                plan=plan,
                tangent_dtype=torch.bfloat16 if self.settings.dtype == "bfloat16" else None,
                tf32=self.settings.dtype == "tf32",
            )
        self._directions = _probes(continuous, self.settings.probes).to(device)
        self._apart = device.type != "cpu"
        self._precise: Differentiator | None = None
        self._has_float64 = True
        self._noise: float | None = None
        self._lock = threading.Lock()
        needed = self._differentiator.bytes_needed + self._jacobian_bytes(self._differentiator)
        # An accelerator is given the work of one thread at a time.
        slots = max(1, self._memory // needed) if device.type == "cpu" else 1
        self._slots = threading.BoundedSemaphore(slots)

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process as what it is built from, and to that one's own accelerator."""
        device = self.generator.device.type
        generator = self.generator if device == "cpu" else copy.deepcopy(self.generator).to("cpu")
        return _rebuilt, (generator, device, self.settings, self.plan)

    @property
    def plan(self) -> JacobianPlan:
        """How Jacobians are computed."""
        return self._differentiator.plan

    @property
    def parallel(self) -> bool:
        """Whether several threads gain anything."""
        return self._differentiator.parallel

    def compute(self, z: Tensor) -> dict[str, Tensor]:
        """Returns the singular values of J for each latent z (B, M).

        From the Jacobian product on, everything is float64. Where memory runs out, it goes on
        with fewer latents or directions at a time. An accelerator makes the products; the CPU
        decomposes them meanwhile, matrix by matrix as LAPACK does it, which is quicker at that.
        Other threads may compute at the same time.

        Returns:
            `singular_values` (B, r), descending, float64: r = min(M, C·H·W), or the number of
            probes; M without the coordinates of categorical parts, along which there is no
            derivative. A latent whose Jacobian is not finite has NaN throughout. `float64` (B,),
            bool: which latents were computed in float64. All on the CPU.

        Raises:
            GeneratorError: memory does not even suffice for one latent and one direction, or the
                module does at one of the latents what cannot be differentiated.
        """
        with torch.no_grad():
            precision = self._differentiator.generator.dtype
            exact = self.settings.dtype not in _FAST
            in_float64 = torch.full([len(z)], exact and precision == torch.float64)
            if self.settings.dtype == "auto" and self.settings.probes is None:
                values, in_float64 = self._checked_values(z, in_float64)
            else:
                values, _ = self._all_values(self._differentiator, z)
        return {"singular_values": values, "float64": in_float64}

    def _checked_values(self, z: Tensor, in_float64: Tensor) -> tuple[Tensor, Tensor]:
        """Returns σ (n, r) of latents z (n, M), and which were computed in float64 in the end."""
        if in_float64.all():
            return self._all_values(self._differentiator, z)[0], in_float64
        # Whole batches; an accelerator is not to wait for what the first ones lead to.
        first = len(z) if self._apart else max(_FIRST, self.plan.batch_size)
        values, unsafe = self._rounded_values(z[:first])
        rest = len(z[first:])
        if rest:
            if unsafe.all() and self._float64() is not None:
                more, doubtful = values.new_zeros(rest, values.shape[1]), unsafe.new_ones(rest)
            else:
                more, doubtful = self._rounded_values(z[first:])
            values, unsafe = torch.cat([values, more]), torch.cat([unsafe, doubtful])
        precise = self._float64() if unsafe.any() else None
        if precise is None:
            return values, in_float64
        values[unsafe], _ = self._all_values(precise, z[unsafe])
        return values, unsafe

    def _rounded_values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns σ (n, r) in float32, and where that is not safe, bool (n,)."""
        values, near = self._all_values(self._differentiator, z)
        return values, self._is_unsafe(values) | near

    def vanishes(self, z: Tensor) -> Tensor:
        """Returns at which latents (B, M) J is zero, bool (B,): it is, along random directions."""
        random = random_generator(0, "vanishes")
        directions = torch.randn(_CHECKED, z.shape[1], generator=random)

        def step(differentiator: Differentiator, batch: Tensor) -> _Begun[Tensor]:
            pushed = differentiator.push(batch, directions)
            return _Begun.done((pushed == 0).all(dim=2).all(dim=1).cpu())

        with torch.no_grad():
            return torch.cat(self._over_batches(self._differentiator, z, step))

    def _all_values(self, differentiator: Differentiator, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `_values` of any number of latents (n, M)."""
        parts = self._over_batches(differentiator, z, self._values)
        values, near = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(near)

    def _over_batches(
        self,
        differentiator: Differentiator,
        z: Tensor,
        step: _Step[_Part],
    ) -> list[_Part]:
        """Returns what `step` makes of any number of latents, with what memory there is."""
        while True:
            try:
                with self._slots, self._precisely():
                    begun = self._begun(differentiator, z, step)
                return [batch.finish() for batch in begun]
            except UnsupportedModuleError as error:
                raise GeneratorError(
                    f"the generator {self.generator.name!r} cannot be differentiated at one of the "
                    f"latents: {error}"
                ) from error
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not differentiator.halve():
                    raise GeneratorError(
                        f"memory does not suffice for one latent and one direction of "
                        f"{self.generator.name!r}; free some, or choose another device"
                    ) from error

    def _begun(
        self,
        differentiator: Differentiator,
        z: Tensor,
        step: _Step[_Part],
    ) -> list[_Begun[_Part]]:
        """Begins a step for each batch, and does not go on too far before the first are done."""
        begun: list[_Begun[_Part]] = []
        held = first = 0
        for batch in differentiator.batches(z):
            while held > _AHEAD:
                held -= begun[first].num_bytes
                begun[first] = _Begun.done(begun[first].finish())
                first += 1
            begun.append(step(differentiator, batch))
            held += begun[-1].num_bytes
        return begun

    def _precisely(self) -> contextlib.AbstractContextManager[None]:
        """Float32 where an accelerator computes; the switch is one for all threads."""
        on_cpu = self.generator.device.type == "cpu"
        return contextlib.nullcontext() if on_cpu else full_float32()

    def _values(self, differentiator: Differentiator, z: Tensor) -> _Begun[tuple[Tensor, Tensor]]:
        """Begins what the settings ask for at latents (B, M).

        Returns:
            Singular values (B, r), and which latents are near a kink that matters, bool (B,); on
            the CPU.
        """
        directions = self._directions
        near = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        top = self.settings.probes is not None and self.settings.sketch == "top"
        needed = len(z) * self._jacobian_bytes(differentiator)
        if z.dtype == torch.float64:
            needed *= _LAPACK_COPIES
        whole = top or differentiator.plan.mode == "reverse"  # which takes whole rows of J
        if needed > self._memory // 2 and not whole:
            rank = min(len(directions), math.prod(self.generator.image.shape))
            pairs = zip(z.split(1), near.split(1), strict=True)
            products = [self._in_pairs(differentiator, *pair) for pair in pairs]
            begun = _begin_roots(torch.cat(products), rank, self._apart)
        else:
            pushed = differentiator.push(z, directions, near)
            if top:
                # Halko et al. 2011: the range of J·V holds the largest singular directions.
                images = torch.linalg.qr(_double(pushed).transpose(1, 2)).Q.transpose(1, 2)
                pushed = differentiator.pull(z, images)
            begun = _begin_values(pushed, self._apart)
        flags, wait = fetched(near)

        def finish() -> tuple[Tensor, Tensor]:
            values = begun.finish()
            wait()
            return values, flags

        return _Begun(finish, begun.num_bytes)

    def _in_pairs(self, differentiator: Differentiator, z: Tensor, near: Tensor) -> Tensor:
        """Returns JᵀJ (1, D, D), lower triangle, of a J too large to be held, on the CPU.

        It is made of two groups of directions at a time.
        """
        per_direction = self._jacobian_bytes(differentiator) // len(self._directions)
        size = max(1, self._memory // (5 * per_direction))
        starts = range(0, len(self._directions), size)
        products = torch.zeros(1, *[len(self._directions)] * 2, dtype=torch.float64)
        for first in starts:
            pushed = differentiator.push(z, self._directions[first : first + size], near)
            for other in range(0, first + 1, size):
                against = pushed
                if other != first:
                    against = differentiator.push(z, self._directions[other : other + size])
                product = _product(pushed, against)
                products[:, first : first + size, other : other + size] = product
        return products

    def _is_unsafe(self, values: Tensor) -> Tensor:
        """Returns for which latents float32 may miss what estimators use, by σ (n, r), bool (n,).

        The bound on noise does for nearly all generators; where it does not, noise is measured.
        """
        pixels = math.prod(self.generator.image.shape)
        unsafe = is_unsafe(values, pixels, _FLOAT32_NOISE)
        if (unsafe & values.isfinite().all(dim=1)).any():
            unsafe &= is_unsafe(values, pixels, self._measured_noise())
        return unsafe

    def _measured_noise(self) -> float:
        """Returns twice the noise at the median of some latents: one kink there spoils none."""
        precise = self._float64()
        if precise is None:
            return _FLOAT32_NOISE
        with self._lock:
            if self._noise is None:
                z = self.generator.sample_latents(_NOISE_LATENTS, 0)
                random = random_generator(0, "noise")
                directions = torch.randn(_NOISE_DIRECTIONS, z.shape[1], generator=random)
                directions /= directions.norm(dim=1, keepdim=True)

                def step(differentiator: Differentiator, batch: Tensor) -> _Begun[Tensor]:
                    return _Begun.done(_double(differentiator.push(batch, directions)).cpu())

                rounded, exact = (
                    torch.cat(self._over_batches(differentiator, z, step))
                    for differentiator in (self._differentiator, precise)
                )
                largest = self._all_values(self._differentiator, z)[0][:, 0]
                errors = (rounded - exact).square().sum(dim=2).mean(dim=1).sqrt()
                self._noise = 2 * float((errors / largest).nan_to_num(math.inf).median())
            return self._noise

    def _float64(self) -> Differentiator | None:
        """Returns what computes in float64; None if the module cannot."""
        with self._lock:
            if self._precise is None and self._has_float64:
                generator = in_precision(self.generator, "float64")
                jacobian = _LAPACK_COPIES * 8 * len(self._directions)
                held = self._memory // 2 // (jacobian * math.prod(self.generator.image.shape))
                plan = replace(self.plan, batch_size=max(1, min(self.plan.batch_size, held)))
                try:
                    precise = Differentiator(
                        generator, memory=self._memory // _TANGENTS_SHARE, plan=plan
                    )
                    z = next(precise.batches(self.generator.sample_latents(1, 0)))
                    precise.push(z, self._directions[:1])
                    self._precise = precise
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    self._has_float64 = False
                    warnings.warn(
                        f"the generator {self.generator.name!r} does not run in float64 "
                        f"({first_line(error)}); latents that float32 is unsafe for stay in it",
                        PgmkitWarning,
                        stacklevel=2,
                    )
            return self._precise

    def _jacobian_bytes(self, differentiator: Differentiator) -> int:
        """How large the Jacobian at one latent is."""
        size = torch.finfo(differentiator.generator.dtype).bits // 8
        return len(self._directions) * math.prod(self.generator.image.shape) * size


def _rebuilt(
    generator: Generator, device: str, settings: JacobianSettings, plan: JacobianPlan
) -> JacobianSpectra:
    return JacobianSpectra(generator.to(device), settings, plan)


def _default_budget(device: torch.device) -> int:
    """Returns how many bytes to use where nobody says it.

    On an accelerator it is a power of two, so that what else comes and goes there changes no plan.
    """
    free = free_device_memory(device)
    return MEMORY_BUDGET if free is None else max(2**20, 1 << ((free // 2).bit_length() - 1))


def _probes(continuous: Tensor, probes: int | None) -> Tensor:
    """Returns orthonormal directions (m, M): all axes, or a random subspace, always the same.

    Args:
        continuous: which axes there are to go along, bool (M,); all of them for a subspace.
        probes: m; None for the axes.
    """
    dim = len(continuous)
    if probes is None:
        return torch.eye(dim)[continuous]
    draws = torch.randn(dim, probes, generator=random_generator(0, "probes"), dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(draws).Q
    return basis.T.contiguous()


def in_precision(generator: Generator, dtype: str) -> Generator:
    """Returns the generator with weights in the precision that is asked for.

    Args:
        generator: stays as it is.
        dtype: see `JacobianSettings`; "auto" is the precision of the weights, at least float32.
    """
    wanted = {"float32": torch.float32, "float64": torch.float64}.get(dtype, generator.dtype)
    if wanted in (torch.float16, torch.bfloat16):
        wanted = torch.float32
    if wanted == generator.dtype:
        return generator
    module = copy.deepcopy(generator.module)
    if generator.device.type == "mps":  # has no float64
        module = module.cpu()
    # `module.to` would make complex weights real.
    in_complex = torch.complex128 if wanted == torch.float64 else torch.complex64

    def converted(part: Tensor) -> Tensor:
        if part.is_complex():
            return part.to(in_complex)
        return part.to(wanted) if part.is_floating_point() else part

    module._apply(converted)
    return Generator(module, generator.latent, generator.image, name=generator.name)


def is_unsafe(values: Tensor, pixels: int, noise: float) -> Tensor:
    """Returns for which latents rounding errors may change what estimators use.

    To first order errors E of J change log σ_i by u_iᵀ E v_i / σ_i, which has the standard
    deviation ν σ_1 / (√N σ_i) for N pixels and ν = ‖E v‖ / σ_1; three of the root of the sum of
    squares count. To second order they add (ν σ_1 / σ_i)² / 2 to each. Only singular values above
    the floor of `Spectrum.log_volume` count, and which these are must be sure.

    Args:
        values: σ (n, r), descending.
        pixels: N.
        noise: ν.

    Returns:
        bool (n,); true where J is zero or not finite.
    """
    shares = values / values[:, :1]
    counted = shares > RANK_RTOL
    squares = torch.where(counted, shares, math.inf).pow(-2).sum(dim=1)
    nats = 3 * noise * (squares / pixels).sqrt() + noise**2 * squares / 2
    margin = 3 * noise / pixels**0.5 + noise**2 / (2 * RANK_RTOL)
    safe: Tensor = ((shares - RANK_RTOL).abs() > margin).all(dim=1) & (nats <= _UNSAFE_NATS)
    return ~safe


def _double(values: Tensor) -> Tensor:
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    return values.double()


def _begin_values(jacobians: Tensor, apart: bool) -> _Begun[Tensor]:
    """Begins to find the singular values of each Jᵀ (B, D, N), descending, float64.

    For `apart` see `_begin`.
    """
    if jacobians.dtype == torch.float64:
        if apart and jacobians.nbytes > _AHEAD and jacobians.shape[1] < jacobians.shape[2]:
            # A factor of D × D numbers with the same singular values.
            jacobians = torch.linalg.qr(jacobians.transpose(1, 2), mode="r").R
        # Tall matrices, as they lie in memory, are done in a third of the time.
        return _begin(lambda part: torch.linalg.svdvals(part.mT), jacobians, apart)
    # JᵀJ squares the condition number, which float64 has room for: a float32 J carries noise
    # of 1e-7 of its largest singular value, and the product adds 1e-8.
    return _begin_roots(_product(jacobians, jacobians), min(jacobians.shape[1:]), apart)


def _begin_roots(products: Tensor, rank: int, apart: bool) -> _Begun[Tensor]:
    """Begins to find the roots of the largest eigenvalues of JᵀJ (B, D, D), lower triangle.

    For `apart` see `_begin`.
    """
    begun = _begin(torch.linalg.eigvalsh, products, apart)
    return _Begun(lambda: begun.finish().flip(1)[:, :rank].clamp(min=0.0).sqrt(), begun.num_bytes)


def _begin(decompose: Callable[[Tensor], Tensor], matrices: Tensor, apart: bool) -> _Begun[Tensor]:
    """Begins to decompose matrices (B, ...) on the CPU into values (B, r); NaN if not finite.

    Args:
        decompose: what LAPACK does.
        matrices: on any device.
        apart: whether threads are to share them out, which leaves an accelerator free for the next
            ones; otherwise it is done at once.
    """
    finite = matrices.isfinite().all(dim=2).all(dim=1)
    sound = torch.where(finite[:, None, None], matrices, 0.0)
    if not apart:
        return _Begun.done(torch.where(finite[:, None], decompose(sound), math.nan))
    known, _ = fetched(finite)  # there before the matrices are
    copy, wait = fetched(sound)

    def run(part: Tensor) -> Tensor:
        wait()
        return decompose(part)

    share = max(-(-len(copy) // available_cores()), _DECOMPOSED // copy[0].numel())
    futures = [_threads().submit(run, part) for part in copy.split(share)]

    def finish() -> Tensor:
        values = torch.cat([future.result() for future in futures])
        return torch.where(known[:, None], values, math.nan)

    return _Begun(finish, copy.nbytes)


@cache
def _threads() -> ThreadPoolExecutor:
    """Returns threads of the CPU with one tensor operation at a time each, for all spectra."""
    return ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns A·Bᵀ in float64 for A (B, D, N) and B (B, E, N), a few of both at a time.

    Where they are the same, it is the lower triangle.
    """
    doubles = _DOUBLES if left.device.type == "cpu" else _ACCELERATOR_DOUBLES
    latents = max(1, doubles // left[0].numel())
    pixels = max(64, doubles // left[:latents, :, 0].numel())

    def multiplied(a: Tensor, b: Tensor) -> Tensor:
        first = _double(a)
        if left is not right:
            return first @ _double(b).mT
        # What is above the diagonal is what is below it, so a quarter need not be computed.
        half = a.shape[1] // 2
        product = first.new_zeros(len(a), a.shape[1], a.shape[1])
        torch.bmm(first[:, :half], first[:, :half].mT, out=product[:, :half, :half])
        torch.bmm(first[:, half:], first.mT, out=product[:, half:])
        return product

    totals = []
    for ours, theirs in zip(left.split(latents), right.split(latents), strict=True):
        products = map(multiplied, ours.split(pixels, dim=2), theirs.split(pixels, dim=2))
        total = next(products)
        for product in products:
            total += product
        totals.append(total)
    return torch.cat(totals)
