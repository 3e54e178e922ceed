"""Theorem 1: what one continuous generator must miss of data that lie in parts apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from pgmkit.errors import GeneratorError, ParameterError
from pgmkit.generator import Generator
from pgmkit.images import ImageSpec
from pgmkit.priors import LatentSpec
from pgmkit.spectrum import compute_spectrum

Numbers = Sequence[float] | npt.NDArray[np.float64] | Tensor

_SUM_ATOL = 1e-6


@dataclass(frozen=True)
class TotalVariationBound:
    """The bound δ of Theorem 1.

    Args:
        value: δ, in [0, 0.5].
        part: the part that attains it, the first of several.
    """

    value: float
    part: int


def tv_lower_bound(masses: Numbers, distances: Numbers, lipschitz: float) -> TotalVariationBound:
    """Returns how far G(z), z ~ N(0, I), is at least from data on disjoint parts.

    `δ = max_i {π*_i − Φ(Φ⁻¹(π*_i) − d_i / c)}` with `π*_i = min(π_i, 1 − π_i)` and the distribution
    function Φ of N(0, 1) (Partition-Guided GANs, Theorem 1). The total variation distance is the
    largest difference between the probabilities that data and G(z) give to one set, in [0, 1]. δ
    grows with the distances and falls with c.

    Args:
        masses: π_i (k,), the probability of each part, at least two, which sum to 1.
        distances: d_i (k,), the distance of each part from all others, at least 0; infinite for an
            empty part.
        lipschitz: c, above 0: ‖G(z) − G(z')‖ ≤ c·‖z − z'‖, in the unit of the distances.

    Raises:
        ParameterError: a value is outside its range.

    Example:
        >>> bound = tv_lower_bound([0.25, 0.75], [2, 2], 4)
        >>> round(bound.value, 4), bound.part
        (0.1299, 0)
    """
    pi, d = (np.asarray(values, dtype=np.float64) for values in (masses, distances))
    if pi.ndim != 1 or len(pi) < 2:
        raise ParameterError(
            f"the bound is about at least two parts, one mass for each, not {masses!r:.60}"
        )
    if d.shape != pi.shape:
        raise ParameterError(
            f"each of {len(pi)} parts has one distance from the others, not {distances!r:.60}"
        )
    total = float(pi.sum())
    if not (pi >= 0).all() or not abs(total - 1) <= _SUM_ATOL:
        raise ParameterError(
            f"masses are shares of the data, at least 0, that sum to 1, not to {total:g}; divide "
            "them by their sum"
        )
    if not (d >= 0).all():
        raise ParameterError(f"distances must be at least 0, not {float(d.min()):g}")
    if not isinstance(lipschitz, int | float) or not 0 < lipschitz < math.inf:
        raise ParameterError(f"the Lipschitz constant must be above 0, not {lipschitz!r:.60}")
    least = np.minimum(pi, 1 - pi)
    found = least - ndtr(ndtri(least) - d / lipschitz)
    return TotalVariationBound(max(0.0, float(found.max())), int(found.argmax()))


@dataclass(frozen=True)
class LipschitzEstimate:
    """What is known of a generator's Lipschitz constant c from a few latents.

    Args:
        value: the largest singular value of the Jacobian at all of them. c is at least that, so a
            δ that is computed with it is at least the δ of the theorem.
        median: of the largest singular value at each.
        num_latents: how many latents.
    """

    value: float
    median: float
    num_latents: int


def lipschitz_estimate(
    generator: Generator, latents: int = 64, *, seed: int = 0
) -> LipschitzEstimate:
    """Returns a lower bound of c for images in [-1, 1] as a function of z ~ N(0, I).

    A prior of another kind is reached from N(0, I) by `LatentSpec.from_normal`, which then belongs
    to the generator; images of another range are scaled, and points stay as they are.

    Args:
        generator: G.
        latents: how many, at least 1, are drawn from the prior.
        seed: of the latents.

    Raises:
        ParameterError: there are no latents, or the prior is a mixture or categorical, to which no
            map from N(0, I) leads that can be differentiated.
        GeneratorError: the generator cannot be differentiated, or no Jacobian is finite.
    """
    spectrum = compute_spectrum(_standard(generator), latents, seed=seed).only_finite()
    if not len(spectrum):
        raise GeneratorError(
            f"no Jacobian of the generator {generator.name!r} is finite; check its weights"
        )
    largest = spectrum.singular_values[:, 0]
    return LipschitzEstimate(float(largest.max()), float(largest.median()), len(spectrum))


def _standard(generator: Generator) -> Generator:
    """Returns the same images, in [-1, 1], of latents from N(0, I); points as they are."""
    prior, image = generator.latent, generator.image
    distributions = {part.distribution for part in (prior.parts or (prior,))}
    odd = distributions & {"mixture", "categorical"}
    if odd:
        raise ParameterError(
            "Theorem 1 is about images that are a smooth function of normal latents, and the prior "
            f"of {generator.name!r} is {' and '.join(sorted(odd))}; take a generator with another"
        )
    wanted = ImageSpec(image.shape, image.range if image.is_points else (-1.0, 1.0))
    if prior == LatentSpec(prior.dim, shape=prior.shape) and image == wanted:
        return generator
    return Generator(_Standard(generator), LatentSpec(prior.dim), wanted, name=generator.name)


class _Standard(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.module = generator.module
        self._generator = generator

    def forward(self, x: Tensor) -> Tensor:
        made = self._generator(self._generator.latent.from_normal(x))
        if self._generator.image.is_points:
            return made
        low, high = self._generator.image.range
        return (made - low) * (2 / (high - low)) - 1
