"""The one of several partitioners whose parts are the most stable."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.choosing import choose_num_clusters
from pgmkit.components import called, name_of
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.images import ImageSource
from pgmkit.partition import refitted_stability
from pgmkit.plugins import build

_LEAST_PER_PART = 4
_NEAR = 0.2
"""By how much stabilities may differ and still count as the same."""


class MostStable:
    """Tries several partitioners and keeps the one whose parts are the most stable.

    Each candidate turns the images into the points among which it would seek parts. Two halves of
    these points are clustered apart from each other; the more they agree on the second half, the
    more stable the parts are. What points without clusters would show is taken off.
    This is the criterion "stability" of `pgmkit.choosing` (Ben-Hur, Elisseeff and Guyon 2002; Lange
    et al. 2004), for one k and several spaces instead of one space and several k. A candidate that
    does not tell its points (see `pgmkit.contracts.Prepares`) is fitted to halves of the images
    instead. Where several come within 0.2 of the best, the one that is listed first is kept, and
    others are not tried where they cannot change that. With one part, or fewer than four images for
    each, nothing can be compared, and the first is kept.

    Args:
        num_partitions: k, at least 1.
        candidates: partitioners by name, as tables or objects with as many parts, the preferred
            first.

    Attributes:
        chosen_: the partitioner that was kept, fitted.
        stability_: of each candidate, float64 (candidates,), at most 1; higher is more stable. NaN
            for those that were not tried, since they could not have been kept.
    """

    def __init__(
        self,
        num_partitions: int = 10,
        candidates: Sequence[Any] = (
            {"name": "kmeans", "features": "contrastive"},
            "mixture",
            "manifold",
        ),
    ) -> None:
        check_count("num_partitions", num_partitions)
        if isinstance(candidates, str | Mapping) or not len(candidates):
            raise ParameterError(
                "candidates must be a list of partitioners, such as ['mixture', 'manifold'], not "
                f"{candidates!r}"
            )
        self.num_partitions = num_partitions
        self.candidates = []
        for candidate in candidates:
            given = (
                {"num_partitions": num_partitions} if isinstance(candidate, str | Mapping) else {}
            )
            self.candidates.append(build("partitioners", candidate, **given))
            if not given:  # a table may be the record of one that found another number
                contracts.check_number(self.candidates[-1], num_partitions)
        self.space = contracts.space_of(self.candidates[0])
        if any(contracts.space_of(built) != self.space for built in self.candidates):
            raise ParameterError("candidates must all look at images, or all at latents")
        self._points: dict[int, Tensor] = {}
        self._source: ImageSource | None = None
        self._judged_at = 0

    @property
    def parts(self) -> Mapping[str, Any]:
        """The partitioner that was kept; before that all candidates, since any may be."""
        if hasattr(self, "chosen_"):
            return {"chosen": self.chosen_}
        return {f"candidate {number}": built for number, built in enumerate(self.candidates, 1)}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Chooses a candidate and fits it."""
        self._begin(source, seed)
        self.split(source, seed=seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Chooses the candidate that is the most stable at k; returns its points (n, d).

        Raises:
            ParameterError: one of them does not tell its points.
        """
        for candidate in self.candidates:
            if not isinstance(candidate, contracts.Prepares):
                raise ParameterError(
                    f"the {called('partitioners', candidate)}, one of the candidates, does not "
                    "tell its points, so nothing can be chosen by them; give the number of "
                    "clusters and the removed mass, or other candidates"
                )
        self._begin(source, seed)
        return self._points[self._index]

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        """Returns what finds so many clusters of the points of the kept candidate."""
        return self.chosen_.make_clusterer(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Finds the parts by the kept candidate, chosen again if k was set to another number."""
        if self._source is None:
            raise ParameterError("the candidates have no points to be split; call prepare first")
        if self._judged_at != self.num_partitions:
            self._choose(self._source)
        self._points, self._source = {}, None
        if isinstance(self.chosen_, contracts.Prepares):
            contracts.split(self.chosen_, source, seed)
        else:
            contracts.fit("partitioners", self.chosen_, source, seed)
        self.num_partitions = contracts.num_partitions_of(self.chosen_)
        for candidate in self.candidates:
            if isinstance(candidate, contracts.Prepares):
                candidate.num_partitions = self.num_partitions  # if another number was found
        self.held_out_logits = getattr(self.chosen_, "held_out_logits", None)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits (B, k) of the kept candidate."""
        return contracts.logits_of(self.chosen_, x)

    def findings(self) -> Mapping[str, Any]:
        """Returns which candidate was kept, and how stable each was."""
        told = {
            name: value
            for name, value in zip(self._names(), self.stability_.tolist(), strict=True)
            if not math.isnan(value)
        }
        stability = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        rest = contracts.findings_of("partitioners", self.chosen_)
        return {"chosen": self._names()[self._index], "stability": stability, **rest}

    def state(self) -> Mapping[str, Tensor]:
        """Returns which candidate was kept."""
        return {"index": torch.tensor(self._index), "stability": self.stability_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned; the kept candidate is one of the parts."""
        self._index, self.stability_ = int(state["index"]), state["stability"]
        self.chosen_ = self.candidates[self._index]

    def _begin(self, source: ImageSource, seed: int) -> None:
        """Chooses the candidate for these images."""
        for candidate in self.candidates:
            contracts.check_number(candidate, self.num_partitions)
        self._points, self._source, self._seed = {}, source, seed
        self._choose(source)

    def _names(self) -> list[str]:
        names = [_told(built) for built in self.candidates]
        return [
            name if names.count(name) == 1 else f"{name} ({number})"
            for number, name in enumerate(names, start=1)
        ]

    def _choose(self, source: ImageSource) -> None:
        """Takes the candidate that is stable enough at k."""
        stability = torch.full((len(self.candidates),), math.nan, dtype=torch.float64)
        for index in range(len(self.candidates)):
            stability[index] = self._stability(index, source)
            known = stability[: index + 1].nan_to_num()
            first = int((known >= known.max() - _NEAR).int().argmax())
            if stability[index].isnan() or known[first] >= 1 - _NEAR:
                break  # whatever the others are like, this one is kept
        self.stability_, self._index, self._judged_at = stability, first, self.num_partitions
        self.chosen_ = self.candidates[first]

    def _stability(self, index: int, source: ImageSource) -> float:
        candidate, k = self.candidates[index], self.num_partitions
        if not isinstance(candidate, contracts.Prepares):
            return refitted_stability(candidate, source, seed=self._seed)
        candidate.num_partitions = k
        if index not in self._points:
            self._points[index] = contracts.prepared_points(candidate, source, self._seed)
        points = self._points[index]
        if k < 2 or len(points) < _LEAST_PER_PART * k:
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PgmkitWarning)  # only the comparison counts here
            make = partial(contracts.Clusterer, "partitioners", candidate)
            choice = choose_num_clusters(points, [k], make_clusterer=make, seed=self._seed)
        return choice.mean[0]


def _told(partitioner: Any) -> str:
    """Returns the name of a partitioner, with that of its features."""
    name = name_of(partitioner).removeprefix("pgmkit:")
    features = getattr(partitioner, "features", None)
    if features is None:
        return name
    return f"{name} of {name_of(features).removeprefix('pgmkit:')}"
