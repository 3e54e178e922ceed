"""A small network that learns which label each image has, from deformed images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.images import Deformations
from pgmkit.learning.clock import Clock
from pgmkit.learning.encoder import (
    Encoder,
    another_version,
    encoder_of,
    seeded,
)
from pgmkit.learning.halves import Halves
from pgmkit.learning.minimise import minimise
from pgmkit.machine import sent
from pgmkit.seeds import derive_seed, random_generator

_SMOOTHING = 0.1


def learn_labels(
    pixels: Tensor,
    labels: Tensor,
    num_labels: int,
    *,
    device: torch.device,
    steps: int,
    batch_size: int,
    width: int,
    residual: bool = False,
    deep: bool = False,
    deformations: Deformations,
    learning_rate: float,
    evenly: bool = False,
    seed: int,
    name: str,
    identity: Mapping[str, Any],
) -> nn.Sequential:
    """Trains a network on deformed images by cross-entropy, with labels smoothed by 0.1.

    Args:
        pixels: images in bytes, (n, C, 32, 32); see `pgmkit.learning.encoder.image_bytes`.
        labels: int64 (n,), from 0.
        num_labels: k.
        device: where it learns.
        steps: of training.
        batch_size: images per step, at least 4; all of them where there are fewer.
        width: channels of the first layer.
        residual: whether it has residual blocks; see `pgmkit.learning.encoder.Encoder`.
        deep: whether these are more; see there.
        deformations: how far the images are deformed.
        learning_rate: the highest.
        evenly: whether all labels are seen equally often.
        seed: of the run.
        name: of the loop; see `pgmkit.learning.learn`.
        identity: what tells it from all else.

    Returns:
        Images (B, C, 32, 32) in [-1, 1] to logits (B, k), in eval mode, without gradients by its
        weights.
    """

    def fresh() -> nn.Sequential:
        head = nn.Linear(Encoder.features, num_labels)
        return _network(Encoder(pixels.shape[1], width, residual, deep), head)

    network: nn.Sequential = seeded(fresh, seed, name).to(device)
    halves = Halves(network)
    batch = min(batch_size, len(pixels))
    weights = labels.bincount().double().reciprocal()[labels]
    pixels, labels = pixels.to(device), labels.to(device)

    def loss(clock: Clock) -> Tensor:
        if evenly:
            index = torch.multinomial(weights, batch, replacement=True, generator=clock.random)
        else:
            index = torch.randperm(len(pixels), generator=clock.random)[:batch]
        index = sent(index, device)
        parts = index.tensor_split(2)

        def version(number: int) -> Tensor:
            random = random_generator(clock.seed, "version", number)
            return another_version(pixels[parts[number]], deformations, random)

        logits, wanted = torch.cat(halves(version)), labels[index]
        return functional.cross_entropy(logits, wanted, label_smoothing=_SMOOTHING)

    minimise(
        loss,
        [network],
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=1e-2,
        seed=derive_seed(seed, name),
        name=name,
        identity=identity,
    )
    return _frozen(network)


def labeller_of(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Returns the network that these weights belong to, as `learn_labels` returned it."""
    encoder = encoder_of({n.removeprefix("0."): v for n, v in state.items() if n.startswith("0.")})
    network = _network(encoder, nn.Linear(Encoder.features, len(state["2.bias"])))
    network.load_state_dict(dict(state))
    return _frozen(network)


def _network(encoder: Encoder, head: nn.Linear) -> nn.Sequential:
    return nn.Sequential(encoder, nn.ReLU(), head).to(memory_format=torch.channels_last)


def _frozen(network: nn.Sequential) -> nn.Sequential:
    return network.eval().requires_grad_(False)
