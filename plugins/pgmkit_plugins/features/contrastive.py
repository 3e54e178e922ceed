"""Features that a small network learns by contrast from the images themselves."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.components import parameters_of
from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.images import ImageSource, Moves, preset
from pgmkit.learning import Clock, minimise
from pgmkit.learning.contrast import contrastive_loss
from pgmkit.learning.encoder import (
    Encoder,
    another_version,
    check_images,
    check_training,
    encoder_of,
    image_bytes,
    looked_at,
    seeded,
)
from pgmkit.learning.halves import Halves
from pgmkit.learning.precision import InBfloat16
from pgmkit.machine import sent
from pgmkit.seeds import random_generator

_ENOUGH = 6_000
_MORE = 4
_LEAST_IMAGES = 16


class Contrastive:
    """Features in which two versions of an image agree and different images do not.

    A small convolutional network learns them with the NT-Xent loss (Chen et al., SimCLR, 2020),
    label-free. A version is made in two ways: where the images come from a generator, the latent
    moves a little along the prior, `z' = √(1 - s²)·z + s·ε`, which a data set cannot offer; and the
    image is deformed: turned, stretched, sheared, shifted, bent, its strokes made thicker or
    thinner, and its contrast and colours changed. Strokes matter: without them such features sort
    digits by the width of the pen.

    Images are looked at in 32×32.

    Args:
        steps: of training, at least 1.
        batch_size: pairs per step, at least 2.
        move: s, how far latents move, in [0, 1); 0 leaves them.
        strength: of the deformations, at least 0; 1 suits digits and clothes.
        temperature: of the contrastive loss, above 0.
        width: channels of the network's first layer, at least 1.
        residual: whether the network has residual blocks, which photographs want; see
            `pgmkit.learning.encoder.Encoder`.
        deep: whether these are more, which wants an accelerator; see there.
        deformations: for what kind of images; see `pgmkit.images.preset`.
        learning_rate: the highest, above 0.
        max_images: it learns from so many that are drawn, and all where there are fewer.
        mixed_precision: whether it learns in bfloat16 as far as autocast does, which is twice as
            fast on CUDA and on processors with such instructions (AMX), and slower on others.

    Attributes:
        encoder_: the network; images (B, C, 32, 32) in [-1, 1] to features (B, 128).
        losses_: of every step, float64 (steps,), nats.
    """

    def __init__(
        self,
        steps: int = 500,
        batch_size: int = 128,
        move: float = 0.12,
        strength: float = 1.0,
        temperature: float = 0.2,
        width: int = 24,
        residual: bool = False,
        deep: bool = False,
        deformations: str = "auto",
        learning_rate: float = 2e-3,
        max_images: int = 10_000,
        mixed_precision: bool = False,
    ) -> None:
        check_count("max_images", max_images)
        check_training(steps, batch_size, width, learning_rate, residual, deep)
        preset(deformations, channels=1).scaled(strength)  # which checks them
        if batch_size < 2:
            raise ParameterError("batch_size must be a whole number from 2, not 1")
        if not 0 < temperature < math.inf:
            raise ParameterError(f"temperature must be above 0, not {temperature!r}")
        if not 0 <= move < 1:
            raise ParameterError(f"move must be in [0, 1), not {move!r}")
        self.steps = steps
        self.batch_size = batch_size
        self.move = move
        self.strength = strength
        self.temperature = temperature
        self.width = width
        self.residual = residual
        self.deep = deep
        self.deformations = deformations
        self.learning_rate = learning_rate
        self.max_images = max_images
        self.mixed_precision = mixed_precision

    def fit(self, source: ImageSource, *, seed: int) -> None:
        """Trains the network.

        If there are fewer than 6,000 and they come from a generator, it makes more of them, up to
        four times as many, so that the network does not learn the few by heart.

        Raises:
            ParameterError: there are fewer than 16, or they are points.
        """
        check_images(source.image, "features 'contrastive'")
        if len(source) < _LEAST_IMAGES:
            raise ParameterError(
                f"features 'contrastive' need at least {_LEAST_IMAGES} images to learn from, not "
                f"{len(source)}"
            )
        random = random_generator(seed, "contrast")
        pool = self._pool(source, random).to(source.device)
        channels = source.image.shape[0]
        encoder, head = seeded(
            lambda: (Encoder(channels, self.width, self.residual, self.deep), _head()),
            seed,
            "encoder",
        )
        self.encoder_ = encoder.to(source.device).to(memory_format=torch.channels_last)
        self.losses_ = self._train(head.to(source.device), pool, seed, source)
        self.encoder_.eval().requires_grad_(False)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns features (B, 128) of length 1 for images x (B, C, H, W)."""
        return functional.normalize(self.encoder_.to(x.device)(looked_at(x)))

    def state(self) -> Mapping[str, Tensor]:
        """Returns the weights of the network and the losses."""
        return {**self.encoder_.state_dict(), "losses": self.losses_}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        weights = dict(state)
        self.losses_ = weights.pop("losses")
        self.encoder_ = encoder_of(weights)

    def _pool(self, source: ImageSource, random: torch.Generator) -> Tensor:
        """Returns images in bytes, (1 or 2, n, C, S, S): as they are and, if they can be, moved."""
        chosen = torch.randperm(len(source), generator=random)[: self.max_images]
        if not isinstance(source, Moves):
            return image_bytes(source.subset(chosen))[None]
        wanted = min(_ENOUGH, _MORE * len(chosen))
        more = torch.arange(max(wanted - len(chosen), 0)) % len(chosen)
        here = [source.subset(chosen)]
        if len(more):
            here.append(source.subset(chosen[more]).moved(1.0, random))
        versions = [here]
        if self.move:
            versions.append([images.moved(self.move, random) for images in here])
        return torch.stack([torch.cat([image_bytes(x) for x in version]) for version in versions])

    def _train(self, head: nn.Module, pool: Tensor, seed: int, source: ImageSource) -> Tensor:
        count = pool.shape[1]
        batch = min(self.batch_size, count)
        deformations = preset(self.deformations, pool.shape[2]).scaled(self.strength)
        network = nn.Sequential(self.encoder_, head)
        halves = Halves(InBfloat16(network) if self.mixed_precision else network)

        def loss(clock: Clock) -> Tensor:
            index = sent(torch.randperm(count, generator=clock.random)[:batch], pool.device)

            def version(number: int) -> Tensor:
                random = random_generator(clock.seed, "version", number)
                which = torch.randint(len(pool), (batch,), generator=random)
                return another_version(pool[sent(which, pool.device), index], deformations, random)

            return contrastive_loss(*halves(version), self.temperature)

        return minimise(
            loss,
            [network],
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=1e-4,
            seed=seed,
            name="features by contrast",
            identity={"features": parameters_of(self), "images": source.summary()},
        )


def _head() -> nn.Sequential:
    """Returns what makes of features (B, 128) that which the loss compares, (B, 64)."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Linear(Encoder.features, Encoder.features, bias=False),
        nn.BatchNorm1d(Encoder.features),
        nn.ReLU(),
        nn.Linear(Encoder.features, Encoder.features // 2),
    )
