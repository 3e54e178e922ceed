"""Clusters of another cluster sampler, merged or split."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import called
from pgmkit.config import fits
from pgmkit.errors import ParameterError, SamplingError
from pgmkit.generator import Generator
from pgmkit.images import GeneratedImages, batches
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed, random_generator

_ROUNDS = 64
_MOST_DRAWN = 4_096


class _Regrouped:
    """What samplers that change the clusters of another one have in common."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = build("cluster-samplers", sampler)

    num_clusters: int

    @property
    def num_clusters_(self) -> int:
        """How many clusters there are."""
        return self.num_clusters

    @property
    def parts(self) -> Mapping[str, Any]:
        """The sampler whose clusters these are made of."""
        return {"sampler": self.sampler}

    def findings(self) -> Mapping[str, Any]:
        """Returns what that sampler found."""
        return contracts.findings_of("cluster-samplers", self.sampler)

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are."""
        if isinstance(self.sampler, contracts.Binds) and generator is not None:
            self.sampler.bind(generator)

    def _drawn(self, n: int, cluster: int, seed: int) -> Tensor:
        drawn: Tensor = self.sampler.sample(n, cluster, seed)
        return drawn

    def _check_number(self, asked: int | None) -> None:
        if asked not in (None, self.num_clusters):
            raise ParameterError(
                f"the clusters of {called('cluster-samplers', self.sampler)} are made into "
                f"{self.num_clusters}, and {asked} are asked for; leave the number out"
            )

    def _number_within(self) -> int:
        within = getattr(self.sampler, "num_clusters_", getattr(self.sampler, "num_clusters", None))
        if not isinstance(within, int):
            within = int(torch.as_tensor(self.sampler.labels_).max()) + 1
        return within


class MergedSampler(_Regrouped):
    """Clusters of another cluster sampler, some of them taken together.

    Args:
        sampler: a name, a table, or an object.
        groups: for each new cluster the numbers of those that it is made of; all that there are,
            each once.
        num_clusters: is not needed; if it is given, the number of groups.

    Raises:
        ParameterError: a number is in no group, or in several, or `num_clusters` is another one.
    """

    def __init__(
        self,
        sampler: Any = "kmeans-gmm",
        groups: Sequence[Sequence[int]] = ((0, 1), (2,)),
        num_clusters: int | None = None,
    ) -> None:
        super().__init__(sampler)
        self.groups = [list(group) for group in groups]
        self.num_clusters = len(self.groups)
        members = sorted(number for group in self.groups for number in group)
        if members != list(range(len(members))) or not all(self.groups):
            raise ParameterError(
                f"groups must name each cluster from 0 on once, and none is empty, not "
                f"{self.groups!r:.80}"
            )
        self._check_number(num_clusters)
        self._new = torch.tensor(
            [self._group_of(number) for number in range(len(members))], dtype=torch.int64
        )

    def fit(self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0) -> None:
        """Finds the clusters that are then merged.

        Raises:
            ParameterError: there are more or fewer than the groups name.
        """
        contracts.fit_sampler(self.sampler, latents, generator=generator, seed=seed)
        if self._number_within() != len(self._new):
            raise ParameterError(
                f"groups name {len(self._new)} clusters, and there are {self._number_within()}; "
                "name all of them"
            )

    @property
    def labels_(self) -> Tensor:
        """Cluster of each latent that was fitted, int64 (n,)."""
        return self._new[torch.as_tensor(self.sampler.labels_)]

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        return self._new[contracts.predicted_by(self.sampler, latents, most=len(self._new))]

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M) of one cluster, from those that it is made of by their sizes."""
        group = self.groups[cluster]
        sizes = torch.as_tensor(self.sampler.labels_).bincount(minlength=len(self._new))[group]
        if len(group) == 1 or not sizes.any():
            return self._drawn(n, group[0], seed)
        random = random_generator(seed, "merged")
        drawn_of = torch.multinomial(sizes.double(), n, replacement=True, generator=random)
        drawn: Tensor | None = None
        for place in drawn_of.unique().tolist():
            count = int((drawn_of == place).sum())
            found = self._drawn(count, group[place], derive_seed(seed, place))
            drawn = torch.empty(n, found.shape[1]) if drawn is None else drawn
            drawn[drawn_of == place] = found
        assert drawn is not None
        return drawn

    def logits(self, latents: Tensor) -> Tensor:
        """Returns logits (n, k) of latents (n, M): the largest of each group."""
        within = contracts.cluster_logits_of(self.sampler, latents)
        return torch.stack([within[:, group].amax(dim=1) for group in self.groups], dim=1)

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the least share that is kept of what is drawn of its clusters."""
        rates = [
            contracts.acceptance_rate_of("cluster-samplers", self.sampler, number)
            for number in self.groups[cluster]
        ]
        return min((rate for rate in rates if rate is not None), default=None)

    def state(self) -> Mapping[str, Tensor]:
        """Returns nothing: all is in the sampler."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up nothing."""

    def _group_of(self, number: int) -> int:
        return next(new for new, group in enumerate(self.groups) if number in group)


