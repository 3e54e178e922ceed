"""Shattering: from a generator to one that can be sampled cluster by cluster."""

import copy
import importlib.metadata
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pgmkit import files, pictures
from pgmkit.choice import (
    MASS_OPTIONS,
    NUM_CLUSTERS_OPTIONS,
    Choice,
    auto_options,
    check_num_clusters,
    check_removed_mass,
    choose_num_clusters,
    choose_removed_mass,
)
from pgmkit.components import RegisteredComponent, speaking_for
from pgmkit.config import check_count
from pgmkit.engines import Engine
from pgmkit.errors import (
    LoadError,
    ParameterError,
    PgmkitWarning,
    PluginError,
    SamplingError,
    first_line,
)
from pgmkit.generator import Generator
from pgmkit.loading.building import Architecture
from pgmkit.loading.cards import (
    PER_CLUSTER,
    SAMPLES_FILE,
    ShatterFacts,
    local_paths,
    shattered_card,
)
from pgmkit.loading.folders import FORMAT_VERSION
from pgmkit.loading.generators import generator_from_folder
from pgmkit.loading.hub import check_push, push_folder
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.loading.saving import CARD_FILE, published, write_generator
from pgmkit.loading.weights import read_weights, serialise
from pgmkit.plugins import as_component, build_component, registry
from pgmkit.seeds import derive_seed, random_generator
from pgmkit.selection import (
    DensityEstimator,
    Selection,
    check_remove,
    keep_scores,
    num_kept,
    select,
)
from pgmkit.spectrum import Spectrum, compute_spectrum
from pgmkit.spectrum.compute import BLOCK_SIZE
from pgmkit.spectrum.landmarks import agree, landmarks
from pgmkit.spectrum.soundness import check_values

SAMPLER_CONFIG = "sampler.json"
SAMPLER_STATE = "sampler.safetensors"
_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_SAVING = ("get_params", "state", "load_state")


