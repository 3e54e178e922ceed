"""Features of a trained discriminator."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.errors import ParameterError
from pgmkit.images import ImageSource
from pgmkit.loading.discriminators import build_discriminator, load_discriminator

_NETWORK = "network"
_WEIGHTS = "weights."


class OfDiscriminator:
    """What the last layer of a GAN's discriminator sees.

    The discriminator learned without labels to tell images of the data from generated ones, and
    what it looks at for that tells the images from each other (Liu et al., "Diverse Image
    Generation via Self-Conditioned GANs", CVPR 2020, who cluster such features). Each `fit` reads
    the weights as they are then. They are saved with what is made of them, so loading does not need
    the folder that they came from.

    Args:
        source: reference of the GAN's generator, with the discriminator in its folder, such as
            "local-dir:runs/digits/model" of one that `pgmkit train` left; None is the one that is
            being trained, where a GAN is conditioned on its parts.
        normalize: whether features are divided by their length.

    Attributes:
        network_: in eval mode.
    """

    def __init__(self, source: str | None = None, normalize: bool = True) -> None:
        self.source = source
        self.normalize = normalize
        self._watched: tuple[nn.Module, str, Mapping[str, Any]] | None = None

    def watch(self, module: nn.Module, backbone: str, backbone_args: Mapping[str, Any]) -> None:
        """Takes the discriminator that is being trained.

        Raises:
            ParameterError: a source names another one.
        """
        if self.source is not None:
            raise ParameterError(
                f"features 'discriminator' look through that of {self.source}, so their parts do "
                "not change in training; leave out source, or model.recluster_steps"
            )
        self._watched = module, backbone, backbone_args

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Reads the discriminator, or copies the one that is being trained.

        Raises:
            LoadError: the folder holds none, or it is damaged.
            ParameterError: it looks at images of another shape, or does not tell its features; or
                there is none.
        """
        if self.source is None:
            if self._watched is None:
                raise ParameterError(
                    "features 'discriminator' need a source, such as "
                    "local-dir:runs/digits/model; without one they are for a GAN in training, "
                    "with model.recluster_steps"
                )
            module, self._backbone, arguments = self._watched
            self._backbone_args = dict(arguments)
            copied = copy.deepcopy(module).eval().requires_grad_(False)
            self.network_ = _checked(copied, self._backbone)
            return
        found = load_discriminator(self.source)
        if found.shape != source.image.shape:
            raise ParameterError(
                f"the discriminator of {self.source} looks at images of {found.shape}, and these "
                f"are {source.image.shape}; give images of that size"
            )
        self._backbone, self._backbone_args = found.backbone, dict(found.backbone_args)
        self.network_ = _checked(found.module, found.backbone)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns features (B, d), float32, of images x (B, C, H, W) in [-1, 1]."""
        network: Any = self.network_.to(x.device)
        found: Tensor = network.features(x.float()).float().flatten(1)
        return functional.normalize(found, dim=1) if self.normalize else found

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights, and which network they are of, as JSON in bytes."""
        text = json.dumps([self._backbone, self._backbone_args]).encode()
        weights = {f"{_WEIGHTS}{name}": v for name, v in self.network_.state_dict().items()}
        return {_NETWORK: torch.frombuffer(bytearray(text), dtype=torch.uint8), **weights}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        self._backbone, self._backbone_args = json.loads(state[_NETWORK].numpy().tobytes())
        weights = {n.removeprefix(_WEIGHTS): v for n, v in state.items() if n != _NETWORK}
        where = self.source or "a GAN in training"
        module = build_discriminator(self._backbone, self._backbone_args, weights, where)
        self.network_ = _checked(module, self._backbone)


def _checked(module: nn.Module, backbone: Any) -> nn.Module:
    if not callable(getattr(module, "features", None)):
        raise ParameterError(
            f"the discriminator of the backbone {backbone!r} does not tell what its last layer "
            "sees: it has no method features(x); choose other features"
        )
    return module
