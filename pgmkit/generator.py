"""The frozen generator, its latent prior and its image spec."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pgmkit import identity
from pgmkit.errors import GeneratorError, ParameterError
from pgmkit.seeds import random_generator

_LATENT_CHUNK = 256
_DRAWN_IN_ORDER = ("normal", "uniform", "truncated-normal")
_SMALLEST_SHARE = 1e-7
_IMAGE_BATCH = 256
_DISTRIBUTIONS = ("normal", "uniform", "truncated-normal")


@dataclass(frozen=True)
class LatentSpec:
    """The prior over flat latents: independent, identical coordinates.

    Args:
        dim: M, the number of coordinates, at least 1.
        distribution: "normal" is N(0, std²); "uniform" is U(low, high); "truncated-normal" is
            N(0, std²) restricted to [low, high].
        std: standard deviation before truncation, above 0.
        low: lower bound; for the normal prior it is not used.
        high: upper bound; for the normal prior it is not used.

    Raises:
        ParameterError: a value is outside its range.
    """

    dim: int
    distribution: Literal["normal", "uniform", "truncated-normal"] = "normal"
    std: float = 1.0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or isinstance(self.dim, bool) or self.dim < 1:
            raise ParameterError(f"latent.dim must be a whole number from 1, not {self.dim!r}")
        if self.distribution not in _DISTRIBUTIONS:
            raise ParameterError(
                f"latent.distribution must be one of {', '.join(_DISTRIBUTIONS)}, "
                f"not {self.distribution!r}"
            )
        numbers = (self.std, self.low, self.high)
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise ParameterError(f"latent std, low and high must be finite numbers, not {numbers}")
        if self.std <= 0:
            raise ParameterError(f"latent.std must be above 0, not {self.std}")
        if self.low >= self.high:
            raise ParameterError(
                f"latent.low must be below latent.high, not {self.low} and {self.high}"
            )

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Draws latents (count, M), float32, on the CPU."""
        if self.distribution == "normal":
            return torch.randn(count, self.dim, generator=random) * self.std
        uniform = torch.rand(count, self.dim, generator=random, dtype=torch.float64)
        return self._quantile(uniform).float()

    def to_normal(self, z: Tensor) -> Tensor:
        """Returns x (B, M), float64, such that z from this prior gives x from N(0, 1).

        Coordinates on a bound, whose x would be infinite, count as 1e-7 of the mass away from it.
        """
        z = z.double()
        if self.distribution == "normal":
            return z / self.std
        if self.distribution == "uniform":
            share = (z - self.low) / (self.high - self.low)
        else:
            below, above = self._normal_cdf_at_bounds()
            share = (torch.special.ndtr(z / self.std) - below) / (above - below)
        x: Tensor = torch.special.ndtri(share.clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE))
        return x

    def from_normal(self, x: Tensor) -> Tensor:
        """Returns the latents z (B, M), float32, of x (B, M): the inverse of `to_normal`."""
        if self.distribution == "normal":
            return (x.double() * self.std).float()
        share = torch.special.ndtr(x.double())
        return self._quantile(share.clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE)).float()

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, float64 (B,), for z (B, M); -inf outside the support."""
        z = z.double()
        if self.distribution == "uniform":
            density = torch.full_like(z, -math.log(self.high - self.low))
        else:
            density = -0.5 * (z / self.std) ** 2 - math.log(self.std * math.sqrt(2 * math.pi))
        if self.distribution == "truncated-normal":
            below, above = self._normal_cdf_at_bounds()
            density = density - math.log(above - below)
        if self.distribution != "normal":
            density = density.masked_fill((z < self.low) | (z > self.high), -math.inf)
        return density.sum(dim=1)

    def _quantile(self, share: Tensor) -> Tensor:
        """Returns the coordinates, of a bounded prior, below which shares of its mass lie."""
        if self.distribution == "uniform":
            return self.low + (self.high - self.low) * share
        below, above = self._normal_cdf_at_bounds()
        found: Tensor = torch.special.ndtri(below + (above - below) * share) * self.std
        return found.clamp_(self.low, self.high)

    def _normal_cdf_at_bounds(self) -> tuple[float, float]:
        bounds = torch.tensor([self.low, self.high], dtype=torch.float64) / self.std
        below, above = torch.special.ndtr(bounds).tolist()
        return below, above


@dataclass(frozen=True)
class ImageSpec:
    """The images that a generator makes.

    Args:
        shape: (C, H, W).
        range: lowest and highest value, such as (-1, 1) after tanh.

    Raises:
        ParameterError: a value is outside its range.
    """

    shape: tuple[int, int, int]
    range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if len(shape) != 3 or any(not isinstance(s, int) or s < 1 for s in shape):
            raise ParameterError(f"image.shape must be (C, H, W), each at least 1, not {shape}")
        if len(tuple(self.range)) != 2 or not self.range[0] < self.range[1]:
            raise ParameterError(
                f"image.range must be (lowest, highest), such as (-1, 1), not {self.range!r}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "range", (float(self.range[0]), float(self.range[1])))


class Generator:
    """A frozen network with its latent prior and its image spec.

    The module is put into eval mode and its gradients are turned off, in place. It may be a
    TorchScript module or that of an exported program, too; the latter stays in the mode that it
    was exported in.

    Args:
        module: maps flat latents z (B, M) to images (B, C, H, W) or anything of that many values.
        latent: the prior over z.
        image: what comes out.
        name: for logs and reports.
        architecture: the generator-loader component that builds such a module, so that a saved
            result can be loaded again without naming a class.
        model_args: what that component is called with.
        provenance: where the weights came from; kept with every result.

    Raises:
        ParameterError: it is no module.
        GeneratorError: the module has no weights yet: it is on the meta device, or has lazy layers
            that have not run.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh())
        >>> Generator(module, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)), name="toy")
        Generator('toy': 2 normal latents -> 1×4×4 images, 48 parameters)
    """

    def __init__(
        self,
        module: nn.Module,
        latent: LatentSpec,
        image: ImageSpec,
        *,
        name: str = "",
        architecture: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ParameterError(
                f"a generator wraps a torch.nn.Module, not {type(module).__name__}"
            )
        self.module = _frozen(module)
        self.latent = latent
        self.image = image
        self.name = name or type(module).__name__
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        self.provenance = dict(provenance or {})

    def __call__(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W) for latents z (B, M), on the generator's device.

        Raises:
            GeneratorError: the latents or what comes out have the wrong shape, or it is no tensor.
        """
        self.check_latents(z)
        images = self.module(z.to(self.device, self.dtype))
        if not isinstance(images, Tensor):
            raise GeneratorError(
                f"the generator {self.name!r} returns a {type(images).__name__}, not a tensor; "
                "wrap it in a module that returns the images alone"
            )
        wanted = (len(z), *self.image.shape)
        if images.shape[0] != len(z) or images.numel() != math.prod(wanted):
            raise GeneratorError(
                f"the generator {self.name!r} returns shape {tuple(images.shape)} for {len(z)} "
                f"latents, and its image spec says {wanted}; correct the spec or wrap the module"
            )
        return images.reshape(wanted)

    def images(self, latents: Tensor) -> Tensor:
        """Returns G(z) for latents (n, M), made batch by batch and gathered on the CPU."""
        return torch.cat([batch.cpu() for batch in self.image_batches(latents)])

    def image_batches(self, latents: Tensor, batch_size: int = _IMAGE_BATCH) -> Iterator[Tensor]:
        """Yields G(z) for latents (n, M), batch by batch and without gradients.

        Args:
            latents: on any device.
            batch_size: at most this many images at once, at least 1.

        Yields:
            Images (B, C, H, W) on the generator's device.

        Raises:
            GeneratorError: see `__call__`.
        """
        self.check_latents(latents)
        for batch in latents.split(batch_size):
            with torch.no_grad():
                images = self(batch)
            yield images

    def check_latents(self, z: Tensor) -> None:
        """Raises GeneratorError unless z has the shape (B, M)."""
        if z.ndim != 2 or z.shape[1] != self.latent.dim:
            raise GeneratorError(
                f"latents for {self.name!r} have the shape (B, {self.latent.dim}), "
                f"not {tuple(z.shape)}"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights."""
        parts = (*self.module.parameters(), *self.module.buffers())
        return next((part.dtype for part in parts if part.is_floating_point()), torch.float32)

    def to(self, device: torch.device | str) -> "Generator":
        """Moves the weights in place and returns the generator."""
        self.module.to(device)
        return self

    def sample_latents(self, count: int, seed: int) -> Tensor:
        """Draws latents (count, M) from the prior.

        The same seed gives the same latents, and a smaller count the first of a larger one.
        """
        if count < 1:
            raise ParameterError(f"the number of latents must be at least 1, not {count}")
        drawn = torch.empty(count, self.latent.dim)
        for start in range(0, count, _LATENT_CHUNK):
            part = drawn[start : start + _LATENT_CHUNK]
            random = random_generator(seed, "latents", start)
            part.copy_(self.latent.sample(self._rows_to_draw(len(part)), random)[: len(part)])
        return drawn

    def _rows_to_draw(self, count: int) -> int:
        """Returns how many latents of a chunk to draw for the first `count` to be what they are.

        torch draws normal numbers 16 at a time and uniform ones in order; other priors draw what
        belongs to a chunk in ways of their own.
        """
        if self.latent.distribution not in _DRAWN_IN_ORDER or getattr(self.latent, "parts", None):
            return _LATENT_CHUNK
        return min(_LATENT_CHUNK, -(-count // 16) * 16)

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, float64 (B,)."""
        self.check_latents(z)
        return self.latent.log_prior(z)

    def check(self) -> None:
        """Makes two images and checks them.

        Raises:
            GeneratorError: it does not run, or its images are misshapen, no floats or not finite.
        """
        z = self.sample_latents(2, seed=0)
        try:
            with torch.no_grad():
                images = self(z)
        except GeneratorError:
            raise
        except Exception as error:
            raise GeneratorError(
                f"the generator {self.name!r} cannot run on latents of shape {tuple(z.shape)}: "
                f"{type(error).__name__}: {error}; {self._why_not_run()}"
            ) from error
        if not images.is_floating_point():
            raise GeneratorError(
                f"the generator {self.name!r} returns {images.dtype}, and only real floats have a "
                "derivative here; return floats, as they are before they are rounded to bytes"
            )
        if not images.isfinite().all():
            raise GeneratorError(
                f"the generator {self.name!r} returns values that are not finite"
                f"{self.why_not_finite() or '; check its weights'}"
            )

    def _why_not_run(self) -> str:
        if isinstance(self.module, torch.fx.GraphModule):
            return "export it for any number of latents, with dynamic_shapes"
        return "latents are flat, so a module that needs another shape must reshape them itself"

    def why_not_finite(self) -> str:
        """Returns which parameters are not finite, as the end of a sentence; "" if all are."""
        damaged = [
            name for name, part in self.module.named_parameters() if not part.isfinite().all()
        ]
        if not damaged:
            return ""
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        return (
            f": infinite or no numbers are among the weights {', '.join(damaged[:3])}{more}; "
            "fetch or train them again"
        )

    def fingerprint(self) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for what the generator computes.

        It covers weights and buffers, those that are not saved too, with their types; the layers
        in their order, the attributes that their code reads, the code itself with closures and
        constants, hooks that change images, and both specs. It is the same on all devices, for
        all versions of Python and for any layout in memory, before saving and after loading, and
        whatever the generator is called. What it cannot see, such as a container that is global,
        changes the images of fixed latents, which are compared beside it; see
        `pgmkit.spectrum.landmarks`.
        """
        hooks = identity.has_hooks(self.module) and self._hooks_change_images()
        return identity.digest(self.module, self.specs(), hooks=hooks)

    def _hooks_change_images(self) -> bool:
        z = self.sample_latents(2, seed=0)
        try:
            images = self.images(z)
            with identity.without_hooks(self.module):
                return not torch.allclose(self.images(z), images, equal_nan=True)
        except Exception:  # it does not run without them, or not at all
            return True

    def specs(self) -> dict[str, Any]:
        """Returns latent and image spec as they stand in `config.json`."""
        return {
            "latent": asdict(self.latent),
            "image": {"shape": list(self.image.shape), "range": list(self.image.range)},
        }

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        shape = "×".join(map(str, self.image.shape))
        return (
            f"Generator({self.name!r}: {self.latent.dim} {self.latent.distribution} latents -> "
            f"{shape} images, {parameters:,} parameters)"
        )


def _frozen(module: nn.Module) -> nn.Module:
    """Puts a module into eval mode and turns its gradients off, in place.

    Raises:
        GeneratorError: it has no weights yet.
    """
    state = [*module.named_parameters(), *module.named_buffers()]
    for name, part in state:
        if nn.parameter.is_lazy(part):
            raise GeneratorError(
                f"{name} of the {type(module).__name__} gets its shape when the module first runs; "
                "run it on a batch of latents once, then wrap it"
            )
        if part.is_meta:
            raise GeneratorError(
                f"{name} of the {type(module).__name__} is on the meta device, so it has no "
                "values; load the weights first, such as with "
                "load_state_dict(weights, assign=True)"
            )
    with contextlib.suppress(NotImplementedError):  # exported programs have no modes
        module.eval()
    for _, parameter in module.named_parameters():  # TorchScript knows no other way
        parameter.requires_grad_(False)
    return module
