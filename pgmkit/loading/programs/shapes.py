"""Giving a program latents in the shape and the batches that it was made for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import GeneratorError


def run_in_shape(
    run: Callable[[Tensor], Any], z: Tensor, shape: tuple[int | None, ...], where: str
) -> Any:
    """Returns what a program makes of latents.

    Args:
        run: the program.
        z: latents (B, M), or of the program's own shape.
        shape: what the program's file says of its input, the number of latents first; None is any
            size.
        where: the program, for messages.

    Raises:
        GeneratorError: latents do not fill the shape, or batches cannot be put together.
    """
    batch, *sizes = shape
    if None not in sizes and list(z.shape[1:]) != sizes:
        try:
            z = z.reshape(len(z), *(size for size in sizes if size is not None))
        except RuntimeError as error:
            raise GeneratorError(
                f"{where} takes latents of shape {(batch or 'any', *sizes)}, not {tuple(z.shape)}"
            ) from error
    if batch is None or len(z) == batch:
        return run(z)
    missing = -len(z) % batch
    padded = torch.cat([z, z[:1].expand(missing, *z.shape[1:])]) if missing else z
    images = [run(part) for part in padded.split(batch)]
    if not all(isinstance(part, Tensor) for part in images):
        raise GeneratorError(
            f"{where} takes {batch} latents at a time and returns no single tensor; export it for "
            "any number: torch.export.export(..., dynamic_shapes=({0: torch.export.Dim('n')},))"
        )
    return torch.cat(images)[: len(z)]
