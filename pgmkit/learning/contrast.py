"""Learning features by contrast: two versions of an image agree, different images do not."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Returns the NT-Xent loss in nats of projections (B, d) of two versions of each image.

    Source: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of
    Visual Representations", 2020, Eq. 1.
    """
    count = len(left)
    both = functional.normalize(torch.cat([left, right]))
    similarity = both @ both.T / temperature
    similarity = similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(2 * count, device=left.device).roll(count)
    return functional.cross_entropy(similarity, partner)
