"""A small classifier that assigns new latents where the method that found the clusters cannot."""

import itertools
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from pgmkit.errors import PgmkitWarning
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


class LatentClassifier:
    """Learns clusters from labelled points, which are latents or what was made of them.

    A tenth of the points (at most 2,000) is held out. The 10 nearest neighbours vote, the nearer
    the more; if they are right on less than 80 % of what was held out, a perceptron with two hidden
    layers is trained too, and the better of the two is kept. Neighbours do well on principal
    components of images, where clusters are dense, and badly on latents, which are all about
    equally far from each other; there the perceptron does better.

    Attributes:
        agreement_: share of the held-out points that get the label they were found with, in [0, 1].
        held_out_scores_: of these points, (m, k), float64; not kept when it is saved.
    """

    def fit(self, points: Array, labels: Labels, seed: int) -> "LatentClassifier":
        """Learns from points (n, d) with clusters (n,), from 0; warns if agreement is below 0.9."""
        order = torch.randperm(len(points), generator=random_generator(seed, "held out")).numpy()
        num_held_out = min(max(len(points) // 10, 1), _MOST_HELD_OUT)
        held_out, rest = order[:num_held_out], order[num_held_out:]
        if not len(rest):
            rest = held_out
        spread = points.std(axis=0)
        spread = np.maximum(spread, max(1e-3 * float(spread.max()), np.finfo(np.float64).tiny))
        scaling = {"mean": _tensor(points.mean(axis=0)), "scale": _tensor(spread)}
        neighbours = {"points": _tensor(points[rest]), "labels": _tensor(labels[rest])}
        self.held_out_scores_ = _scores(neighbours, points[held_out])
        agreement = _agreement(self.held_out_scores_, labels[held_out])
        learned = {"points": _tensor(points), "labels": _tensor(labels)}
        if agreement < _GOOD_NEIGHBOURS:
            trained = scaling | _train(_scaled(points[rest], scaling), _tensor(labels[rest]), seed)
            scores = _scores(trained, points[held_out])
            other = _agreement(scores, labels[held_out])
            if other > agreement:
                agreement, learned, self.held_out_scores_ = other, trained, scores
        self.load_state({**learned, "agreement": torch.tensor(agreement, dtype=torch.float64)})
        if agreement < _LOW_AGREEMENT:
            warnings.warn(
                f"the classifier that assigns new latents agrees with the clusters on only "
                f"{agreement:.0%} of the {num_held_out} latents held out, so many samples will "
                "belong elsewhere; draw more latents, or choose another clusterer or space",
                PgmkitWarning,
                stacklevel=4,
            )
        return self

    def predict(self, points: Array) -> Labels:
        """Returns the cluster of each point (n, d), int64 (n,)."""
        found: Labels = self.scores(points).argmax(axis=1)
        return found

    def scores(self, points: Array) -> Array:
        """Returns the votes or logits of each cluster for each point (n, d), (n, k), float64."""
        return _scores(self._state, points)

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
        known, labels = state["points"].numpy(), state["labels"].numpy()
        neighbours = KNeighborsClassifier(min(_NEIGHBOURS, len(known)), weights="distance")
        votes = np.zeros((len(points), int(labels.max()) + 1))
        votes[:, np.unique(labels)] = neighbours.fit(known, labels).predict_proba(points)
        return votes
    values = _scaled(points, state)
    for index in (0, 1, 2):
        values = values @ state[f"weight.{index}"].T + state[f"bias.{index}"]
        values = values if index == 2 else values.relu()
    logits: Array = values.double().numpy()
    return logits


def _train(inputs: Tensor, targets: Tensor, seed: int) -> dict[str, Tensor]:
    """Trains a perceptron on inputs (n, d), float32, and returns its weights and biases."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(derive_seed(seed, "classifier"))
        widths = (inputs.shape[1], _WIDTH, _WIDTH, int(targets.max()) + 1)
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(widths)]
        hidden = [part for layer in layers[:2] for part in (layer, nn.ReLU(), nn.Dropout(_DROPOUT))]
        network = nn.Sequential(*hidden, layers[2])
        steps = min(max(_EPOCHS * len(inputs) // _BATCH, _STEPS[0]), _STEPS[-1])
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(steps):
            batch = torch.randint(len(inputs), (_BATCH,))
            loss = nn.functional.cross_entropy(network(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    learned = {f"weight.{index}": layer.weight.detach() for index, layer in enumerate(layers)}
    return learned | {f"bias.{index}": layer.bias.detach() for index, layer in enumerate(layers)}


def _scaled(points: Array, state: dict[str, Tensor]) -> Tensor:
    """Returns points (n, d), float32, with mean 0 and standard deviation 1 in each coordinate."""
    return ((torch.from_numpy(points) - state["mean"]) / state["scale"]).float()


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
