"""A shattered generator to explore: clusters, what was removed, other methods, a map, and edits."""

import contextlib
import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pgmkit import contracts, files, runs
from pgmkit.errors import LoadError, ParameterError, PgmkitError, first_line
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.report import (
    check_numbers,
    describe,
    describe_named,
    write_report,
)
from pgmkit.exploring.exhibit import LARGEST_TILE, Samples, sorted_samples, to_show
from pgmkit.exploring.kept import Kept
from pgmkit.exploring.mapping import COMPONENTS, FEATURES, IMAGES, Map, features_of, places_of
from pgmkit.exploring.moving import Directions, path_between, singular_directions
from pgmkit.images import GeneratedImages, LatentPoints, batches
from pgmkit.images.rows import KEPT
from pgmkit.learning import keeping
from pgmkit.loading.cards import kept_in_words
from pgmkit.machine import thread_limit
from pgmkit.partition import margins_of
from pgmkit.plugins import build, list_components
from pgmkit.progress import phase
from pgmkit.runs import RUN_FILE
from pgmkit.sampling import SplitSampler
from pgmkit.seeds import random_generator
from pgmkit.selection import Selection, keep_scores, num_kept, select
from pgmkit.shattering import SAMPLER_CONFIG, ShatteredGenerator, shatter
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.differentiation import JacobianPlan
from pgmkit.states import state_of, table_of, versions_of

MOST_PREVIEWED = 4_000
"""Latents that another method is tried on, at most."""

MOST_ON_MAP = 1_500
_SPECTRUM = "spectrum"
_PER_PREVIEW = 16
_AT_THE_CUT = 24


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


