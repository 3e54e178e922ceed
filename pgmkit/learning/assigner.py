"""A small classifier of points that learns which part each belongs to."""

import hashlib
import itertools
import warnings
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pgmkit.errors import PgmkitWarning
from pgmkit.learning.clock import Clock
from pgmkit.learning.minimise import minimise
from pgmkit.machine import thread_limit
from pgmkit.seeds import derive_seed, random_generator

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_NEIGHBOURS = 10
_GOOD_NEIGHBOURS = 0.8
_LOW_AGREEMENT = 0.9
_MOST_HELD_OUT = 2000
_WIDTH = 256
_EPOCHS = 40
_BATCH = 256
_STEPS = range(300, 2001)
_RATE = 4e-3
_WEIGHT_DECAY = 0.5
_DROPOUT = 0.5


class Assigner:
    """Learns clusters from labelled points, and assigns new points to them.

    A tenth of the points (at most 2,000) is held out. The 10 nearest neighbours vote, the nearer
    the more; if they are right on less than 80 % of what was held out, a perceptron with two hidden
    layers is trained too, and the better of the two is kept. Neighbours do well on principal
    components of images, where clusters are dense, and badly on latents, which are all about
    equally far from each other; there the perceptron does better.

    Attributes:
        agreement_: share of the held-out points that get the label they were found with, in [0, 1].
        held_out_scores_: of these points, (m, k), float64; not kept when it is saved.
    """

    def fit(self, points: Tensor, labels: Tensor, seed: int, name: str = "assigner") -> Self:
        """Learns from points (n, d) with labels (n,), from 0; warns if agreement is below 0.9.

        Args:
            points: of any floating type.
            labels: int64.
            seed: of what is held out and of the perceptron.
            name: of the loop that trains it; see `pgmkit.learning.learn`.
        """
        with thread_limit(1):
            self._fit(points.cpu().double().numpy(), labels.cpu().numpy(), seed, name)
        if self.agreement_ < _LOW_AGREEMENT:
            warnings.warn(
                f"the classifier that assigns new points agrees with the parts on only "
                f"{self.agreement_:.0%} of the points held out, so many will be assigned "
                "elsewhere; give it more, or choose another clusterer or other features",
                PgmkitWarning,
                stacklevel=2,
            )
        return self

    def _fit(self, points: Array, labels: Labels, seed: int, name: str) -> None:
        order = torch.randperm(len(points), generator=random_generator(seed, "held out")).numpy()
        num_held_out = min(max(len(points) // 10, 1), _MOST_HELD_OUT)
        held_out, rest = order[:num_held_out], order[num_held_out:]
        if not len(rest):
            rest = held_out
        spread = points.std(axis=0)
        spread = np.maximum(spread, max(1e-3 * float(spread.max()), np.finfo(np.float64).tiny))
        scaling = {"mean": _tensor(points.mean(axis=0)), "scale": _tensor(spread)}
        neighbours = {"points": _tensor(points[rest]), "labels": _tensor(labels[rest])}
        scores = _scores(neighbours, points[held_out])
        agreement = _agreement(scores, labels[held_out])
        learned = {"points": _tensor(points), "labels": _tensor(labels)}
        if agreement < _GOOD_NEIGHBOURS:
            trained = scaling | _train(
                _scaled(points[rest], scaling), _tensor(labels[rest]), seed, name
            )
            of_trained = _scores(trained, points[held_out])
            other = _agreement(of_trained, labels[held_out])
            if other > agreement:
                agreement, learned, scores = other, trained, of_trained
        self.held_out_scores_ = torch.from_numpy(scores)
        self.load_state({**learned, "agreement": torch.tensor(agreement, dtype=torch.float64)})

    def scores(self, points: Tensor) -> Tensor:
        """Returns votes or logits for each label, float64 (n, k) on the CPU, of points (n, d)."""
        return torch.from_numpy(_scores(self._state, points.detach().cpu().double().numpy()))

    @property
    def num_labels(self) -> int:
        """How many labels there are, k."""
        found = self._state
        return int(found["labels"].max()) + 1 if "labels" in found else len(found["bias.2"])

    def state(self) -> dict[str, Tensor]:
        """Returns all that was learned, by name."""
        return self._state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._state = state
        self.agreement_ = float(state["agreement"])


def _agreement(scores: Array, labels: Labels) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def _scores(state: dict[str, Tensor], points: Array) -> Array:
    """Returns the votes of the neighbours, or the logits of the perceptron, in `state`, (n, k)."""
    if "points" in state:
        from sklearn.neighbors import KNeighborsClassifier

        known, labels = state["points"].numpy(), state["labels"].numpy()
        neighbours = KNeighborsClassifier(min(_NEIGHBOURS, len(known)), weights="distance")
        votes = np.zeros((len(points), int(labels.max()) + 1))
        if len(points):
            votes[:, np.unique(labels)] = neighbours.fit(known, labels).predict_proba(points)
        return votes
    values = _scaled(points, state)
    for index in (0, 1, 2):
        values = values @ state[f"weight.{index}"].T + state[f"bias.{index}"]
        values = values if index == 2 else values.relu()
    logits: Array = values.double().numpy()
    return logits


def _train(inputs: Tensor, targets: Tensor, seed: int, name: str) -> dict[str, Tensor]:
    """Trains a perceptron on inputs (n, d), float32, and returns its weights and biases."""
    own = derive_seed(seed, "assigner")
    widths = (inputs.shape[1], _WIDTH, _WIDTH, int(targets.max()) + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
    hidden = [part for layer in layers[:2] for part in (layer, nn.ReLU(), nn.Dropout(_DROPOUT))]
    network = nn.Sequential(*hidden, layers[2])

    def loss(clock: Clock) -> Tensor:
        batch = torch.randint(len(inputs), (_BATCH,), generator=clock.random)
        return nn.functional.cross_entropy(network(inputs[batch]), targets[batch])

    minimise(
        loss,
        [network],
        steps=min(max(_EPOCHS * len(inputs) // _BATCH, _STEPS[0]), _STEPS[-1]),
        learning_rate=_RATE,
        weight_decay=_WEIGHT_DECAY,
        seed=own,
        name=name,
        identity={"points": _digest(inputs), "labels": _digest(targets)},
    )
    learned = {f"weight.{index}": layer.weight.detach() for index, layer in enumerate(layers)}
    return learned | {f"bias.{index}": layer.bias.detach() for index, layer in enumerate(layers)}


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().data).hexdigest()


def _scaled(points: Array, state: dict[str, Tensor]) -> Tensor:
    """Returns points (n, d), float32, with mean 0 and standard deviation 1 in each coordinate."""
    return ((torch.from_numpy(points) - state["mean"]) / state["scale"]).float()


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
