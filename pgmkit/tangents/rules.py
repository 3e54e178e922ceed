"""The derivatives of torch functions: how each pushes tangents forward.

Most are one of a few kinds. A linear map sends tangents where it sends values; a function of single
values scales them by a slope that one reverse pass gives; a product follows the product rule; a
selection gathers what was selected. Others are written down as calls of simpler ones.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgmkit.tangents.dual import Rule
from pgmkit.tangents.rules_elementwise import ELEMENTWISE
from pgmkit.tangents.rules_moves import MOVES
from pgmkit.tangents.rules_products import PRODUCTS
from pgmkit.tangents.rules_reductions import REDUCTIONS

RULES: dict[str, Rule] = {**ELEMENTWISE, **PRODUCTS, **MOVES, **REDUCTIONS}
"""How each function pushes tangents, by its bare name."""

_LINEAR = """
linear conv1d conv2d conv_transpose1d conv_transpose2d reshape view flatten unflatten squeeze
unsqueeze permute transpose contiguous getitem expand interpolate pixel_shuffle pad neg sum mean
"""
LINEAR = frozenset(_LINEAR.split())
"""Functions of one argument whose derivative does not depend on it."""

KINKED = frozenset({"relu", "leaky_relu", "prelu", "rrelu", "abs"})
"""Functions of single values whose slope jumps at zero."""

PRIMITIVES = frozenset({"interpolate", "einsum", "norm", "split"})
"""Functions written in Python that have a rule of their own."""

_CONSTANTS = """
detach data zeros_like ones_like full_like empty_like rand_like randn_like randint_like bernoulli
new_zeros new_ones new_full new_empty new_tensor round floor ceil trunc sign argmax argmin argsort
"""
CONSTANTS = frozenset(_CONSTANTS.split())
"""Functions through which no derivative goes."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in simple steps."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    weights = (query @ key.mT) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        size = (query.size(-2), key.size(-2))
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        weights = weights + attn_mask
    return torch.dropout(weights.softmax(-1), dropout_p, False) @ value


def rms_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Division by the root mean square."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * torch.rsqrt(x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps)
    return y if weight is None else y * weight


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """One half of the channels times the sigmoid of the other."""
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def add_product(
    x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """`addmm` and `baddbmm`."""
    return beta * x + alpha * (left @ right)


def variance_and_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`var_mean`."""
    return torch.var(x, *args, **kwargs), _mean_like_variance(x, *args, **kwargs)


def deviation_and_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """`std_mean`."""
    return torch.std(x, *args, **kwargs), _mean_like_variance(x, *args, **kwargs)


def _mean_like_variance(x: Tensor, dim: Any = None, *_: Any, **kwargs: Any) -> Tensor:
    dim = None if isinstance(dim, bool) else dim
    return x.mean(kwargs.get("dim", dim), keepdim=kwargs.get("keepdim", False))


COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention,
    "rms_norm": rms_norm,
    "glu": glu,
    "addmm": add_product,
    "baddbmm": add_product,
    "addmv": add_product,
    "var_mean": variance_and_mean,
    "std_mean": deviation_and_mean,
}
