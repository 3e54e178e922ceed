"""A shattered generator to explore: clusters, what was removed, other methods, a map, and edits."""

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pgmkit import contracts, files, pictures, runs
from pgmkit.errors import ParameterError, PgmkitError, first_line
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.report import describe, write_report
from pgmkit.exploring.exhibit import Samples, sorted_samples
from pgmkit.exploring.moving import Directions, path_between, singular_directions
from pgmkit.images import GeneratedImages, LatentPoints
from pgmkit.loading.cards import kept_in_words
from pgmkit.machine import thread_limit
from pgmkit.partition import margins_of
from pgmkit.plugins import build, list_components
from pgmkit.runs import RUN_FILE
from pgmkit.sampling import SplitSampler
from pgmkit.seeds import random_generator
from pgmkit.selection import Selection, keep_scores, num_kept, select
from pgmkit.shattering import ShatteredGenerator, shatter
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.differentiation import JacobianPlan
from pgmkit.states import state_of, table_of, versions_of

MOST_PREVIEWED = 4_000
"""Latents that another method is tried on, at most."""

MOST_ON_MAP = 1_500
_PER_PREVIEW = 16
_KEPT_PREVIEWS = 32
_AT_THE_CUT = 24
_COMPONENTS = 30


@dataclass(frozen=True)
class Removal:
    """What goes where a share of prior mass is removed.

    Args:
        remove: the share.
        kept, removed: how many latents.
        cut: weight of the last one that is kept.
        clearest: images of kept latents with the largest weights, bytes.
        last: of those kept with the smallest.
        first: of those removed with the largest.
        farthest: of those removed with the smallest.
        sizes: latents that are left in each cluster as they are now.
    """

    remove: float
    kept: int
    removed: int
    cut: float
    clearest: Tensor
    last: Tensor
    first: Tensor
    farthest: Tensor
    sizes: Sequence[int]


@dataclass(frozen=True)
class Preview:
    """What another method would find, without what draws new latents.

    Args:
        sizes: of the clusters, among the latents that were looked at.
        images: some of each, the nearest to its middle first, bytes.
        looked_at: how many latents were looked at.
        agreement: adjusted mutual information with the clusters as they are, of latents that both
            keep; None where there are none.
    """

    sizes: Sequence[int]
    images: Sequence[Tensor]
    looked_at: int
    agreement: float | None


@dataclass(frozen=True)
class Map:
    """Latents in the plane of the two leading principal components of their images.

    Args:
        places: (n, 2), in [0, 1].
        images: bytes (n, C, H, W).
        clusters: of each (n,); -1 of what is removed.
        weights: log-weights (n,), of 0 for the least to 1, by rank.
        classes: of each (n,), or None without a classifier.
        class_names: of all classes.
        explained: share of the variance of the images that the plane shows.
    """

    places: Tensor
    images: Tensor
    clusters: Tensor
    weights: Tensor
    classes: Tensor | None
    class_names: Sequence[str]
    explained: float