class ClusterSampler(Protocol):
    """Finds clusters of latents and draws new latents from each.

    To be saved it also has `get_params() -> dict`, `state() -> dict[str, Tensor]` and
    `load_state(state)`; if it needs the generator after loading, `bind(generator)`. Further
    optional parts: `features(latents, *, generator, seed) -> (n, d)`, the points in which it will
    look for clusters; `acceptance_rate(cluster) -> float | None`, the share of its draws that it
    keeps; `summary() -> dict`, what reports should tell of it, as plain values.

    One that looks for clusters elsewhere than among the latents says where with
    `features(latents, *, generator, seed) -> (n, d)`, before `fit` and whatever the number of
    clusters: that number and the removed mass are then chosen there. `set_params(num_clusters=k)`
    lets it keep the features it has computed.

    Attributes:
        labels_: cluster of each latent that was fitted, int64 (n,), from 0.
        num_clusters_: (optional) how many clusters it found, where that is its own choice.
    """

    labels_: Tensor

    def fit(
        self,
        latents: Tensor,
        *,
        images: Tensor | None = None,
        generator: Generator | None = None,
        seed: int = 0,
    ) -> object:
        """Finds clusters in latents (n, M)."""

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M) from one cluster."""


@dataclass(frozen=True)
class Origin:
    """What a shattered generator was made with; kept when it is saved.

    Args:
        density: name and parameters of the density estimator.
        sampler: qualified name and parameters of the cluster sampler, and its `summary`.
        settings: num_clusters, remove, num_latents and seed; under `chosen`, how those were chosen
            that were to be.
        statistics: mass kept, effective sample size, numeric rank; see `pgmkit.selection.select`.
        versions: of pgmkit, torch and the plugins that took part.
    """

    density: Mapping[str, Any]
    sampler: Mapping[str, Any]
    settings: Mapping[str, Any]
    statistics: Mapping[str, Any]
    versions: Mapping[str, str]


class ShatteredGenerator:
    """A generator whose clusters can be sampled one by one.

    Args:
        generator: G, unchanged.
        sampler: fitted.
        cluster_sizes: number of kept latents in each cluster.
        origin: what it was made with.
        spectrum: of all drawn latents; None after loading.
        selection: which of them were kept; None after loading.
        seconds: time taken by each step; empty after loading.
    """

    def __init__(
        self,
        generator: Generator,
        sampler: ClusterSampler,
        cluster_sizes: list[int],
        origin: Origin,
        *,
        spectrum: Spectrum | None = None,
        selection: Selection | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.generator = generator
        self.sampler = sampler
        self.cluster_sizes = cluster_sizes
        self.origin = origin
        self.spectrum = spectrum
        self.selection = selection
        self.seconds = dict(seconds or {})

    @property
    def num_clusters(self) -> int:
        """The number of clusters, k."""
        return len(self.cluster_sizes)

    def sample(self, n: int, cluster: int | None = None, seed: int = 0) -> Tensor:
        """Makes images.

        Args:
            n: how many, at least 1.
            cluster: from 0 to k - 1; None mixes the clusters by their sizes.
            seed: the same seed gives the same images.

        Returns:
            Images (n, C, H, W) in the generator's range.

        Raises:
            ParameterError: `n` or `cluster` is outside its range.
            SamplingError: the cluster is empty, or the sampler cannot draw from it or from one of
                the mixture.
        """
        return self.images(self.sample_latents(n, cluster, seed))

    def sample_latents(self, n: int, cluster: int | None = None, seed: int = 0) -> Tensor:
        """Draws latents (n, M), float32, for `sample`; arguments and errors are the same."""
        if n < 1:
            raise ParameterError(f"the number of samples must be at least 1, not {n}")
        if cluster is None:
            drawn, failed = self._draw(self.sample_clusters(n, seed), seed)
            if failed:
                raise next(iter(failed.values()))
            return drawn
        if not 0 <= cluster < self.num_clusters:
            raise ParameterError(
                f"there is no cluster {cluster}; the clusters are 0 to {self.num_clusters - 1}"
            )
        if not self.cluster_sizes[cluster]:
            raise SamplingError(f"cluster {cluster} is empty: no latent was assigned to it")
        with self._speaking("in sample"):
            latents = self.sampler.sample(n, cluster, derive_seed(seed, "sample"))
        return self.generator.latent.clamp(self._checked(latents, n))

    def try_latents(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draws latents from the mixture, without the clusters that cannot be sampled.

        Where `sample_latents` raises an error because of one cluster, this warns, and what would be
        of that cluster is missing. The others are the same.

        Returns:
            Latents (m, M) and the cluster of each (m,); m is 1 to n.

        Raises:
            ParameterError: `n` is below 1.
            SamplingError: no cluster that was asked for can be sampled.
        """
        check_count("the number of samples", n)
        clusters = self.sample_clusters(n, seed)
        drawn, failed = self._draw(clusters, seed)
        found = torch.tensor([cluster not in failed for cluster in clusters.tolist()])
        if not found.any():
            raise next(iter(failed.values()))
        for cluster, error in failed.items():
            _warn_of_unsampled(cluster, error)
        return drawn[found], clusters[found]

    def try_cluster(self, n: int, cluster: int, seed: int = 0) -> Tensor | None:
        """Draws latents (n, M) from one cluster; None, and a warning, if it cannot be sampled."""
        try:
            return self.sample_latents(n, cluster, seed)
        except SamplingError as error:
            _warn_of_unsampled(cluster, error)
            return None

    def try_images(self, n: int, cluster: int, seed: int = 0) -> Tensor:
        """Makes images (n, C, H, W) of one cluster, to be looked at.

        They are blank, at the top of the range, if the cluster cannot be sampled, which is warned
        of; there are then no points.
        """
        latents, image = self.try_cluster(n, cluster, seed), self.generator.image
        if latents is None and image.is_points:
            return torch.empty(0, *image.shape)
        if latents is None:
            return torch.full((n, *image.shape), float(image.range[1]))
        return self.images(latents)

    def sample_clusters(self, n: int, seed: int = 0) -> Tensor:
        """Draws cluster numbers (n,) by cluster size: those of `sample(n, None, seed)`."""
        sizes = torch.tensor(self.cluster_sizes, dtype=torch.float64)
        return torch.multinomial(
            sizes, n, replacement=True, generator=random_generator(seed, "clusters")
        )

    def _draw(self, clusters: Tensor, seed: int) -> tuple[Tensor, dict[int, SamplingError]]:
        """Draws from each cluster (n,) and returns latents (n, M) with the clusters that failed."""
        drawn = torch.empty(len(clusters), self.generator.latent.dim)
        failed = {}
        for cluster in clusters.unique().tolist():
            where = clusters == cluster
            try:
                drawn[where] = self.sample_latents(int(where.sum()), cluster, seed)
            except SamplingError as error:
                failed[cluster] = error
        return drawn, failed

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        self.generator.check_latents(latents)
        with self._speaking("in predict"):
            found = self.sampler.predict(latents)
        return _clusters_of(found, len(latents), self._called, most=self.num_clusters)

    @property
    def _called(self) -> str:
        return str(self.origin.sampler["name"])

    def _speaking(self, doing: str) -> AbstractContextManager[None]:
        return speaking_for(f"cluster-sampler {self._called!r}", doing)

    def _checked(self, latents: Any, count: int) -> Tensor:
        """Returns latents that a sampler drew, float32 (n, M).

        Raises:
            PluginError: they are of another shape or type, or not finite.
        """
        with self._speaking("to draw a tensor"):
            drawn = torch.as_tensor(latents).detach().cpu()
        wanted = (count, self.generator.latent.dim)
        if drawn.shape != wanted or not drawn.is_floating_point() or not drawn.isfinite().all():
            raise PluginError(
                f"the cluster sampler {self._called!r} draws {drawn.dtype} of shape "
                f"{tuple(drawn.shape)}; it must draw finite numbers of shape {wanted}"
            )
        return drawn.float()

    def images(self, latents: Tensor) -> Tensor:
        """Returns G(z) for latents (n, M); see `Generator.images`."""
        return self.generator.images(latents)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes generator and sampler as a Hub folder, in safetensors and JSON.

        A generator that no installed component can build, such as a module of your own, is saved
        too; `from_pretrained` then needs its class. The picture of samples is blank for a cluster
        that cannot be sampled, and a warning names it.

        Raises:
            PluginError: the sampler cannot be saved.
            OutputError: the folder cannot be written.
        """
        self._save(Path(folder))

    def _save(
        self,
        folder: Path,
        repository: str | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        name = self.origin.sampler["name"]
        check_savable(self.sampler, name)
        if ":" not in name:
            raise PluginError(
                f"the cluster sampler {name!r} cannot be saved, since it is no component; pass the "
                "name under which a plugin offers it"
            )
        with self._speaking("in state"):
            state = serialise(self.sampler.state())  # type: ignore[attr-defined]
        (folder / SAMPLER_CONFIG).unlink(missing_ok=True)
        write_generator(folder, self.generator)
        files.write_bytes(folder / SAMPLER_STATE, state)
        description = {
            "format_version": FORMAT_VERSION,
            "sampler": self.origin.sampler,
            "density": self.origin.density,
            "settings": self.origin.settings,
            "cluster_sizes": self.cluster_sizes,
            "statistics": self.origin.statistics,
            "versions": self.origin.versions,
        }
        samples = torch.cat(
            [self.try_images(PER_CLUSTER, cluster) for cluster in range(self.num_clusters)]
        )
        pictures.write_rows(
            folder / SAMPLES_FILE, samples, self.generator.image.range, PER_CLUSTER, scale=2
        )
        files.write_text(folder / CARD_FILE, self._card(repository, numbers))
        # Last, since its presence says that the folder is whole.
        files.write_json(folder / SAMPLER_CONFIG, description)

    @classmethod
    def from_pretrained(
        cls,
        reference: Path | str,
        *,
        architecture: Architecture | None = None,
        model_args: Mapping[str, Any] | None = None,
    ) -> "ShatteredGenerator":
        """Loads what `save_pretrained` wrote.

        Args:
            reference: a folder, "local-dir:/path", or "hf-hub:org/name[@revision]".
            architecture: what builds the generator, where the folder names none; see
                `pgmkit.load_generator`.
            model_args: its arguments, where they are not those of the folder.

        Raises:
            LoadError: the folder is incomplete or damaged.
            UnknownNameError: no installed plugin offers the sampler or the architecture.
        """
        text = reference_of(reference)
        folder = open_folder(text)
        if folder.fetch(SAMPLER_CONFIG) is None:
            raise LoadError(
                f"{reference} holds no shattered generator: it has no {SAMPLER_CONFIG}. If a run "
                "was stopped there, run the same pgmkit shatter command again; a generator alone "
                f"is shattered by pgmkit shatter {folder.reference} -o FOLDER"
            )
        generator = generator_from_folder(
            folder, GeneratorOptions(architecture=architecture, model_args=model_args)
        )
        path = folder.path(SAMPLER_CONFIG)
        origin, cluster_sizes = _read_description(path, text)
        state = read_weights(folder.path(SAMPLER_STATE))
        name = origin.sampler["name"]
        try:
            sampler = build_component("cluster-samplers", name, **origin.sampler["params"])
        except ParameterError as error:
            raise LoadError(f"{path} is damaged or of another version: {error}") from error
        check_savable(sampler, name)
        try:
            sampler.load_state(state)
            if hasattr(sampler, "bind"):
                sampler.bind(generator)
            # Parts that do not fit show here.
            _clusters_of(sampler.predict(generator.sample_latents(2, seed=0)), 2, name)
            count = int(getattr(sampler, "num_clusters_", len(cluster_sizes)))
        except Exception as error:  # of any kind, since the state may be anything
            raise LoadError(
                f"{SAMPLER_STATE} of {reference} is damaged or of another version: its cluster "
                f"sampler {name!r} says {type(error).__name__}: {first_line(error)}; shatter the "
                "generator again"
            ) from error
        if count != len(cluster_sizes):
            raise LoadError(
                f"{path} is damaged: it has {len(cluster_sizes)} cluster_sizes, and the cluster "
                f"sampler has {count} clusters; shatter the generator again"
            )
        return cls(generator, sampler, cluster_sizes, origin)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        message: str | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> str:
        """Uploads to the Hugging Face Hub as "org/name" and returns the address.

        Paths of this machine stay behind. If a parameter of the sampler is one, it cannot, and a
        warning says so.

        Args:
            repository: "org/name"; it is created if it is not there.
            private: whether a new repository is private.
            message: of the commit.
            numbers: what `report.json` says of this result; the card then shows its scores.

        Raises:
            LoadError: the Hub is out of reach, or refuses.
            PluginError: the sampler cannot be saved.
        """
        check_push(repository)
        for path in local_paths([self.origin.sampler, self.origin.density]):
            warnings.warn(
                f"{repository} names {path}, which others do not have, as a parameter of the "
                "sampler or the density",
                PgmkitWarning,
                stacklevel=2,
            )
        shown = copy.copy(self)
        shown.generator = published(self.generator)
        with tempfile.TemporaryDirectory() as folder:
            shown._save(Path(folder), repository, numbers)
            return push_folder(Path(folder), repository, private=private, message=message)

    def _card(self, repository: str | None, numbers: Mapping[str, Any] | None) -> str:
        facts = ShatterFacts(
            self.cluster_sizes,
            self.origin.density,
            self.origin.sampler,
            self.origin.settings,
            self.origin.statistics,
            self.origin.versions,
            numbers,
        )
        return shattered_card(self.generator, facts, repository)

    def __repr__(self) -> str:
        settings, statistics = self.origin.settings, self.origin.statistics
        rank = statistics["numeric_rank"]
        return (
            f"ShatteredGenerator({self.generator.name!r}: {self.num_clusters} clusters of "
            f"{min(self.cluster_sizes):,} to {max(self.cluster_sizes):,} latents; "
            f"{self.origin.density['name']} kept {statistics['num_kept']:,} of "
            f"{settings['num_latents']:,} (mass {statistics['mass_kept']:.2f}, effective sample "
            f"size {statistics['effective_sample_size']:,.0f}, numeric rank {rank['smallest']} to "
            f"{rank['largest']} of {rank['of']}); {self.origin.sampler['name']}, "
            f"seed {settings['seed']})"
        )


def shatter(
    generator: Generator,
    density: DensityEstimator | str = "lash",
    sampler: ClusterSampler | str = "kmeans-gmm",
    num_clusters: int | str | Mapping[str, Any] = 10,
    remove: float | str | Mapping[str, Any] = 0.2,
    num_latents: int = 20_000,
    seed: int = 0,
    spectrum: Spectrum | None = None,
    *,
    density_args: Mapping[str, Any] | None = None,
    sampler_args: Mapping[str, Any] | None = None,
    spectrum_args: Mapping[str, Any] | None = None,
    engine: Engine | str = "local",
    block_size: int = BLOCK_SIZE,
    out: Path | str | None = None,
    cache: bool = False,
    progress: bool = False,
    report: Callable[[str], None] | None = None,
) -> ShatteredGenerator:
    """Shatters a generator: spectrum, density, removal, clusters, mapper (LASH, Algorithm 1).

    Args:
        generator: G.
        density: name of a density estimator, or an object with `log_weights`.
        sampler: name of a cluster sampler, or an object with its methods.
        num_clusters: k, at least 1; ignored where `sampler` is an object. "auto" chooses it without
            labels, and so does a table with the name "auto" and options, `criterion` or
            `candidates`; see `pgmkit.choice.choose_num_clusters`.
        remove: fraction of prior mass to remove, in [0, 1); the paper takes 0.2. "auto" or a table,
            with `candidates` or `max_loss`, chooses it; see `pgmkit.choice.choose_removed_mass`.
            If both are chosen, the number of clusters comes first, from all latents.
        num_latents: latents to draw from the prior, before removal.
        seed: of everything random.
        spectrum: one that is there already; then `num_latents` is its length.
        density_args: parameters of the density estimator.
        sampler_args: parameters of the cluster sampler.
        spectrum_args: further arguments of `compute_spectrum`, such as dtype or probes.
        engine: where the Jacobians are computed; name or object.
        block_size: latents per block of work.
        out: a folder in which finished blocks of the spectrum are kept, to continue after a stop.
        cache: whether to take up a spectrum that was computed before, and keep this one for later.
        progress: whether to show a progress bar on stderr.
        report: takes a line when each part of the work begins, and when the spectrum came from the
            cache.

    Raises:
        UnknownNameError: no plugin offers the density estimator or the sampler.
        ParameterError: a value is outside its range, or there are more clusters than latents.
        PluginError: the density estimator or the sampler fails.
        GeneratorError: the generator breaks its contract, or cannot be differentiated.

    Example:
        >>> from pgmkit import Generator, ImageSpec, LatentSpec
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh())
        >>> toy = Generator(net, latent=LatentSpec(2), image=ImageSpec((1, 4, 4)), name="toy")
        >>> m = shatter(toy, num_clusters=3, num_latents=300)
        >>> m.sample(5, cluster=1).shape
        torch.Size([5, 1, 4, 4])
    """
    count = num_latents if spectrum is None else len(spectrum)
    check_shatter(count, remove, num_clusters)
    generator.check()
    if spectrum is not None:
        check_spectrum(generator, spectrum)
    estimator = as_component("density-estimators", density, **(density_args or {}))
    clusterer = as_component(
        "cluster-samplers", sampler, **sampler_parameters(num_clusters, sampler_args or {})
    )
    if not (isinstance(sampler, str) or isinstance(num_clusters, int) or _is_settable(clusterer)):
        raise ParameterError(
            f"the number of clusters of {type(clusterer).__name__} cannot be chosen, since it has "
            "no set_params; give num_clusters"
        )
    started = time.perf_counter()
    if spectrum is None:
        spectrum = compute_spectrum(
            generator,
            num_latents=num_latents,
            seed=seed,
            out=out,
            block_size=block_size,
            engine=engine,
            cache=cache,
            progress=progress,
            report=report,
            **(spectrum_args or {}),
        )
    spectrum_done = time.perf_counter()
    estimator_name = _name_of("density-estimators", density)
    sampler_name = _name_of("cluster-samplers", sampler)
    tell = report or (lambda line: None)
    if not (isinstance(num_clusters, int) and isinstance(remove, int | float)):
        tell(f"choices: by points of {sampler_name}")
    num_clusters, remove, choices = _choose(
        estimator, clusterer, generator, spectrum, num_clusters, remove, seed
    )
    if "num_clusters" in choices and _is_settable(clusterer):
        clusterer.set_params(num_clusters=num_clusters)
    elif "num_clusters" in choices:
        parameters = sampler_parameters(num_clusters, sampler_args or {})
        clusterer = as_component("cluster-samplers", sampler, **parameters)
    chosen = time.perf_counter()
    with speaking_for(f"density-estimator {estimator_name!r}", "in log_weights"):
        selection = select(estimator, spectrum, remove=remove, seed=seed)
    latents = spectrum.latents[selection.kept]
    tell(f"clusters: {sampler_name} looks for {num_clusters} among {len(latents):,} latents")
    with speaking_for(f"cluster-sampler {sampler_name!r}", "in fit"):
        clusterer.fit(latents, generator=generator, seed=seed)
    done = time.perf_counter()
    labels = _labels_of(clusterer, len(latents), sampler_name)
    sizes = labels.bincount(minlength=_count_clusters(clusterer, sampler, num_clusters)).tolist()
    density_origin = _origin("density-estimators", density, estimator)
    sampler_origin = _origin("cluster-samplers", sampler, clusterer)
    origin = Origin(
        density=density_origin,
        sampler=sampler_origin,
        settings={
            "num_clusters": len(sizes),
            "remove": remove,
            "num_latents": count,
            "seed": seed,
            **_records(choices),
        },
        statistics=selection.statistics,
        versions=_versions(density_origin, sampler_origin),
    )
    return ShatteredGenerator(
        generator,
        clusterer,
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


def check_savable(sampler: Any, name: str) -> None:
    """Raises PluginError unless a cluster sampler has the methods to be saved and loaded with."""
    missing = [method for method in _SAVING if not hasattr(sampler, method)]
    if missing:
        raise PluginError(
            f"the cluster sampler {name!r} cannot be saved, since it has no "
            f"{' and no '.join(missing)}; its plugin must offer {', '.join(_SAVING)}"
        )


def check_shatter(num_latents: int, remove: Any, num_clusters: Any) -> None:
    """Checks the numbers that `shatter` takes, or how to choose them, before anything is computed.

    Raises:
        ParameterError: one of them is outside its range, or too few latents are left to cluster.
        UnknownNameError: no criterion has the name that is given.
    """
    by_clusters, by_mass = _clusters_options(num_clusters), _mass_options(remove)
    check_count("the number of latents", num_latents)
    if by_clusters is None:
        check_count("the number of clusters", num_clusters)
    if by_mass is None:
        check_remove(remove)
    if by_clusters is not None:
        count = num_latents if by_mass is not None else num_kept(num_latents, remove)
        num_clusters = check_num_clusters(count, **by_clusters)[-1]
    if by_mass is not None:
        remove = check_removed_mass(num_latents, num_clusters=num_clusters, **by_mass)[-1]
    kept = num_kept(num_latents, remove)
    if num_clusters > kept:
        raise ParameterError(
            f"{num_clusters} clusters need as many latents, and remove={remove} leaves {kept} of "
            f"{num_latents}; ask for fewer clusters or more latents"
        )


def sampler_parameters(
    num_clusters: int | str | Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the parameters of a cluster sampler: the number of clusters and those given.

    A number that is still to be chosen stands at 2.

    Raises:
        ParameterError: the number of clusters is among those given, too.
    """
    if "num_clusters" in given:
        raise ParameterError(
            f"num_clusters={given['num_clusters']!r} is given as a parameter of the sampler; give "
            "the number of clusters of the whole run instead"
        )
    return {"num_clusters": num_clusters if isinstance(num_clusters, int) else 2, **given}


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


