"""Training of GANs, unconditional and guided by the parts of a partitioner."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pgmkit import contracts, defaults, files
from pgmkit.conditional import ConditionalGenerator
from pgmkit.config import check_count, make_settings
from pgmkit.contracts import check_discriminator, images_of, network_of
from pgmkit.errors import ParameterError
from pgmkit.generator import Generator
from pgmkit.images import load_images
from pgmkit.images.rows import Images
from pgmkit.images.source import ImageSource
from pgmkit.learning import Batch, Clock, ranks
from pgmkit.learning.checkpoints import Part
from pgmkit.learning.ema import Average
from pgmkit.learning.graphs import Graphs, Piece
from pgmkit.loading.folders import DISCRIMINATOR_FILE
from pgmkit.loading.saving import save_generator, terms
from pgmkit.loading.weights import serialise
from pgmkit.machine import sent
from pgmkit.partition import FittedPartitioner, fit_partitioner
from pgmkit.partition.fitted import build_partitioner, check_fit
from pgmkit.plugins import build, installed
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed, random_generator
from pgmkit.train.card import model_card
from pgmkit.train.conditions import Conditions, Guide, renumbered, watching
from pgmkit.train.objectives import Objective, Penalises, make_objective
from pgmkit.train.optimizer import Adam
from pgmkit.train.samples import Fidelity, Samples
from pgmkit.train.settings import SNAPSHOTS, TrainSettings

_TRIED = 8


@dataclass(frozen=True)
class GANSettings:
    """What is trained and how.

    Args:
        backbone: name of the backbone component.
        backbone_args: its parameters.
        latent: the prior; its dimension is handed to the backbone as `latent_dim`.
        loss: "non-saturating", "hinge", "wasserstein", or a table; see
            `pgmkit.train.objectives.OBJECTIVES`.
        optimizer: of the generator, and of the discriminator unless it has its own.
        discriminator_optimizer: of the discriminator.
        discriminator_steps: of the discriminator for each of the generator, at least 1; each takes
            batches of its own.
        accumulate: batches whose gradients are averaged before a step, at least 1.
        partitioner: what splits the images into the parts that both networks are conditioned on: a
            name, a table, or the reference of one that was fitted; None trains without parts.
        partitions: k, as for `pgmkit.fit_partitioner`.
        guide: how much the guide to the part counts; None is `Guide()`, and nothing where parts
            are found anew.
        recluster_steps: after so many steps the partitioner is fitted again, to what the
            discriminator sees by then, as self-conditioned GANs do (Liu et al. 2020); it looks at
            features "discriminator" without a source. None leaves the parts as they are.
        labels: parts of generated images: "fresh" are drawn as often as images lie in them,
            "reused" are those of the real images in the batch, as in the authors' code.
        ema: decay of the average of the generator's weights that is sampled from and written, in
            [0, 1); None writes the weights themselves.
        precision: "float32", or "bfloat16" as far as autocast goes.
        compile: whether both networks are compiled by torch.compile.
        graphs: whether steps are recorded as CUDA graphs where they can be, which is for networks
            that do the same in each step; see `pgmkit.learning.graphs`.
        fidelity: with it FID is measured.
    """

    backbone: str = defaults.BACKBONE
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    latent: LatentSpec = field(default_factory=lambda: LatentSpec(64))
    loss: str | Mapping[str, Any] = "non-saturating"
    optimizer: Adam = field(default_factory=Adam)
    discriminator_optimizer: Adam | None = None
    discriminator_steps: int = 1
    accumulate: int = 1
    partitioner: str | Mapping[str, Any] | None = None
    partitions: int | None = None
    guide: Guide | None = None
    recluster_steps: int | None = None
    labels: Literal["fresh", "reused"] = "fresh"
    ema: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    graphs: bool = True
    fidelity: Fidelity | None = None

    def check(self) -> None:
        """Raises ParameterError if a setting is outside its range, or of no use beside others."""
        check_count("model.discriminator_steps", self.discriminator_steps)
        check_count("model.accumulate", self.accumulate)
        if self.recluster_steps is not None:
            check_count("model.recluster_steps", self.recluster_steps)
        if self.partitioner is None:
            for name in ("partitions", "guide", "recluster_steps"):
                if getattr(self, name) is not None:
                    raise ParameterError(
                        f"model.{name} is of parts, and there is no model.partitioner; name one, "
                        "or leave it out"
                    )
            if self.labels != "fresh":
                raise ParameterError(
                    "model.labels are of parts, and there is no model.partitioner; name one, or "
                    "leave them out"
                )


def prepare_gan(settings: TrainSettings, device: torch.device) -> tuple[Images, "GANTask"]:
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
    for name, kind in (("latent", LatentSpec), ("guide", Guide), ("fidelity", Fidelity)):
        if name in model:
            model[name] = make_settings(kind, model[name], f"model.{name}")
    task = GANTask(make_settings(GANSettings, model, "model"), seed=settings.seed, device=device)
    source = load_images(settings.data, size=settings.image_size)
    task.check(source)
    return source, task


class GANTask:
    """Steps of the discriminator, then one of the generator, which reuses the last fake images.

    Args:
        settings: what is trained.
        seed: of the initial weights and of the sample grid.
        device: where it is trained.

    Attributes:
        generator, discriminator: the networks.
        accumulate: as in the settings; a trial may set it to 1 before the first step.
        graphs: runs what a step asks of the device.
        average: of the generator's weights, or None.
        conditions: the parts of the images; None before `condition`, and where there are none.

    Raises:
        ParameterError: a setting is outside its range.
    """

    def __init__(self, settings: GANSettings, *, seed: int, device: torch.device) -> None:
        settings.check()
        self.settings, self.seed, self.device = settings, seed, device
        self.objective: Objective = make_objective(settings.loss)
        self.backbone_args = {"latent_dim": settings.latent.dim, **settings.backbone_args}
        if self.backbone_args["latent_dim"] != settings.latent.dim:
            raise ParameterError(
                f"model.backbone_args.latent_dim is {self.backbone_args['latent_dim']!r:.40} and "
                f"the prior has {settings.latent.dim} dimensions; set model.latent.dim alone"
            )
        if "num_partitions" in self.backbone_args:
            raise ParameterError(
                "model.backbone_args.num_partitions is that of the parts; set model.partitions"
            )
        self.backbone = build("backbones", settings.backbone, **self.backbone_args)
        self.accumulate = settings.accumulate
        self.guide = settings.guide or (Guide(0, 0) if settings.recluster_steps else Guide())
        self.partitioner: Any = None
        self.conditions: Conditions | None = None
        if settings.partitioner is not None:
            self.partitioner = build_partitioner(settings.partitioner, settings.partitions)
            if settings.recluster_steps and not any(watching(self.partitioner)):
                raise ParameterError(
                    "model.recluster_steps is for parts of what the discriminator sees; give the "
                    "partitioner features = 'discriminator', or leave it out"
                )
            self._build(contracts.num_partitions_of(self.partitioner))
        else:
            self._build(None)

    def _build(self, num_partitions: int | None) -> None:
        """Makes both networks for so many parts, and all that follows from them."""
        settings = self.settings
        self.num_partitions = num_partitions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            generator = network_of(self.backbone, "generator", num_partitions)
            discriminator = network_of(self.backbone, "discriminator", num_partitions)
        self.generator = generator.to(self.device).to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(self.device).to(memory_format=torch.channels_last)
        # Whose batch norms would mix real and generated images, sees them one after the other.
        self.is_joint = not any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for module in self.discriminator.modules()
        )
        for network in (self.generator, self.discriminator):
            ranks.share_statistics(network)
        self.generator_optimizer = settings.optimizer.build(self.generator)
        self.discriminator_optimizer = self._discriminates.build(self.discriminator)
        self.parts: dict[str, Part] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        self.average = None
        if settings.ema is not None:
            self.average = self.parts["average"] = Average(self.generator, settings.ema)
        if settings.compile:
            self.generator.compile()
            self.discriminator.compile()
        self._kept: Tensor | None = None
        chains: list[list[Piece]] = [
            [self._judge_both],
            [self._convince],
            [self._judge_and_keep, self._convince_kept],
        ]
        self.graphs = Graphs(self.device, chains if settings.graphs else [])

    @property
    def _discriminates(self) -> Adam:
        return self.settings.discriminator_optimizer or self.settings.optimizer

    @property
    def model_args(self) -> dict[str, Any]:
        """What builds the generator, and the discriminator."""
        number = self.num_partitions
        return {**self.backbone_args, **({} if number is None else {"num_partitions": number})}

    @property
    def batches_per_step(self) -> int:
        """How many batches of images one step takes."""
        return self.settings.discriminator_steps * self.settings.accumulate

    @property
    def shown(self) -> nn.Module:
        """The generator that is sampled from and written."""
        return self.generator if self.average is None else self.average.module

    def check(self, source: ImageSource) -> None:
        """Tries both networks, and checks that the result can be loaded and fits the data.

        Raises:
            UnknownNameError: no generator loader has the backbone's name.
            ParameterError: images are made of another shape than the data's, or the partitioner
                cannot be fitted to them.
            PluginError: a network fails, or the discriminator returns no logits (B,).
        """
        installed().find("generator-loaders", self.settings.backbone)
        if self.partitioner is not None:
            check_fit(self.partitioner, source)
        latents = self.settings.latent.sample(_TRIED, random_generator(self.seed, "sample grid"))
        parts = None
        if self.num_partitions is not None:
            parts = (torch.arange(_TRIED) % self.num_partitions).to(self.device)
        self.generator.eval()
        images = images_of(self.backbone, self.generator, latents.to(self.device), parts)
        self.generator.train()
        made, held = tuple(images.shape[1:]), source.image.shape
        if made != held:
            raise ParameterError(
                f"the generator makes images of {made} and the data holds {held}; "
                "set image_size or the backbone's parameters"
            )
        self.discriminator.eval()
        check_discriminator(self.backbone, self.discriminator, images, parts)
        self.discriminator.train()
        self.samples = Samples(self.settings.latent, source, self.settings.fidelity, self.seed)

    def condition(self, fitted: FittedPartitioner, source: Images) -> None:
        """Takes up the parts that a fitted partitioner finds in the training images.

        Raises:
            ParameterError: the guide is wanted, and the partitioner has no gradient.
            DataError: all images are in one part.
        """
        self.conditions = Conditions(fitted, source.to(self.device), not self.guide.is_off)
        self.graphs.forget()
        if fitted.num_partitions != self.num_partitions:
            self._build(fitted.num_partitions)

    def condition_by_itself(self, source: Images) -> None:
        """Takes up the parts that the partitioner finds in what the discriminator sees, for now.

        Raises:
            ParameterError: see `condition`, and the features have a source of their own.
        """
        for features in watching(self.partitioner):
            features.watch(self.discriminator, self.settings.backbone, self.model_args)
        source = source.to(self.device)
        fitted = fit_partitioner(
            self.partitioner, source, partitions=self.num_partitions, seed=self.seed
        )
        self.condition(renumbered(fitted, range(fitted.num_partitions)), source)
        assert self.conditions is not None
        self.parts["conditions"] = self.conditions

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor | float]:
        """Learns from real images (B, C, H, W) in [-1, 1]."""
        settings = self.settings
        every = settings.recluster_steps
        if self.conditions is not None and every and clock.step and clock.step % every == 0:
            self.conditions.find_anew(derive_seed(clock.seed, "recluster"))
            self.graphs.forget()
        settings.optimizer.schedule(self.generator_optimizer, clock)
        self._discriminates.schedule(self.discriminator_optimizer, clock)
        self.graphs.begin()
        told: dict[str, Tensor | float] = {}
        # What the last step saw is what the generator learns from, unless it would take the memory
        # of several batches.
        keeps = settings.accumulate == 1
        for turn in range(settings.discriminator_steps):
            is_last = turn == settings.discriminator_steps - 1
            judge = self._judge_and_keep if keeps and is_last else self._judge_both
            self._clear(self.discriminator_optimizer)
            for _ in range(self.accumulate):
                batch = next(batches)
                images, labels = sent(batch.images, self.device), self._parts_of(batch)
                latents, parts = self._latents(batch, clock)
                places = self._places(images, clock)
                told |= self.graphs.run(judge, images, labels, latents, parts, places)
            self._descend(self.discriminator, self.discriminator_optimizer)
        self._clear(self.generator_optimizer)
        weight, more = self._guide_weight(clock)
        for _ in range(self.accumulate):
            if keeps:
                told |= self.graphs.run(self._convince_kept, parts, weight)
            else:
                latents, parts = self._latents(batch, clock)
                told |= self.graphs.run(self._convince, latents, parts, weight)
        self._descend(self.generator, self.generator_optimizer)
        if self.average is not None:
            self.average.update(self.generator, clock)
        return told | more

    def _latents(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor | None]:
        """Returns this process's share of as many latents, and the parts that they are to be."""
        latents = ranks.share(self.settings.latent.sample(batch.size, clock.random))
        parts = None
        if self.conditions is not None and self.settings.labels == "fresh":
            parts = ranks.share(self.conditions.draw(batch.size, clock.random))
            parts = sent(parts, self.device)
        elif self.conditions is not None:
            parts = self._parts_of(batch)
        return sent(latents, self.device), parts

    def _parts_of(self, batch: Batch) -> Tensor | None:
        if self.conditions is None:
            return None
        return sent(self.conditions.labels[batch.index], self.device)

    def _places(self, images: Tensor, clock: Clock) -> Tensor | None:
        """Returns where between real and generated images a penalty looks, (B,)."""
        if not isinstance(self.objective, Penalises):
            return None
        return sent(torch.rand(len(images), generator=clock.random), self.device)

    def _guide_weight(self, clock: Clock) -> tuple[Tensor | None, dict[str, float]]:
        """Returns λ on the device, and as it is told; None and nothing without a guide."""
        if self.conditions is None or self.guide.is_off:
            return None, {}
        weight = self.guide.weight(clock, len(self.conditions.masses))
        return sent(torch.tensor(weight), self.device), {"guide weight": weight}

    def _make(self, latents: Tensor, parts: Tensor | None) -> Tensor:
        with self._precision():
            images: Tensor = self.generator(latents, *_beside(parts))
        return images.float()

    def _judge(self, images: Tensor, parts: Tensor | None) -> Tensor:
        with self._precision():
            logits: Tensor = self.discriminator(images, *_beside(parts))
        return logits.float()

    def _judge_both(
        self,
        images: Tensor,
        labels: Tensor | None,
        latents: Tensor,
        parts: Tensor | None,
        places: Tensor | None,
    ) -> dict[str, Tensor]:
        """Adds to the discriminator's gradients; returns its loss and how often it is right."""
        with torch.no_grad():
            fake = self._make(latents, parts)
        return self._compare(images, labels, fake, parts, places)

    def _judge_and_keep(
        self,
        images: Tensor,
        labels: Tensor | None,
        latents: Tensor,
        parts: Tensor | None,
        places: Tensor | None,
    ) -> dict[str, Tensor]:
        """Does the same, and keeps the generated images for the generator to learn from."""
        self._kept = self._make(latents, parts)
        return self._compare(images, labels, self._kept.detach(), parts, places)

    def _compare(
        self,
        real: Tensor,
        labels: Tensor | None,
        made: Tensor,
        parts: Tensor | None,
        places: Tensor | None,
    ) -> dict[str, Tensor]:
        layout = torch.channels_last if real.ndim == 4 else torch.preserve_format
        real = real.to(memory_format=layout)
        if self.is_joint:
            asked = [some for some in (labels, parts) if some is not None]
            both = torch.cat(asked) if asked else None
            of_real, of_fake = self._judge(torch.cat([real, made]), both).split(len(real))
        else:
            of_real, of_fake = self._judge(real, labels), self._judge(made, parts)
        loss = self.objective.discriminator(of_real, of_fake)
        told = {"discriminator": loss.detach()}
        if isinstance(self.objective, Penalises):
            assert places is not None
            penalty = self.objective.penalty(lambda x: self._judge(x, labels), real, made, places)
            told["penalty"] = penalty.detach()
            loss = loss + penalty
        (loss / self.accumulate).backward()
        right = ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        return {**told, "accuracy": right.detach()}

    def _convince(
        self, latents: Tensor, parts: Tensor | None, weight: Tensor | None
    ) -> dict[str, Tensor]:
        """Adds to the generator's gradients; returns its loss and, with a weight, the guide."""
        self._kept = self._make(latents, parts)
        return self._convince_kept(parts, weight)

    def _convince_kept(self, parts: Tensor | None, weight: Tensor | None) -> dict[str, Tensor]:
        """Does the same with the images that were kept."""
        images, self._kept = self._kept, None
        assert images is not None
        self.discriminator.requires_grad_(False)
        try:
            loss = self.objective.generator(self._judge(images, parts))
        finally:
            self.discriminator.requires_grad_(True)
        told = {"generator": loss.detach()}
        if weight is not None:
            assert self.conditions is not None
            assert parts is not None
            with self._precision():
                pull = self.conditions.pull(images, parts).float().mean()
            told["guide"] = pull.detach()
            loss = loss + weight * pull
        (loss / self.accumulate).backward()
        return told

    def _clear(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=not self.graphs.are_kept)

    def _descend(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        ranks.average_gradients(module.parameters())
        optimizer.step()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        is_mixed = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed)

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        """Writes a grid of samples from the same latents every time, and scores others."""
        return self.samples.measure(self.shown, self.conditions, self.device, clock, folder)

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the generator as a Hub folder with a model card, and the discriminator beside."""
        run = folder.parent
        name = f"{run.parent.name}-{folder.name}" if run.name == SNAPSHOTS else run.name
        module = copy.deepcopy(self.shown).to(memory_format=torch.contiguous_format)
        specs = self.settings.latent, self.samples.image
        built: dict[str, Any] = {
            "name": name,
            "architecture": self.settings.backbone,
            "model_args": self.model_args,
            "provenance": {**terms(record.get("card", {})), "training": record},
        }
        weights = serialise(self.discriminator.state_dict())
        if self.conditions is not None:
            fitted, masses = self.conditions.fitted, self.conditions.masses
            built["provenance"]["acceptance"] = self.samples.acceptance(
                self.shown, self.conditions, self.device
            )
            conditional = ConditionalGenerator(module, *specs, masses, partitioner=fitted, **built)
            conditional.check()
            with files.replaced_folder(folder) as fresh:
                conditional.save_pretrained(fresh)
                files.write_bytes(fresh / DISCRIMINATOR_FILE, weights)
            return
        generator = Generator(module, *specs, **built)
        generator.check()
        save_generator(
            folder,
            generator,
            card=model_card(record, "unconditional-image-generation"),
            samples=self.samples.grid(self.shown, None, self.device),
            discriminator=self.discriminator,
        )


def _beside(parts: Tensor | None) -> tuple[Tensor, ...]:
    """Returns what a network takes beside latents or images."""
    return () if parts is None else (parts,)