class ShatteredExhibit:
    """A shattered generator; see `Exhibit`. What edits it returns another one.

    Args:
        shattered: fresh or loaded.
        spectrum: of its latents, or None.
        folder: that it was read from, or None.
        notes: what cannot be shown.
    """

    def __init__(
        self,
        shattered: ShatteredGenerator,
        spectrum: Spectrum | None,
        *,
        folder: Path | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.shattered, self.spectrum, self.folder = shattered, spectrum, folder
        self.generator = shattered.generator
        self.image = self.generator.image
        self.notes = list(notes)
        self._cache: dict[Any, Any] = {}
        run = {} if folder is None else _settings_of(folder)
        source = str(run.get("source") or self.generator.name)
        self.named = source if source.startswith("hf-hub:") else Path(source).name
        self._judge = run.get("classifier")
        self.selection = shattered.selection
        if spectrum is not None and self.selection is None:
            self.selection = self._selected_again(spectrum)
        if self.selection is None:
            self.spectrum = None

    @property
    def title(self) -> str:
        """What it is."""
        return f"{self.named} in {self.shattered.num_clusters} clusters"

    @property
    def lead(self) -> str:
        """What was found, in a sentence."""
        origin = self.shattered.origin
        return f"{origin.density['name']} kept {kept_in_words(origin.statistics)}."

    @property
    def called(self) -> list[str]:
        """Returns the names of the clusters, with their numbers."""
        return [
            f"{number}: {name}" if name else f"cluster {number}"
            for number, name in enumerate(self.shattered.names)
        ]

    @property
    def shares(self) -> list[float]:
        """Returns how many of the kept latents are in each."""
        sizes = self.shattered.cluster_sizes
        return [size / sum(sizes) for size in sizes]

    @property
    def kept(self) -> Tensor:
        """The latents (n, M) that were clustered.

        Raises:
            ParameterError: the spectrum is not there.
        """
        spectrum, selection = self._with_spectrum()
        return spectrum.latents[selection.kept]

    def samples(self, cluster: int, n: int, *, fresh: bool = False, seed: int = 0) -> Samples:
        """Returns at most n samples of a cluster: kept latents, or with `fresh` new draws.

        Raises:
            SamplingError: new ones cannot be drawn.
        """
        key = ("samples", cluster, n, fresh, seed)
        if key not in self._cache:
            if self.spectrum is None or fresh:
                latents = self.shattered.sample_latents(n, cluster, seed + int(fresh))
            else:
                inside = torch.as_tensor(self.shattered.sampler.labels_) == cluster
                latents = self.kept[inside][:n]
            self._forget("samples")
            self._cache[key] = self._sorted(latents, cluster)
        found: Samples = self._cache[key]
        return found

    def removal(self, remove: float, density: str | None = None) -> Removal:
        """Returns what goes where another share is removed, or by another density estimator.

        Raises:
            ParameterError: the spectrum is not there, or `remove` is outside [0, 1).
            PgmkitError: the estimator cannot weigh this spectrum.
        """
        spectrum, _ = self._with_spectrum()
        scores = self._scores(density)
        order = scores.argsort(descending=True, stable=True)
        usable = int((scores > -math.inf).sum())
        count = max(1, min(num_kept(len(spectrum), remove), usable))
        kept, removed = order[:count], order[count:]
        chosen = (kept[:_AT_THE_CUT], kept[-_AT_THE_CUT:], removed[:_AT_THE_CUT])
        images = [
            self._bytes(spectrum.latents[index]) for index in (*chosen, removed[-_AT_THE_CUT:])
        ]
        return Removal(
            remove,
            count,
            len(spectrum) - count,
            float(scores[kept[-1]]),
            clearest=images[0],
            last=images[1],
            first=images[2],
            farthest=images[3],
            sizes=self._sizes_of(kept),
        )

    def densities(self) -> list[str]:
        """Returns the names of the density estimators, that of the result first."""
        own = str(self.shattered.origin.density["name"]).rpartition(":")[2]
        names = [one.name for one in list_components("density-estimators")]
        return [own, *(name for name in names if name != own)]

    def partitioners(self) -> list[str]:
        """Returns the names of the partitioners that prepare points, and so are quick to try."""
        found = []
        for one in list_components("partitioners"):
            try:
                if isinstance(build("partitioners", one.name), contracts.Prepares):
                    found.append(one.name)
            except PgmkitError:  # of what needs parameters
                continue
        return found

    def mappers(self) -> list[str]:
        """Returns the names of the mappers."""
        return [one.name for one in list_components("mappers")]

    def preview(
        self, density: str, partitioner: str, clusters: int, remove: float, *, seed: int = 0
    ) -> Preview:
        """Returns what another method would find in at most 4,000 latents of the spectrum.

        What a partitioner learns of the images is kept, so that the next numbers of clusters,
        densities and shares take a moment.

        Raises:
            PgmkitError: the method cannot do that.
        """
        spectrum, selection = self._with_spectrum()
        key = ("preview", density, partitioner, clusters, remove, seed)
        if key in self._cache:
            seen: Preview = self._cache[key]
            return seen
        some = spectrum.latents[:MOST_PREVIEWED]
        made, points = self._prepared(partitioner, some, seed)
        scores = self._scores(density)[: len(some)]
        count = max(clusters, min(num_kept(len(some), remove), int((scores > -math.inf).sum())))
        kept = scores.argsort(descending=True, stable=True)[:count].sort().values
        array = points[kept].numpy()
        with thread_limit(1):
            clusterer = contracts.Clusterer("partitioners", made, clusters, seed).fit(array)
            labels = torch.as_tensor(clusterer.predict(array))
        sizes, images = labels.bincount(minlength=clusters).tolist(), []
        for cluster in range(clusters):
            inside = kept[labels == cluster]
            middle = points[inside].mean(dim=0, keepdim=True)
            near = (points[inside] - middle).norm(dim=1).argsort()[:_PER_PREVIEW]
            images.append(self._bytes(some[inside[near]]))
        known = torch.full((len(spectrum),), -1)
        known[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        both = known[kept] >= 0
        agreement = None
        if both.any():
            from sklearn.metrics import adjusted_mutual_info_score

            pair = known[kept][both].numpy(), labels[both].numpy()
            agreement = float(adjusted_mutual_info_score(*pair))
        self._forget("preview", most=_KEPT_PREVIEWS)
        self._cache[key] = Preview(sizes, images, len(some), agreement)
        return self._cache[key]  # type: ignore[no-any-return]

    def made(
        self, density: str, partitioner: str, mapper: str, clusters: int, remove: float
    ) -> Self:
        """Returns the generator shattered by other methods on the same spectrum; see `shatter`."""
        spectrum, _ = self._with_spectrum()
        seed = int(self.shattered.origin.settings["seed"])
        found = shatter(
            self.generator,
            density=density,
            partitioner=partitioner,
            mapper=mapper,
            clusters=clusters,
            remove=remove,
            seed=seed,
            spectrum=spectrum,
        )
        return type(self)(found, spectrum, folder=self.folder, notes=self.notes)

    def map(self, *, seed: int = 0) -> Map:
        """Returns at most 1,500 latents, kept and removed, in the plane of their images."""
        if "map" in self._cache:
            seen: Map = self._cache["map"]
            return seen
        spectrum, selection = self._with_spectrum()
        random = random_generator(seed, "map")
        index = torch.randperm(len(spectrum), generator=random)[:MOST_ON_MAP].sort().values
        images = self.shattered.images(spectrum.latents[index])
        places, explained = _plane(images.flatten(1).double(), seed)
        clusters = torch.full((len(spectrum),), -1)
        clusters[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        rank = selection.log_weights[index].argsort().argsort().double() / max(1, len(index) - 1)
        classes, names = None, list[str]()
        if self.classifier is not None:
            classes = self.classifier.labels(
                images.to(self.generator.device), self.image.range
            ).cpu()
            names = list(self.classifier.classes)
        shown = images if self.image.is_points else pictures.to_uint8(images, self.image.range)
        self._cache["map"] = Map(places, shown, clusters[index], rank, classes, names, explained)
        return self._cache["map"]  # type: ignore[no-any-return]

    @cached_property
    def classifier(self) -> Classifier | None:
        """What judged the clusters when they were found; None, and a note, if that is not there."""
        try:
            if self._judge is None:
                return None
            found = load_classifier(self._judge)
            found.check_images(self.image.shape)
            found.module.to(self.generator.device)
            return found
        except PgmkitError as error:
            self.notes.append(f"Classes cannot be shown: {first_line(error)}.")
            return None

    def walk(
        self, start: int, end: int, steps: int = 12, seed: int = 0
    ) -> tuple[Tensor, list[int]]:
        """Returns images from one cluster to another, as bytes, and the cluster of each.

        The ends are samples that belong to their clusters the most clearly of some.
        """
        ends = []
        for place, cluster in enumerate((start, end)):
            some = self.samples(cluster, 64, seed=seed)
            assert some.latents is not None
            chosen = seed % max(1, len(some) // 4) if start != end else seed + place
            ends.append(some.latents[chosen % len(some)])
        path = path_between(ends[0], ends[1], self.generator.latent, steps)
        return self._bytes(path), self.shattered.predict(path).tolist()

    def directions(self, latent: Tensor, count: int = 6) -> Directions:
        """Returns the directions from a latent (M,) that change its image the most."""
        plan, facts = None, {} if self.spectrum is None else self.spectrum.provenance
        if "jacobian" in facts and facts.get("device") == str(self.generator.device):
            plan = JacobianPlan(**facts["jacobian"])
        return singular_directions(self.generator, latent, count, plan=plan)

    def steered(self, directions: Directions, amounts: Sequence[float]) -> tuple[Tensor, int]:
        """Returns the image, bytes (C, H, W), at a latent that was moved, and its cluster."""
        there = directions.moved(torch.tensor(list(amounts)), self.generator.latent)[None]
        return self._bytes(there)[0], int(self.shattered.predict(there)[0])

    # Edits

    def renamed(self, cluster: int, name: str) -> Self:
        """Returns it with another name for a cluster; "" takes its name away.

        Raises:
            ParameterError: it cannot be a name, or another cluster has it.
        """
        names = list(self.shattered.names)
        names[self.shattered.number_of(cluster)] = name.strip()
        return self._edited(names=names)

    def with_hidden(self, cluster: int, hidden: bool) -> Self:
        """Returns it with a cluster hidden, or shown again."""
        chosen = set(self.shattered.hidden)
        (chosen.add if hidden else chosen.discard)(self.shattered.number_of(cluster))
        return self._edited(hidden=sorted(chosen))

    def merged(self, clusters: Sequence[int]) -> Self:
        """Returns it with clusters taken together, under the lowest of their numbers.

        The new one has the name of the first that has one, and is hidden if all of them were.

        Raises:
            ParameterError: they are fewer than two.
        """
        shattered = self.shattered
        members = sorted({shattered.number_of(cluster) for cluster in clusters})
        if len(members) < 2:
            raise ParameterError(
                f"two clusters or more can be merged, not {members!r}; choose more"
            )
        groups = [
            members if number == members[0] else [number]
            for number in range(shattered.num_clusters)
            if number == members[0] or number not in members
        ]
        names = [
            next((shattered.names[n] for n in group if shattered.names[n]), "") for group in groups
        ]
        hidden = [
            new for new, group in enumerate(groups) if all(n in shattered.hidden for n in group)
        ]
        sampler = build(
            "cluster-samplers", {"name": "merged", "sampler": shattered.sampler, "groups": groups}
        )
        return self._edited(sampler=sampler, names=names, hidden=hidden)

    def split(self, cluster: int, parts: int = 2, seed: int = 0) -> Self:
        """Returns it with a cluster split by what its images look like.

        The first part keeps number and name; the others come behind all clusters.

        Raises:
            ParameterError: the spectrum is not there, or it has too few latents.
        """
        number = self.shattered.number_of(cluster)
        sampler = build(
            "cluster-samplers",
            {
                "name": "split",
                "sampler": self.shattered.sampler,
                "cluster": number,
                "partitioner": {"name": "kmeans", "num_partitions": parts},
            },
        )
        assert isinstance(sampler, SplitSampler)
        sampler.divide(self.kept, generator=self.generator, seed=seed)
        names = [
            *self.shattered.names,
            *[""] * (sampler.num_clusters - self.shattered.num_clusters),
        ]
        return self._edited(sampler=sampler, names=names, hidden=self.shattered.hidden)

    def save(self, folder: Path) -> None:
        """Writes it as a new shattered generator, with its spectrum and a report where it has them.

        Raises:
            OutputError: the folder is in use, or cannot be written.
            PluginError: the sampler cannot be saved.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ParameterError(f"{folder} holds something already; choose a new folder")
        runs.check_folder(folder)
        state_of(self.shattered.sampler)  # says what cannot be saved before anything is written
        spectrum, selection = self.spectrum, self.selection
        if spectrum is not None and selection is not None:
            fresh = copy.copy(self.shattered)
            fresh.spectrum, fresh.selection = spectrum, selection
            where = self._spectrum_folder()
            if where is not None:
                shutil.copytree(where, folder / "spectrum", ignore=shutil.ignore_patterns(".*"))
            numbers = describe(fresh, self.classifier)
            write_report(folder, fresh, numbers)
        self.shattered.save_pretrained(folder)

    def _edited(
        self,
        *,
        sampler: Any = None,
        names: Sequence[str] | None = None,
        hidden: Sequence[int] | None = None,
    ) -> Self:
        before = self.shattered
        origin, sizes = before.origin, before.cluster_sizes
        if sampler is not None:
            table = table_of(sampler)
            labels = torch.as_tensor(sampler.labels_)
            sizes = labels.bincount(minlength=sampler.num_clusters).tolist()
            findings = origin.sampler.get("findings")
            changed: Mapping[str, Any] = {
                **vars(origin),
                "sampler": {**table, **({"findings": findings} if findings else {})},
                "settings": {**origin.settings, "clusters": len(sizes)},
                "versions": versions_of(table, origin.density),
            }
            origin = type(origin)(**changed)
        found = ShatteredGenerator(
            before.generator,
            sampler or before.sampler,
            sizes,
            origin,
            spectrum=before.spectrum,
            selection=self.selection,
            names=before.names if names is None else names,
            hidden=before.hidden if hidden is None else hidden,
        )
        edited = type(self)(found, self.spectrum, folder=self.folder, notes=self.notes)
        if sampler is None:  # what is only called otherwise looks the same
            edited._cache = self._cache
        else:
            kept = ("scores", "points")
            edited._cache = {
                key: value
                for key, value in list(self._cache.items())
                if isinstance(key, tuple) and key[0] in kept
            }
        return edited

    def _with_spectrum(self) -> tuple[Spectrum, Selection]:
        if self.spectrum is None or self.selection is None:
            raise ParameterError(
                self.notes[0] if self.notes else "the spectrum of the result is not there"
            )
        return self.spectrum, self.selection

    def _selected_again(self, spectrum: Spectrum) -> Selection | None:
        """Returns which latents were kept, found again; None, and a note, if others are."""
        origin, count = self.shattered.origin, len(torch.as_tensor(self.shattered.sampler.labels_))
        try:
            estimator = build(
                "density-estimators", {"name": origin.density["name"], **origin.density["params"]}
            )
            found = select(
                estimator,
                spectrum,
                remove=float(origin.settings["remove"]),
                seed=int(origin.settings["seed"]),
            )
        except (PgmkitError, KeyError, TypeError, ValueError) as error:
            self.notes.append(f"What was removed cannot be shown: {first_line(error)}.")
            return None
        if len(found.kept) != count:
            self.notes.append(
                f"The spectrum beside it is of another result: {len(found.kept):,} latents would "
                f"be kept, and its clusters hold {count:,}."
            )
            return None
        return found

    def _scores(self, density: str | None) -> Tensor:
        own = density in (None, self.densities()[0])
        key = ("scores", None if own else density)
        if key not in self._cache:
            spectrum, _ = self._with_spectrum()
            origin = self.shattered.origin
            table: Any = density
            if own:
                table = {"name": origin.density["name"], **origin.density["params"]}
            estimator = build("density-estimators", table)
            self._cache[key] = keep_scores(estimator, spectrum, seed=int(origin.settings["seed"]))
        found: Tensor = self._cache[key]
        return found

    def _prepared(self, name: str, latents: Tensor, seed: int) -> tuple[Any, Tensor]:
        """Returns a partitioner that learned all but its parts, and the points it seeks them in."""
        key = ("points", name, seed)
        if key not in self._cache:
            made = build("partitioners", name)
            if not isinstance(made, contracts.Prepares):
                raise ParameterError(
                    f"{name!r} finds its parts at once, which takes as long as shattering; make it "
                    "the result instead"
                )
            of_latents = contracts.space_of(made) == "latents"
            source = (
                LatentPoints(self.generator.latent, latents)
                if of_latents
                else GeneratedImages(self.generator, latents)
            )
            self._cache[key] = made, contracts.prepared_points(made, source, seed)
        found: tuple[Any, Tensor] = self._cache[key]
        return found

    def _sizes_of(self, kept: Tensor) -> list[int]:
        """Returns how many of some latents lie in each cluster, of those whose cluster is known."""
        _, selection = self._with_spectrum()
        known = torch.full((len(selection.log_weights),), -1)
        known[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        found = known[kept]
        return found[found >= 0].bincount(minlength=self.shattered.num_clusters).tolist()

    def _sorted(self, latents: Tensor, cluster: int) -> Samples:
        images = self.shattered.images(latents)
        margins = None
        sampler = self.shattered.sampler
        if isinstance(sampler, contracts.ScoresClusters) and len(latents):
            margins = margins_of(contracts.cluster_logits_of(sampler, latents))
        return sorted_samples(images, margins, latents, self.image)

    def _bytes(self, latents: Tensor) -> Tensor:
        if not len(latents):
            return torch.empty(0, *self.image.shape)
        images = self.shattered.images(latents)
        return images if self.image.is_points else pictures.to_uint8(images, self.image.range)

    def _forget(self, kind: str, most: int = 16) -> None:
        """Makes room for one more of a kind."""
        old = [key for key in list(self._cache) if isinstance(key, tuple) and key[0] == kind]
        for key in old[: max(0, len(old) - most + 1)]:
            del self._cache[key]

    def _spectrum_folder(self) -> Path | None:
        where = None if self.folder is None else self.folder / "spectrum"
        return where if where is not None and where.is_dir() else None


def _settings_of(folder: Path) -> Mapping[str, Any]:
    """Returns the settings of the run that left a folder; nothing where none did."""
    try:
        found = files.read_json(folder / RUN_FILE, str(folder))["settings"]
    except (PgmkitError, KeyError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _plane(flat: Tensor, seed: int) -> tuple[Tensor, float]:
    """Returns the two leading principal components of points (n, d), in [0, 1], and their share."""
    centred = flat - flat.mean(dim=0)
    total = float(centred.square().sum())
    rank = min(_COMPONENTS, *centred.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, vectors = torch.svd_lowrank(centred, q=rank)
    places = centred @ vectors[:, :2]
    if places.shape[1] < 2:
        places = torch.cat([places, torch.zeros_like(places)], dim=1)
    low, high = places.amin(dim=0), places.amax(dim=0)
    explained = float(values[:2].square().sum()) / total if total else 0.0
    return ((places - low) / (high - low).clamp(min=1e-12)).float(), explained
