"""The blocks of a spectrum: in memory, and in a folder of safetensors shards with a manifest.

A shard carries the settings of its spectrum, its number and a digest in its header. So it can be
told from its bytes alone that it is whole and where it belongs, also when the run that wrote it was
killed before the manifest could name it.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from pgmkit import files
from pgmkit.errors import LoadError, OutputError
from pgmkit.loading.weights import serialise
from pgmkit.spectrum.folders import Folder, LocalFolder, folder_at
from pgmkit.spectrum.jacobian import SKETCHES
from pgmkit.spectrum.spectrum import Spectrum

FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"
DESCRIPTIVE = ("generator_name", "landmarks", "seed", "device")
"""Settings that tell about a spectrum but do not determine it; they may differ on resuming."""

_MODES = ("layers", "forward", "reverse")
_HEADER_KEY = "pgmkit"
"""One key holds everything: safetensors writes several in any order."""

_TENSORS = {
    "latents": (2, torch.float32),
    "singular_values": (2, torch.float64),
    "log_prior": (1, torch.float64),
    "float64": (1, torch.bool),
}
"""What a shard holds, with the number of dimensions and the type."""

Tensors = Mapping[str, Tensor]


class BlockStore:
    """The blocks of one spectrum: all that are known in memory, and a folder if there is one.

    Memory holds the tensors of all latents once, filled in block by block. A store that is pickled
    goes with its folder and without what is in memory.

    Attributes:
        tensors: of all n latents, each (n, ...); only rows of blocks that are held mean something.
        held: numbers of the blocks that are in memory.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Folder | None = None) -> None:
        self.settings = settings
        self.folder = folder
        self.block_size = int(settings["block_size"])
        self.tensors: dict[str, Tensor] = {}
        self.held: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": {}, "held": set()}

    @property
    def num_blocks(self) -> int:
        """How many blocks the spectrum has."""
        return -(-int(self.settings["num_latents"]) // self.block_size)

    @property
    def missing(self) -> list[int]:
        """The blocks that are not in memory."""
        return [block for block in range(self.num_blocks) if block not in self.held]

    def rows(self, block: int) -> slice:
        """Returns which latents a block has."""
        return slice(block * self.block_size, (block + 1) * self.block_size)

    def get(self, block: int) -> dict[str, Tensor]:
        """Returns the tensors of a block that is held, each (b, ...)."""
        return {name: tensor[self.rows(block)] for name, tensor in self.tensors.items()}

    def hold(self, block: int, tensors: Tensors) -> None:
        """Takes the tensors of a block, each (b, ...), into memory."""
        for name, part in tensors.items():
            if name not in self.tensors:
                shape = (int(self.settings["num_latents"]), *part.shape[1:])
                self.tensors[name] = part.new_empty(shape)
            self.tensors[name][self.rows(block)] = part
        self.held.add(block)

    def write(self, block: int, tensors: Tensors) -> None:
        """Sees to it that the folder, if there is one, has a block.

        Raises:
            OutputError: its shard cannot be written.
        """
        if self.folder is not None:
            _keep(self.folder, shard_name(block), self.encode(block, tensors))

    def put(self, block: int, tensors: Tensors) -> None:
        """Takes a block into memory and, if it is not there, into the folder."""
        self.write(block, tensors)
        self.hold(block, tensors)

    def open(self) -> None:
        """Begins the folder, or takes up what it holds; nothing without one.

        Raises:
            LoadError: its manifest is damaged.
            OutputError: it holds another spectrum, or cannot be written.
        """
        if self.folder is None:
            return
        recorded = recorded_settings(self.folder)
        if recorded is not None:
            check_same(self.folder, recorded, self.settings)
        if self.folder.read(MANIFEST_FILE) is None:
            self.folder.write(MANIFEST_FILE, self._manifest())
        for block, tensors in self.whole(range(self.num_blocks)):
            self.hold(block, tensors)

    def copy(self, other: "BlockStore") -> int:
        """Takes up what another store's folder has and this one lacks; returns how many blocks.

        Raises:
            LoadError: its manifest is damaged.
        """
        before = len(self.held)
        for block, tensors in other.whole(set(self.missing)):
            self.put(block, tensors)
        return len(self.held) - before

    def finish(self) -> None:
        """Completes the manifest, now that all blocks are there."""
        if self.folder is not None:
            _keep(self.folder, MANIFEST_FILE, self._manifest())

    def save(self, folder: Folder) -> None:
        """Writes a whole spectrum to another folder.

        Raises:
            OutputError: it cannot be written.
        """
        for block in sorted(self.held):
            folder.write(shard_name(block), self.encode(block, self.get(block)))
        folder.write(MANIFEST_FILE, self._manifest())

    def encode(self, block: int, tensors: Tensors) -> bytes:
        """Returns a shard's bytes: the same for the same values, settings and block."""
        identity = {"settings": self.settings, "block": block}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest.update(serialise(tensors))
        header = json.dumps({**identity, "sha256": digest.hexdigest()}, sort_keys=True)
        return serialise(tensors, {_HEADER_KEY: header})

    def read(self, block: int, checksum: str | None = None) -> Tensors | None:
        """Returns a block of the folder, or None if it is missing or not what was written.

        Args:
            block: its number.
            checksum: SHA-256 that the manifest has for it; None if it names none.
        """
        data = None if self.folder is None else self.folder.read(shard_name(block))
        if data is None or checksum not in (None, _sha256(data)):
            return None
        tensors = _tensors(data)
        # Writing the tensors again gives the same bytes only if all of them, digest included, are
        # those of this block of this spectrum.
        if tensors is None or self.encode(block, tensors) != data:
            return None
        return tensors if self.fits(block, tensors) else None

    def whole(self, among: Container[int]) -> Iterator[tuple[int, Tensors]]:
        """Yields those blocks that the folder holds whole.

        Blocks that the manifest does not name count if they certify themselves.

        Raises:
            LoadError: the manifest is damaged.
        """
        if self.folder is None:
            return
        _, checksums = read_manifest(self.folder) or ({}, {})
        for block in sorted(map(_block_of, self.folder.names())):
            tensors = self.read(block, checksums.get(block)) if block in among else None
            if tensors is not None:
                yield block, tensors

    def spectrum(self, reused: int = 0) -> Spectrum:
        """Returns the Spectrum of all latents."""
        return Spectrum(**self.tensors, provenance=self.settings, reused=reused)

    def _manifest(self) -> bytes:
        """Returns the manifest's bytes, with the checksums of the blocks in memory."""
        shards = ((block, self.encode(block, self.get(block))) for block in sorted(self.held))
        blocks = {str(block): _sha256(shard) for block, shard in shards}
        return (json.dumps({"settings": self.settings, "blocks": blocks}, indent=2) + "\n").encode()

    def fits(self, block: int, tensors: Any) -> bool:
        """Whether these are the tensors of as many latents as the block has, beside those held."""
        first = block * self.block_size
        count = min(self.block_size, int(self.settings["num_latents"]) - first)
        return (
            isinstance(tensors, Mapping)
            and tensors.keys() == _TENSORS.keys()
            and all(
                isinstance(tensor := tensors[name], Tensor)
                and (tensor.ndim, tensor.dtype, len(tensor)) == (ndim, dtype, count)
                and tensor.shape[1:] == self.tensors.get(name, tensor).shape[1:]
                for name, (ndim, dtype) in _TENSORS.items()
            )
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
    store, names = BlockStore(settings, place), place.names()
    # A count that no files stand behind must take neither time nor memory.
    few = len(names) < store.num_blocks
    lost = next(block for block in itertools.count() if shard_name(block) not in names)
    for block in [lost] if few else range(store.num_blocks):
        tensors = store.read(block, checksums.get(block, ""))
        if tensors is None:
            raise LoadError(
                f"block {block} of {store.num_blocks} in {folder} is missing or damaged; run the "
                "command that computes it again"
            )
        store.hold(block, tensors)
    return store.spectrum(reused=int(settings["num_latents"]))


def count_blocks(folder: Path | str) -> tuple[dict[str, Any], int, int]:
    """Returns the settings of a spectrum, complete or not, and how many of its blocks are whole.

    Returns:
        Settings, number of whole blocks, number of all blocks.

    Raises:
        LoadError: the folder has no manifest, or a damaged one.
    """
    place = folder_at(folder)
    settings, _ = _manifest_of(place)
    store = BlockStore(settings, place)
    whole = sum(1 for _ in store.whole(range(store.num_blocks)))
    return settings, whole, store.num_blocks


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as they come back from JSON, with sorted keys, so that bytes agree."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return plain


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


def shard_name(block: int) -> str:
    """Returns the file name of a block."""
    return f"block-{block:06d}.safetensors"


def recorded_settings(folder: Folder) -> dict[str, Any] | None:
    """Returns the settings of the spectrum in a folder; None if there is none.

    Where there is no manifest, they are those that the first whole shard carries.

    Raises:
        LoadError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest[0]
    for block in sorted(map(_block_of, folder.names())):
        data = folder.read(shard_name(block)) or b""
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_HEADER_KEY])
            settings = dict(header["settings"])
            _check_settings(settings)
            if BlockStore(settings, folder).read(block) is not None:
                return settings
        except _DAMAGE:
            continue
    return None


def read_manifest(folder: Folder) -> tuple[dict[str, Any], dict[int, str]] | None:
    """Returns settings and SHA-256 of each block; None if there is no manifest.

    Raises:
        LoadError: it is damaged.
    """
    data = folder.read(MANIFEST_FILE)
    if data is None:
        return None
    try:
        recorded = files.parse_json(data, "it")
        checksums = {int(block): str(checksum) for block, checksum in recorded["blocks"].items()}
        settings = dict(recorded["settings"])
        _check_settings(settings)
    except (LoadError, *_DAMAGE) as error:
        raise LoadError(
            f"{folder}/{MANIFEST_FILE} is damaged ({_what(error)}); remove that file and run the "
            "command that computes the spectrum again: whole blocks count without it"
        ) from error
    return settings, checksums


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
        *SKETCHES,
    ):
        raise ValueError(f"computed is {computed!r:.80}")
    if check is not None and not isinstance(check["used"], bool):
        raise ValueError(f"check is {check!r:.40}")
    for key in ("batch_size", "tangents"):
        if not isinstance(plan[key], int) or plan[key] < 1:
            raise ValueError(f"{key} of jacobian is {plan[key]!r:.40}")
    if plan["mode"] not in _MODES:
        raise ValueError(f"mode of jacobian is {plan['mode']!r:.40}")


def _block_of(name: str) -> int:
    """Returns the number of the block that a file holds by its name, -1 for another file."""
    found = re.fullmatch(r"block-(\d{6,18})\.safetensors", name, re.ASCII)
    block = int(found[1]) if found else -1
    return block if shard_name(block) == name else -1


def _keep(folder: Folder, name: str, data: bytes) -> None:
    """Writes a file, unless a folder has it just so."""
    if folder.read(name) != data:
        folder.write(name, data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tensors(data: bytes) -> Tensors | None:
    try:
        tensors: dict[str, Tensor] = load(data)
    except Exception:  # what a damaged header leads to is not documented
        return None
    return tensors
