"""What a conditional generator is conditioned on: parts of the images, and the guide to them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import called
from pgmkit.config import check_count
from pgmkit.errors import DataError, ParameterError
from pgmkit.images.source import ImageSource
from pgmkit.learning import Clock
from pgmkit.learning.schedules import linear
from pgmkit.learning.trial import is_trial
from pgmkit.partition import FittedPartitioner, fit_partitioner, gathered_logits
from pgmkit.partition.fixed import FixedPartitioner
from pgmkit.partition.parts import pull_of
from pgmkit.plugins import build
from pgmkit.states import (
    load_state_of,
    parts_of,
    state_of,
    table_of,
    with_prefix,
    without_prefix,
)

_STATE = "partitioner."


@dataclass(frozen=True)
class Guide:
    """How much the guide counts beside the loss: λ, which falls on a straight line.

    The guide is the sum of Eq. 6. The authors' code takes the mean over the k parts instead, so
    that its λ, from 6 to 1e-4, is k times this one.

    Args:
        start: λ in the first step, at least 0; None is 6/k.
        end: λ at the end, at least 0; None is 1e-4/k.
        steps: of the generator, after which λ stays at `end`; None is all of them.

    Raises:
        ParameterError: a number is outside its range.
    """

    start: float | None = None
    end: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ParameterError(f"guide.{name} must be at least 0, not {value!r}")
        if self.steps is not None:
            check_count("guide.steps", self.steps)

    @property
    def is_off(self) -> bool:
        """Whether it never counts."""
        return self.start == self.end == 0

    def weight(self, clock: Clock, num_partitions: int) -> float:
        """Returns λ in a step, for k partitions."""
        start = 6 / num_partitions if self.start is None else self.start
        end = 1e-4 / num_partitions if self.end is None else self.end
        over = 1.0 if self.steps is None else min(self.steps / clock.steps, 1.0)
        return linear(clock, start, end, over)


class Conditions:
    """The parts of the images that a generator is trained on.

    They are a part of a checkpoint where they are found anew on the way.

    Args:
        fitted: the partitioner.
        source: the images, all of which it looks at once.
        guided: whether the generator is to follow the guide.

    Attributes:
        fitted: the partitioner.
        labels: part of each image, int64 (n,).
        masses: share of the images in each part, float64 (k,).

    Raises:
        ParameterError: the guide is wanted, and the partitioner has no gradient; or it was fitted
            to images of another size.
        DataError: all images are in one of several parts.
    """

    def __init__(self, fitted: FittedPartitioner, source: ImageSource, guided: bool) -> None:
        fitted.check_images(source.image.shape)
        if guided:
            two = source.batch(torch.arange(min(2, len(source)))).requires_grad_(True)
            fitted.guide(two, 0)  # which says if it cannot
        self.source = source
        logits = gathered_logits(fitted.partitioner, source, "parts of images")
        self._take(fitted, logits.argmax(dim=1))

    def _take(self, fitted: FittedPartitioner, labels: Tensor) -> None:
        """Takes up the parts that a partitioner finds, labels (n,)."""
        self.fitted, self.labels, source = fitted, labels, self.source
        sizes = labels.bincount(minlength=fitted.num_partitions).double()
        if len(sizes) > 1 and int((sizes > 0).sum()) == 1 and not is_trial():
            raise DataError(
                f"all {len(source):,} images lie in part {int(sizes.argmax())} of the "
                f"{called('partitioners', fitted.partitioner)}, so there is nothing to condition "
                "on; fit it to these images"
            )
        self.masses = sizes / len(source)

    def find_anew(self, seed: int) -> None:
        """Fits the partitioner again, such as to what a discriminator sees by now.

        The new parts take the numbers of those before, so that as many images as possible stay.
        """
        from scipy.optimize import linear_sum_assignment

        before, number = self.labels, self.fitted.num_partitions
        inner = _inner(self.fitted.partitioner)
        found = fit_partitioner(inner, self.source, seed=seed, device=self.source.device)
        assert found.labels is not None
        common = torch.zeros(number, number, dtype=torch.int64)
        common.index_put_((before, found.labels), torch.ones_like(before), accumulate=True)
        _, order = linear_sum_assignment(common.numpy(), maximize=True)
        renumbering = torch.from_numpy(order).argsort()
        self._take(renumbered(found, order.tolist()), renumbering[found.labels])

    def state_dict(self) -> dict[str, Any]:
        """Returns the parts of all images, and the fitted partitioner's tensors and order."""
        order = getattr(self.fitted.partitioner, "order", None) or range(len(self.masses))
        own = {"labels": self.labels, "order": torch.tensor(list(order))}
        return {**own, **with_prefix(_STATE, state_of(self.fitted.partitioner))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        fixed = renumbered(self.fitted, state["order"].tolist()).partitioner
        load_state_of(fixed, without_prefix(_STATE, state))
        self.fitted = replace(self.fitted, partitioner=fixed)
        self.labels = state["labels"]
        self.masses = self.labels.bincount(minlength=len(self.masses)).double() / len(self.labels)

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        """Draws parts (count,), int64, as often as images lie in them."""
        return torch.multinomial(self.masses, count, replacement=True, generator=random)

    def pull(self, x: Tensor, parts: Tensor) -> Tensor:
        """Returns the guide of each image to its part, (B,); `FittedPartitioner.guide` unchecked.

        It asks nothing of the device that it would have to wait for.
        """
        with contracts.trusted():
            return pull_of(self.fitted.partitioner.logits(x), parts)


def renumbered(fitted: FittedPartitioner, order: Sequence[int]) -> FittedPartitioner:
    """Returns the same parts with other numbers: `order` has the old ones by the new (k,)."""
    inner = _inner(fitted.partitioner)
    table = {"name": "fixed", "partitioner": inner, "image": list(fitted.image.shape)}
    fixed = build("partitioners", {**table, "order": list(order)})
    sizes = [fitted.sizes[part] for part in order]
    origin = {**fitted.origin, "partitioner": table_of(fixed)}
    return FittedPartitioner(fixed, fitted.image, sizes, origin)


def watching(component: Any) -> Iterator[contracts.Watches]:
    """Yields what a partitioner is made of that looks through a discriminator in training."""
    if isinstance(component, contracts.Watches):
        yield component
    for part in parts_of(component).values():
        yield from watching(part)


def _inner(partitioner: Any) -> Any:
    return partitioner.component if isinstance(partitioner, FixedPartitioner) else partitioner
