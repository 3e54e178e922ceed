"""Spectra on disk: one safetensors shard for each block, and a manifest with checksums."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from pgmkit import files, hub
from pgmkit.errors import LoadError, OutputError
from pgmkit.spectrum.spectrum import Spectrum

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
DESCRIPTIVE = ("generator_name", "seed")
"""Settings that tell about a spectrum but do not determine it; they may differ on resuming."""


class BlockStore:
    """A folder that takes up the blocks of one spectrum as they are finished.

    Args:
        folder: where.
        settings: what determines the result; a folder written with others is refused.
        latents: of each block, (b, M).
        log_prior: of each block, (b,).
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        latents: Sequence[Tensor],
        log_prior: Sequence[Tensor],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.latents = latents
        self.log_prior = log_prior
        self.checksums: dict[str, str] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the folder and checks that it belongs to this spectrum.

        Raises:
            OutputError: another process holds it, or it was written with other settings.
            LoadError: the manifest is damaged.
        """
        with files.single_writer(self.folder):
            if (self.folder / MANIFEST_FILE).exists():
                recorded, self.checksums = _read_manifest(self.folder)
                for key, value in self.settings.items():
                    if key not in DESCRIPTIVE and recorded.get(key) != value:
                        raise OutputError(
                            f"{self.folder} holds a spectrum with another {key} "
                            f"({recorded.get(key)!r}, not {value!r}); choose another folder or "
                            "remove this one"
                        )
            yield

    def read(self) -> dict[int, Tensor]:
        """Returns the singular values of whole blocks; damaged ones are to be computed again."""
        blocks = {int(b): _read_shard(self.folder, b, c) for b, c in self.checksums.items()}
        return {b: shard["singular_values"] for b, shard in blocks.items() if shard is not None}

    def write(self, block: int, singular_values: Tensor) -> None:
        """Adds a finished block; the manifest names it only once it is on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        data = hub.serialise(
            {
                "latents": self.latents[block],
                "singular_values": singular_values,
                "log_prior": self.log_prior[block],
            }
        )
        files.write_bytes(_shard(self.folder, block), data)
        self.checksums[str(block)] = hashlib.sha256(data).hexdigest()
        ordered = dict(sorted(self.checksums.items(), key=lambda item: int(item[0])))
        manifest = {"settings": self.settings, "blocks": ordered}
        files.write_json(self.folder / MANIFEST_FILE, manifest)


def load_spectrum(folder: Path | str) -> Spectrum:
    """Reads a complete spectrum that `compute_spectrum(..., out=folder)` wrote.

    Raises:
        LoadError: a block is missing or damaged; computing again repairs it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        raise LoadError(f"{folder} holds no spectrum: it has no {MANIFEST_FILE}")
    settings, checksums = _read_manifest(folder)
    count = num_blocks(settings)
    shards = []
    for block in range(count):
        shard = _read_shard(folder, str(block), checksums.get(str(block), ""))
        if shard is None:
            raise LoadError(
                f"block {block} of {count} in {folder} is missing or damaged; run the command that "
                "computes it again"
            )
        shards.append(shard)
    parts = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return Spectrum(
        parts["latents"], parts["singular_values"], parts["log_prior"], provenance=settings
    )


def _shard(folder: Path, block: int | str) -> Path:
    return folder / f"block-{int(block):06d}.safetensors"


def _read_shard(folder: Path, block: str, checksum: str) -> dict[str, Tensor] | None:
    """Returns the tensors of a block, or None if it is missing or not what was written."""
    with contextlib.suppress(OSError):
        data = _shard(folder, block).read_bytes()
        if hashlib.sha256(data).hexdigest() == checksum:
            return load(data)
    return None


def _read_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    path = folder / MANIFEST_FILE
    try:
        recorded = json.loads(path.read_text())
        return dict(recorded["settings"]), dict(recorded["blocks"])
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{path} is damaged ({error}); remove the folder {folder}") from error


def count_blocks(folder: Path | str) -> tuple[dict[str, Any], int, int]:
    """Returns the settings of a spectrum, complete or not, and how many of its blocks are whole.

    Returns:
        Settings, number of whole blocks, number of all blocks.

    Raises:
        LoadError: the folder has no manifest, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        raise LoadError(f"{folder} holds no spectrum: it has no {MANIFEST_FILE}")
    settings, checksums = _read_manifest(folder)
    shards = (_read_shard(folder, block, checksum) for block, checksum in checksums.items())
    whole = sum(shard is not None for shard in shards)
    return settings, whole, num_blocks(settings)


def num_blocks(settings: Mapping[str, Any]) -> int:
    """Returns how many blocks a complete spectrum with these settings has."""
    return -(-int(settings["num_latents"]) // int(settings["block_size"]))
