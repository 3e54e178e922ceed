"""Unconditional GAN training."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgmkit import pictures
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.images import ImageData
from pgmkit.images.source import ImageSpec
from pgmkit.loading.saving import save_generator, terms
from pgmkit.plugins import build_component, registry
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator
from pgmkit.train.card import model_card
from pgmkit.train.checkpoint import Part
from pgmkit.train.loop import SNAPSHOTS
from pgmkit.train.optimizer import Adam

_GRID_IMAGES = 64


@dataclass(frozen=True)
class GANSettings:
    """What is trained and how.

    Args:
        backbone: name of the backbone component.
        backbone_args: its parameters.
        latent: the prior; its dimension is handed to the backbone as `latent_dim`.
        optimizer: of generator and discriminator alike.
    """

    backbone: str = "dcgan"
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    latent: LatentSpec = field(default_factory=lambda: LatentSpec(64))
    optimizer: Adam = field(default_factory=Adam)


class GANTask:
    """One discriminator and one generator step per batch, with the non-saturating loss.

    The loss is that of Goodfellow et al. (2014) in its logit form. The generator step reuses the
    fake images of the discriminator step.

    Args:
        settings: what is trained.
        seed: of the initial weights and of the sample grid.
        device: where it is trained.
    """

    def __init__(self, settings: GANSettings, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.model_args = {"latent_dim": settings.latent.dim, **settings.backbone_args}
        self.backbone = build_component("backbones", settings.backbone, **self.model_args)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator, discriminator = self._build_networks()
        self.generator = generator.to(device).to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(device).to(memory_format=torch.channels_last)
        self.generator_optimizer = settings.optimizer.build(self.generator)
        self.discriminator_optimizer = settings.optimizer.build(self.discriminator)
        self.grid_latents = settings.latent.sample(
            _GRID_IMAGES, random_generator(seed, "sample grid")
        )
        self.parts: dict[str, Part] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def _build_networks(self) -> tuple[nn.Module, nn.Module]:
        return self.backbone.generator(), self.backbone.discriminator()

    def check(self, data: ImageData) -> None:
        """Checks that the result can be loaded, and that images are made of the data's shape.

        Raises:
            UnknownNameError: no generator loader has the backbone's name.
            ParameterError: the shapes differ.
        """
        registry().find("generator-loaders", self.settings.backbone)
        made, held = self._sample_grid().shape[1:], data.images.shape[1:]
        if made != held:
            raise ParameterError(
                f"the generator makes images of {tuple(made)} and the data holds {tuple(held)}; "
                "set image_size or the backbone's parameters"
            )

    def step(
        self, images: Tensor, labels: Tensor | None, random: torch.Generator
    ) -> dict[str, float]:
        """Learns from one batch of real images (B, C, H, W) in [-1, 1]."""
        real = images.to(self.device, memory_format=torch.channels_last)
        z = self.settings.latent.sample(len(real), random).to(self.device)
        fake = self.generator(z)
        discriminator_loss = self.discriminator_loss(real, fake.detach())
        self.discriminator_optimizer.zero_grad()
        discriminator_loss.backward()
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        generator_loss = self.generator_loss(fake)
        self.generator_optimizer.zero_grad()
        generator_loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return {
            "discriminator": discriminator_loss.item(),
            "generator": generator_loss.item(),
        }

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns `-log D(real) - log(1 - D(fake))`, each averaged over its batch."""
        real_term = functional.softplus(-self.discriminator(real)).mean()
        return real_term + functional.softplus(self.discriminator(fake)).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Returns `-log D(fake)`, averaged."""
        return functional.softplus(-self.discriminator(fake)).mean()

    def end_epoch(self, epoch: int, folder: Path) -> dict[str, float]:
        """Writes a grid of samples from the same latents every time."""
        path = folder / "samples" / f"epoch-{epoch:03d}.png"
        pictures.write_grid(path, self._sample_grid(), (-1.0, 1.0))
        return {}

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the generator as a Hub folder with a model card."""
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
        )

    @torch.no_grad()
    def _sample_grid(self) -> Tensor:
        self.generator.eval()
        images: Tensor = self.generator(self.grid_latents.to(self.device))
        self.generator.train()
        return images.cpu()
