"""Computes spectra in blocks: bounded memory, saved as it goes, resumable, on any engine."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgmkit import defaults, progress
from pgmkit.cache import cache_entry, mark_used, publish
from pgmkit.components import called
from pgmkit.config import check_count, check_seed, expect
from pgmkit.contracts import Engine, blocks_by
from pgmkit.engines import decide, is_coordinator
from pgmkit.errors import LoadError, OutputError, ParameterError, PluginError
from pgmkit.generator import Generator
from pgmkit.machine import check_disk, check_memory
from pgmkit.plugins import build
from pgmkit.spectrum.blocks import (
    DESCRIPTIVE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    BlockStore,
    check_same,
    determining,
    plain_settings,
    recorded_settings,
)
from pgmkit.spectrum.differentiation import JacobianPlan
from pgmkit.spectrum.folders import Folder, LocalFolder, folder_at
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra
from pgmkit.spectrum.landmarks import agree, landmarks
from pgmkit.spectrum.safety import choose, computed, settings_used
from pgmkit.spectrum.soundness import check_derivative, check_values
from pgmkit.spectrum.spectrum import Spectrum

BLOCK_SIZE = 128
MAX_BLOCK_SIZE = 1_000_000
_CHOSEN = ("jacobian", "threads_per_worker", "computed", "check")
"""Settings that are chosen where a spectrum is begun, and kept where it is continued."""


def compute_spectrum(
    generator: Generator,
    latents: int | Tensor = defaults.LATENTS,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    dtype: str = "auto",
    probes: int | None = None,
    sketch: str = "volume",
    min_rank_correlation: float | None = None,
    memory_budget: int | None = None,
    block_size: int = BLOCK_SIZE,
    engine: Engine | str = defaults.ENGINE,
    cache: bool = False,
) -> Spectrum:
    """Computes the singular values of ∂G/∂z at many latents.

    Works for any differentiable module, block by block, so that memory does not grow with the
    number of latents beyond the result itself. How the Jacobians are computed is found by a short
    calibration and recorded; see docs/spectra.md. `pgmkit.progress.shown` shows how far it is.

    Args:
        generator: G.
        latents: n, the number of latents to draw from the prior; or the latents z (n, M).
        seed: of the drawn latents; not used when they are given.
        out: a folder, or a URL that fsspec opens, for the finished blocks. A run that was stopped
            continues there; a complete one is read back. Workers write there themselves.
        dtype: "auto", "float32", "float64", "tf32" or "bfloat16"; see
            `pgmkit.spectrum.jacobian.JacobianSettings`.
        probes: number of directions of a sketch, from 1 to M; None is exact.
        sketch: "volume" or "top": what the probes are for.
        min_rank_correlation: what a fast method (tf32, bfloat16 or a sketch) has to reach on a
            sample of the latents; under it the spectrum is computed exactly, with a warning. In
            [-1, 1]; by default 0.95 for sketches and 0.995 for the others.
        memory_budget: bytes that each process may use beside the generator and the result, at
            least 2**20; by default 2**30, and on CUDA about half of what is free on the device.
        block_size: latents per block, from 1 to a million.
        engine: name of an engine component, or an object with its method `map`.
        cache: whether to take up a spectrum of the same generator and latents that was computed
            before, and to keep this one for later; see `pgmkit.cache`.

    Raises:
        ParameterError: there are no latents, or more of them than memory or the disk hold.
        GeneratorError: the latents do not fit, or the generator cannot be differentiated.
        OutputError: `out` is in use, holds another spectrum, or cannot be written.
        EngineError: the engine cannot run here, or gives up.

    Example:
        >>> from pgmkit import Generator, ImageSpec, LatentSpec
        >>> net = torch.nn.Linear(2, 16)
        >>> toy = Generator(net, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)))
        >>> compute_spectrum(toy, 100, seed=0)
        Spectrum(100 latents of 2 dimensions, numeric rank 2 to 2 of 2)
    """
    check_block_size(block_size)
    check_seed(seed)
    expect(generator, Generator, "a spectrum is that of a Generator; see pgmkit.load_generator")
    asked = JacobianSettings(dtype, probes, sketch, min_rank_correlation, memory_budget)
    z = _latents(generator, latents, seed, probes, out)
    generator.check_runs()
    chosen: Engine = build("engines", engine)
    wanted = plain_settings(
        {
            "format_version": FORMAT_VERSION,
            "generator": generator.fingerprint(),
            "generator_name": generator.name,
            "landmarks": landmarks(generator),
            "device": generator.device.type,
            "num_latents": len(z),
            "seed": None if isinstance(latents, Tensor) else seed,
            "latents": hashlib.sha256(z.contiguous().numpy().tobytes()).hexdigest(),
            "block_size": block_size,
            "dtype": asked.dtype,
            "probes": asked.probes,
            "sketch": asked.sketch if asked.probes is not None else None,
            "min_rank_correlation": asked.threshold if asked.is_fast else None,
        }
    )
    folder = None if out is None else folder_at(out)
    entry = LocalFolder(cache_entry("spectra", determining(wanted))) if cache else None
    leads = is_coordinator(chosen)
    run = _Run(generator, asked, chosen, z, wanted, folder, entry)
    with contextlib.ExitStack() as held:
        if not leads:
            held.enter_context(progress.shown(False))
        store = decide(chosen, lambda: run.begin(held))
        for block in decide(chosen, lambda: sorted(store.held)):  # one by one, to bound memory
            tensors = decide(chosen, functools.partial(store.get, block))
            if not leads:
                store.hold(block, tensors)
        missing = store.missing
        reused = sum(len(store.get(block)["latents"]) for block in store.held)
        if missing:
            run.compute(store, reused)
        check_values(generator, z, store.tensors["singular_values"], warn=leads)
        if leads:
            store.finish()
        if leads and entry is not None:
            _cache(store, entry, fresh=bool(missing))
    return store.spectrum(reused)


@dataclass
class _Run:
    """One computation of a spectrum of z (n, M); without folder or cache entry nothing is kept."""

    generator: Generator
    asked: JacobianSettings
    engine: Engine
    z: Tensor
    wanted: Mapping[str, Any]
    folder: Folder | None
    entry: Folder | None
    _jacobians: JacobianSpectra | None = None

    def begin(self, held: contextlib.ExitStack) -> BlockStore:
        """Takes the folder, decides how blocks are computed, and reads those that are there."""
        settings = self._settings()
        store = BlockStore(settings, self.folder)
        if self.folder is not None:
            held.enter_context(self.folder.held())
            store.open()
        with contextlib.suppress(LoadError):
            if copied := store.copy(BlockStore(settings, self.entry)):
                whole = copied == store.num_blocks
                part = "" if whole else f", {copied} of {store.num_blocks} blocks"
                progress.tell(f"spectrum read from the cache{part}")
        return store

    def compute(self, store: BlockStore, done: int) -> None:
        """Computes the missing blocks, beside the latents that are done."""
        jacobians = self._jacobians or JacobianSpectra(
            self.generator,
            settings_used(self.asked, store.settings["check"]),
            _plan(store.settings),
        )
        task = BlockTask(jacobians, self.z, self.generator.log_prior(self.z), store)
        total = len(self.z)
        with progress.phase(f"Jacobians of {total:,} latents", total, "latent", done) as phase:
            parallel = jacobians.parallel
            for block, tensors in blocks_by(self.engine, task, store.missing, parallel=parallel):
                rows = store.rows(block)
                if not store.fits(block, tensors) or not (
                    torch.equal(tensors["latents"], task.latents[rows])
                    and torch.equal(tensors["log_prior"], task.log_prior[rows])
                ):
                    raise PluginError(
                        f"the {called('engines', self.engine)} yields for block {block} what the "
                        "function does not return for it; it must not change results"
                    )
                store.put(block, tensors)  # into the folder, too, if the worker's is another disk
                phase.advance(len(tensors["latents"]))

    def _settings(self) -> dict[str, Any]:
        """Returns all settings: as the folder or the cache has them, or else chosen by trying."""
        recorded = self._recorded(self.folder)
        if recorded is None:
            # An entry that is damaged, or of a generator with other landmarks, is replaced.
            with contextlib.suppress(LoadError, OutputError):
                recorded = self._recorded(self.entry)
        if recorded is None:
            # Before anything is written, since it may turn out that nothing can be computed.
            self._jacobians, check = choose(self.generator, self.z, self.asked)
            check_derivative(self._jacobians, self.z)
            threads = int(getattr(self.engine, "threads", torch.get_num_threads()))
            recorded = {
                "jacobian": asdict(self._jacobians.plan),
                "threads_per_worker": 1 if self._jacobians.parallel else threads,
                "computed": computed(self._jacobians.settings),
                "check": None if check is None else asdict(check),
            }
        kept = {key: recorded.get(key) for key in _CHOSEN}
        kept |= {key: recorded[key] for key in DESCRIPTIVE if key in recorded}
        return plain_settings({**self.wanted, **kept})

    def _recorded(self, folder: Folder | None) -> dict[str, Any] | None:
        """Returns the settings of the spectrum in a folder; None if there is none.

        Raises:
            LoadError: its manifest is damaged.
            OutputError: it is of other settings, or of a generator that makes other images.
        """
        recorded = None if folder is None else recorded_settings(folder)
        if folder is None or recorded is None:
            return None
        check_same(folder, recorded, self.wanted)
        if not agree(recorded.get("landmarks"), self.wanted["landmarks"]):
            raise OutputError(
                f"{folder} holds a spectrum of a generator with the same weights and code as "
                f"{self.generator.name!r} that makes other images; choose another folder or remove "
                "this one"
            )
        return recorded


@dataclass(frozen=True)
class BlockTask:
    """Computes blocks of latents (n, M) with log p(z) (n,) into their store; can be pickled."""

    jacobians: JacobianSpectra
    latents: Tensor
    log_prior: Tensor
    store: BlockStore

    @property
    def device_type(self) -> str:
        """Where it computes, for the engine."""
        return self.jacobians.generator.device.type

    def __call__(self, block: int) -> dict[str, Tensor]:
        """Returns all tensors of a block, each (b, ...).

        Raises:
            OutputError: its shard cannot be written.
        """
        rows = self.store.rows(block)
        # Not a view: forward mode gives the whole that a view belongs to a tangent, too.
        latents = self.latents[rows].clone()
        try:
            with _threads(self.store.settings["threads_per_worker"]):
                tensors = self.jacobians.compute(latents)
            tensors |= {"latents": latents, "log_prior": self.log_prior[rows]}
            self.store.write(block, tensors)
        except Exception as error:
            vars(error)["of_block"] = block  # it is not the engine's
            raise
        return tensors


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Gives tensor operations this many threads, as they are on record."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cache(store: BlockStore, entry: LocalFolder, *, fresh: bool) -> None:
    """Puts a whole spectrum into the cache if it is fresh or the cache has none."""
    if not fresh and entry.read(MANIFEST_FILE) is not None:
        mark_used(entry.path)
        return
    size = sum(tensor.nbytes for tensor in store.tensors.values())
    publish(entry.path, lambda path: store.save(LocalFolder(path)), size, what="spectrum")


def _latents(
    generator: Generator,
    latents: int | Tensor,
    seed: int,
    probes: int | None,
    out: Path | str | None,
) -> Tensor:
    """Returns z (n, M), float32, on the CPU: those given, or drawn from the prior."""
    if not isinstance(latents, Tensor):
        check_count("the number of latents", latents)
        check_size(generator, latents, probes, out)
        return generator.sample_latents(latents, seed)
    generator.check_latents(latents)
    if not len(latents):
        raise ParameterError("the latents are empty; give at least one")
    return latents.detach().cpu().float()


def _plan(settings: Mapping[str, Any]) -> JacobianPlan:
    """Returns the plan on record.

    Raises:
        LoadError: another version of pgmkit recorded it.
    """
    try:
        return JacobianPlan(**settings["jacobian"])
    except TypeError as error:
        raise LoadError(
            f"the spectrum was begun by another version of pgmkit ({error}); choose another folder"
        ) from error


def check_block_size(block_size: int) -> None:
    """Raises ParameterError unless `block_size` is from 1 to a million."""
    if not isinstance(block_size, int) or not 1 <= block_size <= MAX_BLOCK_SIZE:
        raise ParameterError(
            f"block_size must be at least 1 and at most {MAX_BLOCK_SIZE:,}, not {block_size!r}"
        )


def check_size(
    generator: Generator,
    num_latents: int,
    probes: int | None = None,
    out: Path | str | None = None,
) -> None:
    """Checks that a spectrum fits into memory and on the disk, as far as they are known.

    Raises:
        ParameterError: it does not.
    """
    dim = generator.latent.dim
    values = probes or min(dim, math.prod(generator.image.shape))
    size = num_latents * (4 * dim + 8 * values + 8 + 1)
    # Latents are held beside the result that they become a part of.
    check_memory(
        size + 4 * dim * num_latents,
        f"latents and singular values of {num_latents:,} latents",
        "ask for fewer latents, such as 20,000",
    )
    if out is not None and isinstance(place := folder_at(out), LocalFolder):
        check_disk(size, place.path, f"singular values of {num_latents:,} latents")
