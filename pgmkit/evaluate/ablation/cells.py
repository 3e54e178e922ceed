"""Computing cells: what a generator and seed share, and what each cell adds."""

import math
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pgmkit import files
from pgmkit.contracts import Engine
from pgmkit.engines import is_coordinator
from pgmkit.errors import PgmkitError, first_line
from pgmkit.evaluate.ablation.measures import MEASURES, Subject
from pgmkit.evaluate.ablation.plan import Ablation, Cell, GeneratorSettings, slug
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.extractors import FeatureExtractor, check_extractor, load_extractor
from pgmkit.evaluate.metrics import classify_latents
from pgmkit.evaluate.reference_images import ReferenceImages, check_fidelity, load_reference
from pgmkit.generator import Generator
from pgmkit.images import ImageSource
from pgmkit.loading.generators import load_described
from pgmkit.machine import machine, thread_limit
from pgmkit.shattering import ShatteredGenerator, shatter
from pgmkit.spectrum import Spectrum, load_spectrum
from pgmkit.spectrum.settings import SpectrumSettings

_PINS = ("repo", "revision", "sha256")


@dataclass(frozen=True)
class Models:
    """A generator with all that looks at its images, loaded.

    Args:
        generator: G.
        classifier: labels its images, or None.
        images: real ones, or None.
        extractor: looks at both kinds of images; None without real ones.
        cache: whether to keep the features of real images.
    """

    generator: Generator
    classifier: Classifier | None = None
    images: ImageSource | None = None
    extractor: FeatureExtractor | None = None
    cache: bool = True

    @cached_property
    def reference(self) -> ReferenceImages | None:
        """The real images with their features, which are computed here."""
        if self.images is None or self.extractor is None:
            return None
        return ReferenceImages(self.images, self.extractor, cache=self.cache)

    def pins(self) -> dict[str, Any]:
        """Returns what identifies the weights of all models, and the real images."""
        provenance = self.generator.provenance
        pins: dict[str, Any] = {key: provenance[key] for key in _PINS if key in provenance}
        pins["generator"] = self.generator.fingerprint()
        if self.classifier is not None:
            pins["classifier"] = self.classifier.fingerprint()
        if self.images is not None and self.extractor is not None:
            pins["reference"] = self.images.summary()
            pins["extractor"] = [self.extractor.name, self.extractor.version]
        return pins

    def labelled_by(self) -> dict[str, str]:
        """Returns what the classes of latents depend on; nothing without a classifier."""
        if self.classifier is None:
            return {}
        return {
            "generator": self.generator.fingerprint(),
            "classifier": self.classifier.fingerprint(),
        }


@dataclass(frozen=True)
class Result:
    """What is known of a cell; its file holds just this.

    Args:
        metrics: numbers by "measure.name"; None where one is not finite.
        counts: for a measure of agreement with classes, how often each class lies in each cluster.
        classes: names of the classes.
        origin: components, statistics and versions; see `pgmkit.shattering.Origin`.
        seconds: of each part and in total.
        machine: that made the numbers.
        warnings: that came up.
        error: why there are no numbers, on one line; None if there are.
        traceback: of an error that is not expected.
    """

    metrics: Mapping[str, float | None] = field(default_factory=dict)
    counts: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    classes: Sequence[str] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    warnings: Sequence[str] = ()
    error: str | None = None
    traceback: str | None = None


class SharedFiles:
    """The files of what all cells of one generator and seed share.

    Attributes:
        name: of all these files.
        spectrum: folder of the spectrum.
        record: says how long it took, and whether it was taken up from the cache or continued.
    """

    def __init__(self, folder: Path, generator: str, latents: int, seed: int) -> None:
        self.name = f"{slug(generator)}-latents-{latents}-seed-{seed}"
        self.spectrum = folder / self.name
        self.record = folder / f"{self.name}.json"
        self._latents = latents
        self._seed = seed
        self._classes = folder / f"{self.name}.classes.safetensors"

    def compute(
        self, settings: SpectrumSettings, models: Models, engine: Engine
    ) -> tuple[dict[str, float], int]:
        """Computes what is missing; returns the seconds of each part, and blocks taken up."""
        started = time.perf_counter()
        spectrum = settings.compute(
            models.generator, self._latents, seed=self._seed, out=self.spectrum, engine=engine
        )
        seconds = {"spectrum": round(time.perf_counter() - started, 3)}
        if not is_coordinator(engine) or models.classifier is None:
            return seconds, spectrum.reused
        if self.classes(len(spectrum), models) is None:
            started = time.perf_counter()
            classes = classify_latents(models.generator, models.classifier, spectrum.latents)
            files.write_bytes(self._classes, save({"classes": classes}, models.labelled_by()))
            seconds["classes"] = round(time.perf_counter() - started, 3)
        return seconds, spectrum.reused

    def classes(self, count: int, models: Models) -> Tensor | None:
        """Returns the classes of the latents (count,); None if they are not there or damaged.

        Those of another classifier or generator, by their weights, are not there.
        """
        try:
            with safe_open(self._classes, "pt") as file:
                if (file.metadata() or {}) != models.labelled_by():
                    return None
                classes: Tensor = file.get_tensor("classes")
        except (OSError, SafetensorError):
            return None
        return None if classes.shape != (count,) else classes


