"""Folders of the diffusers library: the decoder of an autoencoder as a generator.

Nothing of a folder is run and no code of it is taken: its config gives arguments to one of two
classes of diffusers, which are built without memory first and compared with the weights on disk.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import files
from pgmkit.errors import LoadError, PluginError, first_line, listed
from pgmkit.images.source import ImageSpec
from pgmkit.loading.folders import CONFIG_FILE, ModelFolder
from pgmkit.loading.layouts import fetched
from pgmkit.loading.weights import INDEX_SUFFIX, read_weights
from pgmkit.machine import check_memory
from pgmkit.priors import LatentSpec

ARCHITECTURE = "diffusers-decoder"
"""The component that builds a decoder again."""

_CLASSES = ("AutoencoderKL", "VQModel")
_PIPELINE_FILE = "model_index.json"
_PARTS = ("vae", "vqvae")
_MAPS_AT_ONCE = 4
_WEIGHTS = [
    f"diffusion_pytorch_model{variant}{end}{index}"
    for variant in ("", ".fp16")
    for end in (".safetensors", ".bin")
    for index in ("", INDEX_SUFFIX)
]
# How attention in decoders was called before diffusers 0.18; diffusers renames it, too.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_OLD_NAMES)})\.(weight|bias)$")


class DiffusersDecoder(nn.Module):
    """Maps latents, flat or (B, C, H, W), to images: the decoder half of an autoencoder.

    Args:
        decoder: of the autoencoder.
        post_quant_conv: what comes before it, if anything.
        shape: (C, H, W) of a latent.
        spatial: whether the decoder's norms look at the latent as well.

    Attributes:
        offset: (C, 1, 1), added to every latent, so that latents are centred on 0.
    """

    def __init__(
        self,
        decoder: nn.Module,
        post_quant_conv: nn.Module | None,
        shape: tuple[int, int, int],
        *,
        spatial: bool,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.post_quant_conv = post_quant_conv
        self.offset: Tensor
        self.register_buffer("offset", torch.zeros(shape[0], 1, 1))
        self.shape = shape
        self._spatial = spatial

    def forward(self, z: Tensor) -> Tensor:
        """Returns images (B, C, H, W), about in [-1, 1], for latents z."""
        latents = z.reshape(len(z), *self.shape) + self.offset
        hidden = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        images: Tensor = self.decoder(hidden, latents) if self._spatial else self.decoder(hidden)
        return images

    def extra_repr(self) -> str:
        """Returns the shape of a latent."""
        return f"shape={self.shape}, spatial={self._spatial}"


@dataclass(frozen=True)
class FoundDecoder:
    """A decoder with its weights, what its folder says of it, and notes of what was assumed."""

    module: nn.Module
    latent: LatentSpec
    image: ImageSpec
    path: Path
    arguments: dict[str, Any]
    notes: list[str]


def is_diffusers(folder: ModelFolder, config: Mapping[str, Any]) -> bool:
    """Whether a folder is one of the diffusers library: an autoencoder, or a pipeline with one."""
    if config:
        return "_diffusers_version" in config or config.get("_class_name") in _CLASSES
    index = folder.fetch(_PIPELINE_FILE)
    if index is None:
        return False
    named = files.read_json(index, folder.reference)
    return any(isinstance(named.get(part), list) for part in _PARTS)


def read_decoder(folder: ModelFolder, *, sides: Sequence[int] | None = None) -> FoundDecoder:
    """Reads the decoder of an `AutoencoderKL` or `VQModel`.

    The folder is that of the autoencoder, or of a pipeline with one in `vae/` or `vqvae/`.

    Args:
        folder: where config and weights are.
        sides: height and width of the images in pixels, instead of the config's.

    Raises:
        PluginError: the extra `pgmkit[diffusers]` is not installed.
        LoadError: files are missing or damaged, the class is another, or weights do not fit.
        ParameterError: there is no memory for images of that size.
    """
    config, place = _config(folder)
    where = f"{place}{CONFIG_FILE} of {folder.reference}"
    _check_class(config, where)
    path = _weight_file(folder, place)
    weights = {_new_name(key): value for key, value in read_weights(path).items()}
    _check_config(config, weights, where)
    height, width = _sides(config, sides, where)
    with torch.device("meta"):
        module = build_decoder(dict(config), [height, width])
    _fill(module.decoder, "decoder.", weights, where)
    if module.post_quant_conv is not None:
        _fill(module.post_quant_conv, "post_quant_conv.", weights, where)
    offset, std, note = _prior(config, weights, module.shape[0], where)
    module.offset = offset.to(next(module.decoder.parameters()).dtype)
    return FoundDecoder(
        module.eval().requires_grad_(False),
        LatentSpec(math.prod(module.shape), std=std),
        ImageSpec((config.get("out_channels", 3), height, width)),
        path,
        {"config": dict(config), "sides": [height, width]},
        [note],
    )


def build_decoder(config: dict[str, Any], sides: list[int] | None = None) -> DiffusersDecoder:
    """Builds a decoder without its weights.

    Args:
        config: the `config.json` of the autoencoder.
        sides: height and width of the images; None takes those in the config.

    Raises:
        PluginError: the extra `pgmkit[diffusers]` is not installed.
        LoadError: the class is another, or its arguments are none.
        ParameterError: there is no memory for images of that size.
    """
    where = "'config' in model_args"
    _check_class(config, where)
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise LoadError(f"'block_out_channels' in {where} must be a list, not {channels!r:.40}")
    height, width = _sides(config, sides, where)
    _check_memory(config, height, width)
    model = _build(str(config["_class_name"]), config, where)
    factor = 2 ** (len(channels) - 1)
    shape = (_latent_channels(config), height // factor, width // factor)
    return DiffusersDecoder(
        model.decoder, model.post_quant_conv, shape, spatial=config.get("norm_type") == "spatial"
    )


def _check_class(config: Mapping[str, Any], where: str) -> None:
    name = config.get("_class_name")
    if name not in _CLASSES:
        raise LoadError(
            f"{where} is of the class {name!r:.60}; pgmkit takes decoders of "
            f"{' and '.join(_CLASSES)}"
        )


def _config(folder: ModelFolder) -> tuple[dict[str, Any], str]:
    """Returns the config of the autoencoder, and its sub-folder: "" or such as "vae/"."""
    path = folder.fetch(CONFIG_FILE)
    if path is not None:
        return files.read_json(path, folder.reference), ""
    for part in _PARTS:
        path = folder.fetch(f"{part}/{CONFIG_FILE}")
        if path is not None:
            return files.read_json(path, folder.reference), f"{part}/"
    raise LoadError(
        f"{folder.reference} has no autoencoder: neither {CONFIG_FILE} nor "
        f"{' nor '.join(f'{part}/{CONFIG_FILE}' for part in _PARTS)}"
    )


def _weight_file(folder: ModelFolder, place: str) -> Path:
    for name in _WEIGHTS:
        if folder.fetch(place + name) is not None:
            return fetched(folder, place + name)
    raise LoadError(
        f"{folder.reference} has no weights; it needs {place}{_WEIGHTS[0]} (or .bin, or shards)"
    )


def _new_name(name: str) -> str:
    found = _OLD_NAME.search(name)
    if found is None:
        return name
    return f"{name[: found.start()]}{found[1]}.{_OLD_NAMES[found[2]]}.{found[3]}"


def _check_config(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Raises LoadError unless the decoder has as many blocks and layers as the weights."""
    counted = re.compile(r"decoder\.up_blocks\.(\d{1,6})\.resnets\.(\d{1,6})\.")
    found = [tuple(map(int, match.groups())) for match in map(counted.match, weights) if match]
    blocks = max((block for block, _ in found), default=-1) + 1
    layers = max((layer for _, layer in found), default=-1)
    for key in ("block_out_channels", "up_block_types", "down_block_types"):
        value = config.get(key)
        if not isinstance(value, list) or not value or len(value) != blocks:
            told = f"{len(value)} entries" if isinstance(value, list) else f"{value!r:.40}"
            raise LoadError(f"{key!r} in {where} has {told} where the weights have {blocks} blocks")
    if config.get("layers_per_block", 1) != layers:
        raise LoadError(
            f"'layers_per_block' in {where} is {config.get('layers_per_block')!r:.40} where the "
            f"weights have {layers}"
        )
    counts = [
        *config["block_out_channels"],
        _latent_channels(config),
        config.get("out_channels", 3),
    ]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**20 for n in counts):
        raise LoadError(f"channels in {where} must be whole numbers from 1, not {counts!s:.80}")


