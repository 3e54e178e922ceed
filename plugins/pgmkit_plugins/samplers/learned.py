"""k-means on features that a small network learns from the generator's own images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed, random_generator
from pgmkit_plugins.samplers.composed import (
    Array,
    ComposedSampler,
    images_of,
    with_prefix,
    without_prefix,
)

_SIDE = 32
_POOL = 10_000
_BATCH = 256
_LEAST_LATENTS = 16


class Learned(ComposedSampler):
    """k-means on contrastive features; label-free and data-free.

    A small convolutional network learns features in which two versions of an image agree and
    different images do not (the NT-Xent loss of Chen et al., SimCLR, 2020). A version is made in
    two ways: the latent moves a little along the prior, `z' = √(1 - s²)·z + s·ε`, which a data set
    cannot offer, and the image is deformed: turned, stretched, sheared, shifted, bent, its strokes
    made thicker or thinner, and its contrast and colours changed. Strokes matter: without
    them such features sort digits by the width of the pen.

    Images larger than 32 pixels are looked at in 32×32.

    Args:
        num_clusters: k, at least 1.
        num_starts: runs of k-means from different centres.
        num_components: of the mapper's mixtures.
        mapper: "rejection" by default: what is drawn lies in its cluster.
        mapper_args: further parameters of the mapper.
        steps: of training, at least 1.
        batch_size: pairs per step, at least 1.
        move: s, how far latents move, in [0, 1); 0 leaves them.
        strength: of the deformations, at least 0; 1 suits digits and clothes.
        temperature: of the contrastive loss, above 0.
        width: channels of the network's first layer, at least 1.
        flip: whether a mirror image shows the same; None means for colour images only.
        learning_rate: the highest, above 0.

    Attributes:
        encoder_: the network; images (B, C, S, S) in [-1, 1] to features (B, 128).
        losses_: of every step, float64 (steps,), nats.
    """

    _saved_of_points = ("losses",)

    def __init__(
        self,
        num_clusters: int = 10,
        num_starts: int = 4,
        num_components: int | str = 2,
        mapper: str = "rejection",
        mapper_args: Mapping[str, Any] | None = None,
        steps: int = 300,
        batch_size: int = 256,
        move: float = 0.12,
        strength: float = 1.0,
        temperature: float = 0.2,
        width: int = 32,
        flip: bool | None = None,
        learning_rate: float = 2e-3,
    ) -> None:
        super().__init__(num_clusters, num_starts, num_components, mapper, mapper_args)
        check_training(steps, batch_size, width, strength, flip, learning_rate)
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
        self.flip = flip
        self.learning_rate = learning_rate

    def points_state(self) -> dict[str, Tensor]:
        """Returns what was fitted to turn latents into points, by name."""
        weights = {name: value.cpu() for name, value in self.encoder_.state_dict().items()}
        return super().points_state() | with_prefix("encoder.", weights)

    def load_points_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `points_state` returned; there may be more in it."""
        super().load_points_state(state)
        weights = without_prefix("encoder.", state)
        first = weights["body.0.weight"]
        encoder = Encoder(first.shape[1], first.shape[0])
        encoder.load_state_dict(weights)
        self.encoder_ = encoder.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Learns how to turn latents (n, M) into points."""
        generator = images_of(self._generator, "learned")
        if len(latents) < _LEAST_LATENTS:
            raise ParameterError(
                f"the cluster sampler 'learned' needs at least {_LEAST_LATENTS} latents to learn "
                f"from, not {len(latents)}"
            )
        random = random_generator(seed, "contrast")
        chosen = torch.randperm(len(latents), generator=random)[:_POOL]
        here = latents[chosen].cpu().float()
        pool = [image_bytes(generator, here)]
        if self.move:
            pool.append(image_bytes(generator, moved(here, generator.latent, self.move, random)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "encoder"))
            encoder, head = Encoder(generator.image.shape[0], self.width), _head()
        self.encoder_ = encoder.to(generator.device).to(memory_format=torch.channels_last)
        self.losses_ = self._train(head.to(generator.device), torch.stack(pool), random)
        self.encoder_.eval().requires_grad_(False)

    def _train(self, head: nn.Module, pool: Tensor, random: torch.Generator) -> Tensor:
        count = pool.shape[1]
        batch = min(self.batch_size, count)
        learning = [*self.encoder_.parameters(), *head.parameters()]

        def loss() -> Tensor:
            index = torch.randperm(count, generator=random)[:batch]
            views = []
            for _ in range(2):
                which = torch.randint(len(pool), (batch,), generator=random)
                pixels = pool[which, index].to(learning[0].device)
                views.append(another_version(pixels, self.strength, self.flip, random))
            projected = head(self.encoder_(torch.cat(views)))
            return contrastive_loss(projected[:batch], projected[batch:], self.temperature)

        return minimised(loss, learning, self.steps, self.learning_rate, weight_decay=1e-4)

    def points(self, latents: Tensor) -> Array:
        """Returns the points (n, d) of latents (n, M)."""
        generator = images_of(self._generator, "learned")
        encoder = self.encoder_.to(generator.device)
        found = seen(generator, latents, lambda images: functional.normalize(encoder(images)))
        points: Array = found.double().numpy()
        return points


class Encoder(nn.Module):
    """Four convolutions and a linear layer, each with batch norm.

    Args:
        image_channels: C.
        width: channels of the first layer.
    """

    features = 128

    def __init__(self, image_channels: int, width: int) -> None:
        super().__init__()
        final = 4 * width * (_SIDE // 8) ** 2
        self.body = nn.Sequential(
            *_convolution(image_channels, width, 2),
            *_convolution(width, 2 * width, 2),
            *_convolution(2 * width, 2 * width, 1),
            *_convolution(2 * width, 4 * width, 2),
            nn.Flatten(),
            nn.Linear(final, self.features, bias=False),
            nn.BatchNorm1d(self.features),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns features (B, 128) for images (B, C, 32, 32) in [-1, 1]."""
        features: Tensor = self.body(images)
        return features


