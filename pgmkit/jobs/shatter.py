"""One shattering as a run."""

import contextlib
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgmkit import contracts, defaults, files, progress, runs
from pgmkit.choosing import NUM_CLUSTERS
from pgmkit.config import check_seed, make_settings, with_names
from pgmkit.engines import decide, is_coordinator
from pgmkit.errors import LoadError, ParameterError, PgmkitNote, PgmkitWarning
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.report import check_numbers, describe, write_report
from pgmkit.generator import Generator
from pgmkit.learning import keeping, ranks
from pgmkit.learning.trial import seconds_of
from pgmkit.loading.generators import check_source, load_described, pinned
from pgmkit.loading.options import GeneratorOptions
from pgmkit.machine import check_device, check_memory
from pgmkit.plugins import build
from pgmkit.sampling import PartitionSampler
from pgmkit.selection import select
from pgmkit.shattering import SAMPLER_CONFIG, ShatteredGenerator, shatter
from pgmkit.shattering.algorithm import (
    build_sampler,
    check_sampler,
    check_shatter,
    check_spectrum,
    number_of_latents,
)
from pgmkit.spectrum import Spectrum, load_spectrum
from pgmkit.spectrum.blocks import MANIFEST_FILE
from pgmkit.spectrum.compute import check_size
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.states import table_of, why_not_saved

_NOT_ON_RECORD = ("device",)
"""Settings that change no result but for rounding, so that a run may continue with others."""

_REPORT_FILES = ("report.html", "report.json")
_LEARNING = "learning"


@dataclass(frozen=True, kw_only=True)
class ShatterSettings:
    """All settings of `pgmkit shatter`, as they stand in a config file; see `pgmkit.shatter`.

    Args:
        source: reference of the generator.
        generator: what the source does not say of itself: further arguments of
            `pgmkit.load_generator`.
        density, partitioner, mapper, sampler: a name, or a table of `name` and parameters.
        clusters: k; or "auto", or a table with that `name`, to choose it.
        remove: fraction of prior mass to remove, in [0, 1); or "auto" or such a table.
        latents: number drawn from the prior, before removal.
        seed: of everything random.
        device: where it is computed, such as "cpu" or "cuda:1"; "auto" is CUDA, then MPS, then the
            CPU.
        classifier: reference of a classifier for the scores, or None.
        spectrum: folder of a spectrum of this generator; or a table of how to compute one, see
            `SpectrumSettings`.
    """

    source: str
    generator: Mapping[str, Any] = field(default_factory=dict)
    density: str | Mapping[str, Any] = defaults.DENSITY
    partitioner: str | Mapping[str, Any] | None = None
    mapper: str | Mapping[str, Any] | None = None
    sampler: str | Mapping[str, Any] = defaults.SAMPLER
    clusters: int | str | Mapping[str, Any] | None = None
    remove: float | str | Mapping[str, Any] = defaults.REMOVE
    latents: int | None = None
    seed: int = defaults.SEED
    device: str = "auto"
    classifier: str | None = None
    spectrum: str | Mapping[str, Any] = field(default_factory=dict)


