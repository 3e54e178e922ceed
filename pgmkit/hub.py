"""Reading and writing model folders.

A model folder is laid out as a Hugging Face Hub repository: `config.json`, `model.safetensors`,
`README.md`. No pickle is ever written, no code from a folder is ever run, and a weight file is read
as safetensors or with `torch.load(weights_only=True)`.
"""

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pgmkit import files, pictures
from pgmkit.components import check_parameters
from pgmkit.config import make_settings
from pgmkit.errors import LoadError, ParameterError, UnknownNameError
from pgmkit.generator import Generator, ImageSpec, LatentSpec
from pgmkit.plugins import registry
from pgmkit.references import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    ModelFolder,
    first_line,
    open_folder,
)

CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"

_CONFIG_TYPES = {
    "architecture": (str, "a string"),
    "model_args": (dict, "an object"),
    "name": (str, "a string"),
    "provenance": (dict, "an object"),
    "weights_key": (str, "a string"),
}
# How a torch file starts: as a zip archive, or as a pickle in the format before torch 1.6.
_TORCH_FILES = (b"PK\x03\x04", b"\x80")


def load_generator(
    reference: str,
    *,
    architecture: Callable[..., nn.Module] | str | None = None,
    latent: LatentSpec | None = None,
    image: ImageSpec | None = None,
    device: torch.device | str = "cpu",
) -> Generator:
    """Loads a pretrained generator: strict weights, eval mode, gradients off.

    Args:
        reference: a name from the registry, "local-dir:/path", or "hf-hub:org/name[@revision]".
            `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the Hub's cache are honoured.
        architecture: a class or component to build instead of the one that `config.json` names; it
            is called with `model_args`.
        latent: the prior, instead of the one in `config.json`.
        image: the image spec, instead of the one in `config.json`.
        device: where to put the weights.

    Raises:
        UnknownNameError: no such registry name, or no plugin offers the architecture.
        LoadError: files are missing or damaged, or the weights do not fit.
        GeneratorError: what it makes breaks the contract, or is not finite.

    Example:
        >>> load_generator("mnist-dcgan")
        Generator('mnist-dcgan': 64 normal latents -> 1×32×32 images, 919,424 parameters)
    """
    folder = open_folder(reference)
    return generator_from_folder(
        folder, architecture=architecture, latent=latent, image=image, device=device
    )


def generator_from_folder(
    folder: ModelFolder,
    *,
    architecture: Callable[..., nn.Module] | str | None = None,
    latent: LatentSpec | None = None,
    image: ImageSpec | None = None,
    device: torch.device | str = "cpu",
) -> Generator:
    """Loads the generator of an open folder; see `load_generator`."""
    config = folder.config()
    given = {"architecture": architecture, "latent": latent, "image": image}
    missing = [key for key, value in given.items() if value is None and not config.get(key)]
    if missing:
        raise LoadError(
            f"the {CONFIG_FILE} of {folder.reference} lacks {', '.join(missing)}; add it, or pass "
            f"{missing[0]}=... to pgmkit.load_generator"
        )
    where = f"{CONFIG_FILE} of {folder.reference}"
    _check_types(config, where)
    latent = latent or _spec(LatentSpec, config["latent"], f"'latent' in {where}")
    image = image or _spec(ImageSpec, config["image"], f"'image' in {where}")
    chosen = architecture or config["architecture"]
    arguments = dict(config.get("model_args") or {})
    module = _build_module(chosen, arguments, where)
    path = folder.weights(config)
    load_weights(module, path, key=config.get("weights_key"))
    generator = Generator(
        module,
        latent,
        image,
        name=_name(folder.reference, config),
        architecture=chosen if isinstance(chosen, str) else None,
        model_args=arguments,
        provenance={
            **(config.get("provenance") or {}),
            **terms(config),
            "reference": folder.reference,
            **folder.provenance,
            "sha256": files.sha256(path),
        },
    )
    generator.to(device)
    generator.check()
    return generator


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


