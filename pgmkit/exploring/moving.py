"""Ways through the latent space: from one latent to another, and along what changes most."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit.generator import Generator
from pgmkit.machine import check_memory
from pgmkit.priors import LatentSpec
from pgmkit.spectrum.differentiation import Differentiator, JacobianPlan

_NEARLY_PARALLEL = 1e-4
_MEMORY = 2**28
"""Bytes that tangents may take."""


def path_between(start: Tensor, end: Tensor, prior: LatentSpec, steps: int) -> Tensor:
    """Returns latents (steps, M) from one to another that are all as likely as the ends.

    They lie on the arc between both, as `LatentSpec.to_normal` shows them: where the prior is
    normal, on a path that keeps the norm.

    Args:
        start: z (M,).
        end: z (M,).
        prior: of both.
        steps: at least 2, both ends included.
    """
    a, b = prior.to_normal(torch.stack([start, end])).double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1)
    angle, t = cosine.acos(), torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    if not _NEARLY_PARALLEL < float(angle) < torch.pi - _NEARLY_PARALLEL:
        between = (1 - t) * a + t * b
    else:
        norms = (1 - t) * a.norm() + t * b.norm()
        arc = ((1 - t) * angle).sin() * a / a.norm() + (t * angle).sin() * b / b.norm()
        between = norms * arc / angle.sin()
    return prior.clamp(prior.from_normal(between).float())


@dataclass(frozen=True)
class Directions:
    """The singular value decomposition of the Jacobian at a latent.

    Args:
        latent: z (M,).
        values: singular values σ (r,), descending.
        vectors: unit directions of the latent space (r, M), in the same order.
    """

    latent: Tensor
    values: Tensor
    vectors: Tensor

    def moved(self, amounts: Tensor, prior: LatentSpec) -> Tensor:
        """Returns the latent (M,) moved along the first directions by amounts (at most r,)."""
        there = self.latent + amounts.float() @ self.vectors[: len(amounts)]
        return prior.clamp(there[None])[0]


def singular_directions(
    generator: Generator, latent: Tensor, count: int = 6, *, plan: JacobianPlan | None = None
) -> Directions:
    """Returns the directions in which G changes the image the most, at one latent z (M,).

    A step of ε along the i-th changes the image by about ε·σ_i (Zhu et al., "Low-Rank Subspaces in
    GANs", 2021).

    Args:
        generator: G.
        latent: z.
        count: how many, at most.
        plan: how to compute the Jacobian, as a spectrum has it; found by trying if None.

    Raises:
        GeneratorError: G cannot be differentiated.
        ParameterError: there is not enough memory for the Jacobian.
    """
    size, dim = math.prod(generator.image.shape), len(latent)
    check_memory(20 * size * dim, "the Jacobian at a latent", "take a smaller generator")
    differentiator = Differentiator(generator, memory=_MEMORY, plan=plan)
    z = latent.detach().to(generator.device, generator.dtype)[None]
    pushed = differentiator.push(z, torch.eye(dim, dtype=z.dtype, device=z.device))
    matrix = pushed[0].double().cpu().T
    # Of the small square of the two, since there are more pixels than latents.
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    order = squares.argsort(descending=True)[:count]
    return Directions(
        latent.detach().cpu().float(),
        squares[order].clamp(min=0).sqrt(),
        vectors[:, order].T.float(),
    )
