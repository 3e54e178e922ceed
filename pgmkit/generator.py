"""The frozen generator, its latent prior and its image spec."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import identity
from pgmkit.config import check_count, expect
from pgmkit.errors import GeneratorError, ParameterError, PgmkitWarning, first_line, listed
from pgmkit.forms import as_images, range_complaint
from pgmkit.images.source import ImageSpec
from pgmkit.machine import check_memory
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator

LATENT_CHUNK = 256
"""How many latents share a seed."""

_DRAWN_IN_ORDER = ("normal", "uniform", "truncated-normal")
_IMAGE_BATCH = 256
_CHECKED_IMAGES = 64
_CHECKED_VALUES = 2**20
"""How many images, and at most about how many numbers in them, a check looks at."""


class Generator:
    """A frozen network with its latent prior and its image spec.

    The module is put into eval mode and its gradients are turned off, in place. It may be a
    TorchScript module or that of an exported program, too; the latter stays in the mode that it
    was exported in.

    Args:
        module: maps latents z, (B, M) or in the prior's shape, to images (B, C, H, W), (B, H, W, C)
            or (B, C·H·W), alone, first in a tuple, or as one of the values of a dict or object.
        latent: the prior over z.
        image: what comes out.
        name: for logs and reports.
        architecture: the generator-loader component that builds such a module, so that a saved
            result can be loaded again without naming a class.
        model_args: what that component is called with.
        provenance: where the weights came from; kept with every result.
        program: the file that the module was read from, where that is a whole program; saved as it
            is.

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
        program: Path | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ParameterError(
                f"a generator wraps a torch.nn.Module, not {type(module).__name__}"
            )
        self.module = _frozen(module)
        self.latent = latent
        self.image = image
        self._range_checked = False
        self.name = name or type(module).__name__
        self.architecture = architecture
        self.model_args = dict(model_args or {})
        self.provenance = dict(provenance or {})
        self.program = program

    def __call__(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W) for latents z (B, M), on the generator's device.

        Raises:
            GeneratorError: the latents or what comes out have the wrong shape.
        """
        self.check_latents(z)
        return self._run(z.to(self.device, self.dtype))

    def _run(self, z: Tensor) -> Tensor:
        shaped = z.reshape(len(z), *self.latent.shape) if self.latent.shape else z
        return as_images(self.module(shaped), len(z), self.image.shape, self.name)

    def network(self) -> nn.Module:
        """Returns a module from flat latents (B, M) to images, (B, C, H, W) or flat.

        It is the generator's own where that is such a one.
        """
        if not self.latent.shape:
            with torch.no_grad():
                output = self.module(self.sample_latents(1, seed=0).to(self.device, self.dtype))
            plain = ((1, *self.image.shape), (1, math.prod(self.image.shape)))
            if isinstance(output, Tensor) and output.shape in plain:
                return self.module
        return _Network(self)

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
        """Raises GeneratorError unless z has the shape (B, M), or ParameterError if it is none."""
        expect(z, Tensor, f"latents for {self.name!r} are a tensor (B, {self.latent.dim})")
        if z.ndim != 2 or z.shape[1] != self.latent.dim:
            raise GeneratorError(
                f"latents for {self.name!r} have the shape (B, {self.latent.dim}), "
                f"not {tuple(z.shape)}"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parts = chain(self.module.parameters(), self.module.buffers())
        return next((part.device for part in parts), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights."""
        parts = chain(self.module.parameters(), self.module.buffers())
        return next((part.dtype for part in parts if part.is_floating_point()), torch.float32)

    def to(self, device: torch.device | str) -> "Generator":
        """Moves the weights in place and returns the generator."""
        self.module.to(device)
        return self

    def sample_latents(self, count: int, seed: int) -> Tensor:
        """Draws latents (count, M) from the prior.

        The same seed gives the same latents, and a smaller count the first of a larger one.
        """
        check_count("the number of latents", count)
        check_memory(
            4 * self.latent.dim * max(count, _rows_to_draw(self.latent, count)),
            f"{count:,} latents of {self.latent.dim:,} dimensions",
            "ask for fewer, or correct latent.dim",
        )
        drawn = torch.empty(count, self.latent.dim)
        for start in range(0, count, LATENT_CHUNK):
            part = drawn[start : start + LATENT_CHUNK]
            part.copy_(latent_chunk(self.latent, len(part), seed, start))
        return drawn

    def fixed_latents(self) -> Tensor:
        """Returns the latents (n, M) whose images stand for all: 64, or fewer of large images."""
        count = min(_CHECKED_IMAGES, max(2, _CHECKED_VALUES // math.prod(self.image.shape)))
        return self.sample_latents(count, seed=0)

    def log_prior(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, float64 (B,)."""
        self.check_latents(z)
        return self.latent.log_prior(z)

    def check(self) -> None:
        """Checks all that `check_runs` does, and once warns of images unlike the declared range.

        Raises:
            GeneratorError: it does not run, or its images are misshapen, no floats or not finite.
        """
        self.check_runs()
        if self._range_checked:
            return
        self._range_checked = True
        complaint = range_complaint(self.images(self.fixed_latents()), self.image.range)
        if complaint is not None:
            warnings.warn(
                f"the generator {self.name!r} makes {complaint}", PgmkitWarning, stacklevel=2
            )

    def check_runs(self) -> None:
        """Makes two images and checks them.

        A module that fails on flat latents (n, M) is tried with (n, M, 1, 1), and a warning says so
        if that works: the prior then has this shape.

        Raises:
            GeneratorError: it does not run, or its images are misshapen, no floats or not finite.
        """
        images = self._tried(self.sample_latents(2, seed=0))
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

    @torch.no_grad()
    def _tried(self, z: Tensor) -> Tensor:
        """Returns the images of latents (n, M), and takes up the latents' shape that works."""
        try:
            return self(z)
        except GeneratorError:
            raise
        except Exception as error:
            failure = error
        flat, column = self.latent, (self.latent.dim, 1, 1)
        also = ""
        if not flat.shape:
            self.latent = replace(flat, shape=column)
            try:
                images = self(z)
            except GeneratorError:
                self.latent = flat
                raise
            except Exception as error:
                self.latent = flat
                also = f", nor of {(len(z), *column)}: {first_line(error):.160}"
            else:
                warnings.warn(
                    f"the generator {self.name!r} fails on flat latents and takes {column} each, "
                    f"which it is given; say so with LatentSpec(shape={column}), --latent "
                    f"'{{shape = {list(column)}}}', or \"shape\" under 'latent' in config.json",
                    PgmkitWarning,
                    stacklevel=3,
                )
                return images
        advice = (
            "if it takes another shape, say it in the prior, such as LatentSpec(shape=(8, 4, 4))"
        )
        if isinstance(self.module, torch.fx.GraphModule):
            advice = "export it for any number of latents, with dynamic_shapes"
        raise GeneratorError(
            f"the generator {self.name!r} cannot run on latents of shape "
            f"{(len(z), *(flat.shape or (flat.dim,)))}: {type(failure).__name__}: "
            f"{first_line(failure):.160}{also}; {advice}"
        ) from failure

    def why_not_finite(self) -> str:
        """Returns which parameters are not finite, as the end of a sentence; "" if all are."""
        damaged = [
            name for name, part in self.module.named_parameters() if not part.isfinite().all()
        ]
        if not damaged:
            return ""
        return (
            f": infinite or no numbers are among the weights {listed(damaged, 3)}; fetch or train "
            "them again"
        )

    def fingerprint(self) -> str:
        """Returns a SHA-256, in hexadecimal, that stands for what the generator computes.

        It covers weights and buffers, those that are not saved too, with their types; the layers
        in their order, the attributes that their code reads, the code itself with closures and
        constants, hooks that change images, and both specs. It is the same on all devices, for
        all versions of Python and for any layout in memory, before saving and after loading, and
        whatever the generator is called. What it cannot see, such as a file that is read on each
        call, changes the images of fixed latents, which are compared beside it; see
        `pgmkit.spectrum.landmarks`.
        """
        hooks = identity.has_hooks(self.module) and self._hooks_change_images()
        return identity.digest(self.module, self.specs(), hooks=hooks)

    def _hooks_change_images(self) -> bool:
        z = self.fixed_latents()
        try:
            images = self.images(z)
            with identity.without_hooks(self.module):
                return not torch.allclose(self.images(z), images, equal_nan=True)
        except Exception:  # it does not run without them, or not at all
            return True

    def specs(self) -> dict[str, Any]:
        """Returns latent and image spec as they stand in `config.json`."""
        return {
            "latent": self.latent.table(),
            "image": {"shape": list(self.image.shape), "range": list(self.image.range)},
        }

    def push_to_hub(
        self, repository: str, *, private: bool = False, message: str | None = None
    ) -> str:
        """Uploads to the Hugging Face Hub as "org/name", with a card, and returns the address.

        See `pgmkit.loading.saving.push_generator`.
        """
        from pgmkit.loading.saving import push_generator

        return push_generator(self, repository, private=private, message=message)

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"Generator({self.name!r}: {self.latent} latents -> {self.image}, "
            f"{parameters:,} parameters)"
        )


def latent_chunk(latent: LatentSpec, count: int, seed: int, start: int) -> Tensor:
    """Draws latents (count, M) from number `start` on, which is a multiple of `LATENT_CHUNK`.

    There are at most `LATENT_CHUNK`, and fewer are the first of them.
    """
    random = random_generator(seed, "latents", start)
    return latent.sample(_rows_to_draw(latent, count), random)[:count]


def _rows_to_draw(latent: LatentSpec, count: int) -> int:
    """Returns how many latents of a chunk to draw for the first `count` to be what they are.

    torch draws normal numbers 16 at a time and uniform ones in order; other priors draw what
    belongs to a chunk in ways of their own.
    """
    if latent.distribution not in _DRAWN_IN_ORDER or getattr(latent, "parts", None):
        return LATENT_CHUNK
    return min(LATENT_CHUNK, -(-count // 16) * 16)


class _Network(nn.Module):
    """The module of a generator, with latents and images in the forms of the specs."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.module = generator.module
        self._generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self._generator._run(z)


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
