"""The number of clusters and the removed mass, chosen without labels.

Nothing here knows of generators: points, log-weights and a seed go in, a `Choice` comes out.
docs/choices.md has the reasons, and what was measured.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PgmkitWarning, UnknownNameError, nearest_names
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed
from pgmkit.selection import check_remove, num_kept

if TYPE_CHECKING:
    from sklearn.cluster import KMeans

Array = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
MakeClusterer = Callable[[int, int], Any]

STABILITY = "stability"
AUTO = "auto"
NUM_CLUSTERS_OPTIONS = ("criterion", "candidates")
MASS_OPTIONS = ("candidates", "max_loss")
"""What a table with the name "auto" may also hold."""
CHOSEN = {"clusters": "number of clusters", "remove": "removed mass"}
"""What can be chosen: the settings of `pgmkit.shatter`, in words."""
NUM_CLUSTERS = tuple(range(2, 21))
"""Candidates for the number of clusters."""
REMOVED_MASS = tuple(step / 20 for step in range(13))
"""Candidates for the removed mass: 0, 0.05, ..., 0.6."""
MAX_LOSS = 0.1
"""Share of the effective number of clusters that removal may cost."""

_REPEATS = 5
_HALF = 2_000
"""Most points in one half of a repeat, and most that a partition is fitted to."""
_STARTS = 4
_LEAST_MARGIN = 0.03
_NEAR = 0.02
"""By how much stabilities may differ and still count as the same."""
_PER_CLUSTER = 4


@dataclass(frozen=True)
class Choice:
    """A value that was chosen from candidates, and how.

    Args:
        value: the candidate that was chosen.
        candidates: in ascending order.
        mean: of the criterion for each candidate, over the repeats; higher is better.
        std: its standard deviation over the repeats (divisor one less than their number); for the
            number of clusters, that of the points and that of the Gaussian, added in squares.
        criterion: its name.
        reference: where it comes from.
        convincing: whether the criterion at `value` is beyond what chance gives.
        diversity: for the removed mass, the effective number of clusters that is left for each
            candidate, as a share of that of all points; empty for the number of clusters.
    """

    value: float
    candidates: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    criterion: str
    reference: str
    convincing: bool
    diversity: tuple[float, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns all fields as values that JSON can hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class _Criterion:
    """One way to choose the number of clusters.

    Args:
        score: of two disjoint samples, for k and a seed.
        compare: turns scores of the points and of points without clusters into values of the
            criterion; (repeats, candidates), or the means over the repeats (candidates,).
        pick: index of the candidate, from mean and standard deviation of the values.
        least: what the mean less two standard errors must reach to be convincing.
        reference: where it comes from.
    """

    score: Callable[[Array, Array, int, int], float]
    compare: Callable[[Values, Values], Values]
    pick: Callable[[Values, Values], int]
    least: float
    reference: str


def choose_num_clusters(
    points: Tensor,
    candidates: Sequence[int] = NUM_CLUSTERS,
    criterion: str = STABILITY,
    *,
    make_clusterer: MakeClusterer | None = None,
    seed: int = 0,
) -> Choice:
    """Chooses the number of clusters k.

    Five times two disjoint halves of at most 2,000 points are drawn, and two samples of as many
    from a Gaussian with the mean and the covariance of the points, which has no clusters. The
    criteria compare the two; all of them use k-means (four starts), unless `make_clusterer` is
    given for "stability":

    * "stability": both halves are clustered, and the second also by the nearest centres of the
      first; a is the adjusted Rand index of the two labellings of the second half, b its mean for
      the Gaussian, and the criterion (a - b) / (1 - b): 0 for points without clusters, 1 if every
      repeat finds the same clusters. Of the candidates within one standard deviation of the best
      mean, or within 0.02 of it if that is more, the largest is taken.
    * "gap": the logarithm of the sum of squares within clusters, Gaussian less points. The first
      candidate is taken whose gap is at least that of the next less its standard deviation times
      √(1 + 1/5); if there is none, that of the largest gap.

    The choice is convincing if its mean less two standard errors is at least 0.1 for "stability"
    and 0.01 for "gap". If it is not, a warning says so.

    Args:
        points: (n, d), where clusters are looked for; n at least four times the largest candidate.
        candidates: whole numbers from 2.
        criterion: one of the two names.
        make_clusterer: makes, of k and a seed, what "stability" clusters with: an object with
            `fit(points)` and `predict(points)`, as scikit-learn's clusterers have them.
        seed: of the halves, the Gaussian and k-means.

    Raises:
        UnknownNameError: no criterion has the name.
        ParameterError: a candidate is no whole number from 2, or there are too few points.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]]).repeat(100, 1)
        >>> noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> choose_num_clusters(corners + noise, candidates=range(2, 6)).value
        3
    """
    from sklearn.exceptions import ConvergenceWarning

    ordered = check_num_clusters(len(points), candidates, criterion)
    chosen_by = _CRITERIA[criterion]
    score = chosen_by.score
    if make_clusterer is not None and criterion == STABILITY:
        score = partial(_agreement, make_clusterer=make_clusterer)
    array = _as_array(points)
    scores, null = np.zeros((_REPEATS, len(ordered))), np.zeros((_REPEATS, len(ordered)))
    with thread_limit(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # points may repeat
        for repeat in range(_REPEATS):
            random = _random(seed, "halves", repeat)
            halves, gaussian = _halves(array, random), _gaussian_halves(array, random)
            for index, k in enumerate(ordered):
                kmeans_seed = derive_seed(seed, criterion, repeat, k) % 2**31
                scores[repeat, index] = score(*halves, k, kmeans_seed)
                null[repeat, index] = score(*gaussian, k, kmeans_seed)
    by_points = chosen_by.compare(scores, null.mean(axis=0))
    by_null = chosen_by.compare(scores.mean(axis=0), null)
    mean = by_points.mean(axis=0)
    std = np.hypot(by_points.std(axis=0, ddof=1), by_null.std(axis=0, ddof=1))
    index = chosen_by.pick(mean, std)
    convincing = bool(mean[index] - 2 * _standard_error(std[index]) >= chosen_by.least)
    choice = Choice(
        value=ordered[index],
        candidates=tuple(ordered),
        mean=_plain(mean),
        std=_plain(std),
        criterion=criterion,
        reference=chosen_by.reference,
        convincing=convincing,
    )
    if not convincing:
        warnings.warn(
            f"no number of clusters is convincing: the {criterion} of the best, {choice.value}, is "
            f"{mean[index]:.3f} ± {std[index]:.3f}, where 0 is that of points without clusters, "
            f"and would have to be {chosen_by.least} by two standard errors; give the number "
            "yourself, or take a cluster sampler that sees images",
            PgmkitWarning,
            stacklevel=2,
        )
    return choice


def choose_removed_mass(
    points: Tensor,
    log_weights: Tensor,
    candidates: Sequence[float] = REMOVED_MASS,
    *,
    num_clusters: int,
    max_loss: float = MAX_LOSS,
    seed: int = 0,
) -> Choice:
    """Chooses which share of the points to remove, those of smallest weight first.

    What ought to go are points between clusters (LASH paper, section 3.1). Five times k-means
    (four starts) is fitted to at most 2,000 points and gives every point its margin
    1 - d₁/d₂, with d₁ and d₂ the distances to the nearest and second nearest centre: 0 half way
    between two clusters, 1 at a centre. The criterion, "margin", is the share of the variance of
    the margins that lies between removed and kept points: with a share r removed,

        r (1 - r) (kept mean - removed mean)² / variance,

    negative where the removed points have the larger margins. It has its maximum where the
    weights cut off what lies between clusters and nothing else.

    What is lost is measured on the same partition, that of all points: the effective number of
    clusters exp(-Σ p log p), p being the shares of kept points. Of the candidates that leave at
    least `1 - max_loss` of it, the one with the largest criterion is taken; if there are none, the
    smallest candidate. The choice is convincing if its mean less two standard errors is at least
    0.03. If it is not, a warning says so.

    Args:
        points: (n, d), where clusters are looked for.
        log_weights: (n,); those with the smallest go first.
        candidates: fractions in [0, 1), each of which leaves a point for each cluster.
        num_clusters: k, at least 2.
        max_loss: share of the effective number of clusters that may be lost, in [0, 1).
        seed: of the samples and k-means.

    Raises:
        ParameterError: an argument is outside its range.
    """
    ordered = check_removed_mass(len(points), candidates, num_clusters, max_loss)
    if log_weights.shape != (len(points),):
        raise ParameterError(
            f"the log-weights have shape {tuple(log_weights.shape)} for {len(points)} points"
        )
    from sklearn.exceptions import ConvergenceWarning

    array = _as_array(points)
    order = log_weights.argsort(descending=True, stable=True).cpu().numpy()
    gain, left = np.zeros((_REPEATS, len(ordered))), np.zeros((_REPEATS, len(ordered)))
    with thread_limit(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for repeat in range(_REPEATS):
            sample = _random(seed, "sample", repeat).permutation(len(array))[:_HALF]
            kmeans_seed = derive_seed(seed, "margin", repeat) % 2**31
            distances = _kmeans(array[sample], num_clusters, kmeans_seed).transform(array)
            labels, margins = distances.argmin(axis=1)[order], _margins(distances)[order]
            for index, remove in enumerate(ordered):
                kept = num_kept(len(array), remove)
                gain[repeat, index] = _explained(margins, kept)
                left[repeat, index] = _effective_number(labels[:kept], num_clusters)
            left[repeat] /= _effective_number(labels, num_clusters)
    mean, std, diversity = gain.mean(axis=0), gain.std(axis=0, ddof=1), left.mean(axis=0)
    allowed = np.flatnonzero(diversity >= 1 - max_loss)
    index = int(allowed[mean[allowed].argmax()]) if len(allowed) else 0
    reached = mean[index] - 2 * _standard_error(std[index]) >= _LEAST_MARGIN
    choice = Choice(
        value=ordered[index],
        candidates=tuple(ordered),
        mean=_plain(mean),
        std=_plain(std),
        criterion="margin",
        reference="between-class variance (Otsu 1979) of k-means margins",
        convincing=bool(reached and len(allowed)),
        diversity=_plain(diversity),
    )
    if not choice.convincing:
        why = (
            f"at the best, {choice.value:g}, removal explains {mean[index]:.3f} ± {std[index]:.3f} "
            f"of the variance of the margins, and would have to explain {_LEAST_MARGIN} by two "
            "standard errors"
            if len(allowed)
            else f"each loses more than {max_loss:g} of the effective number of clusters, and "
            f"{choice.value:g} is the smallest"
        )
        warnings.warn(
            f"no removed mass is convincing: {why}; give the fraction yourself, or take a cluster "
            "sampler that sees images",
            PgmkitWarning,
            stacklevel=2,
        )
    return choice


def check_num_clusters(
    num_points: int, candidates: Sequence[int] = NUM_CLUSTERS, criterion: str = STABILITY
) -> list[int]:
    """Checks what `choose_num_clusters` takes, and returns the candidates in ascending order.

    Raises:
        UnknownNameError: no criterion has the name.
        ParameterError: a candidate is no whole number from 2, or there are too few points.
    """
    if criterion not in _CRITERIA:
        raise UnknownNameError("criterion for the number of clusters", str(criterion), [*_CRITERIA])
    ordered = _checked_candidates("the number of clusters", candidates)
    for k in ordered:
        check_count("a candidate for the number of clusters", k)
        if k < 2:
            raise ParameterError("the candidates for the number of clusters are from 2, not 1")
    if num_points < _PER_CLUSTER * ordered[-1]:
        raise ParameterError(
            f"choosing up to {ordered[-1]} clusters needs at least {_PER_CLUSTER * ordered[-1]} "
            f"points, and there are {num_points}; draw more latents or give smaller candidates"
        )
    return ordered


def check_removed_mass(
    num_points: int,
    candidates: Sequence[float] = REMOVED_MASS,
    num_clusters: int = 2,
    max_loss: float = MAX_LOSS,
) -> list[float]:
    """Checks what `choose_removed_mass` takes, and returns the candidates in ascending order.

    Raises:
        ParameterError: an argument is outside its range.
    """
    check_count("the number of clusters", num_clusters)
    if num_clusters < 2:
        raise ParameterError(
            "choosing the removed mass needs at least 2 clusters, not 1; give their number"
        )
    if not isinstance(max_loss, int | float) or not 0 <= max_loss < 1:
        raise ParameterError(f"max_loss is a share in [0, 1), such as 0.1, not {max_loss!r}")
    ordered = _checked_candidates("the removed mass", candidates)
    for remove in ordered:
        check_remove(remove)
    if num_kept(num_points, ordered[-1]) < num_clusters:
        raise ParameterError(
            f"removing {ordered[-1]:g} of {num_points} points leaves fewer than the {num_clusters} "
            "clusters; draw more latents or give smaller candidates"
        )
    return ordered


def describe_choice(what: str, record: Mapping[str, Any]) -> str:
    """Returns one line on a value, one of `CHOSEN`, from the record of its `Choice`."""
    index = record["candidates"].index(record["value"])
    doubt = "" if record["convincing"] else "; no candidate is convincing"
    return (
        f"{CHOSEN[what]} {record['value']:g} of {record['candidates'][0]:g} to "
        f"{record['candidates'][-1]:g}, chosen by {record['criterion']}: "
        f"{record['mean'][index]:.3f} ± {record['std'][index]:.3f}{doubt}"
    )


def auto_options(what: str, value: object, known: Sequence[str]) -> dict[str, Any] | None:
    """Returns how a value is to be chosen, or None if it is given.

    Args:
        what: the value, for the messages.
        value: a number; or "auto"; or a table with `name = "auto"` and options.
        known: names of the options.

    Raises:
        ParameterError: it is another string or table.
    """
    if isinstance(value, int | float):
        return None
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or table.get("name") != AUTO:
        raise ParameterError(
            f'{what} is a number, "auto", or a table with the name "auto", not {value!r}'
        )
    options = {key: option for key, option in table.items() if key != "name"}
    for key in options:
        if key not in known:
            raise ParameterError(
                f"choosing {what} has no option {key!r}; {nearest_names(key, known)}"
            )
    return options


def _checked_candidates(what: str, candidates: Any) -> list[Any]:
    try:
        ordered = sorted(set(candidates))
    except TypeError:
        ordered = []
    if not ordered:
        raise ParameterError(f"the candidates for {what} are a list of numbers, not {candidates!r}")
    return ordered


def _as_array(points: Tensor) -> Array:
    if points.ndim != 2 or not points.isfinite().all():
        raise ParameterError(
            f"points must be finite and of shape (n, d), not {tuple(points.shape)}; "
            "look at what the cluster sampler returns as features"
        )
    array: Array = points.detach().cpu().float().numpy()
    return array


def _halves(points: Array, random: np.random.Generator) -> tuple[Array, Array]:
    half = min(_HALF, len(points) // 2)
    chosen = random.permutation(len(points))
    return points[chosen[:half]], points[chosen[half : 2 * half]]


def _gaussian_halves(points: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Draws as many points as `_halves` from a Gaussian with their mean and covariance."""
    count, dim = points.shape
    half = min(_HALF, count // 2)
    covariance = np.cov(points, rowvar=False, bias=True).reshape(dim, dim)
    variances, directions = np.linalg.eigh(covariance)
    drawn = random.standard_normal((2 * half, dim)) * np.sqrt(variances.clip(min=0))
    drawn = drawn @ directions.T + points.mean(axis=0, dtype=np.float64)
    return drawn[:half].astype(np.float32), drawn[half:].astype(np.float32)


def _agreement(
    first: Array, second: Array, k: int, seed: int, make_clusterer: MakeClusterer | None = None
) -> float:
    make = make_clusterer or make_kmeans
    by_first = make(k, seed).fit(first).predict(second)
    by_second = make(k, seed + 1).fit(second).predict(second)
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(by_first, by_second))