def _head() -> nn.Sequential:
    """Returns what makes of features (B, 128) that which the loss compares, (B, 64)."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Linear(Encoder.features, Encoder.features, bias=False),
        nn.BatchNorm1d(Encoder.features),
        nn.ReLU(),
        nn.Linear(Encoder.features, Encoder.features // 2),
    )


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def check_training(
    steps: Any, batch_size: Any, width: Any, strength: Any, flip: Any, learning_rate: Any
) -> None:
    """Raises ParameterError for parameters that networks are not trained with."""
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    check_count("width", width)
    if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise ParameterError(f"strength must be at least 0, not {strength!r}")
    if flip is not None and not isinstance(flip, bool):
        raise ParameterError(f"flip must be true, false or left out, not {flip!r}")
    if not isinstance(learning_rate, int | float) or not 0 < learning_rate < math.inf:
        raise ParameterError(f"learning_rate must be above 0, not {learning_rate!r}")


def moved(latents: Tensor, prior: LatentSpec, step: float, random: torch.Generator) -> Tensor:
    """Returns latents (n, M) moved by a step s in [0, 1) that leaves their prior as it is.

    For a normal prior that is `z' = √(1 - s²)·z + s·ε`; others are moved as `LatentSpec.to_normal`
    shows them. Categories stay.
    """
    normal = prior.to_normal(latents)
    fresh = torch.randn(normal.shape, generator=random, dtype=normal.dtype)
    stepped = math.sqrt(1 - step**2) * normal + step * fresh
    return prior.from_normal(torch.where(prior.continuous.to(normal.device), stepped, normal))


def deformed(images: Tensor, strength: float, flip: bool, random: torch.Generator) -> Tensor:
    """Returns another version of each image (B, C, H, W) in [-1, 1].

    Args:
        images: to deform; they stay as they are.
        strength: factor on every range: at 1 turns of 20°, stretching by 28 %, shear of 0.4, shifts
            of a tenth, bends of 6 %, strokes up to a pixel thicker or thinner, contrast by 30 %.
        flip: whether to mirror half of them.
        random: decides, on the CPU, so that every device sees the same.
    """
    count, channels = images.shape[:2]

    def spread(limit: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=random) * 2 - 1
        return (drawn * limit * strength).to(images.device)

    angle, shear = spread(math.radians(20)), spread(0.4)
    wide, high = spread(0.25).exp(), spread(0.25).exp()
    if flip:
        wide = wide * (torch.randint(2, (count,), generator=random) * 2 - 1).to(images.device)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * wide, (shear * cos - sin) * high], dim=1),
        torch.stack([sin * wide, (shear * sin + cos) * high], dim=1),
    ]
    affine = torch.cat([torch.stack(rows, dim=1), spread(0.2, 2, 1)], dim=2)
    places = functional.affine_grid(affine, list(images.shape), align_corners=False)
    bend = functional.interpolate(
        spread(0.12, 2, 5, 5), images.shape[-2:], mode="bicubic", align_corners=True
    )
    places = places + bend.permute(0, 2, 3, 1)
    result = functional.grid_sample(images, places, padding_mode="border", align_corners=False)
    stroke = spread(1.0, 1, 1, 1)
    brighter = functional.max_pool2d(result, 3, 1, 1) - result
    darker = -functional.max_pool2d(-result, 3, 1, 1) - result
    result = result + stroke.clamp(min=0) * brighter + (-stroke).clamp(min=0) * darker
    if channels > 1:
        grey = (torch.rand(count, 1, 1, 1, generator=random) < 0.2).to(images.device)
        result = torch.where(grey, result.mean(dim=1, keepdim=True), result)
    contrast, brightness = spread(0.3, 1, 1, 1).exp(), spread(0.3 * (channels > 1), channels, 1, 1)
    return (result * contrast + brightness).clamp(-1, 1)


def contrastive_loss(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Returns the NT-Xent loss in nats of projections (B, d) of two versions of each image.

    Source: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of
    Visual Representations", 2020, Eq. 1.
    """
    count = len(left)
    both = functional.normalize(torch.cat([left, right]))
    similarity = both @ both.T / temperature
    similarity = similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(2 * count, device=left.device).roll(count)
    return functional.cross_entropy(similarity, partner)


