"""How far apart a partitioner's representation keeps images: c₀ of Theorem 3."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.images.source import BATCH
from pgmkit.progress import phase
from pgmkit.spectrum import RANK_RTOL

MOST_DIMS = 1_024
"""Of φ, for its Jacobian to be computed."""
_JACOBIANS = 4
_SAME = 1e-6


@dataclass(frozen=True)
class Representation:
    """What φ does to distances: c₀ · ‖x − y‖ ≤ ‖φ(x) − φ(y)‖ for all x and y, as far as seen.

    Args:
        is_told: whether φ is what the partitioner's head looks at (`contracts.Represents`); else
            the logits are taken for it.
        num_dims: of φ.
        image_dims: of an image.
        closest: the smallest ratio ‖φ(x) − φ(y)‖ / ‖x − y‖ over pairs of images; c₀ is at most
            that.
        farthest: the largest ratio.
        num_images: of which pairs were made.
        singular_values: the smallest and the largest singular value of the Jacobian of φ over
            `num_jacobians` images; c₀ is at most the smallest. None where that was not cheap.
        num_jacobians: at how many images the Jacobian was computed.
    """

    is_told: bool
    num_dims: int
    image_dims: int
    closest: float
    farthest: float
    num_images: int
    singular_values: tuple[float, float] | None
    num_jacobians: int

    @property
    def c0(self) -> float:
        """The smallest that is known of c₀, in [0, ∞): c₀ itself is at most that."""
        if self.num_dims < self.image_dims:
            return 0.0
        least, most = self.singular_values or (math.inf, math.inf)
        return 0.0 if least <= RANK_RTOL * most < math.inf else min(least, self.closest)


def represent(partitioner: contracts.Partitioner, x: Tensor) -> Tensor:
    """Returns φ(x) (B, d) of images x, or their logits if the partitioner tells no φ."""
    if isinstance(partitioner, contracts.Represents):
        return contracts.represented(partitioner, x)
    return contracts.logits_of(partitioner, x)


def look_at(partitioner: contracts.Partitioner, x: Tensor) -> Representation:
    """Returns what φ does to distances between images x (n, C, H, W), and near the first of them.

    The Jacobian is computed where φ has as many dimensions as images, or more, and no more than
    1,024; with fewer, c₀ is 0 anyway, since no continuous map to fewer dimensions is one to one.

    Raises:
        PluginError: the partitioner tells a φ whose head gives other logits.
    """
    is_told = isinstance(partitioner, contracts.Represents)
    if is_told:
        contracts.check_head(partitioner, x[:8])
    with torch.no_grad():
        points = torch.cat([represent(partitioner, part) for part in x.split(BATCH)])
    near, far = _ratios(x.flatten(1).cpu().double(), points.cpu().double())
    dims, image_dims = points.shape[1], x[0].numel()
    count = min(_JACOBIANS, len(x)) if image_dims <= dims <= MOST_DIMS else 0
    values = None
    if count:
        found = _singular_values(partitioner, x[:count], dims)
        values = float(found[:, -1].min()), float(found[:, 0].max())
    return Representation(is_told, dims, image_dims, near, far, len(x), values, count)


def _ratios(x: Tensor, points: Tensor) -> tuple[float, float]:
    """Returns the smallest and the largest ratio of distances over pairs of different images."""
    before, after = torch.cdist(x, x), torch.cdist(points, points)
    ratios = (after / before)[before > _SAME * before.max()]
    return float(ratios.min()), float(ratios.max())


def _singular_values(partitioner: contracts.Partitioner, x: Tensor, dims: int) -> Tensor:
    """Returns those of ∂φ/∂x at images x, descending, float64 (n, d)."""
    found = []
    with phase("Jacobians of the representation", len(x), "image") as part:
        for image in x:
            rows = []
            for chosen in torch.arange(dims, device=x.device).split(BATCH):
                # One copy of the image for each row: gradients of copies do not mix.
                copies = image.detach().expand(len(chosen), *image.shape).clone().requires_grad_()
                with torch.enable_grad():
                    values = represent(partitioner, copies).gather(1, chosen[:, None])
                    rows.append(torch.autograd.grad(values.sum(), copies)[0].flatten(1).cpu())
            found.append(torch.linalg.svdvals(torch.cat(rows).double()))
            part.advance()
    return torch.stack(found)