def _log_within(first: Array, second: Array, k: int, seed: int) -> float:
    return math.log(max(float(_kmeans(first, k, seed).inertia_), 1e-300))


def _corrected(scores: Values, null: Values) -> Values:
    """Returns how much of the way from the Gaussian's agreement to a perfect one is gone."""
    corrected: Values = (scores - null) / (1 - null).clip(min=1e-6)
    return corrected


def _below_null(scores: Values, null: Values) -> Values:
    return null - scores


def _largest_near_best(mean: Values, std: Values) -> int:
    best = int(mean.argmax())
    return int(np.flatnonzero(mean >= mean[best] - max(std[best], _NEAR))[-1])


def _first_not_below_next(mean: Values, std: Values) -> int:
    stops = mean[:-1] >= mean[1:] - std[1:] * math.sqrt(1 + 1 / _REPEATS)
    return int(stops.argmax()) if stops.any() else int(mean.argmax())


_CRITERIA = {
    STABILITY: _Criterion(
        _agreement,
        _corrected,
        _largest_near_best,
        0.1,
        "Dudoit and Fridlyand 2002; Lange et al. 2004",
    ),
    "gap": _Criterion(
        _log_within,
        _below_null,
        _first_not_below_next,
        0.01,
        "Tibshirani, Walther and Hastie 2001",
    ),
}
CRITERIA = tuple(_CRITERIA)
"""Names of the criteria for the number of clusters; the first is the default."""