class Job:
    """A shattering whose settings have been checked and whose models are loaded.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """

    def __init__(self, settings: ShatterSettings) -> None:
        started = time.perf_counter()
        self.settings = settings
        check_seed(settings.seed)
        where, table = settings.spectrum, {}
        self._given = load_spectrum(where) if isinstance(where, str) else None
        if not isinstance(where, str):
            table = dict(where)
        if len(table) > 1 and "name" in table:  # of --spectrum, with --set spectrum.engine
            folder = table.pop("name")
            raise ParameterError(
                f"{', '.join(table)} of the spectrum would be ignored, since {folder!r} is one "
                "that is there already; leave one of them out"
            )
        self._spectrum = SpectrumSettings.from_table(table, "the table 'spectrum'")
        self._latents = number_of_latents(settings.latents, self._given)
        if settings.clusters is not None:  # before a method complains of the number
            check_shatter(self._latents, settings.remove, settings.clusters)
        estimator = build("density-estimators", settings.density)
        sampler = build_sampler(
            settings.sampler, settings.partitioner, settings.mapper, settings.clusters
        )
        self._clusters = (
            settings.clusters
            if settings.clusters is not None
            else getattr(sampler, "num_clusters", defaults.CLUSTERS)
        )
        check_shatter(self._latents, settings.remove, self._clusters)
        self._least = 1
        if isinstance(sampler, PartitionSampler):
            self._least = contracts.least_images_of(sampler.partitioner)
        self._spectrum.check()
        GeneratorOptions.from_table(settings.generator, "the table 'generator'")
        self._tables = {"density": table_of(estimator), "sampler": table_of(sampler)}
        self._is_saved = (reason := why_not_saved(sampler)) is None
        if reason is not None:
            warnings.warn(
                f"the result will have a report but cannot be sampled later, since {reason}",
                PgmkitNote,
                stacklevel=2,
            )
        device = check_device(settings.device)
        self.classifier: Classifier | None = None
        if settings.classifier is not None:
            self.classifier = load_classifier(settings.classifier)
        self.generator: Generator = load_described(
            settings.source, settings.generator, device=device
        )
        check_sampler(self.generator, sampler, self._clusters, self._latents, settings.remove)
        if self.classifier is not None:
            self.classifier.check_images(self.generator.image.shape)
            self.classifier.module.to(device)
        if self._given is not None:
            check_spectrum(self.generator, self._given)
        else:
            check_size(self.generator, self._latents, self._spectrum.probes)
        self._check_memory()
        self._seconds = {"loading": time.perf_counter() - started}

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to what the generator computes."""
        settings = self.settings
        spectrum: dict[str, Any] = asdict(self._spectrum)
        if self._given is not None:
            spectrum = _source_of(str(settings.spectrum))
        return {
            "source": settings.source,
            "generator": pinned(self.generator, settings.generator),
            **self._tables,
            "clusters": self._clusters,
            "remove": settings.remove,
            "latents": self._latents,
            "seed": settings.seed,
            "device": str(self.generator.device),
            "classifier": settings.classifier,
            "spectrum": spectrum,
        }

    def estimate(self) -> dict[str, float]:
        """Returns about how many seconds each part would take, by trying a little of each."""
        spectrum, seconds = self._given, dict[str, float]()
        remove = self.settings.remove
        clusters = self._clusters if isinstance(self._clusters, int) else max(NUM_CLUSTERS)
        kept = 1 - (remove if isinstance(remove, float) else 0.5)
        few = math.ceil(max(8 * clusters, self._least) / kept)
        if spectrum is None:
            spectrum, seconds["spectrum"] = self._spectrum.tried(
                self.generator, self._latents, seed=self.settings.seed, count=3 * few
            )
        seconds["clusters"] = seconds_of(
            lambda count: self._shatter(spectrum.first(count)), self._latents, few
        )
        return {**seconds, "total": sum(seconds.values())}

    def run(self, out: Path) -> dict[str, Any] | None:
        """Shatters, saves and reports into `out`; returns the numbers of the report.

        A run with the same settings that was stopped continues with what it has finished; one that
        is complete is read back. Where several processes run the same command, one of them does all
        this and the others only compute their share of the spectrum and return None.

        Raises:
            OutputError: `out` holds something else, is in use, or cannot be written.
        """
        engine = self._spectrum.build_engine()
        leads = is_coordinator(engine)
        with contextlib.ExitStack() as held, progress.shown(progress.is_shown() and leads):
            numbers = decide(engine, lambda: self._begin(out, held))
            if numbers is not None:
                progress.tell(f"{out} is complete; nothing was computed")
                return numbers if leads else None
            started = time.perf_counter()
            spectrum = self._given
            if spectrum is None:
                spectrum = self._spectrum.compute(
                    self.generator,
                    self._latents,
                    seed=self.settings.seed,
                    out=out / "spectrum",
                    engine=engine,
                )
            if not leads:
                return None
            self._seconds["spectrum"] = time.perf_counter() - started
            with ranks.alone():
                return self._finish(out, spectrum)

    def _finish(self, out: Path, spectrum: Spectrum) -> dict[str, Any]:
        """Shatters by a spectrum, saves, and reports."""
        shattered = self._found_before(out, spectrum)
        if shattered is None:
            with keeping(out / _LEARNING):
                shattered = self._shatter(spectrum)
            if self._is_saved:
                with progress.phase("saving, with samples of each cluster"):
                    shattered.save_pretrained(out)
        started = time.perf_counter()
        with progress.phase("scores and pictures"):
            source = _source_of(str(self.settings.spectrum)) if self._given else None
            numbers = describe(shattered, self.classifier, seconds=self._seconds, spectrum=source)
            numbers["seconds"]["scores"] = round(time.perf_counter() - started, 2)
            write_report(out, shattered, numbers)
        files.remove_folder(out / _LEARNING)
        return numbers

    def _shatter(self, spectrum: Spectrum) -> ShatteredGenerator:
        settings = self.settings
        return shatter(
            self.generator,
            density=settings.density,
            partitioner=settings.partitioner,
            mapper=settings.mapper,
            sampler=settings.sampler,
            clusters=settings.clusters,
            remove=settings.remove,
            seed=settings.seed,
            spectrum=spectrum,
        )

    def _found_before(self, out: Path, spectrum: Spectrum) -> ShatteredGenerator | None:
        """Returns what a run that was stopped after it was saved has found; None if it was not."""
        if not (out / SAMPLER_CONFIG).exists():
            return None
        try:
            saved = ShatteredGenerator.from_pretrained(
                out, architecture=lambda **_: self.generator.module
            )
        except LoadError as error:
            warnings.warn(f"{error} (clusters are found anew)", PgmkitWarning, stacklevel=2)
            return None
        progress.tell(f"clusters read from {out}")
        estimator = build("density-estimators", self.settings.density)
        remove = float(saved.origin.settings["remove"])
        selection = select(estimator, spectrum, remove=remove, seed=self.settings.seed)
        if isinstance(saved.sampler, contracts.Binds):
            saved.sampler.bind(self.generator)
        return ShatteredGenerator(
            self.generator,
            saved.sampler,
            saved.cluster_sizes,
            saved.origin,
            spectrum=spectrum,
            selection=selection,
        )

    def _check_memory(self) -> None:
        if isinstance(self._clusters, int):
            dim, k = self.generator.latent.dim, self._clusters
            check_memory(
                8 * k * (self._latents + dim * dim),
                f"{k:,} clusters of {self._latents:,} latents",
                "ask for fewer",
            )

    def _begin(self, out: Path, held: contextlib.ExitStack) -> dict[str, Any] | None:
        """Takes the output folder; returns the numbers of a run that is complete there."""
        runs.check_folder(out)
        held.enter_context(files.single_writer(out))
        settings = {k: v for k, v in self.resolved().items() if k not in _NOT_ON_RECORD}
        if self._given is None:
            settings["spectrum"] = self._spectrum.determining()
        wanted = [*_REPORT_FILES, *([SAMPLER_CONFIG] if self._is_saved else [])]
        done = all((out / name).exists() for name in wanted)
        runs.record(out, settings, device="" if done else str(self.generator.device))
        return _numbers_of(out) if done else None


def prepare(values: Mapping[str, Any]) -> Job:
    """Checks all settings (`ShatterSettings`) and loads the models; writes nothing.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    check_source(values)
    values = with_names(
        values,
        density=defaults.DENSITY,
        partitioner=defaults.PARTITIONER,
        mapper=defaults.MAPPER,
        sampler=defaults.SAMPLER,
    )
    return Job(make_settings(ShatterSettings, values, "the config"))


def _numbers_of(out: Path) -> dict[str, Any] | None:
    """Returns the numbers of a complete run; None if its report is damaged and made anew."""
    try:
        numbers = files.read_json(out / "report.json", str(out))
        check_numbers(numbers)
    except LoadError as error:
        warnings.warn(f"{error} (the report is made anew)", PgmkitWarning, stacklevel=2)
        return None
    return numbers


def _source_of(folder: str) -> dict[str, str]:
    """Returns folder and checksum of a spectrum; the manifest holds that of every block."""
    return {"folder": folder, "manifest_sha256": files.sha256(Path(folder) / MANIFEST_FILE)}
