"""One shattering as a run: checked before it starts, resumable, complete or absent."""

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgmkit import files, runs
from pgmkit.config import component_table, make_settings
from pgmkit.engines import decide, is_coordinator
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.report import check_numbers, describe, write_report
from pgmkit.generator import Generator
from pgmkit.machine import check_memory
from pgmkit.plugins import build_from_table
from pgmkit.shattering import (
    check_savable,
    check_shatter,
    check_spectrum,
    sampler_parameters,
    shatter,
)
from pgmkit.spectrum import Spectrum, load_spectrum
from pgmkit.spectrum.run import DEFAULT_ENGINE, SpectrumSettings, check_source
from pgmkit.spectrum.store import MANIFEST_FILE

DEFAULTS = {"density": "lash", "sampler": "self-trained", "engine": DEFAULT_ENGINE}
"""The component that each table of a config names if it names none."""

_NOT_ON_RECORD = ("engine", "cache", "memory_budget", "device")
"""Settings that change no result but for rounding, so that a run may continue with others."""

_DONE_FILES = ("report.html", "report.json", "sampler.json")


@dataclass(frozen=True, kw_only=True)
class ShatterSettings(SpectrumSettings):
    """All settings of `pgmkit shatter`, as they stand in a config file.

    Those of the spectrum are used where it is computed, and not where `spectrum` is given.

    Args:
        density: `name` of the density estimator and its parameters.
        sampler: `name` of the cluster sampler and its parameters.
        clusters: k; or "auto", or a table with that `name`, to choose it: see `pgmkit.shatter`.
        remove: fraction of prior mass to remove, in [0, 1); or "auto" or such a table.
        classifier: reference of a classifier for the scores, or None.
        spectrum: folder of a spectrum of this generator, or None to compute one.
    """

    density: Mapping[str, Any]
    sampler: Mapping[str, Any]
    clusters: int | str | Mapping[str, Any] = 10
    remove: float | str | Mapping[str, Any] = 0.2
    classifier: str | None = None
    spectrum: str | None = None


@dataclass(frozen=True)
class GivenSpectrum:
    """A spectrum that was read and not computed, and where it came from."""

    folder: str
    manifest_sha256: str
    spectrum: Spectrum

    def source(self) -> dict[str, str]:
        """Returns folder and checksum; the manifest holds the checksum of every block."""
        return {"folder": self.folder, "manifest_sha256": self.manifest_sha256}


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings have been checked and whose models are loaded."""

    settings: ShatterSettings
    generator: Generator
    classifier: Classifier | None
    given: GivenSpectrum | None
    seconds: float

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to the weights and the given spectrum."""
        source = self.given.source() if self.given else None
        return {**self.settings.resolved(self.generator), "spectrum": source}


