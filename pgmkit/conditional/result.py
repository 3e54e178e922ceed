"""The result of partition-guided training: a generator that makes images of one partition."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.conditional.drawing import Drawing, Drawn, truncated
from pgmkit.conditional.folders import read_folder, write_folder
from pgmkit.config import check_count, check_seed, expect, fits
from pgmkit.errors import LoadError, ParameterError, PgmkitNote
from pgmkit.forms import as_images
from pgmkit.generator import Generator
from pgmkit.images.generated import as_source
from pgmkit.images.source import ImageSpec
from pgmkit.loading.building import Architecture
from pgmkit.loading.cards import MOST_ROWS, PER_CLUSTER
from pgmkit.loading.configs import checked_masses
from pgmkit.loading.hub import check_push, push_folder
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.partitions import (
    Unconditional,
    all_partitions,
    check_partition,
    one_partition,
)
from pgmkit.loading.references import reference_of
from pgmkit.loading.saving import published
from pgmkit.machine import check_device
from pgmkit.partition import FittedPartitioner
from pgmkit.priors import LatentSpec


class ConditionalGenerator:
    """A frozen network that makes images of the partition that it is told.

    The module is put into eval mode and its gradients are turned off, in place.

    Args:
        module: maps latents z, (B, M) or in the prior's shape, and partitions y, int64 (B,), to
            images (B, C, H, W), in any form that a `Generator` may give them.
        latent: the prior over z, the same for all partitions.
        image: what comes out.
        masses: of the k partitions, from 0, which sum to 1: how often each is drawn, such as the
            shares that a partitioner finds of the training images.
        name: for logs and reports.
        architecture: the generator-loader component that builds such a module.
        model_args: what that component is called with, `num_partitions` among it.
        partitioner: what found the partitions; without it nothing is drawn again.
        provenance: how it was trained; kept when it is saved. A list `acceptance`, a share or None
            for each partition, stands in the table of its card.

    Raises:
        ParameterError: a value is outside its range, or does not fit the others.
        GeneratorError: the module has no weights yet.
    """

    def __init__(
        self,
        module: nn.Module,
        latent: LatentSpec,
        image: ImageSpec,
        masses: Sequence[float] | Tensor,
        *,
        name: str = "",
        architecture: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        partitioner: FittedPartitioner | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.masses = checked_masses(masses.tolist() if hasattr(masses, "tolist") else masses)
        # Holds the network and what is known of it, and is not called: partitions are missing.
        self._network = Generator(
            module,
            latent,
            image,
            name=name,
            architecture=architecture,
            model_args=model_args,
            provenance=provenance,
        )
        said = {}
        if architecture is not None or "num_partitions" in self._network.model_args:
            said["num_partitions among model_args is"] = (model_args or {}).get("num_partitions")
        if partitioner is not None:
            expect(partitioner, FittedPartitioner, "a partitioner is a FittedPartitioner or None")
            partitioner.check_images(image.shape, self.name)
            said["the partitioner has"] = partitioner.num_partitions
        for what, number in said.items():
            if number != self.num_partitions:
                raise ParameterError(
                    f"there are masses of {self.num_partitions} partitions, and {what} "
                    f"{number!r:.60}; give one mass for each partition"
                )
        self.partitioner = partitioner
        self._checked = False

    @property
    def num_partitions(self) -> int:
        """The number of partitions, k."""
        return len(self.masses)

    @property
    def module(self) -> nn.Module:
        """The network, `(z, y) -> x`."""
        return self._network.module

    @property
    def latent(self) -> LatentSpec:
        """The prior over z."""
        return self._network.latent

    @property
    def image(self) -> ImageSpec:
        """What comes out."""
        return self._network.image

    @property
    def name(self) -> str:
        """What it is called in logs and reports."""
        return self._network.name

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it came from and how it was trained."""
        return self._network.provenance

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._network.device

    def to(self, device: torch.device | str) -> "ConditionalGenerator":
        """Moves the weights in place and returns the generator."""
        self._network.to(device)
        return self

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Returns images (B, C, H, W) for latents z (B, M) and partitions y (B,), int64.

        Raises:
            GeneratorError: the latents or what comes out have the wrong shape.
            ParameterError: there is no such partition, or not one for each latent.
        """
        network = self._network
        network.check_latents(z)
        if y.dtype != torch.int64 or y.shape != z.shape[:1]:
            raise ParameterError(
                f"{len(z)} latents need as many partitions, int64 ({len(z)},), not {y.dtype} "
                f"{tuple(y.shape)}"
            )
        for bound in y.aminmax() if len(y) else ():
            check_partition(int(bound), self.num_partitions)
        z = z.to(network.device, network.dtype)
        shaped = z.reshape(len(z), *self.latent.shape) if self.latent.shape else z
        images = self.module(shaped, y.to(network.device))
        return as_images(images, len(z), self.image.shape, self.name)

    def check(self) -> None:
        """Checks, once, that the first and the last partition run; see `Generator.check`.

        Raises:
            GeneratorError: one does not, or its images are misshapen, no floats or not finite.
        """
        if self._checked:
            return
        for number in {0, self.num_partitions - 1}:
            one = self.partition(number)
            one.check()
            self._network.latent = one.latent  # whose shape may have been found
        self._checked = True

    def sample(
        self,
        n: int,
        partition: int | Sequence[int] | None = None,
        *,
        seed: int = 0,
        truncation: float | None = None,
        redraws: int = 0,
    ) -> Tensor:
        """Makes images (n, C, H, W) in the generator's range, on the CPU; see `draw`."""
        return self.draw(n, partition, seed=seed, truncation=truncation, redraws=redraws).images

    @torch.no_grad()
    def draw(
        self,
        n: int,
        partition: int | Sequence[int] | None = None,
        *,
        seed: int = 0,
        truncation: float | None = None,
        redraws: int = 0,
    ) -> Drawn:
        """Draws latents and partitions, and makes their images.

        The same seed draws the same, a smaller n the first of a larger one, and each partition the
        same latents, which are those of `partition(i).sample_latents` if nothing is truncated or
        drawn again.

        Args:
            n: how many, at least 1.
            partition: from 0 to k - 1; several are mixed by their masses, and None mixes all.
            seed: of everything random.
            truncation: latents are drawn within so many standard deviations of their mean, at least
                1e-5; None is as far as they go.
            redraws: how often, at most, latents are drawn again whose images the partitioner finds
                in another partition (up to 20 in "Partition-Guided GANs", 2021); what is still
                outside then is kept.

        Raises:
            ParameterError: a value is outside its range, there is no partitioner to draw again by,
                or a prior to truncate is not normal.
        """
        check_count("the number of samples", n)
        check_seed(seed)
        masses = list(self.masses)
        if isinstance(partition, Sequence):
            masses, partition = self._masses_of(partition), None
        if partition is not None:
            check_partition(partition, self.num_partitions)
        if not fits(redraws, int) or redraws < 0:
            raise ParameterError(f"redraws must be a whole number from 0, not {redraws!r:.60}")
        if redraws and self.partitioner is None:
            raise ParameterError(
                f"{self.name!r} has no partitioner to draw again by; leave redraws out (--redraws)"
            )
        latent = self.latent
        if truncation is not None:
            latent = truncated(latent, truncation, self.name)
        drawing = Drawing(
            lambda z, y: self(z, y).cpu(),
            self._find if redraws else None,
            latent,
            masses,
            partition=partition,
            seed=seed,
            redraws=redraws,
        )
        return drawing.drawn(n)

    def _masses_of(self, partitions: Sequence[int]) -> list[float]:
        """Returns the masses of some partitions among all, where others have none."""
        for number in partitions:
            check_partition(number, self.num_partitions)
        total = sum(self.masses[number] for number in partitions)
        if not total:
            raise ParameterError(
                f"the partitions {list(partitions)} have no mass to mix them by; ask for one"
            )
        return [
            mass / total if number in partitions else 0.0 for number, mass in enumerate(self.masses)
        ]

    def _find(self, images: Tensor) -> Tensor:
        """Returns the partitions (B,) in which the partitioner finds images (B, C, H, W)."""
        assert self.partitioner is not None
        return self.partitioner.assign(as_source(images.to(self.device), self.image)).cpu()

    def partition(self, number: int) -> Generator:
        """Returns one partition, from 0 to k - 1, as a generator of its own.

        It shares the weights. A saved one loads by itself, unless no plugin offers the network:
        then as `architecture=lambda: pgmkit.loading.partitions.OnePartition(network, number)`.

        Raises:
            ParameterError: there is no such partition.
        """
        check_partition(number, self.num_partitions)
        found = one_partition(self.module, self.latent, number, **self._named())
        return self._unconditional(found, f"{self.name}, partition {number}")

    def whole(self) -> Generator:
        """Returns all partitions as one generator, whose latents tell the partition.

        The prior is a mixture of one Gaussian for each partition of mass above 0; see
        `pgmkit.loading.partitions.all_partitions`.

        Raises:
            ParameterError: the prior is not one N(mean, std²) for each coordinate, or the weights
                have fewer than 32 bits.
        """
        found = all_partitions(
            self.module, self.latent, self.masses, **self._named(), name=self.name
        )
        return self._unconditional(found, self.name)

    def _named(self) -> dict[str, Any]:
        return {
            "architecture": self._network.architecture,
            "model_args": self._network.model_args,
        }

    def _unconditional(self, found: Unconditional, name: str) -> Generator:
        generator = Generator(
            found.module,
            found.latent,
            self.image,
            name=name,
            architecture=found.architecture,
            model_args=found.model_args,
            provenance={key: fact for key, fact in self.provenance.items() if key != "class"},
        )
        return generator.to(self.device)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes it as a Hub folder, in safetensors and JSON, with a card and samples.

        The partitioner lies in the folder `partitioner`; one that cannot be saved is left out, and
        a warning says so.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._save(Path(folder), self._network, None)

    def _save(self, folder: Path, network: Generator, repository: str | None) -> None:
        samples = [
            self.sample(PER_CLUSTER, number)
            for number in range(min(self.num_partitions, MOST_ROWS))
        ]
        write_folder(folder, network, self.masses, self.partitioner, torch.cat(samples), repository)

    def push_to_hub(
        self, repository: str, *, private: bool = False, message: str | None = None
    ) -> str:
        """Uploads to the Hugging Face Hub as "org/name" and returns the address.

        Args:
            repository: "org/name"; it is created if it is not there.
            private: whether a new repository is private.
            message: of the commit.

        Raises:
            LoadError: the Hub is out of reach, or refuses.
        """
        check_push(repository)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), published(self._network), repository)
            return push_folder(Path(folder), repository, private=private, message=message)

    @classmethod
    def from_pretrained(
        cls,
        reference: Path | str,
        *,
        architecture: Architecture | None = None,
        model_args: Mapping[str, Any] | None = None,
        device: torch.device | str = "auto",
    ) -> "ConditionalGenerator":
        """Loads what `save_pretrained` wrote.

        Args:
            reference: a folder, "local-dir:/path", or "hf-hub:org/name[@revision]".
            architecture: what builds the network, where the folder names none; see
                `pgmkit.load_generator`.
            model_args: its arguments, where they are not those of the folder.
            device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.

        Raises:
            LoadError: the folder is incomplete or damaged.
            UnknownNameError: no installed plugin offers the architecture or the partitioner.
            GeneratorError: what it makes breaks the contract, or is not finite.
        """
        where = check_device(device)
        options = GeneratorOptions(architecture=architecture, model_args=model_args)
        read = read_folder(reference_of(reference), options)
        network = read.network
        try:
            found = cls(
                network.module,
                network.latent,
                network.image,
                read.masses,
                name=read.name,
                architecture=network.architecture,
                model_args=network.arguments,
                partitioner=read.partitioner,
                provenance=read.provenance,
            )
        except ParameterError as error:
            raise LoadError(
                f"{reference} is damaged or of another version: {error}; save the generator again"
            ) from error
        found.to(where).check()
        for told in network.notes:
            warnings.warn(told, PgmkitNote, stacklevel=2)
        return found

    def __repr__(self) -> str:
        parameters = sum(part.numel() for part in self.module.parameters())
        return (
            f"ConditionalGenerator({self.name!r}: {self.latent} latents in {self.num_partitions} "
            f"partitions -> {self.image}, {parameters:,} parameters)"
        )
