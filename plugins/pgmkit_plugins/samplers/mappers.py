"""Mappers: they draw new latents from each cluster. Every built-in cluster sampler has one.

A mapper never looks at images itself. Where it has to know in which cluster a new latent lies, it
asks the cluster sampler, through the function `assign` (latents (n, M) to clusters (n,), -1 for a
latent that is not of the core of its cluster; see `RejectionMapper`).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pgmkit.components import check_parameters
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PgmkitWarning, SamplingError, UnknownNameError
from pgmkit.machine import thread_limit
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed, random_generator

Array = npt.NDArray[np.float64]
Assign = Callable[[Tensor], Tensor]

_MOST_COMPONENTS = 5
_TRIAL_PROPOSALS = 256
_LARGEST_BATCH = 4096


class Mapper(Protocol):
    """Learns the distribution of each cluster and draws from it."""

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        *,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Learns from latents (n, M) with clusters (n,), -1 for none."""

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, from one cluster; `assign` and `prior` are as in `fit`."""

    def state(self) -> dict[str, Tensor]:
        """Returns all that was learned, by name."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""


class MixtureMapper:
    """A Gaussian mixture per cluster: the mapper of the LASH paper (section 3.2).

    Everything is fitted in float64 on latents that are centred and divided by one common scale, the
    spread within clusters. Where the prior has bounds, or differs between coordinates, latents are
    first turned into those of a normal prior, and what is drawn is turned back, so that it lies
    inside (`LatentSpec.to_normal`).
    Mixtures are of the continuous coordinates; each Gaussian has probabilities of its own for the
    categories of categorical parts, the frequencies among the latents that it stands for.
    A cluster with fewer than `num_components · (M + 1)` latents cannot carry full covariances: it
    gets one Gaussian with the covariance that all clusters share, and a warning says so.

    Args:
        num_components: Gaussians per cluster, at least 1; "bic" takes for each cluster the number
            from 1 to 5 with the lowest Bayesian information criterion (Schwarz 1978).

    Attributes:
        weights_: of the components, (k, c), float64, each row sums to 1; 0 fills up clusters with
            fewer components than others.
        means_: (k, c, M), float64.
        cholesky_: lower factors L of the covariances L·Lᵀ, (k, c, M, M), float64.
        categories_: probabilities of the categories of all categorical parts, (k, c, C), float64.
        turned_: whether the prior is not `LatentSpec.even`, so that the mixtures are those of
            `to_normal`.
    """

    _saved = ("weights", "means", "cholesky", "categories", "turned")

    def __init__(self, num_components: int | str = 2) -> None:
        if num_components != "bic":
            if isinstance(num_components, str):
                raise ParameterError(
                    f"num_components must be a whole number or 'bic', not {num_components!r}"
                )
            check_count("num_components", num_components)
        self.num_components = num_components

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        *,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits a mixture to each cluster; see `Mapper`."""
        sizes = labels[labels >= 0].bincount(minlength=num_clusters)
        dim = latents.shape[1] if prior is None else int(prior.continuous.sum())
        if dim == 0:
            raise ParameterError(
                f"mappers draw from continuous coordinates, and {prior} latents have none; add a "
                "continuous part to the prior"
            )
        self._warn_of_small_clusters(sizes.tolist(), dim)
        self._fit_mixtures(latents, labels, num_clusters, prior, seed)

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, from the mixture of one cluster.

        Raises:
            ParameterError: the prior is needed, and is not given.
        """
        random = random_generator(seed, "cluster", cluster)
        component = torch.multinomial(self.weights_[cluster], n, replacement=True, generator=random)
        drawn = torch.randn(n, self.means_.shape[2], generator=random, dtype=torch.float64)
        for index in component.unique().tolist():
            chosen = component == index
            factor = self.cholesky_[cluster, index]
            drawn[chosen] = self.means_[cluster, index] + drawn[chosen] @ factor.T
        if not self.turned_:
            return drawn.float()
        if prior is None:
            raise ParameterError(
                "these clusters were found in latents that the prior turned into normal ones; bind "
                "the sampler to its generator, which knows it"
            )
        latents = torch.zeros(n, prior.dim, dtype=torch.float64)
        latents[:, prior.continuous] = drawn
        first = 0
        for place in prior.categories:
            last = first + place.stop - place.start
            shares = self.categories_[cluster, component, first:last]
            chosen = torch.multinomial(shares, 1, generator=random)
            latents[:, place] = torch.zeros_like(shares).scatter_(1, chosen, 1.0)
            first = last
        return prior.from_normal(latents)

    def state(self) -> dict[str, Tensor]:
        """Returns all that was fitted, by name."""
        return {name: getattr(self, f"{name}_") for name in self._saved}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        for name in self._saved:
            setattr(self, f"{name}_", state[name])

    def _fit_mixtures(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits a mixture to each cluster, without a warning."""
        latents = latents.detach().cpu().double()
        turned = prior is not None and not prior.even
        continuous = torch.full((latents.shape[1],), True)
        if prior is not None and turned:
            latents, continuous = prior.to_normal(latents), prior.continuous
        z, one_hot = latents[:, continuous].numpy(), latents[:, ~continuous].numpy()
        members = [(labels == cluster).numpy() for cluster in range(num_clusters)]
        centre = z.mean(axis=0)
        groups = [z[inside] - centre for inside in members]
        within = np.concatenate([group - group.mean(axis=0) for group in groups if len(group)])
        # Clusters that are points have no spread but what rounding makes of it.
        scale = max(float(within.std()), 1e-6 * float(z.std())) or 1.0
        shared = np.cov(within / scale, rowvar=False, bias=True).reshape(z.shape[1], z.shape[1])
        with thread_limit(1):
            fitted = [
                self._fit_cluster(
                    group / scale,
                    one_hot[members[cluster]],
                    shared,
                    derive_seed(seed, "mixture", cluster) % 2**32,
                )
                for cluster, group in enumerate(groups)
            ]
        weights, means, cholesky, categories = (
            _stacked(parts) for parts in zip(*fitted, strict=True)
        )
        self.weights_ = torch.from_numpy(weights)
        self.means_ = torch.from_numpy(means * scale + centre)
        self.cholesky_ = torch.from_numpy(cholesky * scale)
        self.categories_ = torch.from_numpy(categories)
        self.turned_ = torch.tensor(turned)

    def _candidates(self, count: int, dim: int) -> list[int]:
        """Returns the numbers of components that `count` latents can carry, none if too few."""
        wanted = (
            range(1, _MOST_COMPONENTS + 1)
            if isinstance(self.num_components, str)
            else [self.num_components]
        )
        return [number for number in wanted if count >= number * (dim + 1)]

    def _warn_of_small_clusters(self, sizes: list[int], dim: int) -> None:
        small = [
            f"{cluster} ({size})"
            for cluster, size in enumerate(sizes)
            if not self._candidates(size, dim)
        ]
        if small:
            number = 1 if self.num_components == "bic" else int(self.num_components)
            warnings.warn(
                f"{len(small)} of {len(sizes)} clusters have fewer latents than the "
                f"{number * (dim + 1)} that {number} full covariances in {dim} dimensions need, so "
                f"each gets one Gaussian with the covariance that all share: "
                f"{', '.join(small[:8])}; draw more latents or ask for fewer clusters",
                PgmkitWarning,
                stacklevel=4,
            )

    def _fit_cluster(
        self, points: Array, one_hot: Array, shared: Array, random_state: int
    ) -> tuple[npt.NDArray[Any], ...]:
        """Returns weights (c,), means (c, M), Cholesky factors (c, M, M) and categories (c, C)."""
        count, dim = points.shape
        candidates = self._candidates(count, dim)
        if not candidates:
            mean = points.mean(axis=0) if count else np.zeros(dim)
            factor = np.linalg.cholesky(shared + 1e-6 * np.eye(dim))
            frequencies = one_hot.mean(axis=0) if count else np.ones(one_hot.shape[1])
            return np.ones((1,)), np.asarray(mean)[None], factor[None], frequencies[None]
        mixtures = []
        for number in candidates:
            mixture = GaussianMixture(number, reg_covar=1e-6, random_state=random_state)
            with warnings.catch_warnings():
                # A mixture that is still moving after 100 rounds is as good a sampler.
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixtures.append(mixture.fit(points))
        best = mixtures[0] if len(mixtures) == 1 else min(mixtures, key=lambda m: m.bic(points))
        found = best.predict_proba(points)
        frequencies = found.T @ one_hot / found.sum(axis=0)[:, None].clip(min=1e-300)
        return best.weights_, best.means_, np.linalg.cholesky(best.covariances_), frequencies


class RefinedMixtureMapper(MixtureMapper):
    """A Gaussian mixture per cluster, fitted again to those of its own draws that land in it.

    Each round draws from every mixture, keeps what the cluster sampler assigns to the cluster that
    it was drawn for, and fits the mixture to that and the cluster's latents together. So more of
    what it draws lands in the cluster, at the price of a plain mixture; `rejection` keeps the
    promise exactly.

    Args:
        num_components: as for `MixtureMapper`.
        rounds: how often, at least 1.
        draws: draws per round, as a multiple of the cluster's size, above 0.
    """

    def __init__(self, num_components: int | str = 2, rounds: int = 2, draws: float = 2.0) -> None:
        super().__init__(num_components)
        check_count("rounds", rounds)
        if not isinstance(draws, int | float) or not 0 < draws < math.inf:
            raise ParameterError(f"draws must be a number above 0, not {draws!r}")
        self.rounds = rounds
        self.draws = draws

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        *,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits a mixture to each cluster, then refines it; see `Mapper`."""
        super().fit(latents, labels, num_clusters, assign=assign, prior=prior, seed=seed)
        own = latents.detach().cpu()
        sizes = labels[labels >= 0].bincount(minlength=num_clusters).tolist()
        for turn in range(self.rounds):
            points, clusters = [own], [labels]
            for cluster, size in enumerate(sizes):
                if not size:
                    continue
                drawn = self.sample(
                    math.ceil(self.draws * size),
                    cluster,
                    assign=assign,
                    prior=prior,
                    seed=derive_seed(seed, "refine", turn),
                )
                landed = drawn[assign(drawn) == cluster].to(own.dtype)
                points.append(landed)
                clusters.append(torch.full((len(landed),), cluster))
            self._fit_mixtures(
                torch.cat(points),
                torch.cat(clusters),
                num_clusters,
                prior,
                derive_seed(seed, "refit", turn),
            )


class RejectionMapper:
    """Draws proposals and keeps those that the cluster sampler assigns to the wanted cluster.

    Every latent that it returns lies in the cluster, by the sampler's own word.

    Args:
        num_components: of the mixtures, as for `MixtureMapper`.
        proposal: "mixture" and "refined" propose from the mapper of that name; "prior" proposes
            from the generator's prior, so that the result is the prior restricted to the cluster,
            latents of removed mass included.
        max_tries: proposals per wanted latent before giving up, at least 1.
        core: share of each cluster, in (0, 1], that latents are drawn from: those that lie the most
            clearly in it. What is left out is doubtful, but also diverse. Nothing is left out of a
            single cluster.

    Attributes:
        acceptance_: share of proposals that lay in the core of each cluster when it was fitted,
            (k,), float64; measured on 256 per cluster.
    """

    def __init__(
        self,
        num_components: int | str = 2,
        proposal: str = "mixture",
        max_tries: int = 1000,
        core: float = 1.0,
    ) -> None:
        if proposal not in PROPOSALS:
            raise UnknownNameError("proposal", proposal, PROPOSALS)
        check_count("max_tries", max_tries)
        if not isinstance(core, int | float) or not 0 < core <= 1:
            raise ParameterError(f"core must be in (0, 1], not {core!r}")
        self.core = core
        self.proposal = proposal
        self.max_tries = max_tries
        self._mixture: MixtureMapper | None = None
        if proposal != "prior":
            kind = RefinedMixtureMapper if proposal == "refined" else MixtureMapper
            self._mixture = kind(num_components)

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        num_clusters: int,
        *,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits the proposals and measures how many of them are accepted; see `Mapper`."""
        if self._mixture is not None:
            self._mixture.fit(latents, labels, num_clusters, assign=assign, prior=prior, seed=seed)
        trial = derive_seed(seed, "trial")
        if self._mixture is None:  # one draw from the prior serves all clusters
            drawn = self._propose(_TRIAL_PROPOSALS * num_clusters, 0, assign, prior, trial)
            found = torch.cat([assign(batch) for batch in drawn.split(_LARGEST_BATCH)])
            shares = [(found == cluster).double().mean() for cluster in range(num_clusters)]
        else:
            shares = []
            for cluster in range(num_clusters):
                drawn = self._propose(_TRIAL_PROPOSALS, cluster, assign, prior, trial)
                shares.append((assign(drawn) == cluster).double().mean())
        self.acceptance_ = torch.stack(shares)
        never = (self.acceptance_ == 0).nonzero().flatten().tolist()
        if never:
            warnings.warn(
                f"{len(never)} of {num_clusters} clusters took none of the trial proposals from "
                f"{self.proposal!r}, and may end in an error when they are sampled: "
                f"{', '.join(map(str, never[:8]))}; choose another proposal or fewer clusters",
                PgmkitWarning,
                stacklevel=3,
            )

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, all of which `assign` gives to `cluster`.

        Raises:
            SamplingError: `max_tries · n` proposals were not enough.
        """
        found: list[Tensor] = []
        missing, tried, accepted, budget = n, 0, 0, self.max_tries * n
        rate = float(self.acceptance_[cluster])
        while missing > 0:
            if tried >= budget:
                raise SamplingError(
                    f"cluster {cluster} took {accepted} of {tried:,} proposals, and {n} latents "
                    f"were asked for; raise max_tries (now {self.max_tries} per latent), choose "
                    f"another proposal than {self.proposal!r}, or ask for fewer clusters"
                )
            count = min(_num_proposals(missing, rate), _LARGEST_BATCH, budget - tried)
            tries = derive_seed(seed, "tries", tried)
            drawn = self._propose(count, cluster, assign, prior, tries)
            drawn = drawn[assign(drawn) == cluster]
            found.append(drawn[:missing])
            missing -= len(found[-1])
            tried, accepted = tried + count, accepted + len(drawn)
            rate = accepted / tried
        return torch.cat(found)

    def state(self) -> dict[str, Tensor]:
        """Returns all that was fitted, by name."""
        mixture = {} if self._mixture is None else self._mixture.state()
        return {"acceptance": self.acceptance_, **mixture}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.acceptance_ = state["acceptance"]
        if self._mixture is not None:
            self._mixture.load_state(state)

    def _propose(
        self, count: int, cluster: int, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        if self._mixture is not None:
            return self._mixture.sample(count, cluster, assign=assign, prior=prior, seed=seed)
        if prior is None:
            raise ParameterError(
                "proposal 'prior' needs the generator whose prior it is; fit with generator=..., "
                "or take proposal 'mixture'"
            )
        return prior.sample(count, random_generator(seed, "cluster", cluster))


def _num_proposals(missing: int, rate: float) -> int:
    """Returns how many proposals yield `missing` accepted ones, with a margin of one deviation."""
    rate = max(rate, 1 / _TRIAL_PROPOSALS)
    return math.ceil((missing + math.sqrt(missing * (1 - rate))) / rate)


MAPPERS = {
    "mixture": MixtureMapper,
    "refined": RefinedMixtureMapper,
    "rejection": RejectionMapper,
}
PROPOSALS = ("mixture", "refined", "prior")


def build_mapper(name: str, **parameters: Any) -> Mapper:
    """Builds the mapper called `name`.

    Raises:
        UnknownNameError: there is none.
        ParameterError: a parameter is unknown or outside its range.
    """
    if name not in MAPPERS:
        raise UnknownNameError("mapper", name, MAPPERS)
    check_parameters(MAPPERS[name], parameters, f"mapper {name!r}")
    mapper: Mapper = MAPPERS[name](**parameters)
    return mapper


def _stacked(parts: tuple[npt.NDArray[Any], ...]) -> Array:
    """Stacks arrays over clusters; those with fewer components are filled up with their first.

    Weights are filled up with 0, so that what is filled in is never drawn.
    """
    most = max(len(part) for part in parts)
    filled = []
    for part in parts:
        missing = most - len(part)
        extra = np.zeros(missing) if part.ndim == 1 else np.repeat(part[:1], missing, axis=0)
        filled.append(np.concatenate([part, extra]))
    return np.stack(filled)
