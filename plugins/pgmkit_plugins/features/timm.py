"""Features of a timm model."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.config import check_count
from pgmkit.errors import LoadError, ParameterError, PgmkitWarning, UnknownNameError, first_line
from pgmkit.images import ImageSource
from pgmkit.learning.encoder import check_images
from pgmkit.loading.weights import read_weights
from pgmkit.seeds import derive_seed


class Timm:
    """The pooled features of a timm model, divided by their length.

    It gets the images in colour, resized to its input size (the whole image, not a crop) and
    normalised as its data config says. Its weights are saved with what is made of them, so loading
    needs neither the Hub nor the file that they came from.

    Args:
        model: name of a timm model.
        pretrained: whether the weights are those that timm fetches from the Hub; without them and
            without `weights` they are random, and a warning says so.
        weights: a file of weights, .safetensors or a torch file.
        input_size: side in pixels that images are resized to, at least 1; None is the model's own,
            which for many is 224 and slow on a CPU.
        normalize: whether features are divided by their length.

    Attributes:
        network_: in eval mode.
    """

    def __init__(
        self,
        model: str = "resnet18",
        pretrained: bool = True,
        weights: str | None = None,
        input_size: int | None = None,
        normalize: bool = True,
    ) -> None:
        if not timm.is_model(model):
            raise UnknownNameError("timm model", model, timm.list_models())
        if input_size is not None:
            check_count("input_size", input_size)
        self.model = model
        self.pretrained = pretrained
        self.weights = weights
        self.input_size = input_size
        self.normalize = normalize

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Fetches the weights, and tries them on an image.

        Raises:
            LoadError: they cannot be fetched or read, or do not fit.
            ParameterError: the model cannot look at such images.
        """
        check_images(source.image, "features 'timm'")
        self.network_ = _frozen(self._build(derive_seed(seed, "network") % 2**32))
        try:
            self(source.batch(torch.arange(1)))
        except ParameterError:
            raise
        except Exception as error:
            raise ParameterError(
                f"the timm model {self.model!r} cannot look at images of {source.image.shape}: "
                f"{type(error).__name__}: {first_line(error)}; choose another model or input_size"
            ) from error

    def __call__(self, x: Tensor) -> Tensor:
        """Returns features (B, D), float32, of images x (B, C, H, W) in [-1, 1]."""
        found = self.network_.to(x.device)(self._converted(x.float())).float().flatten(1)
        return functional.normalize(found, dim=1) if self.normalize else found

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights of the model."""
        weights: Mapping[str, Tensor] = self.network_.state_dict()
        return weights

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self.network_ = _frozen(_untrained(self.model))
        self.network_.load_state_dict(dict(state))

    def _converted(self, x: Tensor) -> Tensor:
        """Returns images as the model expects them."""
        config = resolve_model_data_config(self.network_)
        channels, *size = config["input_size"]
        if self.input_size is not None:
            size = [self.input_size, self.input_size]
        x = ((x + 1) / 2).clamp(0, 1)
        if x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1)
        if x.shape[1] != channels:
            raise ParameterError(
                f"{self.model} looks at images of {channels} channels, and these have "
                f"{x.shape[1]}; wrap a network that fits in a torch.nn.Module"
            )
        if list(x.shape[-2:]) != list(size):
            x = functional.interpolate(
                x, tuple(size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        mean, std = (x.new_tensor(config[name])[:, None, None] for name in ("mean", "std"))
        return (x - mean) / std

    def _build(self, seed: int) -> nn.Module:
        """Returns the network with its weights.

        Raises:
            LoadError: they cannot be fetched or read, or do not fit.
        """
        if self.weights is not None:
            return _with_weights(_untrained(self.model), Path(self.weights))
        if self.pretrained:
            try:
                fetched: nn.Module = timm.create_model(self.model, pretrained=True, num_classes=0)
                return fetched
            except Exception as error:  # whatever the Hub's client or timm raises
                raise LoadError(
                    f"the pretrained weights of the timm model {self.model!r} cannot be fetched "
                    f"({first_line(error)}); check the connection, or give a file as "
                    "weights='/path/to/model.safetensors'"
                ) from error
        warnings.warn(
            f"the weights of {self.model!r} are random, so its features mean little; take "
            "pretrained=True, or give a file as weights=...",
            PgmkitWarning,
            stacklevel=2,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _untrained(self.model)


def _untrained(model: str) -> nn.Module:
    network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
    return network


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _with_weights(network: Any, path: Path) -> nn.Module:
    """Loads a file whose head, if it has one, is not needed.

    Raises:
        LoadError: the file is missing or damaged, or belongs to another model.
    """
    if not path.is_file():
        raise LoadError(f"there is no file of weights {path}; give the path of one that is there")
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    head = tuple(f"{name}." for name in heads)
    state = {n: v for n, v in read_weights(path).items() if not n.startswith(head)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(
            f"{path} holds weights of another model than {network.pretrained_cfg['architecture']}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    loaded: nn.Module = network
    return loaded
