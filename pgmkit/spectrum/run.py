"""A spectrum as a run: checked before it starts, resumable, complete or absent."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pgmkit import runs
from pgmkit.config import check_count, component_table, make_settings
from pgmkit.engines import Engine, decide, is_coordinator
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.loading.generators import load_described
from pgmkit.loading.options import GeneratorOptions
from pgmkit.machine import check_device
from pgmkit.plugins import build_from_table
from pgmkit.spectrum.compute import BLOCK_SIZE, check_block_size, check_size, compute_spectrum
from pgmkit.spectrum.jacobian import MEMORY_BUDGET, Method
from pgmkit.spectrum.spectrum import Spectrum
from pgmkit.spectrum.store import MANIFEST_FILE

DEFAULT_ENGINE = "local"


@dataclass(frozen=True, kw_only=True)
class SpectrumSettings:
    """All settings of `pgmkit spectrum compute`, as they stand in a config file.

    A setting that is added here and bears the name of an argument of `compute_spectrum` is passed
    on to it, from `pgmkit spectrum compute` and from `pgmkit shatter`.

    Args:
        source: reference of the generator.
        engine: `name` of the engine and its parameters.
        generator: what the source does not say of itself: further arguments of
            `pgmkit.load_generator`.
        latents: number drawn from the prior.
        seed: of the latents.
        device: where the generator runs, such as "cpu" or "cuda:1"; "auto" is CUDA, then MPS, then
            the CPU.
        block_size: latents per block of work.
        dtype, probes, sketch, min_rank_correlation, memory_budget: what is computed, how exactly
            and in how much memory; see `compute_spectrum`.
        cache: whether to take up a spectrum that was computed before, and keep this one for later.
    """

    source: str
    engine: Mapping[str, Any]
    generator: Mapping[str, Any] = field(default_factory=dict)
    latents: int = 20_000
    seed: int = 0
    device: str = "auto"
    block_size: int = BLOCK_SIZE
    dtype: str = "auto"
    probes: int | None = None
    sketch: str = "volume"
    min_rank_correlation: float | None = None
    memory_budget: int = MEMORY_BUDGET
    cache: bool = True

    def check(self) -> None:
        """Raises PgmkitError if a setting is outside its range, as far as can be told quickly."""
        check_count("the number of latents", self.latents)
        check_block_size(self.block_size)
        Method(self.dtype, self.probes, self.sketch, self.min_rank_correlation, self.memory_budget)
        check_device(self.device)
        build_from_table("engines", self.engine)
        GeneratorOptions.from_table(self.generator, "the table 'generator'")

    def load_generator(self) -> Generator:
        """Loads the generator onto its device."""
        device = check_device(self.device)
        return load_described(self.source, self.generator, device=device)

    def check_size(self, generator: Generator) -> None:
        """Raises ParameterError unless memory holds the spectrum of so many latents."""
        check_size(generator, self.latents, self.probes)

    def resolved(self, generator: Generator) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to what the generator computes."""
        provenance = generator.provenance
        told = dict(self.generator)
        told |= {key: provenance[key] for key in ("revision", "sha256") if key in provenance}
        told["fingerprint"] = generator.fingerprint()
        return {**asdict(self), "device": str(generator.device), "generator": told}

    def compute(
        self,
        generator: Generator,
        out: Path | str,
        engine: Engine,
        *,
        progress: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> Spectrum:
        """Computes the spectrum into a folder, continues it there, or reads it back.

        Args:
            generator: what `load_generator` returned.
            out: the folder.
            engine: what the setting of that name says, built.
            progress: whether to show a progress bar on stderr.
            report: takes a line when the spectrum came from the cache.
        """
        arguments = {field.name: getattr(self, field.name) for field in fields(SpectrumSettings)}
        for name in ("source", "generator", "device", "engine"):
            del arguments[name]
        arguments["num_latents"] = arguments.pop("latents")
        return compute_spectrum(
            generator, out=out, engine=engine, progress=progress, report=report, **arguments
        )


@dataclass(frozen=True)
class PreparedSpectrum:
    """A spectrum to compute whose settings have been checked and whose generator is loaded."""

    settings: SpectrumSettings
    generator: Generator

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to the generator's weights."""
        return self.settings.resolved(self.generator)


def check_source(values: Mapping[str, Any]) -> None:
    """Raises ParameterError unless the settings name a generator."""
    if "source" not in values:
        raise ParameterError("no generator is given; name one, such as mnist-dcgan")


def prepare(values: Mapping[str, Any]) -> PreparedSpectrum:
    """Checks all settings and loads the generator; writes nothing.

    Args:
        values: see `SpectrumSettings`.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    check_source(values)
    engine = component_table("engine", values.get("engine", {}), DEFAULT_ENGINE)
    settings = make_settings(SpectrumSettings, {**values, "engine": engine}, "the config")
    settings.check()
    generator = settings.load_generator()
    settings.check_size(generator)
    return PreparedSpectrum(settings, generator)


def run(
    prepared: PreparedSpectrum,
    out: Path | str,
    *,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> Spectrum | None:
    """Computes a spectrum into `out`; one that was stopped continues, a complete one is read back.

    Args:
        prepared: what `prepare` returned.
        out: the folder, or a URL that fsspec opens.
        progress: whether to show a progress bar on stderr.
        report: takes a line when the spectrum came from the cache.

    Returns:
        The spectrum; None where another process of the engine is to tell about it.

    Raises:
        OutputError: `out` holds something else, is in use, or cannot be written.
    """
    settings = prepared.settings
    engine = build_from_table("engines", settings.engine)
    decide(engine, lambda: _check_out(out))
    spectrum = settings.compute(prepared.generator, out, engine, progress=progress, report=report)
    return spectrum if is_coordinator(engine) else None


def _check_out(out: Path | str) -> None:
    if isinstance(out, Path):
        # Blocks without a manifest are left where a run was stopped within its first one.
        runs.check_folder(out, mark=MANIFEST_FILE, what="spectrum", parts="block-*.safetensors")