def _read_description(path: Path, where: str) -> tuple[Origin, list[int]]:
    """Returns what `sampler.json` says of the origin, and the sizes of the clusters.

    Raises:
        LoadError: it is damaged.
    """
    description = files.read_json(path, where)
    damaged = (
        f"{SAMPLER_CONFIG} is damaged or of another version: {{}}; shatter the generator again"
    )
    for field in ("sampler", "density", "settings", "statistics", "versions"):
        if not isinstance(description.get(field), Mapping):
            raise LoadError(damaged.format(f"{field!r} must be a table"))
    origin = Origin(**{field: description[field] for field in Origin.__dataclass_fields__})
    for component, part, kind in (
        (origin.sampler, "name", str),
        (origin.sampler, "params", Mapping),
        (origin.density, "name", str),
    ):
        if not isinstance(component.get(part), kind):
            raise LoadError(damaged.format(f"there is no {part!r} in {dict(component)!r:.60}"))
    sizes = description.get("cluster_sizes")
    if not isinstance(sizes, list) or not all(type(n) is int and 0 <= n < 2**53 for n in sizes):
        raise LoadError(damaged.format(f"cluster_sizes are whole numbers, not {sizes!r:.60}"))
    if not sum(sizes):
        raise LoadError(damaged.format(f"there is nothing in its clusters, {sizes!r:.60}"))
    return origin, sizes


