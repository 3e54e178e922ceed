"""Seeds for the parts of a run, so that results do not depend on who computes which part."""

import hashlib

import torch

from pgmkit.config import check_seed


def derive_seed(seed: int, *parts: int | str) -> int:
    """Returns a seed in [0, 2⁶³) that depends on the run's seed and on the names of one part.

    Raises:
        ParameterError: the seed of the run is no whole number in [0, 2⁶³).

    Example:
        >>> derive_seed(0, "block", 1) == derive_seed(0, "block", 1) != derive_seed(0, "block", 2)
        True
    """
    check_seed(seed)
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def random_generator(seed: int, *parts: int | str) -> torch.Generator:
    """Returns a fresh CPU random generator for one part of a run; see `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))
