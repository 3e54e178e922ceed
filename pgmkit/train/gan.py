"""Unconditional GAN training."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import defaults, pictures
from pgmkit.components import called, speaking_for
from pgmkit.config import check_count, make_settings
from pgmkit.contracts import check_discriminator, network_of
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.images import load_images
from pgmkit.images.source import ImageSource, ImageSpec
from pgmkit.learning import Batch, Clock, ranks
from pgmkit.learning.checkpoints import Part
from pgmkit.loading.saving import save_generator, terms
from pgmkit.plugins import build, installed
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator
from pgmkit.train.card import model_card
from pgmkit.train.objectives import NonSaturating, Objective
from pgmkit.train.optimizer import Adam
from pgmkit.train.settings import SNAPSHOTS, TrainSettings

_GRID_IMAGES = 64


@dataclass(frozen=True)
class GANSettings:
    """What is trained and how.

    Args:
        backbone: name of the backbone component.
        backbone_args: its parameters.
        latent: the prior; its dimension is handed to the backbone as `latent_dim`.
        optimizer: of the generator, and of the discriminator unless it has its own.
        discriminator_optimizer: of the discriminator.
        discriminator_steps: of the discriminator for each of the generator, at least 1; each takes
            a batch of its own.
    """

    backbone: str = defaults.BACKBONE
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    latent: LatentSpec = field(default_factory=lambda: LatentSpec(64))
    optimizer: Adam = field(default_factory=Adam)
    discriminator_optimizer: Adam | None = None
    discriminator_steps: int = 1


def prepare_gan(settings: TrainSettings, device: torch.device) -> tuple[ImageSource, "GANTask"]:
    """Returns the training images and the task of a config; `model` is a `GANSettings`.

    Raises:
        ParameterError: a setting is unknown or outside its range.
        UnknownNameError: no backbone or generator loader has the name.
        DataError: the images cannot be read.
    """
    if settings.test_fraction is not None:
        raise ParameterError(
            f"test_fraction is for classifiers, and the task is {settings.task!r}; leave it out"
        )
    model = {"optimizer": settings.optimizer, **settings.model}
    for name in ("optimizer", "discriminator_optimizer"):
        if name in model:
            model[name] = make_settings(Adam, model[name], name)
    if "latent" in model:
        model["latent"] = make_settings(LatentSpec, model["latent"], "model.latent")
    task = GANTask(make_settings(GANSettings, model, "model"), seed=settings.seed, device=device)
    source = load_images(settings.data, size=settings.image_size)
    task.check(source)
    return source, task


class GANTask:
    """Steps of the discriminator, then one of the generator, which reuses the last fake images.

    Args:
        settings: what is trained.
        objective: what both minimise.
        seed: of the initial weights and of the sample grid.
        device: where it is trained.

    Raises:
        ParameterError: a setting is outside its range.
    """

    def __init__(
        self,
        settings: GANSettings,
        objective: Objective | None = None,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        check_count("model.discriminator_steps", settings.discriminator_steps)
        self.settings = settings
        self.objective = objective or NonSaturating()
        self.device = device
        self.model_args = {"latent_dim": settings.latent.dim, **settings.backbone_args}
        if self.model_args["latent_dim"] != settings.latent.dim:
            raise ParameterError(
                f"model.backbone_args.latent_dim is {self.model_args['latent_dim']!r:.40} and the "
                f"prior has {settings.latent.dim} dimensions; set model.latent.dim alone"
            )
        self.backbone = build("backbones", settings.backbone, **self.model_args)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = network_of(self.backbone, "generator")
            discriminator = network_of(self.backbone, "discriminator")
        self.generator = generator.to(device).to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(device).to(memory_format=torch.channels_last)
        self.generator_optimizer = settings.optimizer.build(self.generator)
        own = settings.discriminator_optimizer or settings.optimizer
        self.discriminator_optimizer = own.build(self.discriminator)
        self.grid_latents = settings.latent.sample(
            _GRID_IMAGES, random_generator(seed, "sample grid")
        )
        self.parts: dict[str, Part] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one step takes."""
        return self.settings.discriminator_steps

    def check(self, source: ImageSource) -> None:
        """Tries both networks, and checks that the result can be loaded and fits the data.

        Raises:
            UnknownNameError: no generator loader has the backbone's name.
            ParameterError: images are made of another shape than the data's.
            PluginError: a network fails, or the discriminator returns no logits (B,).
        """
        installed().find("generator-loaders", self.settings.backbone)
        who = called("backbones", self.backbone)
        with speaking_for(who, f"on latents {tuple(self.grid_latents.shape)}"):
            grid = self._sample_grid()
        made, held = tuple(grid.shape[1:]), source.image.shape
        if made != held:
            raise ParameterError(
                f"the generator makes images of {made} and the data holds {held}; "
                "set image_size or the backbone's parameters"
            )
        self.discriminator.eval()
        check_discriminator(self.backbone, self.discriminator, grid.to(self.device))
        self.discriminator.train()

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        """Learns from real images (B, C, H, W) in [-1, 1]."""
        for _ in range(self.settings.discriminator_steps):
            real = next(batches)
            fake = self.generator(self._latents(real.size, clock))
            discriminator_loss = self._discriminator_step(real.images, fake.detach())
        return {"discriminator": discriminator_loss, "generator": self._generator_step(fake)}

    def _latents(self, count: int, clock: Clock) -> Tensor:
        """Returns this process's share of so many latents."""
        return ranks.share(self.settings.latent.sample(count, clock.random)).to(self.device)

    def _discriminator_step(self, images: Tensor, fake: Tensor) -> Tensor:
        real = images.to(self.device, memory_format=torch.channels_last)
        loss = self.objective.discriminator(self.discriminator(real), self.discriminator(fake))
        _descend(loss, self.discriminator, self.discriminator_optimizer)
        return loss.detach()

    def _generator_step(self, fake: Tensor) -> Tensor:
        self.discriminator.requires_grad_(False)
        loss = self.objective.generator(self.discriminator(fake))
        _descend(loss, self.generator, self.generator_optimizer)
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        """Writes a grid of samples from the same latents every time."""
        path = folder / "samples" / f"step-{clock.step:07d}.png"
        pictures.write_grid(path, self._sample_grid(), (-1.0, 1.0))
        return {}

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the generator as a Hub folder with a model card, and the discriminator beside."""
        grid = self._sample_grid()
        run = folder.parent
        name = f"{run.parent.name}-{folder.name}" if run.name == SNAPSHOTS else run.name
        shape = (grid.shape[1], grid.shape[2], grid.shape[3])
        generator = Generator(
            copy.deepcopy(self.generator).to(memory_format=torch.contiguous_format),
            latent=self.settings.latent,
            image=ImageSpec(shape, (-1.0, 1.0)),
            name=name,
            architecture=self.settings.backbone,
            model_args=self.model_args,
            provenance={
                **terms(record.get("card", {})),
                "training": record,
            },
        )
        generator.check()
        save_generator(
            folder,
            generator,
            card=model_card(record, "unconditional-image-generation"),
            samples=grid,
            discriminator=self.discriminator,
        )

    @torch.no_grad()
    def _sample_grid(self) -> Tensor:
        self.generator.eval()
        images: Tensor = self.generator(self.grid_latents.to(self.device))
        self.generator.train()
        return images.cpu()


def _descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    ranks.average_gradients(module.parameters())
    optimizer.step()
