"""Files of named tensors: read without running code, fitted to a module, written."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pgmkit.errors import LoadError, first_line
from pgmkit.loading.folders import CONFIG_FILE

# How a torch file starts: as a zip archive, or as a pickle in the format before torch 1.6.
_TORCH_FILES = (b"PK\x03\x04", b"\x80")


def load_weights(module: nn.Module, path: Path, *, key: str | None = None) -> None:
    """Loads weights into `module`, strictly and in place.

    Args:
        module: may have `convert_state_dict(state_dict)` to rename foreign keys.
        path: a safetensors file, or a torch file that holds nothing but tensors.
        key: the entry that holds the weights, where a torch file holds several.

    Raises:
        LoadError: the file is damaged or would run code, or names and shapes do not fit exactly.
    """
    state = read_weights(path, key=key)
    convert = getattr(module, "convert_state_dict", None)
    if convert is not None:
        state = convert(state)
    expected = module.state_dict()
    problems = [
        *_mismatch("missing", expected.keys() - state.keys()),
        *_mismatch("unknown", state.keys() - expected.keys()),
        *_mismatch(
            "of another shape",
            {
                f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in expected.keys() & state.keys()
                if expected[name].shape != state[name].shape
            },
        ),
    ]
    if problems:
        raise LoadError(
            f"the weights in {path} do not fit {type(module).__name__}: {'; '.join(problems)}; "
            f"correct 'architecture' or 'model_args' in {CONFIG_FILE}"
        )
    module.load_state_dict(state)


def read_weights(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """Reads a file of named tensors without ever running code from it.

    Raises:
        LoadError: the file is damaged, holds something other than tensors, or is a pickled module.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise LoadError(
                f"{path} is truncated or damaged ({error}); fetch or save it again"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(4)
        if not start.startswith(_TORCH_FILES):
            raise LoadError(
                f"{path} is truncated or damaged (it starts with {start!r}, unlike a torch file); "
                "fetch or save it again"
            ) from error
        raise LoadError(
            f"{path} holds a pickled module or other objects, and loading it would run code; where "
            "it was made, save the weights alone: "
            "safetensors.torch.save_file(module.state_dict(), 'model.safetensors')"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise LoadError(
            f"{path} is truncated or damaged ({first_line(error)}); fetch or save it again"
        ) from error
    if key is not None:
        if not isinstance(loaded, dict) or key not in loaded:
            raise LoadError(f"{path} has no entry {key!r}, which 'weights_key' names")
        loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        entries = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
        raise LoadError(
            f"{path} is not a flat dictionary of tensors but holds {entries[:200]}; name the entry "
            f"with the weights as 'weights_key' in {CONFIG_FILE}"
        )
    return loaded


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns named tensors as safetensors bytes, the same bytes for the same values."""
    plain = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in sorted(tensors.items())
    }
    return save(plain, dict(metadata) if metadata else None)


def _mismatch(what: str, names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {shown}{more}"]