def _latent_channels(config: Mapping[str, Any]) -> Any:
    if config["_class_name"] == "VQModel" and config.get("vq_embed_dim") is not None:
        return config["vq_embed_dim"]
    return config.get("latent_channels", 4 if config["_class_name"] == "AutoencoderKL" else 3)


def _build(name: str, config: Mapping[str, Any], where: str) -> Any:
    """Builds one of the two classes with the arguments in its config."""
    try:
        import diffusers
    except ImportError as error:
        raise PluginError(
            f"{where} is of the diffusers library, and {error.name} is not installed; "
            "run pip install 'pgmkit[diffusers]'"
        ) from error
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return getattr(diffusers, name)(**arguments)
    except Exception as error:  # of any kind, by what the values are
        raise LoadError(
            f"diffusers.{name} cannot be built with the arguments in {where}: "
            f"{first_line(error)[:160]}"
        ) from error


def _fill(module: nn.Module, prefix: str, weights: Mapping[str, Tensor], where: str) -> None:
    """Gives a module without memory the weights under a prefix, if names and shapes are its."""
    own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    expected = module.state_dict()
    for name, value in expected.items():
        if name in own and own[name].shape != value.shape == own[name].squeeze().shape:
            own[name] = own[name].squeeze()  # attention was once written as 1×1 convolutions
    missing, unknown = expected.keys() - own.keys(), own.keys() - expected.keys()
    other = {n for n in expected.keys() & own.keys() if expected[n].shape != own[n].shape}
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", other)):
        if names:
            shown = listed([prefix + name for name in sorted(names)], 3)
            raise LoadError(
                f"the weights beside {where} do not fit its arguments: {what}: {shown}; "
                "fetch config and weights again, from one revision"
            )
    module.load_state_dict(own, assign=True)


