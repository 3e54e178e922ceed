"""Computes spectra in blocks: bounded memory, saved as it goes, resumable."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.plugins import as_component
from pgmkit.spectrum.jacobian import JacobianSpectra
from pgmkit.spectrum.spectrum import Spectrum
from pgmkit.spectrum.store import FORMAT_VERSION, BlockStore

BLOCK_SIZE = 128
_Result = TypeVar("_Result")


class Engine(Protocol):
    """Where blocks run; see `pgmkit.hookspecs.pgmkit_engines`."""

    def map(
        self, function: Callable[[int], _Result], blocks: Iterable[int], *, parallel: bool = True
    ) -> Iterator[tuple[int, _Result]]:
        """Yields `(block, function(block))` in any order."""


def compute_spectrum(
    generator: Generator,
    latents: Tensor | None = None,
    num_latents: int | None = None,
    seed: int = 0,
    *,
    out: Path | str | None = None,
    block_size: int = BLOCK_SIZE,
    engine: Engine | str = "local",
    progress: bool = False,
) -> Spectrum:
    """Computes the singular values of ∂G/∂z at many latents (LASH paper, Eq. 1).

    Works for any differentiable module, block by block, so that memory does not grow with the
    number of latents beyond the result itself.

    Args:
        generator: G.
        latents: z (n, M); or else
        num_latents: n, the number of latents to draw from the prior.
        seed: of the drawn latents; not used when `latents` are given.
        out: a folder for the finished blocks. A run that was stopped continues there; a complete
            one is read back.
        block_size: latents per block, at least 1.
        engine: name of an engine component, or an object with its method `map`.
        progress: whether to show a progress bar on stderr.

    Raises:
        ParameterError: neither or both of `latents` and `num_latents` are given, or are empty.
        GeneratorError: the latents do not fit, or the generator cannot be differentiated.
        OutputError: `out` is in use, or holds another spectrum.

    Example:
        >>> from pgmkit import Generator, ImageSpec, LatentSpec
        >>> net = torch.nn.Linear(2, 16)
        >>> toy = Generator(net, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)))
        >>> compute_spectrum(toy, num_latents=100, seed=0)
        Spectrum(100 latents of 2 dimensions, numeric rank 2 to 2 of 2)
    """
    if (latents is None) == (num_latents is None):
        raise ParameterError("give either latents or num_latents to compute_spectrum")
    check_block_size(block_size)
    if latents is None:
        assert num_latents is not None
        z = generator.sample_latents(num_latents, seed)
    else:
        generator.check_latents(latents)
        z = latents.detach().cpu().float()
    if not len(z):
        raise ParameterError("the latents are empty; give at least one")
    generator.check()
    jacobians = JacobianSpectra(generator)
    settings = {
        "format_version": FORMAT_VERSION,
        "generator": generator.fingerprint(),
        "generator_name": generator.name,
        "num_latents": len(z),
        "seed": seed if latents is None else None,
        "latents": hashlib.sha256(z.contiguous().numpy().tobytes()).hexdigest(),
        "block_size": block_size,
        "dtype": str(generator.dtype).removeprefix("torch."),
        "jacobian": asdict(jacobians.plan),
        "threads_per_worker": 1 if jacobians.parallel else torch.get_num_threads(),
    }
    blocks = z.split(block_size)
    chosen: Engine = as_component("engines", engine)

    def compute(block: int) -> Tensor:
        return jacobians.singular_values(blocks[block])

    log_prior = generator.log_prior(z)
    store = None
    if out is not None:
        store = BlockStore(Path(out), settings, blocks, log_prior.split(block_size))
    with store.opened() if store else contextlib.nullcontext(), _full_float32():
        results = store.read() if store else {}
        bar = tqdm(
            total=len(z),
            initial=sum(map(len, results.values())),
            unit="latent",
            desc="spectrum",
            disable=not progress,
        )
        with bar:
            missing = [block for block in range(len(blocks)) if block not in results]
            for block, values in chosen.map(compute, missing, parallel=jacobians.parallel):
                results[block] = values
                if store:
                    store.write(block, values)
                bar.update(len(values))
    values = torch.cat([results[block] for block in range(len(blocks))])
    return Spectrum(z, values, log_prior, settings)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keeps an accelerator from rounding float32 to TF32, which has 10 bits and not 23."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def check_block_size(block_size: int) -> None:
    """Raises ParameterError unless `block_size` is at least 1."""
    if block_size < 1:
        raise ParameterError(f"block_size must be at least 1, not {block_size}")
