"""Checkpoints of modules and optimizers as one safetensors file, without pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pgmkit import files
from pgmkit.errors import LoadError
from pgmkit.loading.weights import serialise

Part = nn.Module | torch.optim.Optimizer


def save_checkpoint(path: Path, parts: Mapping[str, Part], metadata: Mapping[str, str]) -> None:
    """Writes the state of every part atomically.

    Args:
        path: the file.
        parts: modules and optimizers by name.
        metadata: anything else, as strings.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {
        f"{name}/{key}": value
        for name, part in parts.items()
        for key, value in _state(part).items()
    }
    files.write_bytes(path, serialise(tensors, metadata))


def load_checkpoint(path: Path, parts: Mapping[str, Part]) -> dict[str, str]:
    """Loads the state of every part in place and returns the metadata.

    Raises:
        LoadError: the file is damaged, or was written for other parts.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        for name, part in parts.items():
            prefix = f"{name}/"
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            _load_state(part, state)
    except (OSError, SafetensorError, RuntimeError, KeyError, IndexError) as error:
        raise LoadError(
            f"the checkpoint {path} does not fit this run: {error}; use the settings it was "
            "written with, or another output folder"
        ) from error
    return metadata


def _state(part: Part) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    return {
        f"{index}.{key}": value
        for index, values in part.state_dict()["state"].items()
        for key, value in values.items()
    }


def _load_state(part: Part, state: Mapping[str, Tensor]) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(state)
        return
    per_parameter: dict[int, dict[str, Any]] = {}
    for key, value in state.items():
        index, _, field = key.partition(".")
        per_parameter.setdefault(int(index), {})[field] = value
    parameters = [p for group in part.param_groups for p in group["params"]]
    for number, fields in per_parameter.items():
        parameter = parameters[number]
        for name, value in fields.items():
            if value.shape == parameter.shape:
                # The fused step goes through memory in one order: that of the parameter.
                fields[name] = torch.empty_like(parameter).copy_(value)
    current = part.state_dict()
    part.load_state_dict({"state": per_parameter, "param_groups": current["param_groups"]})
