"""Discriminators of trained GANs, which lie in a generator's folder beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pgmkit.errors import LoadError, first_line
from pgmkit.loading.building import build
from pgmkit.loading.configs import read_config
from pgmkit.loading.folders import CONFIG_FILE, DISCRIMINATOR_FILE
from pgmkit.loading.references import open_folder
from pgmkit.loading.weights import read_weights
from pgmkit.plugins import installed


@dataclass(frozen=True)
class Discriminator:
    """A trained discriminator.

    Args:
        module: maps images x, and partitions y (B,) where it is conditional, to logits (B,), in
            eval mode, without gradients by its weights.
        backbone: name of the backbone that builds it.
        backbone_args: its parameters, and `num_partitions` where it is conditional.
        shape: of the images, (C, H, W), or of points, (d,).
    """

    module: nn.Module
    backbone: str
    backbone_args: Mapping[str, Any]
    shape: tuple[int, ...]


def load_discriminator(reference: str) -> Discriminator:
    """Loads the discriminator that a GAN was trained with.

    Args:
        reference: of its generator, as for `pgmkit.load_generator`, such as the folder `model` that
            `pgmkit train` leaves.

    Raises:
        LoadError: the folder holds none, or it is damaged.
        UnknownNameError: no plugin offers its backbone.
    """
    folder = open_folder(reference)
    config = read_config(folder).ours
    path = folder.fetch(DISCRIMINATOR_FILE)
    if path is None or "architecture" not in config:
        raise LoadError(
            f"{reference} holds no discriminator: it has no {DISCRIMINATOR_FILE}; give the folder "
            "'model' of a GAN that pgmkit train has trained"
        )
    backbone, arguments = config["architecture"], config.get("model_args", {})
    shape = config.get("image", {}).get("shape")
    if not isinstance(shape, list):
        raise LoadError(f"{CONFIG_FILE} of {reference} says no shape of images; fetch it again")
    module = build_discriminator(backbone, arguments, read_weights(path), reference)
    return Discriminator(module, backbone, arguments, tuple(shape))


def build_discriminator(
    backbone: str, backbone_args: Mapping[str, Any], weights: Mapping[str, Tensor], where: str
) -> nn.Module:
    """Builds the discriminator of a backbone around its weights; see `Discriminator`.

    Args:
        backbone: its name.
        backbone_args: its parameters; they may ask for no larger network than the weights fill.
        weights: by name.
        where: what holds them, for messages.

    Raises:
        LoadError: the weights do not fit.
        UnknownNameError: no plugin offers the backbone.
    """
    component = installed().find("backbones", backbone)

    def untrained(num_partitions: int | None = None, **arguments: Any) -> nn.Module:
        module: nn.Module = component.build(**arguments).discriminator(num_partitions)
        return module

    module = build(untrained, backbone_args, where, weights)
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise LoadError(
            f"the weights of the discriminator of {where} do not fit the backbone {backbone!r}: "
            f"{first_line(error)}; train it again"
        ) from error
    return module.eval().requires_grad_(False)