def terms(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a record says of licence and paper, which stand at the top of `config.json`."""
    return {key: record[key] for key in ("license", "paper") if key in record}


def card_header(license_name: Any, pipeline_tag: str) -> list[str]:
    """Returns the lines with which the Hub expects a model card to begin.

    Args:
        license_name: such as "Apache-2.0"; None is unknown.
        pipeline_tag: the Hub's name for what the model does.
    """
    return [
        "---",
        "library_name: pgmkit",
        f"license: {str(license_name or 'unknown').lower()}",
        f"pipeline_tag: {pipeline_tag}",
        "---",
        "",
    ]


def write_generator(folder: Path, generator: Generator) -> None:
    """Writes `config.json` and `model.safetensors` of a generator into `folder`."""
    stated = terms(generator.provenance)
    provenance = {k: v for k, v in generator.provenance.items() if k not in stated}
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": generator.name,
        "architecture": generator.architecture,
        "model_args": generator.model_args,
        **generator.specs(),
        **stated,
        "provenance": provenance,
    }
    files.write_bytes(folder / WEIGHTS_FILE, serialise(generator.module.state_dict()))
    files.write_json(folder / CONFIG_FILE, config)


def save_generator(folder: Path, generator: Generator, *, card: str, samples: Tensor) -> None:
    """Writes a generator as a Hub folder, replacing what was there.

    Args:
        folder: where to.
        generator: what.
        card: the model card, Markdown; it shows `samples.png`.
        samples: images (N, C, H, W) for the grid.

    Raises:
        OutputError: the folder cannot be written.
    """
    with files.replaced_folder(folder) as fresh:
        write_generator(fresh, generator)
        files.write_text(fresh / CARD_FILE, card)
        pictures.write_grid(fresh / SAMPLES_FILE, samples, generator.image.range, scale=2)


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a model folder to the Hub and returns its address.

    Args:
        folder: a folder that `save_pretrained` or `pgmkit train` wrote.
        repository: "org/name"; it is created if it is not there.
        private: whether a new repository is private.

    Raises:
        LoadError: the Hub is out of reach, or refuses.
    """
    from huggingface_hub import HfApi

    # HTTPError is of the HTTP library that the Hub's client uses, which changed more than once.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repository, ignore_patterns=["spectrum/*", ".*"]
        )
    except (HTTPError, OSError) as error:
        raise LoadError(
            f"cannot push to {repository!r}: {first_line(error)}; check the name, the network "
            "and your token (hf auth login)"
        ) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LoadError(f"cannot push to {repository!r}: {reason}") from error
    return f"{api.endpoint}/{repository}"


def _build_module(
    chosen: Callable[..., nn.Module] | str, arguments: dict[str, Any], where: str
) -> nn.Module:
    factory = chosen
    if isinstance(chosen, str):
        hint = "install a plugin that offers it, or pass architecture=YourModule"
        known = registry().of_kind("generator-loaders")
        names = [name for c in known for name in (c.name, c.qualified_name)]
        if chosen not in names:
            raise UnknownNameError(
                f"architecture (in {where})", chosen, [c.name for c in known], hint
            )
        factory = registry().find("generator-loaders", chosen).resolve()
    assert callable(factory)
    try:
        check_parameters(factory, arguments, f"'model_args' in {where}")
        module = factory(**arguments)
    except TypeError as error:
        raise ParameterError(f"'model_args' in {where} do not fit: {error}") from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"the architecture in {where} builds a {type(module).__name__}, no module")
    return module


def _name(reference: str, config: Mapping[str, Any]) -> str:
    """A registry entry is called by its name; what has a scheme as its config says."""
    if ":" not in reference:
        return reference
    return str(config.get("name") or reference)


def _check_types(config: Mapping[str, Any], where: str) -> None:
    for key, (kind, called) in _CONFIG_TYPES.items():
        value = config.get(key)
        if value is not None and not isinstance(value, kind):
            raise LoadError(f"{key!r} in {where} must be {called}, not {value!r:.60}")


def _spec(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise LoadError(f"{where} must be an object, not {values!r:.60}")
    try:
        return make_settings(cls, values, where)
    except ParameterError:
        raise
    except (TypeError, ValueError) as error:
        raise LoadError(f"{where} is not valid: {error}") from error


def _mismatch(what: str, names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {shown}{more}"]