def _labels_of(clusterer: Any, count: int, name: str) -> Tensor:
    """Returns the clusters (n,), int64, that a sampler found for the latents it was fitted to."""
    if not hasattr(clusterer, "labels_"):
        raise PluginError(
            f"the cluster sampler {name!r} has no labels_ after fit; its fit must set labels_, "
            "int64 of shape (n,)"
        )
    return _clusters_of(clusterer.labels_, count, name, "has labels_", least=0)


def _clusters_of(
    found: Any,
    count: int,
    name: str,
    does: str = "predicts clusters",
    *,
    least: int = -1,
    most: int | None = None,
) -> Tensor:
    """Returns cluster numbers (n,), int64, that came from a sampler; -1 belongs to none.

    Raises:
        PluginError: they are of another shape or type, or there are no such clusters.
    """
    with speaking_for(f"cluster-sampler {name!r}", "to give clusters as a tensor"):
        clusters = torch.as_tensor(found).detach().cpu()
    if clusters.shape != (count,) or clusters.dtype not in _WHOLE_NUMBERS:
        raise PluginError(
            f"the cluster sampler {name!r} {does} of shape {tuple(clusters.shape)} and type "
            f"{clusters.dtype} for {count} latents; they must be int64 of shape ({count},)"
        )
    clusters = clusters.long()
    low, high = (int(clusters.min()), int(clusters.max())) if count else (0, 0)
    if low < least or (most is not None and high >= most):
        raise PluginError(
            f"the cluster sampler {name!r} {does} from {low} to {high}; clusters are counted from 0"
            + (f" to {most - 1}" if most is not None else "")
        )
    return clusters


