"""Statistics of batch norms: whether they are those of the prior, and estimating them anew.

Weights that were averaged over training, or taken from training mode, often come with statistics
that are not theirs; images then are washed out although every weight is right.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pgmkit.generator import Generator

NUM_LATENTS = 1024
Statistics = tuple[Tensor, Tensor]
"""Mean and variance of each channel, (C,) and (C,)."""

_BATCH = 128
_FAR = 0.5
"""Means further away than this, in standard deviations, or standard deviations that differ by as
much, as a share, are not those of the prior."""


@dataclass(frozen=True)
class Drift:
    """How far the statistics of one batch norm are from those of another set of inputs.

    Args:
        name: of the layer.
        mean: distance of the means in standard deviations, the root mean square over channels.
        std: ratio of the others' standard deviations to those held, the geometric mean over
            channels; 1 is none.
        untouched: whether what is held is what a layer begins with.
    """

    name: str
    mean: float
    std: float
    untouched: bool = False

    @property
    def is_far(self) -> bool:
        """Whether that is too much for chance."""
        return self.mean > _FAR or not 1 / (1 + _FAR) < self.std < 1 + _FAR

    def __str__(self) -> str:
        never = ", and it has never seen a batch" if self.untouched else ""
        return (
            f"{self.name}: means {self.mean:.2f} standard deviations away, standard deviations "
            f"{self.std:.2f} times as large{never}"
        )


def drifts(generator: Generator, num_latents: int = 256) -> list[Drift]:
    """Compares the statistics that batch norms hold with those of images from the prior.

    Args:
        generator: stays as it is.
        num_latents: at least 2.

    Returns:
        One for each batch norm that holds statistics, in the order of layers; none if there is no
        such layer.
    """
    norms = _norms(generator.module)
    seen: dict[str, Statistics] = {}
    with _inputs(norms, seen), torch.no_grad():
        generator(generator.sample_latents(num_latents, seed=0))
    return [
        _drift(name, norm, _held(norm), seen[name]) for name, norm in norms.items() if name in seen
    ]


def recalibrate(generator: Generator, num_latents: int = NUM_LATENTS) -> list[Drift]:
    """Replaces the statistics of all batch norms by those of images from the prior, in place.

    Args:
        generator: is left in eval mode.
        num_latents: averaged over, in batches of 128.

    Returns:
        How far each layer's statistics have moved, in the order of layers.
    """
    norms = _norms(generator.module)
    before = {name: _held(norm) for name, norm in norms.items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in generator.sample_latents(num_latents, seed=0).split(_BATCH):
                if len(batch) == _BATCH or num_latents < _BATCH:
                    generator(batch)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
    return [_drift(name, norm, before[name], _held(norm)) for name, norm in norms.items()]


def _norms(module: nn.Module) -> Mapping[str, _BatchNorm]:
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }


@contextmanager
def _inputs(norms: Mapping[str, _BatchNorm], seen: dict[str, Statistics]) -> Iterator[None]:
    """Writes down mean and variance of what goes into each layer."""

    def note(name: str, x: Tensor) -> None:
        flat = x.transpose(0, 1).flatten(1).double()
        seen[name] = (flat.mean(dim=1), flat.var(dim=1, unbiased=False))

    handles = [
        norm.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, norm in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drift(name: str, norm: _BatchNorm, held: Statistics, other: Statistics) -> Drift:
    """Returns how far other statistics of a layer are from those that it held."""
    stds = [(variance.double() + norm.eps).sqrt() for _, variance in (held, other)]
    shift = (other[0].double() - held[0].double()) / stds[0]
    untouched = not held[0].any() and bool((held[1] == 1).all())
    ratio = (stds[1] / stds[0]).log().mean().exp()
    return Drift(name, float(shift.square().mean().sqrt()), float(ratio), untouched)


def _held(norm: _BatchNorm) -> Statistics:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()
