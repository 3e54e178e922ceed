"""One shattering as a run: checked before it starts, resumable, complete or absent."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgmkit import files, runs
from pgmkit.config import make_settings
from pgmkit.engines import decide, is_coordinator
from pgmkit.errors import ParameterError
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.report import describe, write_report
from pgmkit.generator import Generator
from pgmkit.hub import load_generator
from pgmkit.machine import check_device
from pgmkit.plugins import build_component
from pgmkit.shattering import check_shatter, sampler_parameters, shatter
from pgmkit.spectrum.compute import BLOCK_SIZE, check_block_size, compute_spectrum

DEFAULTS = {"density": "lash", "sampler": "kmeans-gmm", "engine": "local"}
"""The component that each table of a config names if it names none."""

_NOT_ON_RECORD = ("engine", "cache")
"""Settings that change no result, so that a run may continue with others."""

_DONE_FILES = ("report.html", "report.json", "sampler.json")


@dataclass(frozen=True)
class ShatterSettings:
    """All settings of `pgmkit shatter`, as they stand in a config file.

    Args:
        source: reference of the generator.
        density: `name` of the density estimator and its parameters.
        sampler: `name` of the cluster sampler and its parameters.
        engine: `name` of the engine and its parameters.
        clusters: k.
        remove: fraction of prior mass to remove, in [0, 1).
        latents: number drawn from the prior, before removal.
        seed: of everything random.
        classifier: reference of a classifier for the scores, or None.
        device: where the generator runs, such as "cpu" or "cuda".
        block_size: latents per block of work.
        cache: whether to take up a spectrum that was computed before, and keep this one for later.
    """

    source: str
    density: Mapping[str, Any]
    sampler: Mapping[str, Any]
    engine: Mapping[str, Any]
    clusters: int = 10
    remove: float = 0.2
    latents: int = 20_000
    seed: int = 0
    classifier: str | None = None
    device: str = "cpu"
    block_size: int = BLOCK_SIZE
    cache: bool = True


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings have been checked and whose models are loaded."""

    settings: ShatterSettings
    generator: Generator
    classifier: Classifier | None
    seconds: float

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, pinned to the generator's weights."""
        provenance = self.generator.provenance
        pinned = {key: provenance[key] for key in ("revision", "sha256") if key in provenance}
        return {**asdict(self.settings), "generator": pinned}


def prepare(values: Mapping[str, Any]) -> PreparedRun:
    """Checks all settings and loads the models; writes nothing.

    Args:
        values: see `ShatterSettings`.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    started = time.perf_counter()
    if "source" not in values:
        raise ParameterError("no generator is given; name one, such as mnist-dcgan")
    tables = {name: _component_table(name, values.get(name, {})) for name in DEFAULTS}
    settings = make_settings(ShatterSettings, {**values, **tables}, "the config")
    check_shatter(settings.latents, settings.remove, settings.clusters)
    check_block_size(settings.block_size)
    check_device(settings.device)
    _build("density-estimators", settings.density)
    _build("cluster-samplers", sampler_parameters(settings.clusters, settings.sampler))
    _build("engines", settings.engine)
    classifier = None if settings.classifier is None else load_classifier(settings.classifier)
    generator = load_generator(settings.source, device=settings.device)
    return PreparedRun(settings, generator, classifier, time.perf_counter() - started)


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
        report: takes a line when the spectrum came from the cache.

    Raises:
        OutputError: `out` holds something else, is in use, or cannot be written.
    """
    settings = prepared.settings
    engine = _build("engines", settings.engine)
    with contextlib.ExitStack() as held:
        numbers = decide(engine, lambda: _begin(prepared, out, held))
        if not is_coordinator(engine):
            if numbers is None:
                compute_spectrum(
                    prepared.generator,
                    num_latents=settings.latents,
                    seed=settings.seed,
                    out=out / "spectrum",
                    block_size=settings.block_size,
                    engine=engine,
                    cache=settings.cache,
                )
            return None
        if numbers is not None:
            return numbers
        density, sampler = dict(settings.density), dict(settings.sampler)
        shattered = shatter(
            prepared.generator,
            density=density.pop("name"),
            sampler=sampler.pop("name"),
            num_clusters=settings.clusters,
            remove=settings.remove,
            num_latents=settings.latents,
            seed=settings.seed,
            density_args=density,
            sampler_args=sampler,
            engine=engine,
            block_size=settings.block_size,
            out=out / "spectrum",
            cache=settings.cache,
            progress=progress,
            report=report,
        )
        shattered.save_pretrained(out)
        started = time.perf_counter()
        numbers = describe(shattered, prepared.classifier, seconds={"loading": prepared.seconds})
        numbers["seconds"]["scores"] = round(time.perf_counter() - started, 2)
        write_report(out, shattered, numbers)
        return numbers


def _begin(prepared: PreparedRun, out: Path, held: contextlib.ExitStack) -> dict[str, Any] | None:
    """Takes the output folder; returns the numbers of a run that is complete there."""
    runs.check_folder(out)
    held.enter_context(files.single_writer(out))
    resolved = prepared.resolved().items()
    runs.record(out, {key: value for key, value in resolved if key not in _NOT_ON_RECORD})
    if not all((out / name).exists() for name in _DONE_FILES):
        return None
    numbers: dict[str, Any] = json.loads((out / "report.json").read_text())
    return numbers


def _component_table(name: str, value: Any) -> dict[str, Any]:
    """Accepts `density = "lash"` as well as a table with `name` and parameters."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name", ""), str):
        return {"name": DEFAULTS[name], **value}
    raise ParameterError(f"{name} must be a name or a table with a name, not {value!r}")


def _build(kind: str, table: Mapping[str, Any]) -> Any:
    parameters = dict(table)
    return build_component(kind, parameters.pop("name"), **parameters)
