"""Spectra on disk: one safetensors shard for each block, and a manifest with checksums.

A shard carries the settings of its spectrum, its number and a digest in its header. So it can be
told from its bytes alone that it is whole and where it belongs, also when the run that wrote it was
killed before the manifest could name it.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from pgmkit.errors import LoadError, OutputError
from pgmkit.loading.weights import serialise
from pgmkit.spectrum.folders import Folder, LocalFolder, folder_at
from pgmkit.spectrum.spectrum import Spectrum

FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"
DESCRIPTIVE = ("generator_name", "landmarks", "seed", "device")
"""Settings that tell about a spectrum but do not determine it; they may differ on resuming."""

_MODES = ("layers", "forward", "reverse")
_SKETCHES = ("volume", "top")
_HEADER_KEY = "pgmkit"
"""One key holds everything: safetensors writes several in any order."""

_TENSORS = {"latents": 2, "singular_values": 2, "log_prior": 1, "float64": 1}
"""What a shard holds, with the number of dimensions."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shards:
    """The shards of one spectrum in a folder.

    Args:
        folder: where.
        settings: see `plain_settings`.
    """

    folder: Folder
    settings: Mapping[str, Any]

    def encode(self, block: int, tensors: Tensors) -> bytes:
        """Returns a shard's bytes: the same for the same values, settings and block."""
        identity = {"settings": self.settings, "block": block}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest.update(serialise(tensors))
        header = json.dumps({**identity, "sha256": digest.hexdigest()}, sort_keys=True)
        return serialise(tensors, {_HEADER_KEY: header})

    def write(self, block: int, tensors: Tensors) -> str:
        """Writes a shard and returns the SHA-256 of its bytes.

        Raises:
            OutputError: it cannot be written.
        """
        data = self.encode(block, tensors)
        self.folder.write(shard_name(block), data)
        return hashlib.sha256(data).hexdigest()

    def read(self, block: int, checksum: str | None = None) -> tuple[Tensors, str] | None:
        """Returns a shard's tensors and checksum, or None if it is missing or not what was written.

        Args:
            block: its number.
            checksum: SHA-256 that the manifest has for it; None if it names none.
        """
        data = self.folder.read(shard_name(block))
        if data is None:
            return None
        found = hashlib.sha256(data).hexdigest()
        if checksum not in (None, found):
            return None
        tensors = _tensors(data)
        # Writing the tensors again gives the same bytes only if all of them, digest included, are
        # those of this block of this spectrum.
        if tensors is None or self.encode(block, tensors) != data:
            return None
        return (tensors, found) if self._fits(block, tensors) else None

    def _fits(self, block: int, tensors: Tensors) -> bool:
        """Whether these are the tensors of as many latents as the block has."""
        size = int(self.settings["block_size"])
        count = min(size, int(self.settings["num_latents"]) - block * size)
        return tensors.keys() == _TENSORS.keys() and all(
            tensors[name].ndim == ndim and len(tensors[name]) == count
            for name, ndim in _TENSORS.items()
        )