def looked_at(generator: Generator, latents: Tensor) -> Tensor:
    """Returns G(z) (B, C, 32, 32) in [-1, 1], float32, on the generator's device."""
    low, high = generator.image.range
    images = (generator(latents).float() - low) * (2 / (high - low)) - 1
    if images.shape[-2:] != (_SIDE, _SIDE):
        images = functional.interpolate(
            images, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
        )
    return images.clamp(-1, 1)


@torch.no_grad()
def seen(generator: Generator, latents: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns, on the CPU, what `look` makes of the images `looked_at` of latents (n, M).

    Images are made and looked at batch by batch.
    """
    return torch.cat([look(looked_at(generator, batch)).cpu() for batch in latents.split(_BATCH)])


def image_bytes(generator: Generator, latents: Tensor) -> Tensor:
    """Returns what is looked at as bytes (n, C, 32, 32) on the CPU."""
    return seen(generator, latents, lambda images: images.add_(1).mul_(127.5).round_().byte())


def another_version(
    pixels: Tensor, strength: float, flip: bool | None, random: torch.Generator
) -> Tensor:
    """Returns `deformed` images in [-1, 1] of bytes (B, C, H, W); flip is None for colour only."""
    images = pixels.float().div_(127.5).sub_(1)
    return deformed(images, strength, images.shape[1] > 1 if flip is None else flip, random)


def minimised(
    loss: Callable[[], Tensor],
    learning: Sequence[nn.Parameter],
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> Tensor:
    """Trains by AdamW with one cycle of the learning rate.

    Args:
        loss: of a new batch each time it is called.
        learning: what is trained.
        steps: at least 1.
        learning_rate: the highest.
        weight_decay: of AdamW.

    Returns:
        The loss of every step, float64 (steps,), on the CPU.
    """
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2)
    )
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
    return torch.stack(losses).double().cpu()