def _kmeans(points: Array, k: int, seed: int) -> "KMeans":
    return make_kmeans(k, seed).fit(points)


def make_kmeans(k: int, seed: int) -> "KMeans":
    """Returns the k-means that choices are made with: four starts, at most 100 rounds."""
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=_STARTS, max_iter=100, random_state=seed)


def _margins(distances: Array) -> Values:
    """Returns 1 - d₁/d₂ for distances to all centres (n, k); 0 where both are 0."""
    nearest = np.partition(distances, 1, axis=1)[:, :2].astype(np.float64)
    return 1 - np.divide(
        nearest[:, 0], nearest[:, 1], out=np.ones(len(nearest)), where=nearest[:, 1] > 0
    )


def _explained(margins: Values, kept: int) -> float:
    """Returns the signed share of the variance between the first `kept` margins and the rest."""
    variance = float(margins.var())
    if kept == len(margins) or variance == 0:
        return 0.0
    share = kept / len(margins)
    difference = float(margins[:kept].mean() - margins[kept:].mean())
    return share * (1 - share) * difference * abs(difference) / variance


def _effective_number(labels: npt.NDArray[np.int64], num_clusters: int) -> float:
    shares = np.bincount(labels, minlength=num_clusters) / len(labels)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _standard_error(std: float) -> float:
    return float(std) / math.sqrt(_REPEATS)


def _random(seed: int, *parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, *parts))


def _plain(values: Values) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
