"""Optimizers of torch that leave torch's compiler alone."""

import inspect
from typing import TypeVar

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)

_IMPORTING = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods that torch decorates, so that its compiler is imported at their first call."""


def eager(kind: type[Kind]) -> type[Kind]:
    """Returns a class of optimizers that never imports torch's compiler.

    torch's own do at once, to keep it off their methods, and that takes seconds in each process.
    The steps are the same, to the bit; `differentiable` ones and steps within `torch.compile` are
    not for this class.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in _IMPORTING}
    plain["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), plain)
