"""Algorithm 1 of the LASH paper: spectrum, density, removal, clusters, mapper."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from pgmkit import contracts, defaults
from pgmkit.choosing import (
    MASS_OPTIONS,
    NUM_CLUSTERS_OPTIONS,
    Choice,
    auto_options,
    check_num_clusters,
    check_removed_mass,
    choose_num_clusters,
    choose_removed_mass,
)
from pgmkit.components import called, check_parameters, name_of
from pgmkit.config import check_count, check_seed, expect
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.loading.cards import Origin
from pgmkit.plugins import build
from pgmkit.progress import phase
from pgmkit.sampling import PartitionSampler
from pgmkit.selection import check_remove, keep_scores, num_kept, select
from pgmkit.shattering.result import ShatteredGenerator
from pgmkit.spectrum import Spectrum, compute_spectrum
from pgmkit.spectrum.landmarks import agree, landmarks
from pgmkit.spectrum.soundness import check_values
from pgmkit.states import table_of, versions_of


def shatter(
    generator: Generator,
    density: Any = defaults.DENSITY,
    partitioner: Any = None,
    mapper: Any = None,
    sampler: Any = defaults.SAMPLER,
    clusters: int | str | Mapping[str, Any] | None = None,
    remove: float | str | Mapping[str, Any] = defaults.REMOVE,
    latents: int | None = None,
    seed: int = defaults.SEED,
    spectrum: Spectrum | Mapping[str, Any] | None = None,
) -> ShatteredGenerator:
    """Shatters a generator: spectrum, density, removal, clusters, mapper (LASH, Algorithm 1).

    A method is a name, a table of `name` and parameters, or an object with the methods of its kind,
    see `pgmkit.contracts`. Nothing is printed; see `pgmkit.progress.shown`.

    Args:
        generator: G.
        density: estimates the density, by which latents are removed.
        partitioner: finds the clusters in what G makes; "self-trained" by default. A
            `FittedPartitioner`, or the reference of one ("local-dir:...", "hf-hub:..."), stays as
            it is.
        mapper: draws latents of a cluster; "rejection" by default.
        sampler: does both itself, in their stead; by default it is made of the two.
        clusters: k, at least 1; 10 by default, or as many as a method has or finds. "auto"
            chooses it without labels, and so does a table with the name "auto" and options,
            `criterion` or `candidates`; see `pgmkit.choosing.choose_num_clusters`.
        remove: fraction of prior mass to remove, in [0, 1); the paper takes 0.2. "auto" or a table,
            with `candidates` or `max_loss`, chooses it; see `pgmkit.choosing.choose_removed_mass`.
            If both are chosen, the number of clusters comes first, from all latents.
        latents: how many to draw from the prior, before removal; 20,000 by default, or as many as
            `spectrum` has.
        seed: of everything random.
        spectrum: one that is there already; or a table of further arguments of `compute_spectrum`.

    Raises:
        UnknownNameError: no plugin offers a method.
        ParameterError: a value is outside its range, would be ignored, or there are more clusters
            than latents.
        PluginError: a method fails, or does not keep its contract.
        GeneratorError: the generator breaks its contract, or cannot be differentiated.

    Example:
        >>> import torch
        >>> from pgmkit import Generator, ImageSpec, LatentSpec
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh())
        >>> toy = Generator(net, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)), name="toy")
        >>> m = shatter(toy, partitioner="kmeans", clusters=3, latents=300)
        >>> m.sample(5, cluster=1).shape
        torch.Size([5, 1, 4, 4])
    """
    expect(generator, Generator, "what is shattered is what pgmkit.load_generator returns")
    check_seed(seed)
    count = number_of_latents(latents, spectrum)
    if clusters is not None:
        check_shatter(count, remove, clusters)  # before a method complains of the number
    estimator = build("density-estimators", density)
    finder = build_sampler(sampler, partitioner, mapper, clusters)
    told = clusters
    if clusters is None:
        of_others = defaults.CLUSTERS if isinstance(sampler, str | Mapping) else None
        told = getattr(finder, "num_clusters", of_others)
    wanted = told or 1  # what an object finds that says no number is counted
    check_shatter(count, remove, wanted)
    generator.check()
    check_sampler(generator, finder, wanted, count, remove)
    started = time.perf_counter()
    if isinstance(spectrum, Spectrum):
        check_spectrum(generator, spectrum)
    else:
        spectrum = compute_spectrum(generator, count, seed=seed, **(spectrum or {}))
    spectrum_done = time.perf_counter()
    number, mass, choices, prepared = _choose(
        estimator, finder, generator, spectrum, wanted, remove, seed
    )
    if "clusters" in choices:
        if not hasattr(finder, "num_clusters"):
            finder = build_sampler(sampler, partitioner, mapper, number)
        finder.num_clusters = number
    chosen = time.perf_counter()
    selection = select(estimator, spectrum, remove=mass, seed=seed)
    kept = spectrum.latents[selection.kept]
    find = contracts.split_clusters if prepared else contracts.fit_sampler
    find(finder, kept, generator=generator, seed=seed)
    done = time.perf_counter()
    labels, found = contracts.labels_of(finder, len(kept), number if told else None)
    sizes: list[int] = labels.bincount(minlength=found or 0).tolist()
    if isinstance(clusters, int):
        contracts.tell_of_number(name_of(finder), "clusters", clusters, len(sizes))
    tables = table_of(estimator), table_of(finder)
    findings = contracts.findings_of("cluster-samplers", finder)
    origin = Origin(
        density=tables[0],
        sampler={**tables[1], **({"findings": findings} if findings else {})},
        settings={
            "clusters": len(sizes),
            "remove": mass,
            "latents": count,
            "seed": seed,
            "device": str(generator.device),
            **({"chosen": {n: c.record() for n, c in choices.items()}} if choices else {}),
        },
        statistics=selection.statistics,
        versions=versions_of(*tables),
    )
    return ShatteredGenerator(
        generator,
        finder,
        sizes,
        origin,
        spectrum=spectrum,
        selection=selection,
        seconds={
            "spectrum": spectrum_done - started,
            **({"choices": chosen - spectrum_done} if choices else {}),
            "clusters": done - chosen,
        },
    )


def build_sampler(sampler: Any, partitioner: Any, mapper: Any, clusters: Any) -> Any:
    """Returns the cluster sampler that the settings of `shatter` mean.

    Raises:
        ParameterError: one of them would be ignored.
        PgmkitError: see `pgmkit.plugins.build`.
    """
    given = {"partitioner": partitioner, "mapper": mapper}
    given = {name: value for name, value in given.items() if value is not None}
    if not isinstance(sampler, str | Mapping):
        if given:
            raise ParameterError(
                f"{' and '.join(given)} would be ignored, since the sampler is an object; leave "
                "them out"
            )
        built = build("cluster-samplers", sampler)
        own = getattr(built, "num_clusters", None)
        if isinstance(clusters, int) and clusters != (own or clusters):
            raise ParameterError(
                f"the {called('cluster-samplers', built)} has {own} clusters, and {clusters} are "
                "asked for; leave the number out"
            )
        return built
    table = {"name": sampler} if isinstance(sampler, str) else dict(sampler)
    for name in ("num_clusters", *given):
        if name in table:
            raise ParameterError(
                f"{name} stands in the table of the sampler; give the "
                f"{'number of clusters' if name == 'num_clusters' else name} of the whole run"
            )
    if isinstance(clusters, int):
        given["num_clusters"] = clusters
    return build("cluster-samplers", {**given, **table})


def number_of_latents(latents: int | None, spectrum: Any) -> int:
    """Returns how many latents are drawn, or were.

    Raises:
        ParameterError: a spectrum has another number than is asked for, or its table says one, or
            what `compute_spectrum` does not take.
    """
    if isinstance(spectrum, Spectrum):
        if latents not in (None, len(spectrum)):
            raise ParameterError(
                f"latents is {latents}, and the spectrum has {len(spectrum)}; leave latents out, "
                "or compute a spectrum of as many"
            )
        return len(spectrum)
    if spectrum is not None and not isinstance(spectrum, Mapping):
        raise ParameterError(
            "spectrum is a Spectrum or a table of further arguments of compute_spectrum, not "
            f"{spectrum!r:.80}"
        )
    table = dict(spectrum or {})
    for name in ("latents", "seed", "generator"):
        if name in table:
            raise ParameterError(f"{name} stands in the table of the spectrum; give it beside it")
    check_parameters(compute_spectrum, {"generator": None, **table}, "the table of the spectrum")
    return defaults.LATENTS if latents is None else latents


def check_shatter(latents: int, remove: Any, clusters: Any) -> None:
    """Checks the numbers that `shatter` takes, or how to choose them, before anything is computed.

    Raises:
        ParameterError: one of them is outside its range, or too few latents are left to cluster.
        UnknownNameError: no criterion has the name that is given.
    """
    by_clusters, by_mass = _clusters_options(clusters), _mass_options(remove)
    check_count("the number of latents", latents)
    if by_clusters is None:
        check_count("the number of clusters", clusters)
    if by_mass is None:
        check_remove(remove)
    if by_clusters is not None:
        count = latents if by_mass is not None else num_kept(latents, remove)
        clusters = check_num_clusters(count, **by_clusters)[-1]
    if by_mass is not None:
        remove = check_removed_mass(latents, num_clusters=clusters, **by_mass)[-1]
    kept = num_kept(latents, remove)
    if clusters > kept:
        raise ParameterError(
            f"{clusters} clusters need as many latents, and remove={remove} leaves {kept} of "
            f"{latents}; ask for fewer clusters or more latents"
        )


def check_sampler(
    generator: Generator, finder: Any, clusters: Any, latents: int, remove: Any
) -> None:
    """Checks that a sampler can split the images of so many latents, less those removed.

    Raises:
        ParameterError: its partitioner cannot be fitted to such images, to so few, or without
            labels; or there is nothing by which clusters or the removed mass could be chosen.
    """
    if not isinstance(finder, PartitionSampler):
        return
    if contracts.needs_labels(finder.partitioner):
        raise ParameterError(
            f"the {called('partitioners', finder.partitioner)} learns from labels, and what a "
            "generator makes has none; fit it to labelled images with pgmkit partition fit, and "
            "give its folder"
        )
    if contracts.space_of(finder.partitioner) == "images":
        kept = num_kept(latents, remove) if _mass_options(remove) is None else latents
        contracts.check_images(finder.partitioner, generator.image, kept)
    if not (_clusters_options(clusters) is None and _mass_options(remove) is None):
        finder.check_prepares()


def check_spectrum(generator: Generator, spectrum: Spectrum) -> None:
    """Checks that a spectrum is that of a generator, as far as is recorded.

    Raises:
        ParameterError: it was computed for another one.
        GeneratorError: its latents do not fit, or it is zero or not finite throughout.
    """
    recorded, actual = spectrum.provenance.get("generator"), generator.fingerprint()
    if recorded is not None and recorded != actual:
        name = spectrum.provenance.get("generator_name", "one without a name")
        raise ParameterError(
            f"the spectrum was computed for another generator: {name!r} (fingerprint "
            f"{recorded[:12]}), not {generator.name!r} ({actual[:12]}); compute it again"
        )
    images = spectrum.provenance.get("landmarks")
    if images is not None and not agree(images, landmarks(generator)):
        raise ParameterError(
            f"the spectrum was computed for another generator, one with the same weights and code "
            f"as {generator.name!r} that makes other images; compute it again"
        )
    generator.check_latents(spectrum.latents)
    check_values(generator, spectrum.latents, spectrum.singular_values, warn=False)


def _clusters_options(clusters: Any) -> dict[str, Any] | None:
    return auto_options("the number of clusters", clusters, NUM_CLUSTERS_OPTIONS)


def _mass_options(remove: Any) -> dict[str, Any] | None:
    return auto_options("remove", remove, MASS_OPTIONS)


def _choose(
    estimator: contracts.DensityEstimator,
    finder: Any,
    generator: Generator,
    spectrum: Spectrum,
    clusters: Any,
    remove: Any,
    seed: int,
) -> tuple[int, float, dict[str, Choice], bool]:
    """Returns the number of clusters, the removed mass, and how those were chosen that were.

    The last value says whether the sampler has prepared itself on the way.
    """
    by_clusters, by_mass = _clusters_options(clusters), _mass_options(remove)
    if by_clusters is None and by_mass is None:
        return clusters, remove, {}, False
    prepares = isinstance(finder, contracts.PreparesClusters)
    with phase("choices without labels"):
        points, make_clusterer = spectrum.latents, None
        if prepares:
            points = contracts.prepared_clusters(
                finder, spectrum.latents, generator=generator, seed=seed
            )
            make_clusterer = partial(contracts.Clusterer, "cluster-samplers", finder)
        elif by_clusters is not None and name_of(finder) == type(finder).__name__:
            raise ParameterError(
                f"the number of clusters of {type(finder).__name__} cannot be chosen, since it is "
                "an object that does not prepare; give the number"
            )
        scores = keep_scores(estimator, spectrum, seed=seed)
        choices = {}
        if by_clusters is not None:
            count = len(scores) if by_mass is not None else num_kept(len(scores), remove)
            count = min(count, int((scores > -math.inf).sum()))
            kept = scores.argsort(descending=True, stable=True)[:count].sort().values
            choices["clusters"] = choose_num_clusters(
                points[kept], **by_clusters, make_clusterer=make_clusterer, seed=seed
            )
            clusters = int(choices["clusters"].value)
        if by_mass is not None:
            choices["remove"] = choose_removed_mass(
                points, scores, num_clusters=clusters, **by_mass, seed=seed
            )
            remove = choices["remove"].value
    return clusters, remove, choices, prepares
