"""How a model folder is laid out: which of its files are weights."""

import re
from pathlib import Path, PurePosixPath

from pgmkit.errors import LoadError, listed, nearest_names
from pgmkit.loading.checkpoints import natural
from pgmkit.loading.folders import (
    WEIGHT_SUFFIXES,
    WEIGHTS_FILE,
    ModelFolder,
    is_inside,
)
from pgmkit.loading.weights import INDEX_SUFFIX, shards_of

_USUAL_FILES = (
    WEIGHTS_FILE,
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
    WEIGHTS_FILE + INDEX_SUFFIX,
    "pytorch_model.bin" + INDEX_SUFFIX,
)
_OTHER_FILES = re.compile(
    r"(?:^|[/_.-])(?:net_?d|d|dis|disc|discriminator|critic|enc|encoder|net_?e|optim\w*|opt|"
    r"training_args|scheduler|rng_state\w*|inception\w*|vgg\w*|lpips|arcface|clip|fid\w*|stats)"
    r"(?:[_.-]|$)",
    re.IGNORECASE,
)
_EMA_FILES = re.compile(r"(?:^|[/_.-])\w*ema\w*(?:[_.-]|$)", re.IGNORECASE)
_GENERATOR_FILES = re.compile(
    r"(?:^|[/_.-])(?:net_?g|g|gen|generator|decoder|dec)(?:[_.-]|$)", re.IGNORECASE
)


def find_weights(folder: ModelFolder, named: str | None, *, sure: bool = True) -> tuple[Path, str]:
    """Returns the local path of the weight file, and a note on how it was found, "" if by name.

    Args:
        folder: where to look.
        named: the file, relative to the folder; None for the one of the usual names, or else the
            only one that looks like a generator's.
        sure: whether a usual name needs no look at what else there is.

    Raises:
        LoadError: there is none, or several might be it.
    """
    if named is not None:
        if not is_inside(named):
            raise LoadError(
                f"the weights of {folder.reference} must be a file in it, not {named!r:.60}"
            )
        return fetched(folder, _found(folder, named)), ""
    for name in _USUAL_FILES:
        if folder.fetch(name) is not None:
            return fetched(folder, name), "" if sure else _averaged_beside(folder, name)
    name, note = _likeliest(folder)
    return fetched(folder, name), note


def weight_files(names: list[str]) -> list[str]:
    """Returns which of the names are those of weight files, as people count."""
    found = [name for name in names if PurePosixPath(name).suffix.lower() in WEIGHT_SUFFIXES]
    found += [name for name in names if name.endswith(INDEX_SUFFIX)]
    shards = {name for name in found if re.search(r"-\d{5}-of-\d{5}\.", name)}
    return sorted(set(found) - shards, key=natural)


def _likeliest(folder: ModelFolder) -> tuple[str, str]:
    names = folder.names()
    there = weight_files(names)
    if not there:
        raise LoadError(
            f"{folder.reference} has no weights: it holds {listed(names, 8) or 'no files'}, and "
            f"weights end in "
            f"{', '.join(WEIGHT_SUFFIXES)}; name another folder or repository"
        )
    own = [name for name in there if not _OTHER_FILES.search(_stem(name))] or there
    for kind in (_EMA_FILES, _GENERATOR_FILES):
        fitting = [name for name in own if kind.search(_stem(name))]
        if fitting:
            own = fitting
            break
    own = _one_of_each_format(own)
    if len(own) > 1:
        shown = ", ".join(own[-8:]) + (f" and {len(own) - 8} more" if len(own) > 8 else "")
        raise LoadError(
            f"{folder.reference} has several weight files: {shown}; name one, such as "
            f"weights={own[-1]!r} (--weights {own[-1]})"
        )
    others = [name for name in there if name != own[0]]
    note = f"took the weights in {own[0]} of {folder.reference}"
    return own[0], f"{note}, not {', '.join(others[:4])}" if others else note


def _averaged_beside(folder: ModelFolder, taken: str) -> str:
    """Tells of files that may hold averaged weights, beside one of a usual name."""
    there = [name for name in weight_files(folder.names()) if _EMA_FILES.search(_stem(name))]
    if not there or taken in there:
        return ""
    return (
        f"took the weights in {taken} of {folder.reference}; {there[-1]} beside it may be averaged "
        f"weights, which --weights {there[-1]} takes"
    )


def _one_of_each_format(names: list[str]) -> list[str]:
    """Leaves out what stands there in safetensors, too."""
    safe = {_stem(name) for name in names if name.endswith(".safetensors")}
    return [n for n in names if n.endswith(".safetensors") or _stem(n) not in safe]


def _found(folder: ModelFolder, named: str) -> str:
    if folder.fetch(named) is not None:
        return named
    there = weight_files(folder.names())
    raise LoadError(f"{folder.reference} has no file {named!r}; {nearest_names(named, there)}")


def fetched(folder: ModelFolder, name: str) -> Path:
    """Returns the local path of a file, with the shards that it may name."""
    path = folder.path(name)
    if name.endswith(INDEX_SUFFIX):
        inside = PurePosixPath(name).parent
        for shard in shards_of(path):
            folder.path((inside / shard).as_posix())
    return path


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    while path.suffix.lower() in (*WEIGHT_SUFFIXES, ".json", ".index"):
        path = path.with_suffix("")
    return path.as_posix()
