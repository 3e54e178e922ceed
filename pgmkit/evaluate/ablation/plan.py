"""What an ablation consists of: its settings, its axes and its cells."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pgmkit import defaults
from pgmkit.config import check_count, check_seed, make_settings
from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.evaluate.ablation.measures import CHOICES, DEFAULT_MEASURES, MEASURES
from pgmkit.evaluate.fidelity import check_num_samples
from pgmkit.machine import available_cores, check_device
from pgmkit.plugins import build
from pgmkit.shattering.algorithm import build_sampler, check_shatter
from pgmkit.spectrum.settings import SpectrumSettings
from pgmkit.states import table_of

_MOST_OF_A_NAME = 40


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """One generator of an ablation, a table of `[[generators]]`.

    Args:
        source: reference of the generator.
        generator: further arguments of `pgmkit.load_generator`.
        name: in tables and file names; that of the generator if left empty.
        classifier: reference of the classifier that labels its images, or None.
        device: where the generator runs; None is where those of the ablation do.
        clusters: k for this generator, one or a list; None takes those of the ablation.
        reference: real images for the measure "fidelity"; see `pgmkit.images.load_images`.
        split: "train" or "test", where the reference has both.
        extractor: looks at both kinds of images; see `load_extractor`.
    """

    source: str
    generator: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    classifier: str | None = None
    device: str | None = None
    clusters: Any = None
    reference: str | None = None
    split: str = "train"
    extractor: str = "inception"


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """All settings of `pgmkit ablate`, as they stand in a config file.

    What is left out is as in `pgmkit.shatter`.

    Args:
        generators: see `GeneratorSettings`; a string is one with that source.
        densities: density estimators: `name`, parameters, and a `label` for tables; a parameter
            written `{ each = [...] }` is an axis.
        partitioners: all of them with all mappers, in the same way.
        mappers: in the same way.
        samplers: cluster samplers beside these, in the same way.
        latents: number drawn from the prior, one or a list. Smaller numbers take the first latents
            of the spectrum for the largest.
        clusters: k, one or a list; "auto", or a table with that name, as for `pgmkit.shatter`.
        remove: fraction of prior mass to remove, one or a list; "auto" or a table likewise.
        seeds: of everything random, one or a list.
        samples: how many samples from the mapper are scored.
        measures: names of what is measured, from `pgmkit.evaluate.ablation.measures.MEASURES`.
        jobs: cells at the same time, each in a process of its own; 1 is this process, None one per
            available core.
        threads: of each of these processes.
        spectrum: how spectra are computed; see `SpectrumSettings`.
        device: where generators run, such as "cpu" or "cuda:1"; "auto" is CUDA, then MPS, then the
            CPU.
    """

    generators: Any
    densities: Any = (defaults.DENSITY,)
    partitioners: Any = ()
    mappers: Any = ()
    samplers: Any = ()
    latents: Any = defaults.LATENTS
    clusters: Any = defaults.CLUSTERS
    remove: Any = defaults.REMOVE
    seeds: Any = defaults.SEED
    samples: int = 5_000
    measures: Any = DEFAULT_MEASURES
    jobs: int | None = None
    threads: int = 1
    spectrum: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"


@dataclass(frozen=True)
class Variant:
    """A density estimator or cluster sampler with fixed parameters.

    Args:
        label: for tables and figures.
        table: `name` and parameters.
        varied: those parameters that are axes, by column, with their values here.
    """

    label: str
    table: Mapping[str, Any]
    varied: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One point of the cross product; its latents are the first so many of the spectrum.

    Its id is readable, and different wherever results may be; also the name of its file. Clusters
    and remove may say how they are chosen.
    """

    id: str
    generator: str
    density: Variant
    sampler: Variant
    clusters: int | str | Mapping[str, Any]
    remove: float | str | Mapping[str, Any]
    latents: int
    seed: int

    def columns(self) -> dict[str, Any]:
        """Returns the cell's place on every axis, by name of the axis."""
        return {
            "generator": self.generator,
            "density": self.density.label,
            **self.density.varied,
            "sampler": self.sampler.label,
            **self.sampler.varied,
            "clusters": _in_words(self.clusters),
            "remove": _in_words(self.remove),
            "latents": self.latents,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Ablation:
    """An ablation whose settings have been checked; no model is loaded yet.

    Names of generators that were left out are still empty. Samplers that are made of partitioners
    and mappers come first.
    """

    settings: AblationSettings
    generators: Sequence[GeneratorSettings]
    densities: Sequence[Variant]
    samplers: Sequence[Variant]
    latents: Sequence[int]
    remove: Sequence[Any]
    seeds: Sequence[int]
    spectrum: SpectrumSettings

    @property
    def measures(self) -> list[str]:
        """Names of what is measured, with the choices where there are any."""
        axes = [*self.remove, *(k for one in self.generators for k in self.clusters(one))]
        chosen = any(not isinstance(value, int | float) for value in axes)
        own = list(self.settings.measures)
        return [*own, CHOICES] if chosen and CHOICES not in own else own

    def needing(self, setting: str) -> list[str]:
        """Returns the measures that need a setting of their generator."""
        return [measure for measure in self.measures if MEASURES[measure].needs == setting]

    @property
    def jobs(self) -> int:
        """How many cells are computed at the same time."""
        return available_cores() if self.settings.jobs is None else self.settings.jobs

    def clusters(self, generator: GeneratorSettings) -> list[Any]:
        """Returns the axis of k for one generator."""
        own = generator.clusters
        return axis("clusters", self.settings.clusters if own is None else own)

    def cells(self, pins: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        """Returns all cells, those of one generator and seed together.

        Args:
            pins: what identifies the weights of each generator and of all that looks at its
                images, by its name.

        Raises:
            ParameterError: two cells are the same.
        """
        found: dict[str, Cell] = {}
        for generator in self.generators:
            rest = (self.clusters(generator), self.remove, self.latents)
            for seed, density, sampler, clusters, remove, latents in itertools.product(
                self.seeds, self.densities, self.samplers, *rest
            ):
                values = {  # with all parameters, since defaults may be others tomorrow
                    "generator": pins[generator.name],
                    "density": table_of(build("density-estimators", density.table)),
                    "sampler": table_of(build_sampler(sampler.table, None, None, clusters)),
                    "clusters": clusters,
                    "remove": remove,
                    "latents": latents,
                    "seed": seed,
                    "samples": self.settings.samples,
                    "threads": self.settings.threads,
                    "measures": list(self.settings.measures),
                }
                name = slug(
                    f"{generator.name:.{_MOST_OF_A_NAME}} {density.table['name']} "
                    f"{sampler.table['name']} clusters-{_in_words(clusters)!s:.{_MOST_OF_A_NAME}} "
                    f"remove-{_in_words(remove)!s:.{_MOST_OF_A_NAME}} "
                    f"latents-{latents} seed-{seed} {_digest(values)}"
                )
                cell = Cell(name, generator.name, density, sampler, clusters, remove, latents, seed)
                if name in found:
                    one = found[name]
                    labels = {m.label: 0 for m in (one.density, density, one.sampler, sampler)}
                    raise ParameterError(
                        f"the ablation has one cell twice ({', '.join(labels)}); remove one of "
                        "two densities or samplers with the same parameters"
                    )
                found[name] = cell
        return list(found.values())


def make_ablation(values: Mapping[str, Any]) -> Ablation:
    """Checks the settings of an ablation (`AblationSettings`), as far as it can without generators.

    Raises:
        PgmkitError: anything is missing, unknown or outside its range.
    """
    settings = make_settings(AblationSettings, values, "the config")
    generators = []
    for number, table in enumerate(_tables("generators", settings.generators, "source"), 1):
        made = make_settings(GeneratorSettings, table, f"generator {number} of the config")
        device = str(check_device(made.device or settings.device))
        generators.append(replace(made, device=device))
    ablation = Ablation(
        settings=settings,
        generators=generators,
        densities=_variants("densities", settings.densities),
        samplers=_samplers(settings),
        latents=axis("latents", settings.latents),
        remove=axis("remove", settings.remove),
        seeds=axis("seeds", settings.seeds),
        spectrum=SpectrumSettings.from_table(settings.spectrum, "the table 'spectrum'"),
    )
    _check(ablation)
    return ablation


def axis(name: str, value: Any) -> list[Any]:
    """Returns the values of an axis: those of a list, or the only one.

    Raises:
        ParameterError: the list is empty or has a value twice.
    """
    if not isinstance(value, list | tuple):
        return [value]
    if not value:
        raise ParameterError(f"the axis {name} is empty; give it at least one value")
    for index, item in enumerate(value):
        if item in value[:index]:
            raise ParameterError(f"the axis {name} has the value {item!r} twice")
    return list(value)


def slug(text: str) -> str:
    """Returns a text as part of a file name: letters, digits, dots, hyphens and underscores.

    Example:
        >>> slug("LASH (Ours), 1e-6")
        'LASH-Ours-1e-6'
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def check_names(generators: Sequence[GeneratorSettings]) -> None:
    """Raises ParameterError if two generators cannot be told apart by their names."""
    _check_distinct("generators", "name", [generator.name for generator in generators])


def _check(ablation: Ablation) -> None:
    settings = ablation.settings
    for name, count in (
        ("samples", settings.samples),
        ("jobs", ablation.jobs),
        ("threads", settings.threads),
    ):
        check_count(name, count)
    for seed in ablation.seeds:
        check_seed(seed)
    for latents in ablation.latents:
        check_count("the number of latents", latents)
    for measure in axis("measures", settings.measures):
        if measure not in MEASURES:
            raise UnknownNameError("measure", str(measure), MEASURES)
    check_names([generator for generator in ablation.generators if generator.name])
    for generator in ablation.generators:
        _check_generator(ablation, generator)
    for density in ablation.densities:
        build("density-estimators", density.table)
    ablation.spectrum.check()


def _check_generator(ablation: Ablation, generator: GeneratorSettings) -> None:
    name = generator.name or generator.source
    for need in ("classifier", "reference"):
        lacking = ablation.needing(need)
        if lacking and not getattr(generator, need):
            raise ParameterError(
                f"the generator {name!r} has no {need}, which the measures {', '.join(lacking)} "
                "need; name one, or leave these measures out"
            )
    for clusters, remove, latents in itertools.product(
        ablation.clusters(generator), ablation.remove, ablation.latents
    ):
        check_shatter(latents, remove, clusters)
    for clusters, sampler in itertools.product(ablation.clusters(generator), ablation.samplers):
        build_sampler(sampler.table, None, None, clusters)
        if ablation.needing("reference") and isinstance(clusters, int):
            check_num_samples(ablation.settings.samples, clusters)


def _samplers(settings: AblationSettings) -> list[Variant]:
    """Returns all partitioners with all mappers, and the samplers that do both themselves."""
    samplers = _variants("samplers", settings.samplers) if settings.samplers else []
    if samplers and not (settings.partitioners or settings.mappers):
        return samplers
    partitioners = _variants("partitioners", settings.partitioners or [defaults.PARTITIONER])
    mappers = _variants("mappers", settings.mappers or [defaults.MAPPER])
    made = [
        Variant(
            partitioner.label if len(mappers) == 1 else f"{partitioner.label} + {mapper.label}",
            {
                "name": defaults.SAMPLER,
                "partitioner": partitioner.table,
                "mapper": mapper.table,
            },
            {**partitioner.varied, **mapper.varied},
        )
        for partitioner, mapper in itertools.product(partitioners, mappers)
    ]
    return [*made, *samplers]


def _variants(name: str, value: Any) -> list[Variant]:
    """Returns all variants that a list of tables stands for, each axis multiplied out."""
    kind = {"densities": "density"}.get(name, name.removesuffix("s"))
    variants = []
    tables = _tables(name, value, "name")
    for number, table in enumerate(tables, 1):
        label, parameters = table.pop("label", table.get("name")), dict(table)
        if not isinstance(parameters.get("name"), str) or not isinstance(label, str) or not label:
            raise ParameterError(
                f"number {number} of {name} needs a name, and a label is a string; it is {table!r}"
            )
        varied = {
            key: axis(f"{key} of {label}", given["each"])
            for key, given in parameters.items()
            if isinstance(given, Mapping) and given.keys() == {"each"}
        }
        for values in itertools.product(*varied.values()):
            chosen = dict(zip(varied, values, strict=True))
            columns = {f"{kind}.{key}": value for key, value in chosen.items()}
            variants.append(Variant(label, {**parameters, **chosen}, columns))
        table["label"] = label
    _check_distinct(name, "label", [str(table["label"]) for table in tables])
    return variants


def _tables(name: str, value: Any, key: str) -> list[dict[str, Any]]:
    """Returns the tables of a list; a string in it is a table with that `key` alone."""
    if not isinstance(value, list | tuple) or not value:
        raise ParameterError(f"{name} is a list of at least one table, not {value!r:.60}")
    tables = []
    for item in value:
        if not isinstance(item, str | Mapping):
            raise ParameterError(f"{name} holds tables and names, not {item!r:.60}")
        tables.append({key: item} if isinstance(item, str) else dict(item))
    return tables


def _check_distinct(name: str, key: str, values: Sequence[str]) -> None:
    for index, value in enumerate(values):
        same = [other for other in values[:index] if slug(other) == slug(value)]
        if same:
            raise ParameterError(
                f"two {name} are called {value!r}"
                + (f" and {same[0]!r}, which file names cannot tell apart" * (same[0] != value))
                + f"; give each a {key} of its own"
            )


def _in_words(value: Any) -> Any:
    """Returns a number or word as it is, and a table as the word in its name with its options."""
    if not isinstance(value, Mapping):
        return value
    options = [f"{key} {option}" for key, option in value.items() if key != "name"]
    return " ".join([str(value.get("name")), *options])


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
