"""The network behind a model folder, whoever wrote it: built, with its weights in it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pgmkit.errors import LoadError, first_line
from pgmkit.forms import as_images, shape_of
from pgmkit.images.source import ImageSpec
from pgmkit.loading import diffusers
from pgmkit.loading.building import Architecture, build, find_architecture
from pgmkit.loading.checkpoints import Found, candidates, check_readable, fit
from pgmkit.loading.configs import FolderConfig, read_config
from pgmkit.loading.folders import ModelFolder
from pgmkit.loading.inference import Inferred, infer
from pgmkit.loading.layouts import find_weights
from pgmkit.loading.options import AUTO, GeneratorOptions, as_image, as_latent
from pgmkit.loading.programs import LOADERS as PROGRAMS
from pgmkit.loading.programs import kind_of_file, load_program
from pgmkit.loading.weights import read_checkpoint
from pgmkit.plugins import installed
from pgmkit.priors import LatentSpec

_TRIED = 16
"""How many latents are tried where nobody says what comes out."""

_LATENT_NAMES = ("latent_dim", "z_dim", "nz", "dim_z", "latent_size", "z_size", "noise_dim")
"""What arguments with the number of latent dimensions are usually called."""


@dataclass(frozen=True)
class Network:
    """A module with its weights, prior and images, and what was found out about it on the way.

    Notes are what nobody had said and was found or guessed, one sentence each. The architecture is
    the component that builds it, None for a class of the user's or a program; the record holds
    further facts for the provenance.
    """

    module: nn.Module
    latent: LatentSpec
    image: ImageSpec
    path: Path
    config: FolderConfig
    notes: Sequence[str] = ()
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_program(self) -> bool:
        """Whether the weight file is all of it, and no architecture builds it."""
        return (
            self.architecture is None
            and "class" not in self.record
            and kind_of_file(self.path) in PROGRAMS
        )


class NoArchitectureError(LoadError):
    """Nobody says of which network the weights are."""


def read_network(folder: ModelFolder, options: GeneratorOptions) -> Network:
    """Builds the network that user or folder name, or that the weights show, with its weights.

    Raises:
        LoadError: files are missing or damaged, do not fit, or it cannot be told what they are.
        UnknownNameError: no plugin offers the architecture.
        ParameterError: its arguments do not fit.
    """
    return _Reader(folder, options).network()


class _Reader:
    """Reads one network, by what the folder says and, before that, the user."""

    def __init__(self, folder: ModelFolder, options: GeneratorOptions) -> None:
        self.folder = folder
        self.options = options
        self.config = config = read_config(folder)
        latent, image = options.latent, options.image
        if latent is None and "latent" in config.ours:
            latent = as_latent(config.ours["latent"], f"'latent' in {config.where}")
        if image is None and "image" in config.ours:
            image = as_image(config.ours["image"], f"'image' in {config.where}")
        self.latent = cast(LatentSpec | None, latent)  # the options have made them so
        self.image = cast(ImageSpec | None, image)

    def network(self) -> Network:
        ours = self.config.ours
        chosen = self.options.architecture or ours.get("architecture")
        named = self.options.weights or self.folder.weights or ours.get("weights")
        if (
            not (chosen or ours)
            and (self.config.others or not named)
            and diffusers.is_diffusers(self.folder, self.config.others)
        ):
            return self.diffusers()
        path, note = find_weights(self.folder, named, sure=bool(ours))
        if chosen is None and kind_of_file(path) in PROGRAMS:
            network = self.program(path)
        elif chosen is None:
            raise NoArchitectureError(_nothing_says(self.folder, self.config))
        else:
            found = candidates(
                read_checkpoint(path),
                str(path),
                key=self.options.key or ours.get("weights_key"),
                prefix=self.options.prefix or ours.get("weights_prefix"),
            )
            network = self.fitted(path, found, chosen)
        return replace(network, notes=[note, *network.notes] if note else network.notes)

    def fitted(self, path: Path, found: list[Found], chosen: Architecture) -> Network:
        """Builds what an architecture says, and puts the weights in."""
        config, options = self.config, self.options
        if chosen == AUTO:
            return self.inferred(path, found[-1], _infer(found[-1], options))
        trusted = options.architecture is not None
        named = "the options" if trusted else config.where
        factory = find_architecture(chosen, named, trusted=trusted)
        is_component = isinstance(chosen, str) and installed().offers("generator-loaders", chosen)
        arguments = _arguments(factory, config, options)
        if is_component and not arguments and "model_args" not in config.ours:
            guess = _inferred_as(str(chosen), found[-1])
            if guess is not None:
                return self.inferred(path, found[-1], guess)
        where = "the options" if options.model_args is not None else config.where
        self.check_dimensions(arguments)
        module = build(factory, arguments, where, found[0].tensors)
        reference = self.folder.reference
        fitted, note = fit(_in_precision(module, found[-1].tensors), found, reference)
        notes = [*fitted.notes, *([note] if note else [])]
        latent = self.latent or _latent_of(arguments, fitted.tensors, reference, notes)
        return Network(
            module,
            latent,
            self.image or _seen_image(module, latent, reference, notes),
            path,
            config,
            notes,
            str(chosen) if is_component else None,
            arguments,
            {
                **({"entry": fitted.place} if fitted.place else {}),
                **({} if is_component else {"class": _class_name(chosen)}),
            },
        )

    def inferred(self, path: Path, state: Found, guess: Inferred) -> Network:
        """Builds the network that the weights show."""
        self.config.check_unknown()
        if self.options.model_args is not None:
            raise LoadError(
                "model_args are inferred with architecture='auto'; to give them, name the "
                f"architecture that they are for, such as --architecture {guess.architecture}"
            )
        factory = find_architecture(guess.architecture, "the inference", trusted=False)
        module = build(factory, guess.model_args, "what was inferred", state.tensors)
        renamed = {ours: state.tensors[theirs] for theirs, ours in guess.rename.items()}
        placed = [replace(state, tensors=renamed)]
        fit(_in_precision(module, state.tensors), placed, self.folder.reference)
        undisputed = [
            told
            for told in guess.guesses
            if not (self.latent is not None and told.startswith("prior "))
            and not (self.image is not None and "image range" in told.partition(":")[0])
        ]
        return Network(
            module,
            self.latent or as_latent(f"{guess.distribution}:{guess.latent_dim}", "latent"),
            self.image or ImageSpec(guess.image_shape, guess.image_range),
            path,
            self.config,
            [*state.notes, *guess.facts, *undisputed],
            guess.architecture,
            guess.model_args,
            {"entry": state.place} if state.place else {},
        )

    def program(self, path: Path) -> Network:
        """Takes a file that is a whole program for the network."""
        self.config.check_unknown()
        self.refuse("a program", ("key", "prefix", "model_args"))
        latent, reference = self.latent, self.folder.reference
        notes: list[str] = []
        module = load_program(path)
        if latent is None:
            shape: tuple[int | None, ...] = getattr(module, "latent_shape", ())
            sizes = [size for size in shape[1:] if size != 1]
            if len(sizes) != 1 or sizes[0] is None:
                raise LoadError(
                    f"{reference} is a program that does not say how many latent dimensions it "
                    "takes; give latent=DIM (--latent DIM)"
                )
            latent = LatentSpec(sizes[0])
            notes.append(
                f"took latents for {sizes[0]} normal dimensions, as the program takes {shape}"
            )
        image = self.image or _seen_image(module, latent, reference, notes)
        return Network(module, latent, image, path, self.config, notes)

    def diffusers(self) -> Network:
        """Takes the decoder out of a folder of the diffusers library."""
        self.refuse("a folder of diffusers", ("weights", "key", "prefix", "model_args"))
        sides = self.image.shape[1:] if self.image is not None else None
        found = diffusers.read_decoder(self.folder, sides=sides)
        return Network(
            found.module,
            self.latent or found.latent,
            self.image or found.image,
            found.path,
            self.config,
            found.notes,
            diffusers.ARCHITECTURE,
            found.arguments,
        )

    def refuse(self, what: str, names: Sequence[str]) -> None:
        """Raises LoadError if options were given that mean nothing there."""
        for name in names:
            if getattr(self.options, name) is not None:
                raise LoadError(
                    f"{name} means nothing for {what}, which says it itself; leave it out"
                )

    def check_dimensions(self, arguments: Mapping[str, Any]) -> None:
        """Raises LoadError if the prior has other dimensions than the arguments say."""
        for name in _LATENT_NAMES:
            dim = arguments.get(name)
            if self.latent is not None and isinstance(dim, int) and dim != self.latent.dim:
                raise LoadError(
                    f"the prior of {self.folder.reference} has {self.latent.dim} dimensions, and "
                    f"its {name} is {dim}; correct one of them"
                )


def _infer(state: Found, options: GeneratorOptions) -> Inferred:
    """Infers a network; where that fails among several parts, their prefixes are named."""
    check_readable(state.tensors)
    try:
        return infer(state.tensors)
    except LoadError as error:
        parts = dict.fromkeys(name.partition(".")[0] for name in state.tensors if "." in name)
        if options.prefix is not None or not 1 < len(parts) < 9 or any(p.isdigit() for p in parts):
            raise
        raise LoadError(
            f"{error}; if the generator is one of {', '.join(parts)}, name it, such as "
            f"--prefix {next(iter(parts))}."
        ) from error


def _inferred_as(component: str, state: Found) -> Inferred | None:
    """Returns what is inferred, if it is of that component."""
    try:
        guess = infer(state.tensors)
    except LoadError:
        return None
    return guess if guess.architecture == component.rpartition(":")[2] else None


def _nothing_says(folder: ModelFolder, config: FolderConfig) -> str:
    made_by = str((config.ours.get("provenance") or {}).get("class", ""))
    if made_by:
        return (
            f"{folder.reference} was saved from a class of one's own, {made_by}, which no plugin "
            f"offers; give it: architecture=YourClass (--architecture {made_by})"
        )
    return (
        f"nothing says of which network the weights of {folder.reference} are; let it be inferred "
        "from them: architecture='auto' (--architecture auto), or name your class: --architecture "
        f"package.module:Class. What there is: pgmkit generators inspect {folder.reference}"
    )


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


def latent_dim_in(arguments: Mapping[str, Any]) -> tuple[str, int] | None:
    """Returns which argument says how many latent dimensions there are, and how many."""
    for name in _LATENT_NAMES:
        dim = arguments.get(name)
        if isinstance(dim, int) and not isinstance(dim, bool) and dim > 0:
            return name, dim
    return None


def _latent_of(
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    reference: str,
    notes: list[str],
) -> LatentSpec:
    """Returns the prior that the arguments show, or raises LoadError with what the weights show."""
    told = latent_dim_in(arguments)
    if told is not None:
        name, dim = told
        notes.append(f"took latents for {dim} normal dimensions, as {name} is {dim}")
        return LatentSpec(dim)
    first, shape = next(
        ((name, tuple(v.shape)) for name, v in weights.items() if v.ndim >= 2), ("", ())
    )
    # Linear layers have (out, in), transposed convolutions (in, out, h, w).
    dim = shape[1] if len(shape) == 2 else shape[0] if shape else 100
    shown = f"; the first weight, {first} {shape}, suggests latent={dim}" if shape else ""
    raise LoadError(
        f"nothing says how many latent dimensions {reference} has; give latent={dim} "
        f"(--latent {dim}) or 'latent' in config.json{shown}"
    )


@torch.no_grad()
def _seen_image(
    module: nn.Module, latent: LatentSpec, reference: str, notes: list[str]
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
            f"nothing says what images {reference} makes, and "
            f"{why or 'it does not run on ' + '; '.join(reasons)}; give image=(C, H, W) "
            "(--image CxHxW)"
        )
    images = as_images(output, _TRIED, seen, reference)
    low, high = float(images.min()), float(images.max())
    value_range = (0.0, 1.0) if low >= 0 and high <= 1 else (-1.0, 1.0)
    text = "x".join(map(str, seen))
    notes.append(
        f"took images for {text} with values in [{value_range[0]:g}, {value_range[1]:g}], since "
        f"{_TRIED} of them have values from {low:.3g} to {high:.3g}; say otherwise with "
        f"--image {text}:LOW,HIGH"
    )
    return ImageSpec(seen, value_range)


def _class_name(chosen: Any) -> str:
    if isinstance(chosen, str):
        return chosen
    module, name = getattr(chosen, "__module__", ""), getattr(chosen, "__qualname__", "")
    return f"{module}:{name}" if module and name else type(chosen).__name__
