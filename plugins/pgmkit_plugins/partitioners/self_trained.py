"""The parts of another partitioner, corrected by a network that learns them from the images."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import contracts
from pgmkit.components import name_of, parameters_of
from pgmkit.config import check_count
from pgmkit.errors import ParameterError, PgmkitWarning
from pgmkit.images import ImageSource, batches, preset
from pgmkit.learning.encoder import check_images, check_training, image_bytes, looked_at
from pgmkit.learning.labeller import labeller_of, learn_labels
from pgmkit.partition import gathered_logits, one_part
from pgmkit.plugins import build
from pgmkit.seeds import random_generator


class SelfTrained:
    """A network learns the parts that another partitioner finds, and says what each image shows.

    Another partitioner, the base, finds parts. A small network then learns them from deformed
    images, too briefly to learn by heart what does not follow from what the images show, so that
    it disagrees with the base mostly where the base is wrong. Further rounds learn from the
    parts of the network before. This is self-training (Scudder 1965; with deformed inputs, Xie
    et al., "Self-training with Noisy Student", 2020) from clusters instead of labels; it uses
    neither labels nor data. Its logits have a gradient, whatever those of the base have.

    A network that gives a part no images learns again from as many of each, since small parts are
    easily overlooked. If it still gives it none, a later round is not taken, and of the first a
    warning is given.

    Args:
        num_partitions: k, at least 1; a single part is everything, and nothing is learned.
        base: the other partitioner: a name, a table, or an object with as many parts.
        rounds: how often a network learns, at least 1.
        steps: of training in each round, at least 1.
        batch_size: images per step, at least 4.
        strength: of the deformations, at least 0; see `pgmkit.images.deform`.
        width: channels of the network's first layer, at least 1.
        residual: whether the network has residual blocks, which photographs want; see
            `pgmkit.learning.encoder.Encoder`.
        deep: whether these are more, which wants an accelerator; see there.
        deformations: for what kind of images; see `pgmkit.images.preset`.
        learning_rate: the highest, above 0.
        max_images: it learns from so many that are drawn, and all where there are fewer.

    Attributes:
        network_: images (B, C, 32, 32) in [-1, 1] to logits (B, k).
        unchanged_: share of the fitted images that stay in the part that the base found, in [0, 1].
    """

    def __init__(
        self,
        num_partitions: int = 10,
        base: Any = "most-stable",
        rounds: int = 2,
        steps: int = 150,
        batch_size: int = 128,
        strength: float = 0.5,
        width: int = 24,
        residual: bool = False,
        deep: bool = False,
        deformations: str = "auto",
        learning_rate: float = 2e-3,
        max_images: int = 20_000,
    ) -> None:
        check_count("max_images", max_images)
        check_count("num_partitions", num_partitions)
        check_count("rounds", rounds)
        check_training(steps, batch_size, width, learning_rate, residual, deep)
        preset(deformations, channels=1).scaled(strength)  # which checks them
        if batch_size < 4:
            raise ParameterError(f"batch_size must be a whole number from 4, not {batch_size}")
        given = {"num_partitions": num_partitions} if isinstance(base, str | Mapping) else {}
        self.num_partitions = num_partitions
        self.base = build("partitioners", base, **given)
        contracts.check_number(self.base, num_partitions)
        if contracts.space_of(self.base) != "images":
            raise ParameterError("the base of self-trained must look at images, not at latents")
        self.rounds = rounds
        self.steps = steps
        self.batch_size = batch_size
        self.strength = strength
        self.width = width
        self.residual = residual
        self.deep = deep
        self.deformations = deformations
        self.learning_rate = learning_rate
        self.max_images = max_images
        self.network_: nn.Sequential | None = None
        self._findings: dict[str, Any] = {}

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fits the base, and the network to its parts."""
        if self._is_single():
            return
        check_images(source.image, "the partitioner 'self-trained'")
        contracts.fit("partitioners", self.base, source, seed)
        self._learn(source, seed)

    def prepare(self, source: ImageSource, *, seed: int) -> Tensor:
        """Returns the points (n, d) of the base.

        Raises:
            ParameterError: the base has none.
        """
        check_images(source.image, "the partitioner 'self-trained'")
        return contracts.prepared_points(self._prepares(), source, seed)

    def make_clusterer(self, num_partitions: int, seed: int) -> Any:
        """Returns what finds so many clusters of the base's points."""
        return self._prepares().make_clusterer(num_partitions, seed)

    def split(self, source: ImageSource, *, seed: int) -> None:
        """Finds the base's parts, and fits the network to them."""
        base = self._prepares()
        base.num_partitions = self.num_partitions
        if not self._is_single():
            contracts.split(base, source, seed)
            self._learn(source, seed)

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the network, float32 (B, k)."""
        return self.head(self.represent(x))

    def represent(self, x: Tensor) -> Tensor:
        """Returns what the last layer of the network looks at, float32 (B, 128)."""
        if self.network_ is None:
            return one_part(x)
        points: Tensor = self.network_[:-1].to(x.device)(looked_at(x))
        return points

    def head(self, points: Tensor) -> Tensor:
        """Returns what the last layer of the network makes of points (B, 128), (B, k)."""
        if self.network_ is None:
            return points
        logits: Tensor = self.network_[-1].to(points.device)(points)
        return logits

    def findings(self) -> Mapping[str, Any]:
        """Returns what the base found and how many images stayed in their part; not once loaded."""
        return self._findings

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights of the network; the base is no longer needed."""
        return {} if self.network_ is None else self.network_.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.network_, self._findings = labeller_of(state) if state else None, {}

    def _is_single(self) -> bool:
        """Returns whether there is a single part, which is everything, and then forgets others."""
        if self.num_partitions == 1:
            self.network_, self._findings = None, {}
        return self.num_partitions == 1

    def _prepares(self) -> contracts.Prepares:
        if not isinstance(self.base, contracts.Prepares):
            raise ParameterError(
                f"the base {name_of(self.base)!r} does not tell its points, so nothing can be "
                "chosen by them; give the number of clusters and the removed mass, or another base"
            )
        return self.base

    def _learn(self, source: ImageSource, seed: int) -> None:
        found = first = gathered_logits(self.base, source).argmax(dim=1)
        self.num_partitions = contracts.num_partitions_of(self.base)
        chosen = torch.randperm(len(source), generator=random_generator(seed, "self-training"))
        chosen = chosen[: self.max_images]
        pool = image_bytes(source.subset(chosen))
        for turn in range(self.rounds):
            for even in (False, True):
                name = f"self-training, round {turn + 1}{', evenly' if even else ''}"
                network = self._train(pool, found[chosen], even, source, seed, name)
                labels = _labels(network, source)
                lost = sorted(set(found.tolist()) - set(labels.tolist()))
                if not lost:
                    break
            if lost and turn:
                break
            if lost:
                _warn_of_lost(lost)
            self.network_, found = network, labels
        self.unchanged_ = float((found == first).double().mean())
        told = contracts.findings_of("partitioners", self.base)
        self._findings = {f"base {name}": value for name, value in told.items()}
        self._findings["unchanged"] = round(self.unchanged_, 4)

    def _train(
        self,
        pool: Tensor,
        labels: Tensor,
        even: bool,
        source: ImageSource,
        seed: int,
        name: str,
    ) -> nn.Sequential:
        """Returns a network that has learned the labels (n,) of images (n, C, S, S) in bytes.

        With `even` it sees all parts equally often.
        """
        return learn_labels(
            pool,
            labels,
            self.num_partitions,
            device=source.device,
            steps=self.steps,
            batch_size=self.batch_size,
            width=self.width,
            residual=self.residual,
            deep=self.deep,
            deformations=preset(self.deformations, source.image.shape[0]).scaled(self.strength),
            learning_rate=self.learning_rate,
            evenly=even,
            seed=seed,
            name=name,
            identity={"partitioner": parameters_of(self), "images": source.summary()},
        )


@torch.no_grad()
def _labels(network: nn.Module, source: ImageSource) -> Tensor:
    found = [network(looked_at(x)).argmax(dim=1).cpu() for x in batches(source)]
    return torch.cat(found)


def _warn_of_lost(parts: list[int]) -> None:
    warnings.warn(
        f"the network gives no images to {len(parts)} parts that the base found: "
        f"{', '.join(map(str, parts[:8]))}; ask for fewer parts, or train it for more steps",
        PgmkitWarning,
        stacklevel=2,
    )
