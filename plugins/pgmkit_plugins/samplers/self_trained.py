"""The clusters of another sampler, corrected by a network that learns them from the images."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.seeds import derive_seed, random_generator
from pgmkit_plugins.samplers.composed import (
    Array,
    ComposedSampler,
    clusterer_of,
    find_clusters,
    images_of,
    inner_sampler,
    with_prefix,
    without_prefix,
)
from pgmkit_plugins.samplers.learned import (
    Encoder,
    another_version,
    check_training,
    image_bytes,
    minimised,
    seen,
)

_POOL = 20_000
_SMOOTHING = 0.1


class SelfTrained(ComposedSampler):
    """A network learns the clusters of another sampler and says what each image shows.

    Another sampler, the base, finds clusters. A small network then learns them from deformed
    images, too briefly to learn by heart what does not follow from what the images show, so that
    it disagrees with the base mostly where the base is wrong. Further rounds learn from the
    clusters of the network before. This is self-training (Scudder 1965; with deformed inputs, Xie
    et al., "Self-training with Noisy Student", 2020) from clusters instead of labels; it uses
    neither labels nor data.

    A network that gives a cluster no latents learns again from as many of each, since small
    clusters are easily overlooked. If it still gives it none, a later round is not taken, and of
    the first a warning is given.

    Args:
        num_clusters: k, at least 2.
        base: the other cluster sampler, by name or as a table of `name` and parameters.
        rounds: how often a network learns, at least 1.
        steps: of training in each round, at least 1.
        batch_size: images per step, at least 2.
        strength: of the deformations, at least 0; see `pgmkit_plugins.samplers.learned.deformed`.
        width: channels of the network's first layer, at least 1.
        flip: whether a mirror image shows the same; None means for colour images only.
        learning_rate: the highest, above 0.
        num_components: of the mapper's mixtures.
        mapper: "rejection" by default: what is drawn lies in its cluster.
        mapper_args: further parameters of the mapper.

    Attributes:
        network_: images (B, C, 32, 32) in [-1, 1] to the logits of the clusters (B, k).
        unchanged_: share of the fitted latents that stay in the cluster that the base found,
            float64, in [0, 1].
        told_by_base_: the `summary` of the base, as JSON in bytes, uint8.
    """

    _name = "self-trained"
    _saved = ("labels", "unchanged", "told_by_base")
    _makes_points = False

    def __init__(
        self,
        num_clusters: int = 10,
        base: str | Mapping[str, Any] = "most-stable",
        rounds: int = 2,
        steps: int = 200,
        batch_size: int = 128,
        strength: float = 0.5,
        width: int = 32,
        flip: bool | None = None,
        learning_rate: float = 2e-3,
        num_components: int | str = 2,
        mapper: str = "rejection",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_clusters, num_components=num_components, mapper=mapper, mapper_args=mapper_args
        )
        if num_clusters < 2:
            raise ParameterError(
                "self-trained learns to tell clusters apart, and one cluster is none; ask for at "
                "least 2, or take --sampler kmeans-gmm"
            )
        check_count("rounds", rounds)
        check_training(steps, batch_size, width, strength, flip, learning_rate)
        if batch_size < 2:
            raise ParameterError("batch_size must be a whole number from 2, not 1")
        self.base = base
        self.rounds = rounds
        self.steps = steps
        self.batch_size = batch_size
        self.strength = strength
        self.width = width
        self.flip = flip
        self.learning_rate = learning_rate
        self._build_base()  # a name or parameters that do not fit are refused here
        self._base: Any = None

    def set_params(self, **parameters: Any) -> "SelfTrained":
        """Sets parameters; see `CheckedParameters`."""
        super().set_params(**parameters)
        if set(parameters) - {"num_clusters"}:
            self._base = None
        return self

    def features(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the points of the base (n, d), float64; see `ComposedSampler`."""
        self.check_not_loaded()
        base = self._build_base()
        if not hasattr(base, "features"):
            raise ParameterError(
                f"the base {self.base!r} has no features(), so nothing can be chosen by its "
                "points; give the number of clusters and the removed mass, or another base"
            )
        points: Tensor = base.features(latents, generator=generator, seed=seed)
        self._base = base
        return points

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        """Returns what finds so many clusters of the base's points."""
        return clusterer_of(self._base, num_clusters, seed)

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Fits the base, and the network to its clusters."""
        generator = images_of(self._generator, self._name)
        found = first = self._fit_base(latents, seed)
        random = random_generator(seed, "self-training")
        chosen = torch.randperm(len(latents), generator=random)[:_POOL]
        pool = image_bytes(generator, latents[chosen])
        for turn in range(self.rounds):
            for even in (False, True):
                network_seed = derive_seed(seed, "network", turn, *(["even"] * even))
                network = self._train(pool, found[chosen], even, random, network_seed)
                logits = self._logits(network, latents)
                labels = torch.from_numpy(logits.argmax(axis=1))
                lost = sorted(set(found.tolist()) - set(labels.tolist()))
                if not lost:
                    break
            if lost and turn:
                break
            if lost:
                _warn_of_lost(lost)
            self.network_, self._made, found = network, (latents, logits), labels
        self.unchanged_ = (found == first).double().mean()

    def points(self, latents: Tensor) -> Array:
        """Returns the logits of the clusters (n, k) for latents (n, M)."""
        return self._logits(self.network_, latents)

    def points_state(self) -> dict[str, Tensor]:
        """Returns what was fitted to turn latents into points, by name."""
        weights = {name: value.cpu() for name, value in self.network_.state_dict().items()}
        return with_prefix("network.", weights)

    def load_points_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `points_state` returned; there may be more in it."""
        weights = without_prefix("network.", state)
        first, last = weights["0.body.0.weight"], weights["2.weight"]
        network = _network(first.shape[1], first.shape[0], last.shape[0])
        network.load_state_dict(weights)
        self.network_ = network.eval().requires_grad_(False)

    def summary(self) -> dict[str, Any]:
        """Returns what the base told, and how many latents stayed in their cluster, for reports."""
        told: dict[str, Any] = json.loads(bytes(self.told_by_base_.tolist()))
        own = {"unchanged": round(float(self.unchanged_), 4), **super().summary()}
        return {**{f"base {name}": told[name] for name in told}, **own}

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = points.argmax(axis=1)
        return labels

    def _scores(self, points: Array) -> Array:
        return points

    def _build_base(self) -> Any:
        return inner_sampler("base", self.base, "most-stable", {"num_clusters": self.num_clusters})

    def _fit_base(self, latents: Tensor, seed: int) -> Tensor:
        """Returns the clusters (n,) that the base finds, with what it prepared in `features`."""
        base, self._base = self._base or self._build_base(), None
        if getattr(base, "num_clusters", self.num_clusters) != self.num_clusters:
            base.set_params(num_clusters=self.num_clusters)
        labels = find_clusters(base, latents, self._generator, seed)
        self._finds_number = getattr(base, "num_clusters_", self.num_clusters) != self.num_clusters
        told: dict[str, Any] = getattr(base, "summary", dict)()
        self.told_by_base_ = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        return labels

    def _logits(self, network: nn.Module, latents: Tensor) -> Array:
        generator = images_of(self._generator, self._name)
        logits: Array = seen(generator, latents, network.to(generator.device)).double().numpy()
        return logits

    def _train(
        self, pool: Tensor, labels: Tensor, even: bool, random: torch.Generator, seed: int
    ) -> nn.Module:
        """Returns a network that has learned the labels (n,) of images (n, C, S, S) in bytes.

        With `even` it sees all clusters equally often.
        """
        device = images_of(self._generator, self._name).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(pool.shape[1], self.width, int(labels.max()) + 1)
        network = network.to(device)
        batch = min(self.batch_size, len(pool))
        weights = labels.bincount().double().reciprocal()[labels]

        def loss() -> Tensor:
            if even:
                index = torch.multinomial(weights, batch, replacement=True, generator=random)
            else:
                index = torch.randperm(len(pool), generator=random)[:batch]
            pixels, wanted = pool[index].to(device), labels[index].to(device)
            logits = network(another_version(pixels, self.strength, self.flip, random))
            return functional.cross_entropy(logits, wanted, label_smoothing=_SMOOTHING)

        learning = list(network.parameters())
        minimised(loss, learning, self.steps, self.learning_rate, weight_decay=1e-2)
        return network.eval().requires_grad_(False)


def _warn_of_lost(clusters: list[int]) -> None:
    warnings.warn(
        f"the network gives no latents to {len(clusters)} clusters that the base found: "
        f"{', '.join(map(str, clusters[:8]))}; ask for fewer clusters, or train it for more steps",
        PgmkitWarning,
        stacklevel=5,
    )


def _network(image_channels: int, width: int, num_clusters: int) -> nn.Sequential:
    layers = (Encoder(image_channels, width), nn.ReLU(), nn.Linear(Encoder.features, num_clusters))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
