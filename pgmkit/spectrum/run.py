"""A spectrum as a run: checked before it starts, resumable, complete or absent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pgmkit import runs
from pgmkit.config import check_count, component_table, make_settings
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.hub import load_generator
from pgmkit.machine import check_device
from pgmkit.plugins import build_from_table
from pgmkit.spectrum.compute import BLOCK_SIZE, check_block_size, compute_spectrum
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
        latents: number drawn from the prior.
        seed: of the latents.
        device: where the generator runs, such as "cpu" or "cuda".
        block_size: latents per block of work.
    """

    source: str
    engine: Mapping[str, Any]
    latents: int = 20_000
    seed: int = 0
    device: str = "cpu"
    block_size: int = BLOCK_SIZE

    def check(self) -> None:
        """Raises PgmkitError if a setting is outside its range, as far as can be told quickly."""
        check_count("the number of latents", self.latents)
        check_block_size(self.block_size)
        check_device(self.device)
        build_from_table("engines", self.engine)

    def load_generator(self) -> Generator:
        """Loads the generator onto its device."""
        return load_generator(self.source, device=self.device)

    def resolved(self, generator: Generator) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to the generator's weights."""
        provenance = generator.provenance
        pinned = {key: provenance[key] for key in ("revision", "sha256") if key in provenance}
        return {**asdict(self), "generator": pinned}

    def compute(self, generator: Generator, out: Path, *, progress: bool = False) -> Spectrum:
        """Computes the spectrum into a folder, continues it there, or reads it back.

        Args:
            generator: what `load_generator` returned.
            out: the folder.
            progress: whether to show a progress bar on stderr.
        """
        arguments = {field.name: getattr(self, field.name) for field in fields(SpectrumSettings)}
        for name in ("source", "device"):
            del arguments[name]
        arguments["num_latents"] = arguments.pop("latents")
        arguments["engine"] = build_from_table("engines", self.engine)
        return compute_spectrum(generator, out=out, progress=progress, **arguments)


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
    return PreparedSpectrum(settings, settings.load_generator())


def run(prepared: PreparedSpectrum, out: Path, *, progress: bool = False) -> Spectrum:
    """Computes a spectrum into `out`; one that was stopped continues, a complete one is read back.

    Args:
        prepared: what `prepare` returned.
        out: the folder.
        progress: whether to show a progress bar on stderr.

    Raises:
        OutputError: `out` holds something else, is in use, or cannot be written.
    """
    # Blocks without a manifest are left behind where a run was stopped within its first one.
    runs.check_folder(out, mark=MANIFEST_FILE, what="spectrum", parts="block-*.safetensors")
    return prepared.settings.compute(prepared.generator, out, progress=progress)
