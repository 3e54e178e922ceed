"""Loading generators."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pgmkit import files
from pgmkit.components import check_parameters
from pgmkit.config import make_settings
from pgmkit.errors import LoadError, ParameterError, UnknownNameError
from pgmkit.generator import Generator, ImageSpec
from pgmkit.loading.folders import CONFIG_FILE, ModelFolder
from pgmkit.loading.references import open_folder
from pgmkit.loading.saving import terms
from pgmkit.loading.weights import load_weights
from pgmkit.plugins import registry
from pgmkit.priors import LatentSpec

_CONFIG_TYPES = {
    "architecture": (str, "a string"),
    "model_args": (dict, "an object"),
    "name": (str, "a string"),
    "provenance": (dict, "an object"),
    "weights_key": (str, "a string"),
}


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
