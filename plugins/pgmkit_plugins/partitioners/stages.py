"""The two stages in which the partitioner of Partition-Guided GANs learns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from pgmkit.config import check_count
from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.images import Deformations, ImageSource, batches, deformed
from pgmkit.learning import Batch, Clock, ranks
from pgmkit.learning.contrast import contrastive_loss
from pgmkit.learning.halves import Halves
from pgmkit.learning.neighbours import nearest_neighbors
from pgmkit.learning.optimizers import eager
from pgmkit.learning.precision import InBfloat16
from pgmkit.learning.recorded import Recorded
from pgmkit.learning.schedules import cosine, set_rate
from pgmkit.seeds import random_generator
from pgmkit_plugins.partitioners.invertible import Headed

THIRD_TERMS = ("none", "confidence", "weights")
"""What T in Eq. 5 may be."""

_SEEN = 1_000
"""Images that are looked at on the way, for the eye."""
_FEW_NEIGHBORS = 10


@dataclass(frozen=True, kw_only=True)
class PretextSettings:
    """How the pretext stage learns: by contrast, with SGD, its rate on half a cosine down to 0.

    Args:
        epochs: passes over the images; or else `steps`.
        steps: of training; or else `epochs`.
        batch_size: images of a step, at least 2; each is seen in two versions.
        learning_rate: in the first step, above 0.
        momentum: in [0, 1).
        weight_decay: at least 0.
        temperature: of the NT-Xent loss, above 0.
        projection: widths of the two layers behind φ that make the projections which are compared.
    """

    epochs: int | None = 500
    steps: int | None = None
    batch_size: int = 400
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 3e-5
    temperature: float = 0.1
    projection: tuple[int, int] = (512, 128)

    def __post_init__(self) -> None:
        _check_length("pretext", self.epochs, self.steps, self.batch_size)
        check_range("pretext.learning_rate", self.learning_rate, above=0)
        check_range("pretext.momentum", self.momentum, least=0, below=1)
        check_range("pretext.weight_decay", self.weight_decay, least=0)
        check_range("pretext.temperature", self.temperature, above=0)
        for width in self.projection:
            check_count("each of pretext.projection", width)


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """How the partition stage learns: by Eq. 5, with Adam at one rate.

    Args:
        epochs: passes over the images; or else `steps`.
        steps: of training; or else `epochs`.
        batch_size: images of a step, at least 2; each is seen with one of its neighbours.
        learning_rate: above 0.
        num_neighbors: of each image, one of which each step draws.
        alpha: α, of the entropy of the mean, at least 0.
        third_term: T, one of `THIRD_TERMS`.
        beta: β, of T, at least 0.
    """

    epochs: int | None = 100
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-4
    num_neighbors: int = 20
    alpha: float = 5.0
    third_term: str = "none"
    beta: float = 1e-3

    def __post_init__(self) -> None:
        _check_length("partition", self.epochs, self.steps, self.batch_size)
        check_range("partition.learning_rate", self.learning_rate, above=0)
        check_count("partition.num_neighbors", self.num_neighbors)
        check_range("partition.alpha", self.alpha, least=0)
        check_range("partition.beta", self.beta, least=0)
        if self.third_term not in THIRD_TERMS:
            raise UnknownNameError("third term of Eq. 5", self.third_term, THIRD_TERMS)


class Stage:
    """A network that learns from pairs of images.

    Args:
        network: φ, and what makes projections or logits of it.
        optimizer: of its parameters.
        source: where images come from.
        steps: of training.
        power_iterations: of φ in each step.
        deformations: of both images of a pair.
        in_bfloat16: whether the network runs in bfloat16 as far as autocast lets it.

    Attributes:
        losses: of every step, float32 (steps,).
    """

    def __init__(
        self,
        network: Headed,
        optimizer: torch.optim.Optimizer,
        source: ImageSource,
        *,
        steps: int,
        power_iterations: int,
        deformations: Deformations,
        in_bfloat16: bool,
    ) -> None:
        self.network, self.optimizer, self.source = network, optimizer, source
        self.deformations = deformations
        representation = network.representation
        self._iterate = Recorded(lambda: representation.iterate(power_iterations), source.device)
        self.halves = Halves(InBfloat16(network) if in_bfloat16 else network)
        self.losses = torch.zeros(steps, device=source.device)
        self.parts: dict[str, Any] = {
            "network": network,
            "optimizer": optimizer,
            "losses": self.losses,
        }

    def seen(self, images: Sequence[Tensor], clock: Clock) -> tuple[Tensor, Tensor]:
        """Returns what the network makes of a deformed version of each of two batches."""

        def version(number: int) -> Tensor:
            random = random_generator(clock.seed, "version", number)
            return deformed(images[number], self.deformations, random)

        self._iterate()
        return self.halves(version)

    def losses_of(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Returns the "loss" of a batch, and the terms that it is made of."""
        raise NotImplementedError

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        """Learns from a batch."""
        losses = self.losses_of(next(batches), clock)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        ranks.average_gradients(self.network.parameters())
        self.optimizer.step()
        told = {name: value.detach() for name, value in losses.items()}
        self.losses[clock.step] = told["loss"]
        return told

    @property
    def last_loss(self) -> float:
        """The mean loss of the last tenth of all steps."""
        return float(self.losses[-max(len(self.losses) // 10, 1) :].mean())


class PretextStage(Stage):
    """Projections of two versions of an image agree, and those of different images do not."""

    def __init__(
        self, network: Headed, source: ImageSource, settings: PretextSettings, **how: Any
    ) -> None:
        optimizer = eager(torch.optim.SGD)(
            network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        super().__init__(network, optimizer, source, **how)
        self.settings = settings

    def losses_of(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Returns the NT-Xent loss of two versions of each image."""
        set_rate(self.optimizer, cosine(clock, self.settings.learning_rate, 0.0))
        left, right = self.seen([batch.images, batch.images], clock)
        return {"loss": contrastive_loss(left, right, self.settings.temperature)}

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        """Returns how often near neighbours have the same label, among some of the images."""
        some = _some_of(self.source)
        if some.labels is None:
            return {}
        self.network.head.eval()  # whose batch norm would learn from these images
        points = gathered(self.network, some)
        self.network.head.train()
        if not points.isfinite().all():
            return {}  # the loss will say so
        near = nearest_neighbors(nn.functional.normalize(points), _FEW_NEIGHBORS)
        return {"neighbours of the same label": same_label(near, some.labels)}


class PartitionStage(Stage):
    """Images and their neighbours get the same part, and all parts get images (Eq. 5).

    Args:
        network: φ and W.
        source: where images come from.
        settings: see `PartitionSettings`.
        neighbours: of each image, int64 (n, m).
        how: see `Stage`.
    """

    def __init__(
        self,
        network: Headed,
        source: ImageSource,
        settings: PartitionSettings,
        neighbours: Tensor,
        **how: Any,
    ) -> None:
        optimizer = eager(torch.optim.Adam)(network.parameters(), lr=settings.learning_rate)
        super().__init__(network, optimizer, source, **how)
        self.settings, self.neighbours = settings, neighbours

    def losses_of(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Returns Eq. 5 of a batch, and of a neighbour of each image in it."""
        settings = self.settings
        near = self.neighbours[batch.index]
        which = torch.randint(near.shape[1], (len(near), 1), generator=clock.random)
        others = self.source.batch(near.gather(1, which)[:, 0])
        own, other = self.seen([batch.images, others], clock)
        terms = partition_losses(own, other)
        loss = terms["disagreement"] - settings.alpha * terms["entropy"]
        if settings.third_term == "confidence":
            loss = loss + settings.beta * terms["doubt"]
        elif settings.third_term == "weights":
            for weight in self.network.head.parameters():
                loss = loss + settings.beta * weight.square().sum()
        return {"loss": loss, **terms}

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        """Returns how many parts some of the images lie in, and NMI with their labels."""
        some = _some_of(self.source)
        parts = gathered(self.network, some).argmax(dim=1)
        told = {"parts in use": float(len(parts.unique()))}
        if some.labels is not None:
            told["NMI"] = float(normalized_mutual_info_score(some.labels.numpy(), parts.numpy()))
        return told


def partition_losses(own: Tensor, other: Tensor) -> Mapping[str, Tensor]:
    """Returns the terms of Eq. 5, in nats, of logits (B, k) of images and of their neighbours.

    Returns:
        "disagreement" −mean log⟨p, p'⟩, "entropy" H(mean p), and "doubt", the mean of H(p).
    """
    own, other = own.log_softmax(dim=1), other.log_softmax(dim=1)
    p = own.exp()
    return {
        "disagreement": -torch.logsumexp(own + other, dim=1).mean(),
        "entropy": entropy_of(p.mean(dim=0)),
        "doubt": -(p * own).sum(dim=1).mean(),
    }


def entropy_of(probabilities: Tensor) -> Tensor:
    """Returns the entropy in nats of probabilities (k,)."""
    return -torch.xlogy(probabilities, probabilities).sum()


@torch.no_grad()
def gathered(network: nn.Module, source: ImageSource) -> Tensor:
    """Returns what a network makes of all images of a source, on the CPU."""
    return torch.cat([network(x).cpu() for x in batches(source)])


def same_label(neighbours: Tensor, labels: Tensor) -> float:
    """Returns the share of neighbours (n, m) that have the label of the point they are near to."""
    return float((labels[neighbours] == labels[:, None]).double().mean())


def check_range(
    what: str,
    value: float,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises ParameterError unless a number is finite and within bounds."""
    if not (above < value < below and value >= least):
        bounds = [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"at least {least:g}"] if least > -math.inf else []
        bounds += [f"below {below:g}"] if below < math.inf else []
        raise ParameterError(f"{what} must be {' and '.join(bounds)}, not {value!r}")


def _check_length(stage: str, epochs: int | None, steps: int | None, batch_size: int) -> None:
    given = [
        (name, value) for name, value in (("epochs", epochs), ("steps", steps)) if value is not None
    ]
    if len(given) != 1:
        raise ParameterError(f"the length of the {stage} stage is either epochs or steps; give one")
    check_count(f"{stage}.{given[0][0]}", given[0][1])
    if batch_size < 2:
        raise ParameterError(f"{stage}.batch_size must be a whole number from 2, not {batch_size}")


def _some_of(source: ImageSource) -> ImageSource:
    count = min(_SEEN, len(source))
    return source.subset(torch.arange(count) * len(source) // count)