def _warn_of_unsampled(cluster: int, error: SamplingError) -> None:
    warnings.warn(
        f"cluster {cluster} cannot be sampled and is left out: {error}", PgmkitWarning, stacklevel=3
    )


def _clusters_options(num_clusters: Any) -> dict[str, Any] | None:
    return auto_options("the number of clusters", num_clusters, NUM_CLUSTERS_OPTIONS)


def _mass_options(remove: Any) -> dict[str, Any] | None:
    return auto_options("remove", remove, MASS_OPTIONS)


def _count_clusters(clusterer: ClusterSampler, given: ClusterSampler | str, asked: int) -> int:
    """Returns how many clusters a fitted sampler has, empty ones included, as far as it says."""
    if not isinstance(given, str):
        asked = getattr(clusterer, "num_clusters", 0)
    return int(getattr(clusterer, "num_clusters_", asked))


def _is_settable(clusterer: Any) -> bool:
    return hasattr(clusterer, "set_params")


def _choose(
    estimator: DensityEstimator,
    clusterer: ClusterSampler,
    generator: Generator,
    spectrum: Spectrum,
    num_clusters: Any,
    remove: Any,
    seed: int,
) -> tuple[int, float, dict[str, Choice]]:
    """Returns the number of clusters, the removed mass, and how those were chosen that were."""
    by_clusters, by_mass = _clusters_options(num_clusters), _mass_options(remove)
    if by_clusters is None and by_mass is None:
        return num_clusters, remove, {}
    points = _features(clusterer, spectrum.latents, generator, seed)
    with speaking_for(f"density-estimator {type(estimator).__name__!r}", "in log_weights"):
        scores = keep_scores(estimator, spectrum, seed=seed)
    choices = {}
    if by_clusters is not None:
        count = len(scores) if by_mass is not None else num_kept(len(scores), remove)
        count = min(count, int((scores > -math.inf).sum()))
        kept = scores.argsort(descending=True, stable=True)[:count].sort().values
        choices["num_clusters"] = choose_num_clusters(
            points[kept],
            **by_clusters,
            make_clusterer=getattr(clusterer, "make_clusterer", None),
            seed=seed,
        )
        num_clusters = int(choices["num_clusters"].value)
    if by_mass is not None:
        choices["remove"] = choose_removed_mass(
            points, scores, num_clusters=num_clusters, **by_mass, seed=seed
        )
        remove = choices["remove"].value
    return num_clusters, remove, choices