def _sides(config: Mapping[str, Any], given: Sequence[int] | None, where: str) -> tuple[int, int]:
    """Returns height and width of the images, multiples of what the decoder enlarges by."""
    value = config.get("sample_size", 32) if given is None else list(given)
    sides = value if isinstance(value, list) else [value, value]
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    good = len(sides) == 2 and all(
        isinstance(n, int) and 0 < n <= 2**14 and n % factor == 0 for n in sides
    )
    if not good:
        raise LoadError(
            f"the images of {where} cannot have sides of {value!r:.40} pixels: 'sample_size' must "
            f"be a multiple of {factor}, at most 16384"
        )
    return sides[0], sides[1]


def _check_memory(config: Mapping[str, Any], height: int, width: int) -> None:
    """Raises ParameterError if there is no memory for what decoding one image keeps at a time.

    That is some maps of the largest level, or what each place has to do with each other place
    where there is attention: in the middle, and in blocks that say so.
    """
    channels = config["block_out_channels"]
    kinds = config.get("up_block_types")
    areas = [height * width // 4**level for level in range(len(channels))]
    maps = max(max(channels[i : i + 2]) * area for i, area in enumerate(areas))
    attending = [
        area
        for kind, area in zip(
            reversed(kinds if isinstance(kinds, list) else []), areas, strict=False
        )
        if "Attn" in str(kind)
    ]
    if config.get("mid_block_add_attention", True):
        attending.append(areas[-1])
    pairs = max((area * area for area in attending), default=0)
    check_memory(
        4 * (_MAPS_AT_ONCE * maps + 2 * pairs),  # scores and their softmax
        f"images of {height}×{width} pixels",
        "give smaller ones: image=(3, H, W) (--image 3xHxW)",
    )


def _prior(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], channels: int, where: str
) -> tuple[Tensor, float, str]:
    """Returns offset (C, 1, 1) and standard deviation of latents, and what is assumed in them."""
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0
    means = config.get("latents_mean") or [shift] * channels
    stds = config.get("latents_std") or [1.0] * channels
    lists = isinstance(means, list) and isinstance(stds, list)
    numbers = [scale, *means, *stds] if lists else [None]
    good = all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    if not good or scale <= 0 or not len(means) == len(stds) == channels:
        raise LoadError(
            f"'scaling_factor', 'shift_factor', 'latents_mean' and 'latents_std' in {where} must "
            f"be finite numbers, the first above 0, the last two {channels} of them each"
        )
    if config["_class_name"] == "VQModel":
        book = weights.get("quantize.embedding.weight")
        if book is None or book.ndim != 2 or book.shape[1] != channels:
            raise LoadError(f"the weights beside {where} have no codebook of {channels} channels")
        mean = book.float().mean(dim=0)
        std = float((book.float() - mean).square().mean().sqrt())
        note = (
            "latents of a VQModel are decoded as they are, without looking up the codebook, whose "
            f"mean is added to them; its spread gives the prior: normal with std {std:.4g}"
        )
        return mean.reshape(channels, 1, 1), std, note
    std = math.sqrt(sum(s * s for s in stds) / channels) / scale
    around = f" around {', '.join(f'{m:.3g}' for m in means)}" if any(means) else ""
    note = (
        f"the prior is taken for normal with std {std:.4g} (1 / scaling_factor){around}, and "
        "coordinates for independent, which those of real images are not; a decoder that was "
        "trained to N(0, 1) itself needs std = 1 in its latent spec"
    )
    return torch.tensor(means).float().reshape(channels, 1, 1), std, note