class Rows:
    """The tensors of all latents, filled block by block, so that memory holds the result once.

    Args:
        num_latents: n.
        block_size: latents per block.
    """

    def __init__(self, num_latents: int, block_size: int) -> None:
        self.num_latents = num_latents
        self.block_size = block_size
        self.tensors: dict[str, Tensor] = {}
        self.blocks: set[int] = set()

    def put(self, block: int, tensors: Tensors) -> None:
        """Takes up the tensors of one block, each (b, ...)."""
        start = block * self.block_size
        for name, rows in tensors.items():
            if name not in self.tensors:
                self.tensors[name] = rows.new_empty((self.num_latents, *rows.shape[1:]))
            self.tensors[name][start : start + len(rows)] = rows
        self.blocks.add(block)

    def get(self, block: int) -> dict[str, Tensor]:
        """Returns the tensors of one block."""
        start = block * self.block_size
        return {name: rows[start : start + self.block_size] for name, rows in self.tensors.items()}

    def num_bytes(self) -> int:
        """Returns the size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def spectrum_of(tensors: Tensors, settings: Mapping[str, Any]) -> Spectrum:
    """Returns the Spectrum of the tensors of all latents."""
    return Spectrum(
        tensors["latents"],
        tensors["singular_values"],
        tensors["log_prior"],
        provenance=settings,
        float64=tensors["float64"],
    )


def load_spectrum(folder: Path | str) -> Spectrum:
    """Reads a complete spectrum that `compute_spectrum(..., out=folder)` wrote.

    Args:
        folder: a path, or a URL that fsspec opens.

    Raises:
        LoadError: a block is missing or damaged; computing again repairs it.
    """
    place = folder_at(folder)
    settings, checksums = _manifest_of(place)
    shards = Shards(place, settings)
    count = num_blocks(settings)
    # A count that no files stand behind must take neither time nor memory.
    blocks = range(count) if len(place.names()) >= count else [_first_missing(place)]
    rows = Rows(settings["num_latents"], settings["block_size"])
    for block in blocks:
        shard = shards.read(block, checksums.get(block, ""))
        if shard is None:
            raise LoadError(
                f"block {block} of {count} in {folder} is missing or damaged; run the command that "
                "computes it again"
            )
        rows.put(block, shard[0])
    return spectrum_of(rows.tensors, settings)


def _first_missing(folder: Folder) -> int:
    present = folder.names()
    return next(block for block in itertools.count() if shard_name(block) not in present)


def count_blocks(folder: Path | str) -> tuple[dict[str, Any], int, int]:
    """Returns the settings of a spectrum, complete or not, and how many of its blocks are whole.

    Args:
        folder: a path, or a URL that fsspec opens.

    Returns:
        Settings, number of whole blocks, number of all blocks.

    Raises:
        LoadError: the folder has no manifest, or a damaged one.
    """
    place = folder_at(folder)
    settings, _ = _manifest_of(place)
    total = num_blocks(settings)
    return settings, sum(1 for _ in whole_blocks(place, settings, range(total))), total


def _manifest_of(folder: Folder) -> tuple[dict[str, Any], dict[int, str]]:
    manifest = read_manifest(folder)
    if manifest is None:
        hint = ""
        if isinstance(folder, LocalFolder) and (folder.path / "spectrum" / MANIFEST_FILE).exists():
            hint = f"; there is one in {folder.path / 'spectrum'}"
        raise LoadError(f"{folder} holds no spectrum: it has no {MANIFEST_FILE}{hint}")
    if manifest[0].get("format_version") != FORMAT_VERSION:
        raise LoadError(
            f"{folder} holds a spectrum of format {manifest[0].get('format_version')!r}, and this "
            f"version of pgmkit reads {FORMAT_VERSION}; compute it again"
        )
    return manifest


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from JSON, with sorted keys, so that bytes agree."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return plain


def num_blocks(settings: Mapping[str, Any]) -> int:
    """Returns the number of blocks of a spectrum with these settings."""
    return -(-int(settings["num_latents"]) // int(settings["block_size"]))


def _block_of(name: str) -> int:
    """Returns the number of the block that a file holds by its name, -1 for another file."""
    found = re.fullmatch(r"block-(\d{6,18})\.safetensors", name, re.ASCII)
    block = int(found[1]) if found else -1
    return block if shard_name(block) == name else -1


def shard_name(block: int) -> str:
    """Returns the file name of a block."""
    return f"block-{block:06d}.safetensors"


def read_manifest(folder: Folder) -> tuple[dict[str, Any], dict[int, str]] | None:
    """Returns settings and SHA-256 of each block; None if there is no manifest.

    Raises:
        LoadError: it is damaged.
    """
    data = folder.read(MANIFEST_FILE)
    if data is None:
        return None
    try:
        recorded = json.loads(data)
        checksums = {int(block): str(checksum) for block, checksum in recorded["blocks"].items()}
        settings = dict(recorded["settings"])
        _check_settings(settings)
    except _DAMAGE as error:
        raise LoadError(
            f"{folder}/{MANIFEST_FILE} is damaged ({_what(error)}); remove that file and run the "
            "command that computes the spectrum again: whole blocks count without it"
        ) from error
    return settings, checksums


_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading JSON of another form than expected may end in."""


