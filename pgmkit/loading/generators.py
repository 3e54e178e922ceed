"""Loading generators: from a folder, a repository or a weight file, whoever wrote it."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import files
from pgmkit.errors import LoadError, PgmkitNote, first_line
from pgmkit.forms import as_images, shape_of
from pgmkit.generator import Generator, ImageSpec
from pgmkit.loading.batch_norm import recalibrate
from pgmkit.loading.building import Architecture, build, find_architecture
from pgmkit.loading.checkpoints import Found, candidates, fit
from pgmkit.loading.folders import WEIGHTS_FILE, ModelFolder
from pgmkit.loading.layouts import FolderConfig, find_weights, read_config
from pgmkit.loading.options import AUTO, GeneratorOptions, Image, Latent, as_image, as_latent
from pgmkit.loading.programs import LOADERS as PROGRAMS
from pgmkit.loading.programs import kind_of_file, load_program, program_signature
from pgmkit.loading.references import open_folder
from pgmkit.loading.saving import terms
from pgmkit.loading.weights import read_checkpoint
from pgmkit.priors import LatentSpec

_TRIED = 16
"""How many latents are tried where nobody says what comes out."""

_LATENT_NAMES = ("latent_dim", "z_dim", "nz", "dim_z", "latent_size", "z_size", "noise_dim")
"""What arguments with the number of latent dimensions are usually called."""


def load_generator(
    reference: str,
    *,
    architecture: Architecture | None = None,
    latent: Latent | None = None,
    image: Image | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    recalibrate: bool = False,
    device: torch.device | str = "cpu",
) -> Generator:
    """Loads a pretrained generator: strict weights, eval mode, gradients off.

    Whatever is given here goes before what the folder says. What nobody said and had to be found,
    such as which of several entries are the averaged weights, is told in a `PgmkitNote` and kept
    in `provenance["notes"]`.

    Args:
        reference: a name from the registry, a weight file, a folder ("local-dir:/path"), or
            "hf-hub:org/name[@revision]". `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the Hub's
            cache are honoured.
        architecture: a class or function that builds the network with `model_args`; the name of a
            component; "package.module:Class"; or "auto", which infers it from the weights.
        latent: the prior: a spec, a table of its arguments, or a number of normal dimensions.
        image: what comes out: a spec, a table of its arguments, or a shape (C, H, W).
        model_args: arguments of the architecture.
        weights: the weight file, relative to the folder.
        key: the entry of the weight file that holds the generator, such as "g_ema".
        prefix: what the names of the generator's weights begin with, such as "module.".
        recalibrate: whether to estimate the statistics of batch norms anew, from the prior.
        device: where to put the weights.

    Raises:
        UnknownNameError: no such registry name, or no plugin offers the architecture.
        ParameterError: an argument is of another form.
        LoadError: files are missing or damaged, or the weights do not fit.
        GeneratorError: what it makes breaks the contract, or is not finite.

    Example:
        >>> load_generator("mnist-dcgan")
        Generator('mnist-dcgan': 64 normal latents -> 1×32×32 images, 919,424 parameters)
    """
    options = GeneratorOptions(
        architecture=architecture,
        latent=latent,
        image=image,
        model_args=model_args,
        weights=weights,
        key=key,
        prefix=prefix,
        recalibrate=recalibrate,
    )
    return generator_from_folder(open_folder(reference), options, device=device)


def load_described(
    source: str, table: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> Generator:
    """Loads a generator with the options of a table, as it stands in a TOML file.

    Args:
        source: as for `load_generator`.
        table: further arguments of `load_generator` by name.
        device: where to put the weights.

    Raises:
        PgmkitError: see `load_generator`.
    """
    return generator_from_folder(
        open_folder(source), GeneratorOptions.from_table(table), device=device
    )


def generator_from_folder(
    folder: ModelFolder,
    options: GeneratorOptions | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Generator:
    """Loads the generator of an open folder; see `load_generator`."""
    options = options or GeneratorOptions()
    config = read_config(folder)
    path, note = find_weights(
        folder, options.weights or folder.weights or config.ours.get("weights")
    )
    notes = [note] if note else []
    network = _network(path, config, options, folder)
    notes += network.notes
    module, latent, image = network.module, network.latent, network.image
    generator = Generator(
        module,
        latent,
        image if image is not None else _seen_image(module, latent, folder, notes),
        name=_name(folder, config),
        architecture=network.architecture,
        model_args=network.arguments,
        provenance={
            **(config.ours.get("provenance") or {}),
            **terms(config.ours),
            "reference": folder.reference,
            **folder.provenance,
            **({"weights": path.name} if path.name != WEIGHTS_FILE else {}),
            "sha256": files.sha256(path),
            **({"entry": network.place} if network.place else {}),
            **({"class": network.of_user} if network.of_user else {}),
        },
    )
    generator.to(device)
    generator.check()
    if options.recalibrate:
        notes += [f"batch norm anew: {moved}" for moved in recalibrate(generator)] or [
            "nothing was recalibrated: there is no batch norm with statistics"
        ]
    if notes:
        generator.provenance["notes"] = notes
    for told in notes:
        warnings.warn(told, PgmkitNote, stacklevel=3)
    return generator


@dataclass(frozen=True)
class _Network:
    """A module with its weights, and what was found out about it on the way."""

    module: nn.Module
    latent: LatentSpec
    image: ImageSpec | None
    place: str
    notes: list[str]
    architecture: str | None
    arguments: dict[str, Any]
    of_user: str = ""


def _weights_of(path: Path, config: FolderConfig, options: GeneratorOptions) -> list[Found]:
    return candidates(
        read_checkpoint(path),
        str(path),
        key=options.key or config.ours.get("weights_key"),
        prefix=options.prefix or config.ours.get("weights_prefix"),
    )


def _network(
    path: Path, config: FolderConfig, options: GeneratorOptions, folder: ModelFolder
) -> _Network:
    """Builds the network that folder and user name, or that the weights show, with its weights."""
    chosen = options.architecture or config.ours.get("architecture")
    if chosen is None and kind_of_file(path) in PROGRAMS:
        return _program(path, config, options, folder)
    if chosen is None:
        made_by = str((config.ours.get("provenance") or {}).get("class", ""))
        if made_by:
            raise LoadError(
                f"{folder.reference} was saved from a class of one's own, {made_by}, which no "
                f"plugin offers; give it: architecture=YourClass (--architecture {made_by})"
            )
        raise LoadError(
            f"nothing says of which network the weights of {folder.reference} are; let it be "
            "inferred from them: architecture='auto' (--architecture auto), or name your class: "
            "--architecture package.module:Class. What there is: pgmkit generators inspect "
            f"{folder.reference}"
        )
    found = _weights_of(path, config, options)
    if chosen == AUTO:
        return _inferred(found, config, options, folder)
    trusted = options.architecture is not None
    where = "the options" if options.model_args is not None else config.where
    factory = find_architecture(chosen, where if not trusted else "the options", trusted=trusted)
    arguments = _arguments(factory, config, options)
    module = build(factory, arguments, where, found[0].tensors)
    module = _in_precision(module, found[-1].tensors)
    fitted, note = fit(module, found, str(folder.reference))
    notes = [*fitted.notes, *([note] if note else [])]
    latent, image = _said_specs(config, options)
    if latent is None:
        latent = _latent_of(arguments, fitted.tensors, folder, notes)
    named = isinstance(chosen, str) and not _is_class_name(chosen)
    return _Network(
        module=module,
        latent=latent,
        image=image,
        place=fitted.place,
        notes=notes,
        architecture=str(chosen) if named else None,
        arguments=arguments,
        of_user="" if named else _class_name(chosen),
    )


def _inferred(
    found: list[Found], config: FolderConfig, options: GeneratorOptions, folder: ModelFolder
) -> _Network:
    """Builds the network that the weights show."""
    from pgmkit.loading.inference import infer

    state = found[-1]
    guess = infer(state.tensors)
    factory = find_architecture(guess.architecture, "the inference", trusted=False)
    module = build(factory, guess.model_args, "what was inferred", state.tensors)
    module = _in_precision(module, state.tensors)
    renamed = {ours: state.tensors[theirs] for theirs, ours in guess.rename.items()}
    fitted, _ = fit(module, [replace(state, tensors=renamed)], str(folder.reference))
    config.check_unknown()
    latent, image = _said_specs(config, options)
    return _Network(
        module=module,
        latent=latent
        or as_latent({"dim": guess.latent_dim, "distribution": guess.distribution}, ""),
        image=image or ImageSpec(guess.image_shape, guess.image_range),
        place=fitted.place,
        notes=[*fitted.notes, *guess.facts, *guess.guesses],
        architecture=guess.architecture,
        arguments=dict(guess.model_args),
    )


def _program(
    path: Path, config: FolderConfig, options: GeneratorOptions, folder: ModelFolder
) -> _Network:
    """Takes a file that is a whole program for the network."""
    config.check_unknown()
    latent, image = _said_specs(config, options)
    notes = []
    if latent is None:
        shape = next(iter(program_signature(path).inputs)).shape or ()
        sizes = [size for size in shape[1:] if size != 1]
        if len(sizes) != 1 or sizes[0] is None:
            raise LoadError(
                f"{folder.reference} is a program that does not say how many latent dimensions it "
                "takes; give latent=DIM (--latent DIM)"
            )
        latent = LatentSpec(sizes[0])
        notes.append(f"took latents for {sizes[0]} normal dimensions, as the program takes {shape}")
    return _Network(load_program(path), latent, image, "", notes, None, {})


def _said_specs(
    config: FolderConfig, options: GeneratorOptions
) -> tuple[LatentSpec | None, ImageSpec | None]:
    """Returns prior and image spec as the user or else the folder says them."""
    latent, image = options.latent, options.image
    if latent is None and "latent" in config.ours:
        latent = as_latent(config.ours["latent"], f"'latent' in {config.where}")
    if image is None and "image" in config.ours:
        image = as_image(config.ours["image"], f"'image' in {config.where}")
    return latent, image  # type: ignore[return-value]  # the options have made them so


def _arguments(
    factory: Callable[..., Any], config: FolderConfig, options: GeneratorOptions
) -> dict[str, Any]:
    """Returns the arguments of the architecture: those given, those under `model_args`, or flat."""
    if options.model_args is not None:
        return dict(options.model_args)
    if "model_args" in config.ours:
        config.check_unknown()
        return dict(config.ours["model_args"])
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a builtin that does not tell
        return dict(config.others)
    flat = dict(config.others)
    if "config" in parameters and "config" not in flat and not set(flat) & set(parameters):
        return {"config": flat}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    strangers = [name for name in flat if name not in parameters and not takes_any]
    if strangers:
        raise LoadError(
            f"{config.where} holds {', '.join(map(repr, strangers[:4]))}, which "
            f"{'are' if len(strangers) > 1 else 'is'} neither a field of pgmkit nor an argument of "
            f"{getattr(factory, '__name__', factory)}; give its arguments as model_args, or move "
            "other facts under 'provenance'"
        )
    return flat


def _in_precision(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Gives a module the floating point type of its weights, which are not rounded to its own."""
    types = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(types) == 1:
        return module.to(types.pop())
    if len(types) > 1:
        return module.to(max(types, key=lambda dtype: torch.finfo(dtype).bits))
    return module


def _latent_of(
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    folder: ModelFolder,
    notes: list[str],
) -> LatentSpec:
    """Returns the prior that the arguments show, or raises LoadError with what the weights show."""
    for name in _LATENT_NAMES:
        dim = arguments.get(name)
        if isinstance(dim, int) and not isinstance(dim, bool) and dim > 0:
            notes.append(f"took latents for {dim} normal dimensions, as {name} is {dim}")
            return LatentSpec(dim)
    first, shape = next(
        ((name, tuple(v.shape)) for name, v in weights.items() if v.ndim >= 2), ("", ())
    )
    # Linear layers have (out, in), transposed convolutions (in, out, h, w).
    dim = shape[1] if len(shape) == 2 else shape[0] if shape else 100
    shown = f"; the first weight, {first} {shape}, suggests latent={dim}" if shape else ""
    raise LoadError(
        f"nothing says how many latent dimensions {folder.reference} has; give latent={dim} "
        f"(--latent {dim}) or 'latent' in config.json{shown}"
    )


@torch.no_grad()
def _seen_image(
    module: nn.Module, latent: LatentSpec, folder: ModelFolder, notes: list[str]
) -> ImageSpec:
    """Returns shape and range of the images that a module makes, where nobody said them."""
    module.eval()
    first = next(module.parameters(), torch.empty(0))
    z = latent.sample(_TRIED, torch.Generator().manual_seed(0)).to(first)
    output, reasons = None, []
    for shape in dict.fromkeys((latent.shape or (latent.dim,), (latent.dim, 1, 1))):
        try:
            output = module(z.reshape(_TRIED, *shape))
            break
        except Exception as error:
            reasons.append(f"latents of shape {shape}: {first_line(error):.160}")
    seen = None if output is None else shape_of(output, _TRIED)
    if seen is None:
        told = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        why = f"what comes out, {told}, does not show it" if output is not None else ""
        raise LoadError(
            f"nothing says what images {folder.reference} makes, and "
            f"{why or 'it does not run on ' + '; '.join(reasons)}; give image=(C, H, W) "
            "(--image CxHxW)"
        )
    images = as_images(output, _TRIED, seen, folder.reference)
    low, high = float(images.min()), float(images.max())
    value_range = (0.0, 1.0) if low >= 0 and high <= 1 else (-1.0, 1.0)
    text = "x".join(map(str, seen))
    notes.append(
        f"took images for {text} with values in [{value_range[0]:g}, {value_range[1]:g}], since "
        f"{_TRIED} of them have values from {low:.3g} to {high:.3g}; say otherwise with "
        f"--image {text}:LOW,HIGH"
    )
    return ImageSpec(seen, value_range)


def _name(folder: ModelFolder, config: FolderConfig) -> str:
    """A registry entry is called by its name; what has a scheme as its config says."""
    if ":" not in folder.reference and folder.weights is None:
        return folder.reference
    return str(config.ours.get("name") or folder.reference)


def _is_class_name(chosen: str) -> bool:
    """Whether an architecture's name is that of a class to import, not of a component."""
    from pgmkit.plugins import registry

    known = registry().of_kind("generator-loaders")
    return ":" in chosen and all(chosen != c.qualified_name for c in known)


def _class_name(chosen: Any) -> str:
    if isinstance(chosen, str):
        return chosen
    module, name = getattr(chosen, "__module__", ""), getattr(chosen, "__qualname__", "")
    return f"{module}:{name}" if module and name else type(chosen).__name__
