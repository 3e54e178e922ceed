"""The result of shattering: a generator that can be sampled cluster by cluster."""

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts, files, pictures
from pgmkit.config import check_count, fits
from pgmkit.errors import (
    LoadError,
    ParameterError,
    PgmkitWarning,
    SamplingError,
    first_line,
    nearest_names,
)
from pgmkit.generator import Generator
from pgmkit.loading.building import Architecture
from pgmkit.loading.cards import (
    PER_CLUSTER,
    SAMPLES_FILE,
    Origin,
    kept_in_words,
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
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed, random_generator
from pgmkit.selection import Selection
from pgmkit.spectrum import Spectrum
from pgmkit.states import load_state_of, state_of

SAMPLER_CONFIG = "sampler.json"
SAMPLER_STATE = "sampler.safetensors"
_LONGEST_NAME = 60


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
        names: of the clusters, as one likes to call them; "" is none. None names none of them.
        hidden: clusters that are not among those that are mixed, or shown.

    Raises:
        ParameterError: the names or the hidden clusters are not what they must be.
    """

    def __init__(
        self,
        generator: Generator,
        sampler: contracts.ClusterSampler,
        cluster_sizes: list[int],
        origin: Origin,
        *,
        spectrum: Spectrum | None = None,
        selection: Selection | None = None,
        seconds: Mapping[str, float] | None = None,
        names: Sequence[str] | None = None,
        hidden: Iterable[int] = (),
    ) -> None:
        self.generator = generator
        self.sampler = sampler
        self.cluster_sizes = cluster_sizes
        self.origin = origin
        self.spectrum = spectrum
        self.selection = selection
        self.seconds = dict(seconds or {})
        self.names = checked_names(names, cluster_sizes)
        self.hidden = checked_hidden(hidden, cluster_sizes)

    @property
    def num_clusters(self) -> int:
        """The number of clusters, k."""
        return len(self.cluster_sizes)

    def named(self, cluster: int) -> str:
        """Returns what a cluster is called, or else its number."""
        return self.names[cluster] or f"cluster {cluster}"

    def number_of(self, cluster: int | str) -> int:
        """Returns the number of a cluster that is named, or its number.

        Raises:
            ParameterError: there is no such cluster.
        """
        if isinstance(cluster, str):
            if not cluster or cluster not in self.names:
                known = [name for name in self.names if name]
                raise ParameterError(
                    f"no cluster is called {cluster!r:.60}; "
                    + (nearest_names(cluster, known) if known else "none has a name")
                    + f", and the numbers are 0 to {self.num_clusters - 1}"
                )
            return self.names.index(cluster)
        if not fits(cluster, int) or not 0 <= cluster < self.num_clusters:
            raise ParameterError(
                f"there is no cluster {cluster!r}; the clusters are 0 to {self.num_clusters - 1}"
            )
        return cluster

    def sample(
        self, n: int, cluster: int | str | Sequence[int] | None = None, seed: int = 0
    ) -> Tensor:
        """Makes images.

        Args:
            n: how many, at least 1.
            cluster: from 0 to k - 1, or its name; several are mixed by their sizes, and None mixes
                all that are not hidden.
            seed: the same seed gives the same images.

        Returns:
            Images (n, C, H, W) in the generator's range.

        Raises:
            ParameterError: `n` or `cluster` is outside its range.
            SamplingError: the cluster is empty, or the sampler cannot draw from it or from one of
                the mixture.
        """
        return self.images(self.sample_latents(n, cluster, seed))

    def sample_latents(
        self, n: int, cluster: int | str | Sequence[int] | None = None, seed: int = 0
    ) -> Tensor:
        """Draws latents (n, M), float32, for `sample`; arguments and errors are the same."""
        check_count("the number of samples", n)
        if cluster is None or (isinstance(cluster, Sequence) and not isinstance(cluster, str)):
            drawn, failed = self._drawn(self._clusters(n, seed, cluster), seed)
            if failed:
                raise next(iter(failed.values()))
            return drawn
        cluster = self.number_of(cluster)
        if not self.cluster_sizes[cluster]:
            raise SamplingError(f"cluster {cluster} is empty: no latent was assigned to it")
        prior = self.generator.latent
        seed = derive_seed(seed, "sample")
        return prior.clamp(
            contracts.sampled_by(self.sampler, n, cluster, seed, dim=prior.dim, who=self._called)
        )

    def draw(
        self, n: int, cluster: int | str | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draws latents as `sample_latents` does, but of those clusters alone that can be sampled.

        Where that raises an error because of one cluster, this warns, and what would be of that
        cluster is missing. The others are the same.

        Returns:
            Latents (m, M) and the cluster of each (m,), int64; m is 0 to n.

        Raises:
            ParameterError: `n` or `cluster` is outside its range.
            SamplingError: of the mixture no cluster can be sampled.
        """
        check_count("the number of samples", n)
        if cluster is not None:
            cluster = self.number_of(cluster)
        clusters = self._clusters(n, seed) if cluster is None else torch.full((n,), cluster)
        if cluster is not None:
            drawn, failed = torch.empty(n, self.generator.latent.dim), {}
            try:
                drawn = self.sample_latents(n, cluster, seed)
            except SamplingError as error:
                failed = {cluster: error}
        else:
            drawn, failed = self._drawn(clusters, seed)
        for number, why in failed.items():
            warnings.warn(
                f"cluster {number} cannot be sampled and is left out: {why}",
                PgmkitWarning,
                stacklevel=2,
            )
        found = torch.tensor([number not in failed for number in clusters.tolist()])
        if cluster is None and not found.any():
            raise next(iter(failed.values()))
        return drawn[found], clusters[found]

    def _clusters(self, n: int, seed: int, among: Sequence[int] | None = None) -> Tensor:
        """Draws cluster numbers (n,) by cluster size, of some, or all that are not hidden."""
        sizes = torch.tensor(self.cluster_sizes, dtype=torch.float64)
        if among is None:
            sizes[self.hidden] = 0
        if among is not None:
            for cluster in among:
                self.number_of(cluster)
            sizes = torch.zeros_like(sizes).index_copy(0, torch.tensor(among), sizes[[*among]])
            if not sizes.any():
                raise SamplingError(
                    f"the clusters {list(among)} are empty: no latent was assigned to them"
                )
        return torch.multinomial(
            sizes, n, replacement=True, generator=random_generator(seed, "clusters")
        )

    def _drawn(self, clusters: Tensor, seed: int) -> tuple[Tensor, dict[int, SamplingError]]:
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

    def images_of_each(self, n: int, seed: int = 0) -> list[Tensor]:
        """Makes images (n, C, H, W) of each cluster, to be looked at.

        They are blank, at the top of the range, where a cluster cannot be sampled, which is warned
        of; there are then no points.
        """
        image, found = self.generator.image, []
        for cluster in range(self.num_clusters):
            latents, _ = self.draw(n, cluster, seed)
            if len(latents):
                found.append(self.images(latents))
            elif image.is_points:
                found.append(torch.empty(0, *image.shape))
            else:
                found.append(torch.full((n, *image.shape), float(image.range[1])))
        return found

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        self.generator.check_latents(latents)
        return contracts.predicted_by(
            self.sampler, latents, most=self.num_clusters, who=self._called
        )

    @property
    def _called(self) -> str:
        return f"cluster-sampler {self.origin.sampler['name']!r}"

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
        state = serialise(state_of(self.sampler))
        files.remove(folder / SAMPLER_CONFIG)
        write_generator(folder, self.generator)
        files.write_bytes(folder / SAMPLER_STATE, state)
        description = {
            "format_version": FORMAT_VERSION,
            **vars(self.origin),
            "cluster_sizes": self.cluster_sizes,
            **({"names": self.names} if any(self.names) else {}),
            **({"hidden": self.hidden} if self.hidden else {}),
        }
        samples = torch.cat(self.images_of_each(PER_CLUSTER))
        pictures.write_rows(
            folder / SAMPLES_FILE, samples, self.generator.image.range, PER_CLUSTER, scale=2
        )
        card = shattered_card(
            self.generator,
            self.origin,
            self.cluster_sizes,
            repository,
            numbers,
            names=self.names,
            hidden=self.hidden,
        )
        files.write_text(folder / CARD_FILE, card)
        # Last, since its presence says that the folder is whole.
        files.write_json(folder / SAMPLER_CONFIG, description)

    @classmethod
    def from_pretrained(
        cls,
        reference: Path | str,
        *,
        architecture: Architecture | None = None,
        model_args: Mapping[str, Any] | None = None,
        device: torch.device | str = "auto",
    ) -> "ShatteredGenerator":
        """Loads what `save_pretrained` wrote.

        Args:
            reference: a folder, "local-dir:/path", or "hf-hub:org/name[@revision]".
            architecture: what builds the generator, where the folder names none; see
                `pgmkit.load_generator`.
            model_args: its arguments, where they are not those of the folder.
            device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.

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
            folder,
            GeneratorOptions(architecture=architecture, model_args=model_args),
            device=device,
        )
        path = folder.path(SAMPLER_CONFIG)
        origin, cluster_sizes, more = _read_description(path, text)
        state = read_weights(folder.path(SAMPLER_STATE))
        name = origin.sampler["name"]
        try:
            sampler = build("cluster-samplers", {"name": name, **origin.sampler["params"]})
        except ParameterError as error:
            raise LoadError(f"{path} is damaged or of another version: {error}") from error
        try:
            load_state_of(sampler, state)
            if isinstance(sampler, contracts.Binds):
                sampler.bind(generator)
            # Parts that do not fit show here.
            two = generator.sample_latents(2, seed=0)
            contracts.predicted_by(sampler, two)
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
        return cls(generator, sampler, cluster_sizes, origin, **more)

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

    def __repr__(self) -> str:
        origin = self.origin
        return (
            f"ShatteredGenerator({self.generator.name!r}: {self.num_clusters} clusters of "
            f"{min(self.cluster_sizes):,} to {max(self.cluster_sizes):,} latents; "
            f"{origin.density['name']} kept {kept_in_words(origin.statistics)}; "
            f"{origin.sampler['name']}, seed {origin.settings['seed']})"
        )


def checked_names(names: Sequence[str] | None, sizes: Sequence[int]) -> list[str]:
    """Returns the names of clusters of so many sizes, "" for those without one.

    Raises:
        ParameterError: there is not one for each, two are the same, or one cannot be a name.
    """
    if names is None:
        return [""] * len(sizes)
    found = list(names)
    given = [name for name in found if name]
    if isinstance(names, str) or len(found) != len(sizes) or len(set(given)) != len(given):
        raise ParameterError(
            f'each of {len(sizes)} clusters has a name of its own, or "", not {found!r:.80}'
        )
    for name in given:
        fine = isinstance(name, str) and name.isprintable() and name.strip() == name
        if not fine or len(name) > _LONGEST_NAME or name.lstrip("-").isdigit():
            raise ParameterError(
                f"a cluster is called by words of at most {_LONGEST_NAME} letters on one line, no "
                f"number, not {name!r:.80}"
            )
    return found


def checked_hidden(hidden: Iterable[int], sizes: Sequence[int]) -> list[int]:
    """Returns the numbers of the hidden clusters, in order.

    Raises:
        ParameterError: there is no such cluster, or nothing is left to mix.
    """
    found = sorted(set(hidden))
    if not all(fits(one, int) and 0 <= one < len(sizes) for one in found):
        raise ParameterError(
            f"hidden clusters are numbers from 0 to {len(sizes) - 1}, not {found!r:.60}"
        )
    if found and not sum(size for number, size in enumerate(sizes) if number not in found):
        raise ParameterError(f"with {found!r:.60} hidden no cluster is left; leave one of them")
    return found


def _read_description(path: Path, where: str) -> tuple[Origin, list[int], dict[str, Any]]:
    """Returns what `sampler.json` says of the origin, sizes of the clusters, and how they show.

    Raises:
        LoadError: it is damaged.
    """
    description = files.read_json(path, where)
    damaged = (
        f"{SAMPLER_CONFIG} is damaged or of another version: {{}}; shatter the generator again"
    )
    fields = Origin.__dataclass_fields__
    for field in fields:
        if not isinstance(description.get(field), Mapping):
            raise LoadError(damaged.format(f"{field!r} must be a table"))
    origin = Origin(**{field: description[field] for field in fields})
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
    more: dict[str, Any] = {
        name: description[name] for name in ("names", "hidden") if name in description
    }
    try:
        checked_names(more.get("names"), sizes)
        checked_hidden(more.get("hidden", ()), sizes)
    except (ParameterError, TypeError) as error:
        raise LoadError(damaged.format(str(error).partition("; ")[0])) from error
    return origin, sizes, more
