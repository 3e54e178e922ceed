"""CUDA graphs: what a step asks of the device is recorded once, and from then on asked in one go.

Small networks keep a device waiting for Python, which takes 10 µs for each of thousands of kernels.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgmkit.errors import PgmkitNote, first_line
from pgmkit.learning import ranks

Told = dict[str, Tensor]
Piece = Callable[..., Told]
"""Takes tensors on the device, or None, and returns tensors by name."""


@dataclass
class _Tried:
    """A piece that ran by itself.

    Args:
        inputs: the last.
        waits: where in the code it waited for the device, if it did; None until that is known.
    """

    inputs: tuple[Tensor | None, ...]
    waits: str | None = None


class _Pool:
    """Memory that recorded pieces share."""

    @functools.cached_property
    def handle(self) -> Any:
        """What CUDA knows it by."""
        return torch.cuda.graph_pool_handle()


@dataclass(frozen=True)
class _Recorded:
    """A piece that was recorded: on which memory it reads its inputs and writes its outputs."""

    replay: Callable[[], None]
    inputs: tuple[Tensor | None, ...]
    outputs: Told

    def run(self, inputs: tuple[Tensor | None, ...]) -> Told:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.replay()
        return self.outputs


class Graphs:
    """Runs pieces of a step: by themselves at first, and as CUDA graphs once that went well twice.

    What a graph does is what its piece did when it was recorded, on the same memory. So a piece
    reads its inputs, weights and buffers that stay where they are, and numbers that stay the same,
    and leaves gradients in `.grad`, which then stay where they are, too (`are_kept`). A piece that
    waits for the device, or cannot be recorded, is told of in a `PgmkitNote` and goes on by itself.

    On other devices, and in one of several processes, all runs by itself.

    Args:
        device: where the pieces run.
        chains: pieces that are recorded together, since one leaves behind what the next needs. They
            share their memory, so they run in this order.
    """

    def __init__(self, device: torch.device, chains: Sequence[Sequence[Piece]]) -> None:
        self.device = device
        self.chains = list(chains) if _can_record(device) else []
        self.forget()

    def forget(self) -> None:
        """Lets all pieces run by themselves again, before they are recorded anew."""
        self._tried: dict[Piece, _Tried] = {}
        self._recorded: dict[Piece, _Recorded] = {}
        self._pool = _Pool()

    def stop(self) -> None:
        """Lets all pieces run by themselves from now on."""
        self.chains = []
        self.forget()

    @property
    def are_kept(self) -> bool:
        """Whether gradients have to stay where they are, and be set to zero there."""
        return bool(self._recorded)

    def begin(self) -> None:
        """Records what is ready; to be called before each step."""
        for chain in list(self.chains):
            tried = [self._tried.get(piece) for piece in chain]
            known = [piece for piece in tried if piece is not None and piece.waits is not None]
            if chain[0] in self._recorded or len(known) < len(chain):
                continue
            reason = next((f"it waits for the device at {t.waits}" for t in known if t.waits), None)
            reason = self._record(chain, [t.inputs for t in known]) if reason is None else reason
            if reason is not None:
                self.chains.remove(chain)
                names = " and ".join(repr(piece.__name__.strip("_")) for piece in chain)
                warnings.warn(
                    f"the part {names} of a step cannot be recorded as a CUDA graph ({reason}); it "
                    "runs operation by operation, which is slower",
                    PgmkitNote,
                    stacklevel=2,
                )

    def run(self, piece: Piece, *inputs: Tensor | None) -> Told:
        """Returns what a piece returns, on the device.

        Tensors are those of a graph where it was recorded, and good until it runs again.
        """
        recorded = self._recorded.get(piece)
        if recorded is not None:
            if _layout(recorded.inputs) == _layout(inputs):
                return recorded.run(inputs)
            self.forget()  # such as those of a run with other batches
        if not any(piece in chain for chain in self.chains):
            return piece(*inputs)
        before = self._tried.get(piece)
        if before is None or _layout(before.inputs) != _layout(inputs):
            self._tried[piece] = _Tried(inputs)
            return piece(*inputs)
        outputs, waits = _watched(piece, inputs)
        self._tried[piece] = _Tried(inputs, before.waits or waits)
        return outputs

    def _record(
        self, chain: Sequence[Piece], inputs: Sequence[tuple[Tensor | None, ...]]
    ) -> str | None:
        """Records pieces, without running them; returns what went wrong, if something did."""
        recorded = {}
        try:
            for piece, given in zip(chain, inputs, strict=True):
                own = tuple(None if value is None else value.clone() for value in given)
                recorded[piece] = _recorded(piece, own, self._pool, self.device)
        except Exception as error:  # whatever the piece, a plugin of it, or CUDA raises
            return first_line(error.__context__ or error)
        for piece in chain:
            del self._tried[piece]
        self._recorded |= recorded
        return None


def _layout(values: tuple[Tensor | None, ...]) -> list[tuple[torch.Size, torch.dtype] | None]:
    return [None if value is None else (value.shape, value.dtype) for value in values]


def _can_record(device: torch.device) -> bool:
    return device.type == "cuda" and ranks.world_size() == 1


def _recorded(
    piece: Piece, inputs: tuple[Tensor | None, ...], pool: _Pool, device: torch.device
) -> _Recorded:
    """Records a piece, without running it, so that it reads its inputs where these are."""
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),
        torch.cuda.stream(torch.cuda.current_stream()),  # a recording that fails leaves its own
        torch.cuda.graph(graph, pool=pool.handle),
    ):
        outputs = piece(*inputs)
    return _Recorded(graph.replay, inputs, outputs)


def _watched(piece: Piece, inputs: tuple[Tensor | None, ...]) -> tuple[Told, str]:
    """Returns what a piece returns, and where it waited for the device; "" for nowhere."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            outputs = piece(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    waits = [w for w in told if "synchronizing CUDA operation" in str(w.message)]
    for other in told:
        if other not in waits and "Synchronization debug mode" not in str(other.message):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return outputs, f"{Path(waits[0].filename).name}:{waits[0].lineno}" if waits else ""
