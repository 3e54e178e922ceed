"""A partitioner and a mapper, as a cluster sampler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts, defaults
from pgmkit.components import called, name_of
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.generator import Generator
from pgmkit.images import GeneratedImages, ImageSource, LatentPoints, batches
from pgmkit.learning.assigner import Assigner
from pgmkit.partition.fitted import build_partitioner
from pgmkit.partition.fixed import FixedPartitioner
from pgmkit.partition.parts import gathered_logits, margins_of
from pgmkit.plugins import build
from pgmkit.priors import LatentSpec
from pgmkit.progress import phase
from pgmkit.seeds import derive_seed
from pgmkit.states import with_prefix, without_prefix

PREDICT_FROM = ("images", "latents")
_LEVELS = 100
_TRAINED_ON = "assigner."


class PartitionSampler:
    """Cuts the space of images into parts, pulls them back through G, and draws latents of each.

    The cluster of a latent is the part that its image lies in; of a partitioner of latents, the
    part of the latent itself. This is where the two papers meet: any partitioner, fitted to the
    images of the kept latents or, before, to a data set, makes a generator conditional.

    Args:
        num_clusters: k, at least 1; None is as many as the partitioner has by itself.
        partitioner: a name, a table, an object; or a `FittedPartitioner` or the reference of one
            ("local-dir:...", "hf-hub:..."), which stays as it is.
        mapper: draws latents of a cluster: a name, a table, or an object.
        predict_from: "images" assigns a new latent by the image that it gives; "latents" has a
            classifier of points learn the clusters of latents, so that no image is made, and fewer
            are assigned rightly.

    Attributes:
        labels_: cluster of each latent that was fitted, int64 (n,).
        num_clusters_: how many clusters there are.
    """

    def __init__(
        self,
        num_clusters: int | None = None,
        partitioner: Any = defaults.PARTITIONER,
        mapper: Any = defaults.MAPPER,
        predict_from: str = "images",
    ) -> None:
        if num_clusters is not None:
            check_count("the number of clusters", num_clusters)
        if predict_from not in PREDICT_FROM:
            raise UnknownNameError("value of predict_from", predict_from, PREDICT_FROM)
        self.partitioner = build_partitioner(partitioner, num_clusters)
        self.mapper = build("mappers", mapper)
        self.predict_from = predict_from
        self.num_clusters = contracts.num_partitions_of(self.partitioner)
        self._generator: Generator | None = None
        self._assigner: Assigner | None = None

    @property
    def parts(self) -> Mapping[str, Any]:
        """The partitioner and the mapper."""
        return {"partitioner": self.partitioner, "mapper": self.mapper}

    def fit(self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0) -> None:
        """Finds the clusters and learns to draw from each.

        Args:
            latents: z (n, M), n at least the number of clusters.
            generator: G; needed by partitioners of images.
            seed: of everything random.

        Raises:
            ParameterError: there are fewer distinct latents than clusters, or no generator.
        """
        source = self._source(latents, generator)
        with phase(f"parts by {name_of(self.partitioner)}"):
            contracts.fit("partitioners", self.partitioner, source, seed)
        self._learn(latents, source, seed)

    def prepare(self, latents: Tensor, *, generator: Generator | None, seed: int) -> Tensor:
        """Returns the points (n, d) among which clusters of latents (n, M) are sought.

        Raises:
            ParameterError: the partitioner does not tell them.
        """
        self.check_prepares()
        return contracts.prepared_points(self.partitioner, self._source(latents, generator), seed)

    def check_prepares(self) -> None:
        """Raises ParameterError unless the partitioner tells points, by which can be chosen."""
        if isinstance(self.partitioner, FixedPartitioner):
            raise ParameterError(
                "clusters and removed mass cannot be chosen by parts that were found before; leave "
                "the number of clusters out, and give the removed mass"
            )
        if not isinstance(self.partitioner, contracts.Prepares):
            raise ParameterError(
                f"the {called('partitioners', self.partitioner)} does not tell the points among "
                "which it seeks parts, so nothing can be chosen by them; give the number of "
                "clusters and the removed mass"
            )

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        """Returns what finds so many clusters of these points."""
        return contracts.Clusterer("partitioners", self.partitioner, num_clusters, seed)

    def split(self, latents: Tensor, *, generator: Generator | None, seed: int) -> None:
        """Finds `num_clusters` clusters by what `prepare` learned, and learns to draw from each."""
        source = self._source(latents, generator)
        self.partitioner.num_partitions = self.num_clusters
        with phase(f"parts by {name_of(self.partitioner)}"):
            contracts.split(self.partitioner, source, seed)
        self._learn(latents, source, seed)

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        return self.logits(latents).argmax(dim=1)

    def assign(self, latents: Tensor, core: float = 1.0) -> Tensor:
        """Returns the cluster of each latent (n, M), -1 outside a core; see `contracts.Assign`."""
        logits = self.logits(latents)
        clusters = logits.argmax(dim=1)
        if core >= 1:
            return clusters
        place = (1 - core) * _LEVELS
        low = min(int(place), _LEVELS - 1)
        least = torch.lerp(self._margins[:, low], self._margins[:, low + 1], place - low)
        return clusters.masked_fill(margins_of(logits).double() < least[clusters], -1)

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M), float32, of one cluster.

        Raises:
            SamplingError: the mapper does not find as many in the tries that it has.
        """
        return contracts.drawn_by(
            self.mapper, n, cluster, assign=self.assign, prior=self._prior, seed=seed
        )

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the share of the mapper's proposals that it accepts; None if it takes all."""
        return contracts.acceptance_rate_of("mappers", self.mapper, cluster)

    def findings(self) -> Mapping[str, Any]:
        """Returns what the partitioner found, and how often draws are kept."""
        facts: dict[str, Any] = dict(contracts.findings_of("partitioners", self.partitioner))
        if self._assigner is not None:
            facts["agreement"] = round(self._assigner.agreement_, 4)
        rates = [self.acceptance_rate(cluster) for cluster in range(self.num_clusters_)]
        known = [rate for rate in rates if rate is not None]
        if known:
            facts["acceptance"] = f"{min(known):.2f} to {max(known):.2f}"
        return facts

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are; a loaded sampler gets it back so."""
        self._generator = generator

    def state(self) -> Mapping[str, Tensor]:
        """Returns the labels, and the margins of each cluster."""
        own = {"labels": self.labels_, "margins": self._margins}
        if self._assigner is not None:
            own |= with_prefix(_TRAINED_ON, self._assigner.state())
        return own

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.labels_, self._margins = state["labels"], state["margins"]
        self.num_clusters = self.num_clusters_ = len(self._margins)
        learned = without_prefix(_TRAINED_ON, state)
        if learned:
            self._assigner = Assigner()
            self._assigner.load_state(learned)

    def _source(self, latents: Tensor, generator: Generator | None) -> ImageSource:
        distinct = len(latents.detach().cpu().unique(dim=0))
        if distinct < self.num_clusters:
            raise ParameterError(
                f"{self.num_clusters} clusters need as many distinct latents, and there are "
                f"{distinct}; ask for fewer clusters or more latents"
            )
        self.bind(generator)
        if contracts.space_of(self.partitioner) == "latents":
            prior = LatentSpec(latents.shape[1]) if generator is None else generator.latent
            return LatentPoints(prior, latents)
        if generator is None:
            raise ParameterError(
                f"the {called('partitioners', self.partitioner)} looks at images, so it needs the "
                "generator; fit with generator=..., and bind a loaded sampler to its generator"
            )
        return GeneratedImages(generator, latents)

    def _learn(self, latents: Tensor, source: ImageSource, seed: int) -> None:
        self.num_clusters = self.num_clusters_ = contracts.num_partitions_of(self.partitioner)
        if self.num_clusters == 1:  # and needs no images
            logits = torch.zeros(len(latents), 1)
        else:
            logits = gathered_logits(self.partitioner, source)
        self.labels_ = logits.argmax(dim=1)
        held_out = contracts.held_out_logits_of(self.partitioner)
        self._assigner = None
        if self.predict_from == "latents":
            self._assigner = Assigner().fit(latents, self.labels_, derive_seed(seed, "assign"))
            held_out = self._assigner.held_out_scores_
        self._margins = _levels(logits if held_out is None else held_out, self.num_clusters)
        with phase(f"draws by {name_of(self.mapper)}"):
            contracts.fit_mapper(
                self.mapper,
                latents,
                self.labels_,
                num_clusters=self.num_clusters,
                assign=self.assign,
                prior=self._prior,
                seed=seed,
            )

    @torch.no_grad()
    def logits(self, latents: Tensor) -> Tensor:
        """Returns the logits (n, k) of latents (n, M), on the CPU."""
        if self._assigner is not None:
            return _padded(self._assigner.scores(latents), self.num_clusters)
        if self.num_clusters == 1 or not len(latents):
            return torch.zeros(len(latents), self.num_clusters)
        if contracts.space_of(self.partitioner) == "latents":
            return contracts.logits_of(self.partitioner, latents.detach().cpu())
        if self._generator is None:
            raise ParameterError(
                "clusters are found in images, and there is no generator; bind the sampler to it"
            )
        images = GeneratedImages(self._generator, latents)
        found = [contracts.logits_of(self.partitioner, x).cpu() for x in batches(images)]
        return torch.cat(found)

    @property
    def _prior(self) -> Any:
        return None if self._generator is None else self._generator.latent


def _levels(logits: Tensor, num_clusters: int) -> Tensor:
    """Returns quantiles of the margins of each cluster, float64 (k, levels + 1), from 0 to 1."""
    clusters, margins = logits.argmax(dim=1), margins_of(logits).double()
    steps = torch.linspace(0, 1, _LEVELS + 1, dtype=torch.float64)
    found = [margins[clusters == cluster] for cluster in range(num_clusters)]
    return torch.stack(
        [part.quantile(steps) if len(part) else torch.zeros_like(steps) for part in found]
    )


def _padded(scores: Tensor, num_clusters: int) -> Tensor:
    """Returns scores (n, k) of all clusters; those that no latent was in have none."""
    missing = num_clusters - scores.shape[1]
    return torch.nn.functional.pad(scores, (0, missing), value=-1e30)
