"""Proposals of another mapper, of which those are kept that lie in the cluster."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgmkit import LatentSpec, contracts
from pgmkit.components import name_of
from pgmkit.config import check_count
from pgmkit.contracts import Assign
from pgmkit.errors import ParameterError, PgmkitWarning, SamplingError
from pgmkit.plugins import build
from pgmkit.seeds import derive_seed

_FEWEST_TRIALS, _MOST_TRIALS = 64, 256
_LARGEST_BATCH = 4096


class RejectionMapper:
    """Draws proposals and keeps those that are assigned to the wanted cluster.

    Every latent that it returns lies in the cluster, by the word of what found the clusters.

    Args:
        proposal: the mapper that proposes: a name, a table, or an object. With "prior" the result
            is the prior restricted to the cluster, latents of removed mass included.
        max_tries: proposals per wanted latent before giving up, at least 1.
        core: share of each cluster, in (0, 1], that latents are drawn from: those that lie the most
            clearly in it. What is left out is doubtful, but also diverse. Nothing is left out of a
            single cluster.

    Attributes:
        acceptance_: share of proposals that lay in the core of each cluster when it was fitted,
            (k,), float64; measured on as many per cluster as it has latents on average, from 64 to
            256.
    """

    def __init__(self, proposal: Any = "mixture", max_tries: int = 1000, core: float = 1.0) -> None:
        check_count("max_tries", max_tries)
        if not 0 < core <= 1:
            raise ParameterError(f"core must be in (0, 1], not {core!r}")
        self.proposal = build("mappers", proposal)
        self.max_tries = max_tries
        self.core = core

    @property
    def parts(self) -> Mapping[str, Any]:
        """The mapper that proposes."""
        return {"proposal": self.proposal}

    def fit(
        self,
        latents: Tensor,
        labels: Tensor,
        *,
        num_clusters: int,
        assign: Assign,
        prior: LatentSpec | None,
        seed: int,
    ) -> None:
        """Fits the proposals and measures how many of them are accepted."""
        contracts.fit_mapper(
            self.proposal,
            latents,
            labels,
            num_clusters=num_clusters,
            assign=self._within(assign),
            prior=prior,
            seed=seed,
        )
        trial = derive_seed(seed, "trial")
        count = min(max(len(latents) // num_clusters, _FEWEST_TRIALS), _MOST_TRIALS)
        shares = []
        for cluster in range(num_clusters):
            drawn = self._propose(count, cluster, assign, prior, trial)
            shares.append((assign(drawn, self.core) == cluster).double().mean())
        self.acceptance_ = torch.stack(shares)
        never = (self.acceptance_ == 0).nonzero().flatten().tolist()
        if never:
            warnings.warn(
                f"{len(never)} of {num_clusters} clusters took none of the trial proposals of "
                f"{name_of(self.proposal)!r}, and may end in an error when they are sampled: "
                f"{', '.join(map(str, never[:8]))}; choose another proposal or fewer clusters",
                PgmkitWarning,
                stacklevel=2,
            )

    def sample(
        self, n: int, cluster: int, *, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        """Draws latents (n, M), float32, all of which `assign` gives to the core of `cluster`.

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
                    f"another proposal than {name_of(self.proposal)!r}, or ask for fewer clusters"
                )
            count = min(_num_proposals(missing, rate), _LARGEST_BATCH, budget - tried)
            drawn = self._propose(count, cluster, assign, prior, derive_seed(seed, "tries", tried))
            drawn = drawn[assign(drawn, self.core) == cluster]
            found.append(drawn[:missing])
            missing -= len(found[-1])
            tried, accepted = tried + count, accepted + len(drawn)
            rate = accepted / tried
        return torch.cat(found)

    def acceptance_rate(self, cluster: int) -> float:
        """Returns the share of proposals that were accepted when it was fitted, in [0, 1]."""
        return float(self.acceptance_[cluster])

    def state(self) -> Mapping[str, Tensor]:
        """Returns the shares of accepted proposals."""
        return {"acceptance": self.acceptance_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.acceptance_ = state["acceptance"]

    def _within(self, assign: Assign) -> Assign:
        """Returns what gives to a proposal that looks where it lands the core as the cluster."""
        return lambda latents, core=1.0: assign(latents, self.core * core)

    def _propose(
        self, count: int, cluster: int, assign: Assign, prior: LatentSpec | None, seed: int
    ) -> Tensor:
        return contracts.drawn_by(
            self.proposal, count, cluster, assign=self._within(assign), prior=prior, seed=seed
        )


def _num_proposals(missing: int, rate: float) -> int:
    """Returns how many proposals yield `missing` accepted ones, with a margin of one deviation."""
    rate = max(rate, 1 / _MOST_TRIALS)
    return math.ceil((missing + math.sqrt(missing * (1 - rate))) / rate)