class SplitSampler(_Regrouped):
    """Clusters of another cluster sampler, one of them split by what its images look like.

    The first part keeps the number of the cluster; the others come behind all clusters.

    Args:
        sampler: a name, a table, or an object.
        cluster: the one that is split.
        partitioner: splits it; two parts by k-means by default.
        num_clusters: is not needed; if it is given, how many clusters there are then.

    Raises:
        ParameterError: `cluster` is no number from 0, or `num_clusters` another one.
    """

    def __init__(
        self,
        sampler: Any = "kmeans-gmm",
        cluster: int = 0,
        partitioner: Any = None,
        num_clusters: int | None = None,
    ) -> None:
        super().__init__(sampler)
        if not fits(cluster, int) or cluster < 0:
            raise ParameterError(f"the cluster to split is a number from 0, not {cluster!r:.40}")
        given = {"name": "kmeans", "num_partitions": 2} if partitioner is None else partitioner
        self.partitioner = build("partitioners", given)
        self.cluster = cluster
        self._generator: Generator | None = None
        self._asked = num_clusters

    @property
    def num_clusters(self) -> int:  # type: ignore[override]
        """The number of clusters, k."""
        return self._number_within() - 1 + contracts.num_partitions_of(self.partitioner)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The sampler whose cluster is split, and the partitioner that splits it."""
        return {**super().parts, "partitioner": self.partitioner}

    def fit(self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0) -> None:
        """Finds the clusters, and splits the one."""
        contracts.fit_sampler(self.sampler, latents, generator=generator, seed=seed)
        self.divide(latents, generator=generator, seed=seed)
        self._check_number(self._asked)

    def divide(self, latents: Tensor, *, generator: Generator | None, seed: int = 0) -> None:
        """Splits the cluster of a sampler that was fitted to these latents (n, M) before.

        Raises:
            ParameterError: there is no such cluster, it has too few latents, or no generator.
        """
        labels = torch.as_tensor(self.sampler.labels_)
        if self.cluster >= self._number_within():
            raise ParameterError(
                f"there is no cluster {self.cluster} to split; the clusters are 0 to "
                f"{self._number_within() - 1}"
            )
        if generator is None:
            raise ParameterError("a cluster is split by its images, so it needs the generator")
        self._generator = generator
        inside = labels == self.cluster
        least = contracts.least_images_of(self.partitioner)
        if int(inside.sum()) < least:
            raise ParameterError(
                f"cluster {self.cluster} has {int(inside.sum())} latents, and to split it takes "
                f"{least}; split a larger one"
            )
        source = GeneratedImages(generator, latents[inside])
        contracts.fit("partitioners", self.partitioner, source, seed)
        found = torch.cat(
            [contracts.logits_of(self.partitioner, x).cpu() for x in batches(source)]
        ).argmax(dim=1)
        self.labels_ = labels.clone()
        self.labels_[inside] = self._numbers()[found]

    def predict(self, latents: Tensor) -> Tensor:
        """Returns the cluster of each latent (n, M), int64 (n,)."""
        clusters = contracts.predicted_by(self.sampler, latents, most=self._number_within())
        inside = clusters == self.cluster
        if inside.any():
            found = self._part_logits(latents[inside]).argmax(dim=1)
            clusters = clusters.clone()
            clusters[inside] = self._numbers()[found]
        return clusters

    def sample(self, n: int, cluster: int, seed: int) -> Tensor:
        """Draws latents (n, M) of one cluster; of a part, draws of the whole that lie in it.

        Raises:
            SamplingError: the part is too small to be found.
        """
        numbers = self._numbers().tolist()
        if cluster not in numbers:
            return self._drawn(n, cluster, seed)
        found: list[Tensor] = []
        missing, size, tried = n, 2 * n, 0
        for attempt in range(_ROUNDS):
            drawn = self._drawn(size, self.cluster, derive_seed(seed, "split", attempt))
            inside = self._part_logits(drawn).argmax(dim=1) == numbers.index(cluster)
            found.append(drawn[inside][:missing])
            missing -= len(found[-1])
            tried += size
            if not missing:
                return torch.cat(found)
            size = min(_MOST_DRAWN, 2 * size)
        raise SamplingError(
            f"of {tried:,} draws {n - missing} of {n} lie in cluster {cluster}, a part of another; "
            "ask for fewer, or do not split it"
        )

    def logits(self, latents: Tensor) -> Tensor:
        """Returns logits (n, k) of latents (n, M).

        The parts share that of the whole; those that are not the best are less by as much as they
        are behind.
        """
        within = contracts.cluster_logits_of(self.sampler, latents)
        parts = self._part_logits(latents).to(within.dtype)
        parts = parts - parts.amax(dim=1, keepdim=True) + within[:, [self.cluster]]
        logits = torch.cat([within, parts[:, 1:]], dim=1)
        logits[:, self.cluster] = parts[:, 0]
        return logits

    def acceptance_rate(self, cluster: int) -> float | None:
        """Returns the share that is kept of what is drawn of a cluster before it is split."""
        whole = self.cluster if cluster in self._numbers().tolist() else cluster
        return contracts.acceptance_rate_of("cluster-samplers", self.sampler, whole)

    def bind(self, generator: Generator | None) -> None:
        """Takes the generator whose latents these are."""
        super().bind(generator)
        self._generator = generator

    def state(self) -> Mapping[str, Tensor]:
        """Returns the labels."""
        return {"labels": self.labels_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.labels_ = state["labels"]

    def _numbers(self) -> Tensor:
        """Returns the numbers of the parts among the clusters."""
        first = self._number_within()
        more = contracts.num_partitions_of(self.partitioner) - 1
        return torch.tensor([self.cluster, *range(first, first + more)])

    @torch.no_grad()
    def _part_logits(self, latents: Tensor) -> Tensor:
        if self._generator is None:
            raise ParameterError(
                "a cluster is split by its images, and there is no generator; bind the sampler to "
                "it"
            )
        source = GeneratedImages(self._generator, latents)
        return torch.cat([contracts.logits_of(self.partitioner, x).cpu() for x in batches(source)])
