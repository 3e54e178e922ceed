"""The clusters of another sampler, corrected by a network that learns them from the images."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.config import check_count, component_table
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.plugins import build_from_table
from pgmkit.seeds import derive_seed, random_generator
from pgmkit_plugins.samplers.composed import (
    Array,
    ComposedSampler,
    clusterer_of,
    images_of,
    with_prefix,
    without_prefix,
)
from pgmkit_plugins.samplers.learned import Encoder, deformed, image_bytes, looked_at

_POOL = 20_000
_BATCH = 256
_SMOOTHING = 0.1


class SelfTrained(ComposedSampler):
    """A network learns the clusters of another sampler and says what each image shows.

    Another sampler, the base, finds clusters. A small network then learns them from deformed
    images, too briefly to learn by heart what does not follow from what the images show, so that
    it disagrees with the base mostly where the base is wrong. Further rounds learn from the
    clusters of the network before. This is self-training (Scudder 1965; with deformed inputs, Xie
    et al., "Self-training with Noisy Student", 2020) from clusters instead of labels; it uses
    neither labels nor data.

    A round that would leave a cluster without latents is not taken.

    Args:
        num_clusters: k, at least 1.
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
        base_agreement_: share of the fitted latents that stay in the cluster that the base found,
            float64, in [0, 1].
    """

    _name = "self-trained"
    _saved = ("labels", "base_agreement")

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
        check_count("rounds", rounds)
        check_count("steps", steps)
        check_count("batch_size", batch_size)
        check_count("width", width)
        if batch_size < 2:
            raise ParameterError("batch_size must be a whole number from 2, not 1")
        if not strength >= 0:
            raise ParameterError(f"strength must be at least 0, not {strength!r}")
        if not learning_rate > 0:
            raise ParameterError(f"learning_rate must be above 0, not {learning_rate!r}")
        self.base = base
        self.rounds = rounds
        self.steps = steps
        self.batch_size = batch_size
        self.strength = strength
        self.width = width
        self.flip = flip
        self.learning_rate = learning_rate
        self._of_base: dict[str, Any] = {}
        self._base = self._build_base()  # a name or parameters that do not fit are refused here

    def features(
        self, latents: Tensor, *, generator: Generator | None = None, seed: int = 0
    ) -> Tensor:
        """Returns the points of the base (n, d), float64; see `ComposedSampler`."""
        self._base = self._build_base()
        if not hasattr(self._base, "features"):
            raise ParameterError(
                f"the cluster sampler {self._table()['name']!r} has no features(), so nothing can "
                "be chosen by its points; give num_clusters, or another base"
            )
        points: Tensor = self._base.features(latents, generator=generator, seed=seed)
        return points

    def make_clusterer(self, num_clusters: int, seed: int) -> Any:
        """Returns what finds so many clusters of the base's points."""
        return clusterer_of(self._base, num_clusters, seed)

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Fits the base, and the network to its clusters."""
        generator = images_of(self._generator, self._name)
        first = self._fit_base(latents, seed)
        random = random_generator(seed, "self-training")
        chosen = torch.randperm(len(latents), generator=random)[:_POOL]
        pool = image_bytes(generator, latents[chosen])
        found = first
        for turn in range(self.rounds):
            network = self._train(pool, found[chosen], random, derive_seed(seed, "network", turn))
            labels = torch.from_numpy(self._logits(network, latents).argmax(axis=1))
            if turn and len(labels.unique()) < len(found.unique()):
                break
            self.network_, found = network, labels
        self.base_agreement_ = (found == first).double().mean()

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
        """Returns what the base told (unless this was loaded), and what stayed of its clusters."""
        own = {"base agreement": round(float(self.base_agreement_), 4), **super().summary()}
        return {**self._of_base, **own}

    def _find_clusters(self, points: Array, random_state: int) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = points.argmax(axis=1)
        return labels

    def _scores(self, points: Array) -> Array:
        return points

    def _table(self) -> dict[str, Any]:
        return component_table("base", self.base, "most-stable")

    def _build_base(self) -> Any:
        return build_from_table("cluster-samplers", self._table())

    def _fit_base(self, latents: Tensor, seed: int) -> Tensor:
        """Returns the clusters (n,) that the base finds, with what it prepared in `features`."""
        base, self._base = self._base, self._build_base()
        base.set_params(num_clusters=self.num_clusters)
        base.fit(latents, generator=self._generator, seed=seed)
        told: dict[str, Any] = getattr(base, "summary", dict)()
        self._of_base = {f"base {name}": told[name] for name in told if name != "acceptance"}
        labels: Tensor = torch.as_tensor(base.labels_).cpu()
        return labels

    @torch.no_grad()
    def _logits(self, network: nn.Module, latents: Tensor) -> Array:
        generator = images_of(self._generator, self._name)
        network.to(generator.device)
        parts = [
            network(looked_at(generator, batch)).double().cpu() for batch in latents.split(_BATCH)
        ]
        logits: Array = torch.cat(parts).numpy()
        return logits

    def _train(self, pool: Tensor, labels: Tensor, random: torch.Generator, seed: int) -> nn.Module:
        """Returns a network that has learned the labels (n,) of images (n, C, S, S) in bytes."""
        device = images_of(self._generator, self._name).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(pool.shape[1], self.width, int(labels.max()) + 1)
        network = network.to(device).to(memory_format=torch.channels_last)
        flip = pool.shape[1] > 1 if self.flip is None else self.flip
        batch = min(self.batch_size, len(pool))
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=max(self.steps, 2)
        )
        for _ in range(self.steps):
            index = torch.randperm(len(pool), generator=random)[:batch]
            images = pool[index].to(device).float().div_(127.5).sub_(1)
            logits = network(deformed(images, self.strength, flip, random))
            loss = functional.cross_entropy(
                logits, labels[index].to(device), label_smoothing=_SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return network.eval().requires_grad_(False)


def _network(image_channels: int, width: int, num_clusters: int) -> nn.Sequential:
    return nn.Sequential(
        Encoder(image_channels, width), nn.ReLU(), nn.Linear(Encoder.features, num_clusters)
    )