class Measurer:
    """Computes cells in one process; models and spectrum stay at hand for the next cell.

    It can be sent to another process, which then loads them itself.

    Args:
        ablation: the ablation.
        folder: of the spectra.
        models: those that are loaded already, by name of the generator.
    """

    def __init__(self, ablation: Ablation, folder: Path, models: Mapping[str, Models]) -> None:
        self._ablation = ablation
        self._threads = ablation.settings.threads
        self._folder = folder
        self._models = dict(models)
        self._shared: tuple[str, Spectrum, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_models": {}, "_shared": None}

    def __call__(self, cell: Cell) -> Result:
        """Computes a cell; an error is its result."""
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught, thread_limit(self._threads):
            warnings.simplefilter("always")
            try:
                result = self._measure(cell)
            except PgmkitError as error:
                # Of a component that failed, where it did is worth knowing.
                result = failure(error, traceback.format_exc() if error.__cause__ else None)
            except Exception as error:  # whatever a method of anyone's raises
                result = failure(error, traceback.format_exc())
        said = list(dict.fromkeys(first_line(warning.message) for warning in caught))  # type: ignore[arg-type]
        seconds = {**result.seconds, "total": round(time.perf_counter() - started, 3)}
        return replace(result, seconds=seconds, machine=machine(), warnings=said)

    def shatter(self, cell: Cell) -> ShatteredGenerator:
        """Returns the shattered generator of a cell, from the spectrum that is there.

        Raises:
            PgmkitError: the spectrum or a model cannot be loaded, or the methods refuse.
        """
        spectrum, _ = self._shared_of(cell)
        with thread_limit(self._threads):
            return shatter(
                self._models_of(cell).generator,
                density=cell.density.table,
                sampler=cell.sampler.table,
                clusters=cell.clusters,
                remove=cell.remove,
                seed=cell.seed,
                spectrum=spectrum.first(cell.latents),
            )

    def _measure(self, cell: Cell) -> Result:
        shattered, models = self.shatter(cell), self._models_of(cell)
        _, classes = self._shared_of(cell)
        subject = Subject(
            shattered,
            classes=None if classes is None else classes[: cell.latents],
            classifier=models.classifier,
            reference=models.reference,
            num_samples=self._ablation.settings.samples,
        )
        metrics: dict[str, float | None] = {}
        counts: dict[str, Sequence[Sequence[int]]] = {}
        seconds = {
            name: round(value, 3) for name, value in shattered.seconds.items() if name != "spectrum"
        }
        class_names = models.classifier.classes if models.classifier else ()
        for name in self._ablation.measures:
            measure = MEASURES[name]
            started = time.perf_counter()
            for metric, value in measure.function(subject).items():
                finite = value is not None and math.isfinite(value)
                metrics[f"{name}.{metric}"] = value if finite else None
            if measure.counts is not None:
                counts[name] = measure.counts(subject)
            seconds[f"measure {name}"] = round(time.perf_counter() - started, 3)
        return Result(metrics, counts, class_names, asdict(shattered.origin), seconds)

    def _models_of(self, cell: Cell) -> Models:
        if cell.generator not in self._models:
            settings = next(g for g in self._ablation.generators if g.name == cell.generator)
            cache = self._ablation.spectrum.cache
            self._models[cell.generator] = load_models(settings, cache=cache)
        return self._models[cell.generator]

    def _shared_of(self, cell: Cell) -> tuple[Spectrum, Tensor | None]:
        latents = max(self._ablation.latents)
        shared = SharedFiles(self._folder, cell.generator, latents, cell.seed)
        if self._shared is None or self._shared[0] != shared.name:
            spectrum = load_spectrum(shared.spectrum)
            classes = shared.classes(len(spectrum), self._models_of(cell))
            self._shared = (shared.name, spectrum, classes)
        return self._shared[1:]


def load_models(settings: GeneratorSettings, *, cache: bool = True) -> Models:
    """Loads a generator with its classifier, reference images and feature extractor.

    Raises:
        PgmkitError: one of them cannot be loaded, or they do not fit together.
    """
    generator = load_described(settings.source, settings.generator, device=settings.device or "cpu")
    classifier = None if settings.classifier is None else load_classifier(settings.classifier)
    if classifier is not None:
        classifier.check_images(generator.image.shape)
    if settings.reference is None:
        return Models(generator, classifier)
    check_extractor(settings.extractor)
    images = load_reference(settings.reference, generator, split=settings.split)
    check_fidelity(images, classifier)
    extractor = load_extractor(settings.extractor, generator.device)
    return Models(generator, classifier, images, extractor, cache)


def failure(error: Exception, details: str | None = None) -> Result:
    """Returns the result of a cell that an error kept from having numbers."""
    return Result(error=f"{type(error).__name__}: {first_line(error)}", traceback=details)
