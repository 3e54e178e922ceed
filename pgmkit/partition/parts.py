"""Parts, margins and the guide, derived from the logits of any partitioner."""

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.components import called
from pgmkit.errors import ParameterError
from pgmkit.images.source import ImageSource, batches
from pgmkit.progress import phase

_SLACK = 0.02


@torch.no_grad()
def assign(partitioner: contracts.Partitioner, x: Tensor) -> Tensor:
    """Returns the part of each image x (B, C, H, W) in [-1, 1], int64 (B,): its largest logit.

    Raises:
        ParameterError: x holds no floats, or images outside of [-1, 1].
    """
    check_values(x)
    return contracts.logits_of(partitioner, x).argmax(dim=1)


def guide(partitioner: contracts.Partitioner, x: Tensor, part: int | Tensor) -> Tensor:
    """Returns the guide R_i(x), which pulls images into a part (Partition-Guided GANs, Eq. 6).

    `R_i(x) = Σ_c (f_c(x) − f_i(x))₊` with the logits f: 0 inside part i, and above 0 outside. The
    authors' code takes the mean over the k parts, which is this divided by k.

    Args:
        partitioner: fitted.
        x: images (B, C, H, W), which may leave [-1, 1] where they follow the guide.
        part: i for all images, or for each (B,).

    Returns:
        R (B,), differentiable by x.

    Raises:
        ParameterError: x wants a gradient, and the logits have none; or there is no such part, or
            not one for each image; or x holds no floats.
    """
    check_values(x, in_range=False)
    logits = contracts.logits_of(partitioner, x)
    number = logits.shape[1]
    try:
        index = torch.as_tensor(part, device=logits.device)
    except (TypeError, ValueError, RuntimeError):  # of a text, None, or a list of such
        index = torch.tensor(torch.nan)
    is_number = not index.is_floating_point() and index.dtype is not torch.bool
    if not is_number or index.ndim > 1 or index.numel() not in (1, len(x)):
        raise ParameterError(
            f"a part is a whole number, or one for each of {len(x)} images, not {part!r:.60}"
        )
    index = index.long().expand(len(x))
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < number):
        raise ParameterError(f"parts are numbered from 0 to {number - 1}, and {part!r} is not")
    if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
        raise ParameterError(
            f"the logits of the {called('partitioners', partitioner)} have no gradient, so they "
            "guide nothing; make it the base of a partitioner that learns its parts as a network"
        )
    return pull_of(logits, index)


def pull_of(logits: Tensor, parts: Tensor) -> Tensor:
    """Returns the guide (B,) of logits (B, k) and parts (B,): Eq. 6, without any check."""
    own = logits.gather(1, parts[:, None])
    return (logits - own).relu().sum(dim=1)


def check_values(x: Tensor, in_range: bool = True) -> None:
    """Raises ParameterError unless x holds floats: images (B, C, H, W) in [-1, 1], or points."""
    cure = "scale them, or read them with pgmkit.images.ArrayImages"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ParameterError(f"images are a tensor of floats in [-1, 1], not {kind}; {cure}")
    if in_range and x.ndim == 4 and x.numel():
        low, high = map(float, x.detach().aminmax())
        if not max(-low, high) <= 1 + _SLACK:  # nor are they where they are no numbers
            raise ParameterError(
                f"images have values in [-1, 1], and these go from {low:.4g} to {high:.4g}; {cure}"
            )


def one_part(x: Tensor) -> Tensor:
    """Returns the logits of a single part, 0 for each of x, float32 (B, 1); their gradient is 0."""
    return x.flatten(1)[:, :1].float() * 0


def margins_of(logits: Tensor) -> Tensor:
    """Returns by how much the best of each row of logits (B, k) exceeds the second, (B,)."""
    if logits.shape[1] == 1:
        return torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


@torch.no_grad()
def gathered_logits(
    partitioner: contracts.Partitioner, source: ImageSource, name: str = "looking at images"
) -> Tensor:
    """Returns the logits (n, k) of all images of a source, made batch by batch, on the CPU."""
    found = []
    with phase(name, len(source), "image") as part:
        for x in batches(source):
            found.append(contracts.logits_of(partitioner, x).cpu())
            part.advance(len(x))
    return torch.cat(found)