class ShatteredExhibit:
    """A shattered generator; see `Exhibit`. What edits it returns another one.

    Args:
        shattered: fresh or loaded.
        spectrum: of its latents, or None.
        folder: that it was read from, or None.
        notes: what cannot be shown.
        kept: what was computed for others of the same spectrum; see `_kept`.
    """

    def __init__(
        self,
        shattered: ShatteredGenerator,
        spectrum: Spectrum | None,
        *,
        folder: Path | None = None,
        notes: Sequence[str] = (),
        kept: Kept | None = None,
    ) -> None:
        self.shattered, self.spectrum, self.folder = shattered, spectrum, folder
        self.generator = shattered.generator
        self.image = self.generator.image
        self.notes = list(notes)
        self._kept = Kept() if kept is None else kept
        self._own = object()  # in the keys of what depends on the clusters
        self._as_opened = kept is None  # but for names
        self._run = {} if folder is None else _settings_of(folder)
        source = str(self._run.get("source") or self.generator.name)
        self.named = source if source.startswith("hf-hub:") else Path(source).name
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
        key = ("samples", self._own, cluster, n, fresh, seed)
        return self._kept.get(key, lambda: self._samples(cluster, n, fresh, seed))

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
            self._bytes(spectrum.latents[index], small=True)
            for index in (*chosen, removed[-_AT_THE_CUT:])
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
        key = ("preview", self._own, density, partitioner, clusters, remove, seed)
        return self._kept.get(
            key, lambda: self._previewed(density, partitioner, clusters, remove, seed)
        )

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
        return type(self)(found, spectrum, folder=self.folder, notes=self.notes, kept=self._kept)

    @property
    def has_features(self) -> bool:
        """Whether the clusters were found by features of images, which a map can show."""
        return features_of(self.shattered.sampler) is not None

    def map(self, layout: str = COMPONENTS, of: str = IMAGES, *, seed: int = 0) -> Map:
        """Returns at most 1,500 latents, kept and removed, in the plane.

        Args:
            layout: "principal components" or "UMAP".
            of: of "images", or of the "features" by which the clusters were found.
            seed: of which latents, where there are more, and of the layout.

        Raises:
            ParameterError: the spectrum or umap-learn is not there, or there are no such features.
        """
        spectrum, selection = self._with_spectrum()
        random = random_generator(seed, "map")
        index = torch.randperm(len(spectrum), generator=random)[:MOST_ON_MAP].sort().values
        shown, classes = self._kept.get(("shown", seed), lambda: self._shown(index))
        whose = self._own if of == FEATURES else None
        places, about = self._kept.get(
            ("places", whose, layout, of, seed),
            lambda: places_of(self._points_of(of, index, shown), layout, of, seed),
        )
        clusters = torch.full((len(spectrum),), -1)
        clusters[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        rank = selection.log_weights[index].argsort().argsort().double() / max(1, len(index) - 1)
        names = [] if classes is None or self.classifier is None else list(self.classifier.classes)
        return Map(places, shown, clusters[index], rank, classes, names, about)

    @cached_property
    def classifier(self) -> Classifier | None:
        """What judged the clusters when they were found; None, and a note, if that is not there."""
        try:
            if (judge := self._run.get("classifier")) is None:
                return None
            found = load_classifier(judge)
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
        """Writes it as a new shattered generator: all that `pgmkit shatter` leaves.

        `run.json` says from which result it was edited. There is a report where the spectrum is
        known.

        Raises:
            ParameterError: the folder holds something.
            OutputError: it lies in another result, or cannot be written.
            PluginError: the sampler cannot be saved.
        """
        runs.check_place(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ParameterError(f"{folder} holds something already; choose a new folder")
        state_of(self.shattered.sampler)  # says what cannot be saved before anything is written
        spectrum, selection = self.spectrum, self.selection
        with files.replaced_folder(folder) as new:
            runs.record(new, self._settings(), device=str(self.generator.device))
            if (where := self._spectrum_folder()) is not None:
                shutil.copytree(where, new / _SPECTRUM, ignore=shutil.ignore_patterns(".*"))
            with phase("saving, with samples of each cluster"):
                self.shattered.save_pretrained(new)
            if spectrum is not None and selection is not None:
                fresh = copy.copy(self.shattered)
                fresh.spectrum, fresh.selection = spectrum, selection
                write_report(new, fresh, self._numbers_of(fresh))

    def _numbers_of(self, fresh: ShatteredGenerator) -> Mapping[str, Any]:
        """Returns what a report says, measured anew unless the clusters only have other names."""
        given, edited_from = self._run.get("spectrum", {}), self._edited_from()
        if self._as_opened and self.folder is not None:
            with contextlib.suppress(LoadError):
                numbers = files.read_json(self.folder / "report.json", str(self.folder))
                check_numbers(numbers)
                if len(numbers["clusters"]) == fresh.num_clusters:
                    return describe_named(numbers, fresh.names, edited_from)
        return describe(
            fresh,
            self.classifier,
            spectrum=given if "folder" in given else None,
            edited_from=edited_from,
        )

    def _settings(self) -> dict[str, Any]:
        """Returns what a run that had found these clusters would have on record, and whence."""
        origin = self.shattered.origin
        table = {name: origin.sampler[name] for name in ("name", "params")}
        return {
            "source": self.generator.name,
            "generator": {},
            "classifier": None,
            "spectrum": {},
            **self._run,
            "density": origin.density,
            "sampler": table,
            "clusters": self.shattered.num_clusters,
            "remove": origin.settings["remove"],
            "latents": origin.statistics["num_latents"],
            "seed": origin.settings["seed"],
            "edited_from": self._edited_from(),
        }

    def _edited_from(self) -> dict[str, Any]:
        """Returns the result that was opened, and what tells it from others."""
        if self.folder is None:
            return {"result": self.generator.name}
        return {
            "result": str(self.folder),
            "sampler_sha256": files.sha256(self.folder / SAMPLER_CONFIG),
        }

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
        edited = type(self)(
            found, self.spectrum, folder=self.folder, notes=self.notes, kept=self._kept
        )
        edited._as_opened = self._as_opened and sampler is None and hidden is None
        if sampler is None:  # what is only called otherwise looks the same
            edited._own = self._own
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

    def _samples(self, cluster: int, n: int, fresh: bool, seed: int) -> Samples:
        if self.spectrum is None or self.selection is None or fresh:
            latents = self.shattered.sample_latents(n, cluster, seed + int(fresh))
        else:
            inside = torch.as_tensor(self.shattered.sampler.labels_) == cluster
            latents = self.spectrum.latents[self.selection.kept[inside][:n]]
        return self._sorted(latents, cluster)

    def _previewed(
        self, density: str, partitioner: str, clusters: int, remove: float, seed: int
    ) -> Preview:
        spectrum, selection = self._with_spectrum()
        some = spectrum.latents[:MOST_PREVIEWED]
        made, points = self._prepared(partitioner, some, seed)
        scores = self._scores(density)[: len(some)]
        count = max(clusters, min(num_kept(len(some), remove), int((scores > -math.inf).sum())))
        kept = scores.argsort(descending=True, stable=True)[:count].sort().values
        array = points[kept].numpy()
        with phase(f"{clusters} clusters of {count:,} latents"), thread_limit(1):
            clusterer = contracts.Clusterer("partitioners", made, clusters, seed).fit(array)
            labels = torch.as_tensor(clusterer.predict(array))
        sizes, images = labels.bincount(minlength=clusters).tolist(), []
        for cluster in range(clusters):
            inside = kept[labels == cluster]
            middle = points[inside].mean(dim=0, keepdim=True)
            near = (points[inside] - middle).norm(dim=1).argsort()[:_PER_PREVIEW]
            images.append(self._bytes(some[inside[near]], small=True))
        known = torch.full((len(spectrum),), -1)
        known[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        both = known[kept] >= 0
        agreement = None
        if both.any():
            from sklearn.metrics import adjusted_mutual_info_score

            pair = known[kept][both].numpy(), labels[both].numpy()
            agreement = float(adjusted_mutual_info_score(*pair))
        return Preview(sizes, images, len(some), agreement)

    def _shown(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images of latents, small and as bytes, or points; and their classes."""
        assert self.spectrum is not None
        shown, classes = [], []
        with phase("images of the map", len(index), "image") as part:
            for images in self.generator.image_batches(self.spectrum.latents[index]):
                if self.classifier is not None:
                    classes.append(self.classifier.labels(images, self.image.range).cpu())
                shown.append(to_show(self._small(images).cpu(), self.image))
                part.advance(len(images))
        return torch.cat(shown), torch.cat(classes) if classes else None

    def _small(self, images: Tensor) -> Tensor:
        """Returns images (B, C, H, W) with no side above 96; points stay as they are."""
        if self.image.is_points or max(images.shape[-2:]) <= LARGEST_TILE:
            return images
        shrunk = LARGEST_TILE / max(images.shape[-2:])
        return torch.nn.functional.interpolate(images.float(), scale_factor=shrunk, mode="area")

    def _points_of(self, of: str, index: Tensor, shown: Tensor) -> Tensor:
        """Returns what a map is made of, (n, d)."""
        assert self.spectrum is not None
        if of == IMAGES:
            return shown.flatten(1).float()
        features = features_of(self.shattered.sampler) if of == FEATURES else None
        if features is None:
            raise ParameterError(
                f"there are no {of!r} by which the clusters were found; make the map of the images"
            )
        source = GeneratedImages(self.generator, self.spectrum.latents[index])
        with torch.no_grad():
            return torch.cat([features(x).cpu().float().flatten(1) for x in batches(source)])

    def _scores(self, density: str | None) -> Tensor:
        spectrum, _ = self._with_spectrum()
        origin = self.shattered.origin
        own = density in (None, self.densities()[0])
        table: Any = density
        if own:
            table = {"name": origin.density["name"], **origin.density["params"]}
        seed = int(origin.settings["seed"])
        return self._kept.get(
            ("scores", json.dumps(table, sort_keys=True), seed),
            lambda: keep_scores(build("density-estimators", table), spectrum, seed=seed),
        )

    def _prepared(self, name: str, latents: Tensor, seed: int) -> tuple[Any, Tensor]:
        """Returns a partitioner that learned all but its parts, and the points it seeks them in."""
        return self._kept.get(("points", name, seed), lambda: self._prepare(name, latents, seed))

    def _prepare(self, name: str, latents: Tensor, seed: int) -> tuple[Any, Tensor]:
        made = build("partitioners", name)
        if not isinstance(made, contracts.Prepares):
            raise ParameterError(
                f"{name!r} finds its parts at once, which takes as long as shattering; make it "
                "the result instead"
            )
        source: GeneratedImages | LatentPoints = LatentPoints(self.generator.latent, latents)
        if contracts.space_of(made) != "latents":
            taken = 4 * len(latents) * math.prod(self.image.shape)
            source = self._kept.get(
                "images",  # which many partitioners look at
                lambda: GeneratedImages(self.generator, latents),
                more=min(taken, KEPT),
            )
        # Several partitioners learn the same features, which is done once.
        learning = keeping(self._kept.folder / str(seed))
        with learning, phase(f"what {name} learns of {len(latents):,} latents"):
            return made, contracts.prepared_points(made, source, seed)

    def _sizes_of(self, kept: Tensor) -> list[int]:
        """Returns how many of some latents lie in each cluster, of those whose cluster is known."""
        _, selection = self._with_spectrum()
        known = torch.full((len(selection.log_weights),), -1)
        known[selection.kept] = torch.as_tensor(self.shattered.sampler.labels_)
        found = known[kept]
        return found[found >= 0].bincount(minlength=self.shattered.num_clusters).tolist()

    def _sorted(self, latents: Tensor, cluster: int) -> Samples:
        margins = None
        sampler = self.shattered.sampler
        if isinstance(sampler, contracts.ScoresClusters) and len(latents):
            margins = margins_of(contracts.cluster_logits_of(sampler, latents))
        return sorted_samples(self._bytes(latents), margins, latents)

    def _bytes(self, latents: Tensor, *, small: bool = False) -> Tensor:
        """Returns images of latents as bytes, made batch by batch; or points."""
        if not len(latents):
            return torch.empty(0, *self.image.shape)
        made = self.generator.image_batches(latents)
        seen = (self._small(images) if small else images for images in made)
        return torch.cat([to_show(images.cpu(), self.image) for images in seen])

    def _spectrum_folder(self) -> Path | None:
        where = None if self.folder is None else self.folder / _SPECTRUM
        return where if where is not None and where.is_dir() else None


def _settings_of(folder: Path) -> Mapping[str, Any]:
    """Returns the settings of the run that left a folder; nothing where none did."""
    try:
        found = files.read_json(folder / RUN_FILE, str(folder))["settings"]
    except (PgmkitError, KeyError):
        return {}
    return found if isinstance(found, Mapping) else {}
