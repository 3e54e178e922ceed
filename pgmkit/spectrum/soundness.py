"""Jacobians that say nothing: zero, or not finite, at some or all latents."""

import warnings

import torch
from torch import Tensor

from pgmkit.errors import GeneratorError, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.spectrum.jacobian import JacobianSpectra

_FEW, _MANY = 2, 128


def check_derivative(jacobians: JacobianSpectra, z: Tensor) -> None:
    """Checks at some of the latents (n, M) that the images have a derivative.

    Raises:
        GeneratorError: the Jacobian is zero at all of them.
    """
    for count in (_FEW, _MANY):
        if not jacobians.vanishes(z[:count]).all():
            return
    raise GeneratorError(_why_zero(jacobians.generator, z[:_MANY]))


def check_values(
    generator: Generator, latents: Tensor, values: Tensor, *, warn: bool = True
) -> None:
    """Checks the singular values of a whole spectrum.

    Args:
        generator: G.
        latents: z (n, M).
        values: σ (n, r).
        warn: whether to warn where some of the Jacobians are zero or not finite.

    Raises:
        GeneratorError: all of them are.
    """
    finite = values.isfinite().all(dim=1)
    zero = (values == 0).all(dim=1)
    if not finite.any():
        raise GeneratorError(
            f"the Jacobian of the generator {generator.name!r} is not finite at any of "
            f"{len(values)} latents{generator.why_not_finite()}"
        )
    if zero[finite].all():
        raise GeneratorError(_why_zero(generator, latents[finite]))
    if not warn:
        return
    if not finite.all():
        warnings.warn(
            f"the Jacobian of {generator.name!r} is not finite at {_share(~finite)}"
            f"{generator.why_not_finite()}; these latents are removed before all others",
            PgmkitWarning,
            stacklevel=3,
        )
    if zero.any():
        warnings.warn(
            f"the Jacobian of {generator.name!r} is zero at {_share(zero)}, as where images are "
            "clamped, rounded or all units are off; no density can rank these latents among each "
            "other",
            PgmkitWarning,
            stacklevel=3,
        )


def _share(rows: Tensor) -> str:
    count = int(rows.sum())
    return f"{count} of {len(rows)} latents ({count / len(rows):.1%})"


def _why_zero(generator: Generator, z: Tensor) -> str:
    images = generator.images(z[:_MANY])
    what = f"the Jacobian of the generator {generator.name!r} is zero at all of {len(z)} latents"
    if len(z) > 1 and torch.equal(images, images[:1].expand_as(images)):
        return (
            f"{what}: their images are all the same; its weights have collapsed, or it does not "
            "use its latents"
        )
    return (
        f"{what}, though their images differ: something in its forward pass has no derivative, "
        "such as rounding to bytes, argmax, detach or clamping beyond the range, or tanh is "
        "saturated everywhere, as by weights that are too large; return the images as they are "
        "before that"
    )