def _features(
    clusterer: ClusterSampler, latents: Tensor, generator: Generator, seed: int
) -> Tensor:
    """Returns the points (n, d) among which a cluster sampler will look for clusters."""
    features = getattr(clusterer, "features", None)
    if features is None:
        return latents
    with speaking_for(f"cluster-sampler {type(clusterer).__name__!r}", "in features"):
        points = torch.as_tensor(features(latents, generator=generator, seed=seed)).detach().cpu()
    if points.ndim != 2 or len(points) != len(latents) or not points.isfinite().all():
        raise PluginError(
            f"{type(clusterer).__name__} has features of shape {tuple(points.shape)} for "
            f"{len(latents)} latents; they must be finite and of shape ({len(latents)}, d)"
        )
    return points


def _records(choices: Mapping[str, Choice]) -> dict[str, Any]:
    if not choices:
        return {}
    return {"chosen": {name: choice.record() for name, choice in choices.items()}}


def _origin(kind: str, component: Any, built: Any) -> dict[str, Any]:
    name = _name_of(kind, component)
    get_params, summary = getattr(built, "get_params", None), getattr(built, "summary", None)
    with speaking_for(f"{kind[:-1]} {name!r}", "in get_params or summary"):
        params = get_params() if get_params else {}
        facts = {} if summary is None else {"summary": dict(summary())}
    return {"name": name, "params": params, **facts}


def _name_of(kind: str, component: Any) -> str:
    """Returns the qualified name of a component that was named, or the class of an object."""
    if not isinstance(component, str):
        return type(component).__name__
    found: RegisteredComponent = registry().find(kind, component)
    return found.qualified_name


def _versions(*origins: Mapping[str, Any]) -> dict[str, str]:
    distributions = {"pgmkit", "torch", "scikit-learn"}
    distributions |= {o["name"].partition(":")[0] for o in origins if ":" in o["name"]}
    return {name: importlib.metadata.version(name) for name in sorted(distributions)}
