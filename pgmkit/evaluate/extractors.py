"""Feature extractors: what fidelity scores look at images through. Each number names its own."""

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.errors import LoadError, ParameterError, UnknownNameError, first_line
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.images import as_channels, resized
from pgmkit.loading.weights import read_weights, serialise
from pgmkit.machine import check_device

_BATCH = 64
_KINDS = ("inception", "classifier:NAME", "timm:NAME")
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns images into feature vectors, and the images that it wants.

    Images come to it as bytes, since that is how data sets are stored: what a generator makes is
    clipped to its range and rounded to 256 levels first. Then, in this order:

    1. grey becomes RGB by repetition, RGB becomes grey by the luma weights of ITU-R 601, as
       `channels` asks;
    2. other sizes than `size` are resized, bilinearly or as `interpolation` says, with antialias;
    3. values go from [0, 255] to `range`, linearly.

    Args:
        module: maps images (B, C, H, W), float32 in `range`, to features of B rows; what else they
            have is flattened.
        name: printed beside every number.
        channels: C, 1 or 3; None takes images as they are.
        size: side of the square images; None takes images as they are.
        range: lowest and highest value of the images.
        interpolation: "bilinear" or "bicubic".
        version: tells these weights and this code from all others; features of an extractor
            without one are not cached.
    """

    module: nn.Module
    name: str
    channels: int | None = None
    size: int | None = None
    range: tuple[float, float] = (-1.0, 1.0)
    interpolation: str = "bilinear"
    version: str | None = None

    def prepare(self, images: Tensor) -> Tensor:
        """Returns byte images (N, C, H, W) as the network wants them, float32.

        Raises:
            ParameterError: they are no bytes, or neither grey nor RGB where that matters.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ParameterError(
                f"images must be bytes of shape (N, C, H, W), not {images.dtype} of shape "
                f"{tuple(images.shape)}"
            )
        pixels = as_channels(images.float(), self.channels, f"the extractor {self.name!r}").round()
        if self.size is not None:
            pixels = resized(pixels, self.size, self.interpolation)
            pixels = pixels.clamp(0, 255)  # bicubic goes beyond
        low, high = self.range
        return pixels * ((high - low) / 255) + low

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Returns the features of byte images (N, C, H, W), float32 (N, d), on the CPU.

        Raises:
            ParameterError: the network does not return one finite row for each image.
        """
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        rows = []
        for batch in images.split(_BATCH):
            found = self.module(self.prepare(batch).to(device))
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(batch):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ParameterError(
                    f"the extractor {self.name!r} returns {shape} for {len(batch)} images, not "
                    "one row of features for each"
                )
            rows.append(found.flatten(1).float().cpu())
        features = torch.cat(rows)
        if not features.isfinite().all():
            raise ParameterError(
                f"the extractor {self.name!r} returns features that are not finite; check its "
                "weights and the range of its images"
            )
        return features


def load_extractor(
    extractor: FeatureExtractor | nn.Module | str, device: torch.device | str = "auto"
) -> FeatureExtractor:
    """Returns a feature extractor; its network goes into eval mode, without gradients, in place.

    * "inception": Inception-v3 of the TensorFlow model that published FID values use, its 2048
      pooled features, through torch-fidelity. It resizes to 299×299 itself, as TensorFlow 1 did.
      "inception@FILE" reads the weights from a file.
    * "classifier:NAME": what the last layer of a classifier of pgmkit sees, such as
      "classifier:mnist-classifier" for grey digits; NAME is any reference.
    * "timm:NAME": a model of timm without its last layer, with pretrained weights from the Hub;
      "timm:NAME@FILE" reads them from a safetensors or torch file.

    Features of other networks are not cached, unless `FeatureExtractor.version` is set.

    Args:
        extractor: one of these names, a `FeatureExtractor`, or a `torch.nn.Module` that takes
            images in [-1, 1].
        device: where the network runs.

    Raises:
        UnknownNameError: there is no such extractor.
        LoadError: its weights are not there, cannot be fetched, or do not fit.
    """
    if isinstance(extractor, FeatureExtractor):
        found = extractor
    elif isinstance(extractor, nn.Module):
        found = FeatureExtractor(extractor, type(extractor).__name__)
    else:
        check_extractor(extractor)
        kind, _, rest = extractor.partition(":")
        if kind == "timm":
            found = _timm(extractor, *_name_and_file(rest))
        elif kind == "classifier":
            found = _classifier(extractor, rest)
        else:
            found = _inception(extractor, _name_and_file(extractor)[1])
    found.module.eval().requires_grad_(False).to(check_device(device))
    return found


def check_extractor(name: str) -> None:
    """Checks the name of an extractor, and that a file which it names is there; loads nothing.

    Raises:
        UnknownNameError: there is no such extractor.
        LoadError: the file is not there.
    """
    kind, _, rest = name.partition(":")
    is_inception = name == "inception" or name.startswith("inception@")
    if not is_inception and (kind not in ("timm", "classifier") or not rest):
        raise UnknownNameError("feature extractor", name, _KINDS)
    path = None if kind == "classifier" else _name_and_file(name)[1]
    if path is not None:
        _existing(path)


class _Call(nn.Module):
    """A network whose features are another call than its own."""

    def __init__(self, network: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _classifier(name: str, reference: str) -> FeatureExtractor:
    network = load_classifier(reference).module
    if not callable(getattr(network, "features", None)):
        raise ParameterError(
            f"the classifier {reference!r} has no features(x), which fidelity is measured by; take "
            "another extractor"
        )
    return FeatureExtractor(
        _Call(network, network.features),  # type: ignore[arg-type]
        name,
        channels=getattr(network, "image_channels", None),
        version=_version(network, "pgmkit"),
    )


def _inception(name: str, path: Path | None) -> FeatureExtractor:
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it says what it downloads
                torch.hub.load_state_dict_from_url(
                    URL_INCEPTION_V3, progress=False, check_hash=True, weights_only=True
                )
        except Exception as error:  # of the network, the disk or the file; all end here
            raise LoadError(
                f"the weights of Inception-v3 cannot be fetched from {URL_INCEPTION_V3}: "
                f"{first_line(error)}; fetch them elsewhere and put them at {path}, or give "
                "inception@FILE"
            ) from error
    read_weights(_existing(path))  # the library would run code from a file that holds any
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, ValueError) as error:
        raise LoadError(
            f"{path} holds no weights of Inception-v3: {first_line(error)}; they are those of "
            f"{URL_INCEPTION_V3}"
        ) from error
    return FeatureExtractor(
        _Call(network, lambda x: network(x.round().byte())[0]),
        name,
        channels=3,
        range=(0.0, 255.0),
        version=_version(network, "torch-fidelity"),
    )


def _timm(name: str, model: str, path: Path | None) -> FeatureExtractor:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(model):
        raise UnknownNameError("model of timm", model, timm.list_models())
    try:
        network = timm.create_model(model, pretrained=path is None, num_classes=0)
    except Exception as error:  # of the Hub, the network or timm; all end here
        raise LoadError(
            f"the weights of {model!r} cannot be fetched: {first_line(error)}; fetch them "
            f"elsewhere and give timm:{model}@FILE"
        ) from error
    if path is not None:
        _load_timm(network, model, _existing(path))
    config: dict[str, Any] = resolve_model_data_config(network)
    channels, *_, size = config["input_size"]
    mean, std = (torch.tensor(config[part]).view(1, -1, 1, 1) for part in ("mean", "std"))
    bicubic = config["interpolation"] == "bicubic"
    return FeatureExtractor(
        nn.Sequential(_Normalise(mean, std), network),
        name,
        channels=channels,
        size=size,
        range=(0.0, 1.0),
        interpolation="bicubic" if bicubic else "bilinear",
        version=_version(network, "timm"),
    )


class _Normalise(nn.Module):
    """Subtracts a mean and divides by a standard deviation, channel by channel."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.std = nn.Buffer(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _load_timm(network: nn.Module, model: str, path: Path) -> None:
    """Loads weights, of which only those of the last layer may be left over."""
    heads = network.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = read_weights(path)
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        raise LoadError(
            f"the weights in {path} do not fit {model!r}: {' '.join(str(error).split())[:300]}"
        ) from error


def _name_and_file(text: str) -> tuple[str, Path | None]:
    name, _, path = text.partition("@")
    return name, Path(path).expanduser() if path else None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LoadError(f"there are no weights at {path}; check the path")
    return path


def _version(network: nn.Module, distribution: str) -> str:
    """Returns a SHA-256 over weights, layers and the version of the code that they came with."""
    code = f"{distribution} {importlib.metadata.version(distribution)} {network!r}"
    digest = hashlib.sha256(code.encode())
    digest.update(serialise(network.state_dict()))
    return digest.hexdigest()
