"""Computes spectra in blocks: bounded memory, saved as it goes, resumable, on any engine."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pgmkit.cache import cache_entry, mark_used, publish
from pgmkit.engines import Engine, decide, is_coordinator
from pgmkit.errors import LoadError, OutputError, ParameterError
from pgmkit.generator import Generator
from pgmkit.machine import check_disk, check_memory
from pgmkit.plugins import as_component
from pgmkit.spectrum.differentiation import JacobianPlan
from pgmkit.spectrum.folders import Folder, LocalFolder, folder_at
from pgmkit.spectrum.jacobian import MEMORY_BUDGET, JacobianSpectra, Method
from pgmkit.spectrum.landmarks import agree, landmarks
from pgmkit.spectrum.safety import choose, computed, used_method
from pgmkit.spectrum.soundness import check_derivative, check_values
from pgmkit.spectrum.spectrum import Spectrum
from pgmkit.spectrum.store import (
    DESCRIPTIVE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    Rows,
    Shards,
    Tensors,
    check_same,
    determining,
    encode_manifest,
    latents_digest,
    num_blocks,
    plain_settings,
    recorded_settings,
    shard_name,
    spectrum_of,
    whole_blocks,
)
from pgmkit.spectrum.task import BlockTask

BLOCK_SIZE = 128
MAX_BLOCK_SIZE = 1_000_000
_CHOSEN = ("jacobian", "threads_per_worker", "computed", "check")
"""Settings that are chosen where a spectrum is begun, and kept where it is continued."""


def compute_spectrum(
    generator: Generator,
    latents: Tensor | None = None,
    num_latents: int | None = None,
    seed: int = 0,
    *,
    out: Path | str | None = None,
    dtype: str = "auto",
    probes: int | None = None,
    sketch: str = "volume",
    min_rank_correlation: float | None = None,
    memory_budget: int = MEMORY_BUDGET,
    block_size: int = BLOCK_SIZE,
    engine: Engine | str = "local",
    cache: bool = False,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> Spectrum:
    """Computes the singular values of ∂G/∂z at many latents (LASH paper, Eq. 1).

    Works for any differentiable module, block by block, so that memory does not grow with the
    number of latents beyond the result itself. How the Jacobians are computed is found by a short
    calibration and recorded; see docs/spectra.md.

    Args:
        generator: G.
        latents: z (n, M); or else
        num_latents: n, the number of latents to draw from the prior.
        seed: of the drawn latents; not used when `latents` are given.
        out: a folder, or a URL that fsspec opens, for the finished blocks. A run that was stopped
            continues there; a complete one is read back. Workers write there themselves.
        dtype: "auto", "float32", "float64" or "bfloat16"; see `pgmkit.spectrum.jacobian.Method`.
        probes: number of directions of a sketch, from 1 to M; None is exact.
        sketch: "volume" or "top": what the probes are for.
        min_rank_correlation: what a fast method (bfloat16 or a sketch) has to reach on a sample of
            the latents; under it the spectrum is computed exactly, with a warning. In [-1, 1]; by
            default 0.995 for bfloat16 and 0.95 for sketches.
        memory_budget: bytes that each process may use beside the generator and the result, at
            least 2**20.
        block_size: latents per block, from 1 to a million.
        engine: name of an engine component, or an object with its method `map`.
        cache: whether to take up a spectrum of the same generator and latents that was computed
            before, and to keep this one for later; see `pgmkit.cache`.
        progress: whether to show a progress bar on stderr.
        report: takes a line about where blocks came from, if they were not computed.

    Raises:
        ParameterError: neither or both of `latents` and `num_latents` are given, or are empty; or
            there are more of them than memory or the disk hold.
        GeneratorError: the latents do not fit, or the generator cannot be differentiated.
        OutputError: `out` is in use, holds another spectrum, or cannot be written.
        EngineError: the engine cannot run here, or gives up.

    Example:
        >>> from pgmkit import Generator, ImageSpec, LatentSpec
        >>> net = torch.nn.Linear(2, 16)
        >>> toy = Generator(net, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)))
        >>> compute_spectrum(toy, num_latents=100, seed=0)
        Spectrum(100 latents of 2 dimensions, numeric rank 2 to 2 of 2)
    """
    check_block_size(block_size)
    method = Method(dtype, probes, sketch, min_rank_correlation, memory_budget)
    if num_latents is not None:
        check_size(generator, num_latents, probes, out)
    z = _latents(generator, latents, num_latents, seed)
    generator.check_runs()
    chosen: Engine = as_component("engines", engine)
    wanted = plain_settings(
        {
            "format_version": FORMAT_VERSION,
            "generator": generator.fingerprint(),
            "generator_name": generator.name,
            "landmarks": landmarks(generator),
            "device": generator.device.type,
            "num_latents": len(z),
            "seed": seed if latents is None else None,
            "latents": latents_digest(z),
            "block_size": block_size,
            "dtype": method.dtype,
            "probes": method.probes,
            "sketch": method.sketch if method.probes is not None else None,
            "min_rank_correlation": method.threshold if method.is_fast else None,
        }
    )
    run = _Run(
        generator,
        z,
        method,
        wanted,
        chosen,
        folder=None if out is None else folder_at(out),
        entry=LocalFolder(cache_entry("spectra", determining(wanted))) if cache else None,
    )
    leads = is_coordinator(chosen)
    with contextlib.ExitStack() as held:
        start = decide(chosen, lambda: run.begin(held))
        if report and leads and start.num_cached:
            report(_cache_line(start.num_cached, num_blocks(start.settings)))
        run.share(start)
        run.compute(start, progress=progress and leads)
        check_values(generator, z, run.rows.tensors["singular_values"], warn=leads)
        if leads:
            run.finish(start)
    return spectrum_of(run.rows.tensors, start.settings)


@dataclass(frozen=True)
class _Start:
    """What the coordinator found, and all workers go by.

    Args:
        settings: of the spectrum, with what was chosen.
        found: blocks that are there already.
        num_cached: how many of them the cache had.
    """

    settings: dict[str, Any]
    found: list[int]
    num_cached: int

    @property
    def missing(self) -> list[int]:
        """Blocks that are to be computed."""
        return sorted(set(range(num_blocks(self.settings))).difference(self.found))


class _Run:
    """One computation of a spectrum.

    Args:
        generator: G.
        z: (n, M).
        method: what is computed of each Jacobian.
        wanted: the settings that determine the spectrum.
        engine: where blocks are computed.
        folder: where they are kept; None is nowhere.
        entry: the spectrum's place in the cache; None leaves the cache out.
    """

    def __init__(
        self,
        generator: Generator,
        z: Tensor,
        method: Method,
        wanted: dict[str, Any],
        engine: Engine,
        *,
        folder: Folder | None,
        entry: LocalFolder | None,
    ) -> None:
        self.generator = generator
        self.z = z
        self.method = method
        self.wanted = wanted
        self.engine = engine
        self.folder = folder
        self.entry = entry
        self.rows = Rows(len(z), wanted["block_size"])
        self.checksums: dict[int, str] = {}
        self._jacobians: JacobianSpectra | None = None

    def begin(self, held: contextlib.ExitStack) -> _Start:
        """Takes the folder, decides how blocks are computed, and reads those that are there."""
        settings = self._settings()
        num_cached = 0
        blocks = range(num_blocks(settings))
        if self.folder is not None:
            held.enter_context(self.folder.held())
            recorded = recorded_settings(self.folder)
            if recorded is not None:  # again, now that nobody else writes
                check_same(self.folder, recorded, settings)
            if not self.folder.has(MANIFEST_FILE):
                self.folder.write(MANIFEST_FILE, encode_manifest(settings, {}))
            for block, tensors, checksum in whole_blocks(self.folder, settings, blocks):
                self._take(block, tensors, checksum)
        if self.entry is not None:
            missing = set(blocks).difference(self.rows.blocks)
            with contextlib.suppress(LoadError):
                for block, tensors, checksum in whole_blocks(self.entry, settings, missing):
                    if self.folder is not None:
                        Shards(self.folder, settings).write(block, tensors)
                    self._take(block, tensors, checksum)
                    num_cached += 1
        return _Start(settings, sorted(self.rows.blocks), num_cached)

    def share(self, start: _Start) -> None:
        """Gives all processes what the coordinator read, block by block to bound memory."""
        for block in start.found:
            self.rows.put(block, decide(self.engine, functools.partial(self.rows.get, block)))

    def compute(self, start: _Start, *, progress: bool) -> None:
        """Computes the missing blocks."""
        missing = start.missing
        if not missing:
            return
        jacobians = self._jacobians
        if jacobians is None:
            method = used_method(self.method, start.settings["check"])
            jacobians = JacobianSpectra(self.generator, method, _plan(start.settings))
        task = BlockTask(
            self.generator,
            jacobians.method,
            jacobians.plan,
            self.z,
            self.generator.log_prior(self.z),
            block_size=self.rows.block_size,
            threads=start.settings["threads_per_worker"],
            shards=None if self.folder is None else Shards(self.folder, start.settings),
            jacobians=jacobians,
        )
        initial = sum(len(self.rows.get(block)["latents"]) for block in start.found)
        with tqdm(
            total=len(self.z),
            initial=initial,
            unit="latent",
            desc="spectrum",
            disable=not progress,
        ) as bar:
            for block, record in self.engine.map(task, missing, parallel=jacobians.parallel):
                if self.folder is not None and not self._has(block, record.checksum):
                    # The worker has a disk of its own there.
                    Shards(self.folder, start.settings).write(block, record.tensors)
                self._take(block, record.tensors, record.checksum)
                bar.update(len(record.tensors["latents"]))

    def _has(self, block: int, checksum: str | None) -> bool:
        """Whether the folder, as this process sees it, holds what a worker wrote."""
        assert self.folder is not None
        data = self.folder.read(shard_name(block))
        return data is not None and hashlib.sha256(data).hexdigest() == checksum

    def finish(self, start: _Start) -> None:
        """Completes the manifest, and puts the spectrum into the cache."""
        if self.folder is not None:
            manifest = encode_manifest(start.settings, self.checksums)
            if self.folder.read(MANIFEST_FILE) != manifest:
                self.folder.write(MANIFEST_FILE, manifest)
        if self.entry is None:
            return
        if start.missing or not self.entry.has(MANIFEST_FILE):
            publish(
                self.entry.path,
                lambda fresh: self._write(LocalFolder(fresh), start),
                self.rows.num_bytes(),
                what="spectrum",
            )
        else:
            mark_used(self.entry.path)

    def _settings(self) -> dict[str, Any]:
        """Returns all settings: as the folder or the cache has them, or else chosen by trying."""
        recorded = None
        if self.folder is not None:
            recorded = recorded_settings(self.folder)
            if recorded is not None:
                check_same(self.folder, recorded, self.wanted)
                self._check_landmarks(self.folder, recorded)
        if recorded is None and self.entry is not None:
            # One with other landmarks is of another generator; it is replaced.
            with contextlib.suppress(LoadError, OutputError):
                cached = recorded_settings(self.entry)
                if cached is not None:
                    self._check_landmarks(self.entry, cached)
                    recorded = cached
        if recorded is None:
            # Before anything is written, since it may turn out that nothing can be computed.
            self._jacobians, check = choose(self.generator, self.z, self.method)
            check_derivative(self._jacobians, self.z)
            threads = int(getattr(self.engine, "threads", torch.get_num_threads()))
            recorded = {
                "jacobian": asdict(self._jacobians.plan),
                "threads_per_worker": 1 if self._jacobians.parallel else threads,
                "computed": computed(self._jacobians.method),
                "check": None if check is None else asdict(check),
            }
        kept = {key: recorded.get(key) for key in _CHOSEN}
        kept |= {key: recorded[key] for key in DESCRIPTIVE if key in recorded}
        return plain_settings({**self.wanted, **kept})

    def _check_landmarks(self, folder: Folder, recorded: Mapping[str, Any]) -> None:
        """Raises OutputError if a spectrum was begun with a generator that makes other images."""
        if not agree(recorded.get("landmarks"), self.wanted["landmarks"]):
            raise OutputError(
                f"{folder} holds a spectrum of a generator with the same weights and code as "
                f"{self.generator.name!r} that makes other images; choose another folder or remove "
                "this one"
            )

    def _take(self, block: int, tensors: Tensors, checksum: str | None) -> None:
        self.rows.put(block, tensors)
        if checksum is not None:
            self.checksums[block] = checksum

    def _write(self, folder: Folder, start: _Start) -> None:
        """Writes the complete spectrum to another folder."""
        shards = Shards(folder, start.settings)
        checksums = {
            block: shards.write(block, self.rows.get(block)) for block in sorted(self.rows.blocks)
        }
        folder.write(MANIFEST_FILE, encode_manifest(start.settings, checksums))


def _latents(
    generator: Generator, latents: Tensor | None, num_latents: int | None, seed: int
) -> Tensor:
    """Returns z (n, M), float32, on the CPU: those given, or drawn from the prior."""
    if latents is not None and num_latents is None:
        generator.check_latents(latents)
        z = latents.detach().cpu().float()
    elif num_latents is not None and latents is None:
        z = generator.sample_latents(num_latents, seed)
    else:
        raise ParameterError("give either latents or num_latents to compute_spectrum")
    if not len(z):
        raise ParameterError("the latents are empty; give at least one")
    return z


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


def _cache_line(num_cached: int, count: int) -> str:
    part = "" if num_cached == count else f", {num_cached} of {count} blocks"
    return f"spectrum read from the cache{part}"


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

    Args:
        generator: G.
        num_latents: n.
        probes: number of directions of a sketch; None is exact.
        out: the folder; None keeps it in memory alone.

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