def _what(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError if settings of this format cannot be such."""
    if settings["format_version"] != FORMAT_VERSION:
        return
    for key in ("num_latents", "block_size", "threads_per_worker"):
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} is {value!r:.40}")
    computed, check, plan = settings["computed"], settings["check"], settings["jacobian"]
    if not (isinstance(computed, dict) and isinstance(plan, dict)):
        raise ValueError("computed and jacobian must be objects")
    if not isinstance(computed["probes"], int | None) or computed["sketch"] not in (
        None,
        *_SKETCHES,
    ):
        raise ValueError(f"computed is {computed!r:.80}")
    if check is not None and not isinstance(check["used"], bool):
        raise ValueError(f"check is {check!r:.40}")
    for key in ("batch_size", "tangents"):
        if not isinstance(plan[key], int) or plan[key] < 1:
            raise ValueError(f"{key} of jacobian is {plan[key]!r:.40}")
    if plan["mode"] not in _MODES:
        raise ValueError(f"mode of jacobian is {plan['mode']!r:.40}")


def encode_manifest(settings: Mapping[str, Any], checksums: Mapping[int, str]) -> bytes:
    """Returns a manifest's bytes, the same for the same blocks in any order."""
    blocks = {str(block): checksums[block] for block in sorted(checksums)}
    return (json.dumps({"settings": settings, "blocks": blocks}, indent=2) + "\n").encode()


def recorded_settings(folder: Folder) -> dict[str, Any] | None:
    """Returns the settings of the spectrum in a folder; None if there is none.

    Raises:
        LoadError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    return _settings_of_shards(folder) if manifest is None else manifest[0]


def determining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that determine a spectrum."""
    return {key: value for key, value in settings.items() if key not in DESCRIPTIVE}


def check_same(folder: Folder, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a folder was written with the wanted settings.

    Raises:
        OutputError: it holds another spectrum.
    """
    # A count says more than the hash of the latents that go with it.
    for key in ("num_latents", *determining(wanted)):
        if recorded.get(key) != wanted[key]:
            raise OutputError(
                f"{folder} holds a spectrum with another {key} ({recorded.get(key)!r}, not "
                f"{wanted[key]!r}); choose another folder or remove this one"
            )


def whole_blocks(
    folder: Folder, settings: Mapping[str, Any], blocks: Container[int]
) -> Iterator[tuple[int, Tensors, str]]:
    """Yields number, tensors and checksum of those blocks of a spectrum that a folder holds whole.

    Blocks that the manifest does not name count if they certify themselves.

    Raises:
        LoadError: the manifest is damaged.
    """
    _, checksums = read_manifest(folder) or ({}, {})
    shards = Shards(folder, settings)
    for block in sorted(map(_block_of, folder.names())):
        if block in blocks:
            shard = shards.read(block, checksums.get(block))
            if shard is not None:
                yield block, *shard


def _settings_of_shards(folder: Folder) -> dict[str, Any] | None:
    """Returns the settings that the first whole shard carries, for a folder without manifest."""
    for name in sorted(folder.names()):
        data = folder.read(name) if name.startswith("block-") else None
        tensors = None if data is None else _tensors(data)
        if data is None or tensors is None:
            continue
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER_KEY])
            settings, block = dict(header["settings"]), int(header["block"])
            _check_settings(settings)
        except _DAMAGE:
            continue
        if Shards(folder, settings).encode(block, tensors) == data:
            return settings
    return None


def _tensors(data: bytes) -> Tensors | None:
    try:
        tensors: dict[str, Tensor] = load(data)
    except Exception:  # what a damaged header leads to is not documented
        return None
    return tensors


def latents_digest(z: Tensor) -> str:
    """Returns the SHA-256 of latents (n, M) in hexadecimal."""
    return hashlib.sha256(z.contiguous().numpy().tobytes()).hexdigest()