def prepare(values: Mapping[str, Any]) -> PreparedRun:
    """Checks all settings and loads the models; writes nothing.

    Args:
        values: see `ShatterSettings`.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    started = time.perf_counter()
    check_source(values)
    tables = {
        name: component_table(name, values.get(name, {}), default)
        for name, default in DEFAULTS.items()
    }
    settings = make_settings(ShatterSettings, {**values, **tables}, "the config")
    given = None
    if settings.spectrum is not None:
        given = _read_spectrum(settings.spectrum)
        settings = _with_latents_of(given, settings, values)
    check_shatter(settings.latents, settings.remove, settings.clusters)
    settings.check()
    build_from_table("density-estimators", settings.density)
    parameters = sampler_parameters(settings.clusters, settings.sampler)
    check_savable(build_from_table("cluster-samplers", parameters), settings.sampler["name"])
    classifier = None if settings.classifier is None else load_classifier(settings.classifier)
    generator = settings.load_generator()
    if classifier is not None:
        classifier.check_images(generator.image.shape)
        classifier.module.to(generator.device)
    if given is not None:
        check_spectrum(generator, given.spectrum)
    else:
        settings.check_size(generator)
    check_sizes(settings, generator)
    return PreparedRun(settings, generator, classifier, given, time.perf_counter() - started)


def check_sizes(settings: ShatterSettings, generator: Generator) -> None:
    """Checks that there is memory for the clusters.

    Raises:
        ParameterError: there is not.
    """
    count, dim = settings.latents, generator.latent.dim
    if isinstance(settings.clusters, int):
        k = settings.clusters
        check_memory(
            8 * k * (count + dim * dim), f"{k:,} clusters of {count:,} latents", "ask for fewer"
        )


def run(
    prepared: PreparedRun,
    out: Path,
    *,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Shatters, saves and reports into `out`; returns the numbers of the report.

    A run with the same settings that was stopped continues; one that is complete is read back.
    Where several processes run the same command, one of them does all this and the others only
    compute their share of the spectrum and return None.

    Args:
        prepared: what `prepare` returned.
        out: the output folder.
        progress: whether to show a progress bar on stderr.
        report: takes a line when each part of the work begins, and when the spectrum came from the
            cache.

    Raises:
        OutputError: `out` holds something else, is in use, or cannot be written.
    """
    settings = prepared.settings
    engine = build_from_table("engines", settings.engine)
    with contextlib.ExitStack() as held:
        numbers = decide(engine, lambda: _begin(prepared, out, held))
        if numbers is not None:
            if report is not None and is_coordinator(engine):
                report(f"{out} is complete; nothing was computed")
            return numbers if is_coordinator(engine) else None
        started = time.perf_counter()
        if prepared.given is not None:
            spectrum = prepared.given.spectrum
        else:
            _tell_spectrum(report if is_coordinator(engine) else None, settings, prepared)
            spectrum = settings.compute(
                prepared.generator, out / "spectrum", engine, progress=progress, report=report
            )
        if not is_coordinator(engine):
            return None
        seconds = {"loading": prepared.seconds, "spectrum": time.perf_counter() - started}
        density, sampler = dict(settings.density), dict(settings.sampler)
        shattered = shatter(
            prepared.generator,
            density=density.pop("name"),
            sampler=sampler.pop("name"),
            num_clusters=settings.clusters,
            remove=settings.remove,
            seed=settings.seed,
            spectrum=spectrum,
            density_args=density,
            sampler_args=sampler,
            report=report,
        )
        if report is not None:
            report("saving: pictures, numbers and the report")
        shattered.save_pretrained(out)
        started = time.perf_counter()
        source = prepared.given.source() if prepared.given else None
        numbers = describe(shattered, prepared.classifier, seconds=seconds, spectrum=source)
        numbers["seconds"]["scores"] = round(time.perf_counter() - started, 2)
        write_report(out, shattered, numbers)
        return numbers


def _tell_spectrum(
    report: Callable[[str], None] | None, settings: ShatterSettings, prepared: PreparedRun
) -> None:
    if report is not None:
        report(
            f"spectrum: Jacobians of {settings.latents:,} latents on {prepared.generator.device}"
        )


def _begin(prepared: PreparedRun, out: Path, held: contextlib.ExitStack) -> dict[str, Any] | None:
    """Takes the output folder; returns the numbers of a run that is complete there."""
    runs.check_folder(out)
    held.enter_context(files.single_writer(out))
    resolved = prepared.resolved().items()
    settings = {key: value for key, value in resolved if key not in _NOT_ON_RECORD}
    done = all((out / name).exists() for name in _DONE_FILES)
    runs.record(out, settings, device="" if done else str(prepared.generator.device))
    return _numbers_of(out) if done else None


def _numbers_of(out: Path) -> dict[str, Any] | None:
    """Returns the numbers of a complete run; None if its report is damaged and made anew."""
    try:
        numbers = files.read_json(out / "report.json", str(out))
        check_numbers(numbers)
    except LoadError as error:
        warnings.warn(f"{error} (the report is made anew)", PgmkitWarning, stacklevel=2)
        return None
    return numbers


def _read_spectrum(folder: str) -> GivenSpectrum:
    spectrum = load_spectrum(folder)
    return GivenSpectrum(folder, files.sha256(Path(folder) / MANIFEST_FILE), spectrum)


def _with_latents_of(
    given: GivenSpectrum, settings: ShatterSettings, values: Mapping[str, Any]
) -> ShatterSettings:
    """Returns the settings with the spectrum's number of latents, unless they ask for another."""
    count = len(given.spectrum)
    if values.get("latents", count) != count:
        raise ParameterError(
            f"latents is {values['latents']}, and the spectrum in {given.folder} has {count}; "
            "leave latents out, or compute a spectrum of as many"
        )
    return replace(settings, latents=count)
