"""The run behind `pgmkit spectrum compute`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pgmkit import defaults, runs
from pgmkit.config import check_count, check_known, check_seed, make_settings
from pgmkit.engines import decide, is_coordinator
from pgmkit.generator import Generator
from pgmkit.loading.generators import check_source, load_described, pinned
from pgmkit.loading.options import GeneratorOptions
from pgmkit.machine import check_device
from pgmkit.spectrum.blocks import MANIFEST_FILE
from pgmkit.spectrum.compute import check_size
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.spectrum.spectrum import Spectrum

_OF_SPECTRUM = [f.name for f in fields(SpectrumSettings)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of `pgmkit spectrum compute`; a config file has those of `spectrum` beside them.

    Args:
        source: reference of the generator.
        generator: what the source does not say of itself: further arguments of
            `pgmkit.load_generator`.
        latents: number drawn from the prior.
        seed: of the latents.
        device: where the generator runs, such as "cpu" or "cuda:1"; "auto" is CUDA, then MPS, then
            the CPU.
        spectrum: how it is computed.
    """

    source: str
    generator: Mapping[str, Any] = field(default_factory=dict)
    latents: int = defaults.LATENTS
    seed: int = 0
    device: str = "auto"
    spectrum: SpectrumSettings = field(default_factory=SpectrumSettings)

    def check(self) -> None:
        """Raises PgmkitError if a setting is outside its range, as far as can be told quickly."""
        check_count("the number of latents", self.latents)
        check_seed(self.seed)
        self.spectrum.check()
        check_device(self.device)
        GeneratorOptions.from_table(self.generator, "the table 'generator'")


@dataclass(frozen=True)
class Job:
    """A spectrum to compute whose settings have been checked and whose generator is loaded."""

    settings: Settings
    generator: Generator

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to what the generator computes."""
        settings = asdict(self.settings)
        settings |= settings.pop("spectrum")
        settings["generator"] = pinned(self.generator, self.settings.generator)
        return {**settings, "device": str(self.generator.device)}

    def estimate(self) -> float:
        """Returns about how many seconds it would take, by computing that of a few latents."""
        settings = self.settings
        return settings.spectrum.tried(self.generator, settings.latents, seed=settings.seed)[1]

    def run(self, out: Path | str) -> Spectrum | None:
        """Computes the spectrum into a folder, continues it there, or reads it back.

        Args:
            out: the folder, or a URL that fsspec opens.

        Returns:
            The spectrum; None where another process of the engine is to tell about it.

        Raises:
            OutputError: `out` holds something else, is in use, or cannot be written.
        """
        settings = self.settings
        engine = settings.spectrum.build_engine()
        decide(engine, lambda: _check_out(out))
        spectrum = settings.spectrum.compute(
            self.generator, settings.latents, seed=settings.seed, out=out, engine=engine
        )
        return spectrum if is_coordinator(engine) else None


def prepare(values: Mapping[str, Any]) -> Job:
    """Checks all settings (`Settings`) and loads the generator; writes nothing.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    where = "the config"
    check_source(values)
    own = [f.name for f in fields(Settings) if f.name != "spectrum"]
    check_known(values, [*own, *_OF_SPECTRUM], where)
    of_spectrum = {name: values[name] for name in _OF_SPECTRUM if name in values}
    table = {name: values[name] for name in own if name in values}
    spectrum = SpectrumSettings.from_table(of_spectrum, where)
    settings = make_settings(Settings, {**table, "spectrum": spectrum}, where)
    settings.check()
    device = check_device(settings.device)
    generator = load_described(settings.source, settings.generator, device=device)
    check_size(generator, settings.latents, settings.spectrum.probes)
    return Job(settings, generator)


def _check_out(out: Path | str) -> None:
    if isinstance(out, Path):
        # Blocks without a manifest are left where a run was stopped within its first one.
        runs.check_folder(out, mark=MANIFEST_FILE, what="spectrum", parts="block-*.safetensors")
