"""The result of partition-guided training: a generator that makes images of one partition."""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit import files, pictures
from pgmkit.config import check_count, check_seed, expect, fits
from pgmkit.errors import LoadError, ParameterError, PgmkitNote, PgmkitWarning
from pgmkit.forms import as_images
from pgmkit.generator import LATENT_CHUNK, Generator, latent_chunk
from pgmkit.images.generated import as_source
from pgmkit.images.source import ImageSpec
from pgmkit.loading.building import Architecture
from pgmkit.loading.cards import MOST_ROWS, PER_CLUSTER, SAMPLES_FILE, conditional_card
from pgmkit.loading.configs import checked_masses, read_masses
from pgmkit.loading.folders import (
    CONDITIONAL_CONFIG,
    FORMAT_VERSION,
    PARTITIONER_FOLDER,
    sub_folder,
)
from pgmkit.loading.generators import name_of, provenance_of
from pgmkit.loading.hub import check_push, push_folder
from pgmkit.loading.networks import read_network
from pgmkit.loading.options import GeneratorOptions
from pgmkit.loading.partitions import (
    Unconditional,
    all_partitions,
    check_number,
    check_partition,
    one_partition,
)
from pgmkit.loading.references import open_folder, reference_of
from pgmkit.loading.saving import CARD_FILE, published, write_generator
from pgmkit.machine import check_device
from pgmkit.partition import FittedPartitioner
from pgmkit.partition.fitted import partitioner_from_folder
from pgmkit.priors import LatentSpec
from pgmkit.seeds import derive_seed, random_generator
from pgmkit.states import why_not_saved

_LEAST_TRUNCATION = 1e-5


@dataclass(frozen=True)
class Drawn:
    """What was drawn from a conditional generator, on the CPU.

    Args:
        images: (n, C, H, W), in the generator's range.
        latents: z (n, M), float32.
        partitions: y (n,), int64.
        inside: whether the partitioner finds each image in its partition, bool (n,); None where it
            was not asked.
        tries: how many images of each partition it was shown, int64 (k,); None likewise.
    """

    images: Tensor
    latents: Tensor
    partitions: Tensor
    inside: Tensor | None = None
    tries: Tensor | None = None

    @property
    def acceptance(self) -> Tensor | None:
        """The share of tries that the partitioner found in their partition, float64 (k,).

        It is NaN for partitions that were not drawn, and None where the partitioner was not asked.
        """
        if self.inside is None or self.tries is None:
            return None
        return (
            self.partitions[self.inside].bincount(minlength=len(self.tries)) / self.tries.double()
        )


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
        said = {"num_partitions is": self._network.model_args.get("num_partitions")}
        if partitioner is not None:
            expect(partitioner, FittedPartitioner, "a partitioner is a FittedPartitioner or None")
            partitioner.check_images(image.shape, self.name)
            said["the partitioner has"] = partitioner.num_partitions
        for what, number in said.items():
            if number not in (None, self.num_partitions):
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
        partition: int | None = None,
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
        partition: int | None = None,
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
            partition: from 0 to k - 1; None mixes partitions by their masses.
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
        if partition is not None:
            check_partition(partition, self.num_partitions)
        if not fits(redraws, int) or redraws < 0:
            raise ParameterError(f"redraws must be a whole number from 0, not {redraws!r:.60}")
        if redraws and self.partitioner is None:
            raise ParameterError(
                f"{self.name!r} has no partitioner to draw again by; leave redraws out (--redraws)"
            )
        latent = self.latent if truncation is None else self._truncated(truncation)
        tries = torch.zeros(self.num_partitions, dtype=torch.int64)
        chunks = []
        for start in range(0, n, LATENT_CHUNK):
            count = min(LATENT_CHUNK, n - start)
            y = torch.full((count,), partition if partition is not None else 0)
            if partition is None:
                random = random_generator(seed, "partitions", start)
                masses = torch.tensor(self.masses, dtype=torch.float64)
                y = torch.multinomial(masses, LATENT_CHUNK, replacement=True, generator=random)
            chunks.append(self._chunk(latent, y[:count], seed, start, redraws, tries))
        images, latents, partitions, inside = map(torch.cat, zip(*chunks, strict=True))
        if not redraws:
            return Drawn(images, latents, partitions)
        return Drawn(images, latents, partitions, inside, tries)

    def _chunk(
        self, latent: LatentSpec, y: Tensor, seed: int, start: int, redraws: int, tries: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws for partitions y (B,), of one chunk, and counts tries.

        Returns:
            Images, latents, y, and which were found inside: none where nothing is drawn again.
        """
        z = latent_chunk(latent, len(y), seed, start)
        images = self(z, y).cpu()
        inside = torch.zeros(len(y), dtype=torch.bool)
        if redraws:
            inside = self._inside(images, y, tries)
        for again in range(1, redraws + 1):
            outside = (~inside).nonzero().flatten()
            if not len(outside):
                break
            fresh = latent_chunk(latent, len(y), derive_seed(seed, "redraw", again), start)
            z[outside] = fresh[outside]
            images[outside] = self(z[outside], y[outside]).cpu()
            inside[outside] = self._inside(images[outside], y[outside], tries)
        return images, z, y, inside

    def _inside(self, images: Tensor, y: Tensor, tries: Tensor) -> Tensor:
        """Returns which images the partitioner finds in partitions y (B,), and counts them."""
        assert self.partitioner is not None
        tries += y.bincount(minlength=len(tries))
        x = as_source(images.to(self.device), self.image)
        return self.partitioner.assign(x).cpu() == y

    def _truncated(self, truncation: float) -> LatentSpec:
        """Returns the prior within so many standard deviations."""
        if not fits(truncation, float) or not _LEAST_TRUNCATION <= truncation < math.inf:
            raise ParameterError(
                f"truncation must be a number of standard deviations from {_LEAST_TRUNCATION:g}, "
                f"not {truncation!r:.60}"
            )
        if self.latent.parts or self.latent.distribution != "normal":
            raise ParameterError(
                f"truncation is for normal priors, and that of {self.name!r} is {self.latent}; "
                "leave truncation out"
            )
        mean, std = (torch.tensor(part).double() for part in (self.latent.mean, self.latent.std))
        low, high = mean - truncation * std, mean + truncation * std
        bounds: dict[str, Any] = {"low": low.tolist(), "high": high.tolist()}
        return replace(self.latent, distribution="truncated-normal", **bounds)

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
        shown = range(min(self.num_partitions, MOST_ROWS))
        samples = torch.cat([self.sample(PER_CLUSTER, number) for number in shown])
        partitioner = self._saved_partitioner()
        files.remove(folder / CONDITIONAL_CONFIG)
        write_generator(folder, network)
        files.remove_folder(folder / PARTITIONER_FOLDER)
        if partitioner is not None:
            partitioner.save_pretrained(folder / PARTITIONER_FOLDER)
        pictures.write_rows(folder / SAMPLES_FILE, samples, self.image.range, PER_CLUSTER, scale=2)
        table = None if partitioner is None else partitioner.origin.get("partitioner")
        files.write_text(
            folder / CARD_FILE, conditional_card(network, self.masses, table, repository)
        )
        # Last, since its presence says that the folder is whole.
        description = {
            "format_version": FORMAT_VERSION,
            "masses": self.masses,
            "partitioner": partitioner is not None,
        }
        files.write_json(folder / CONDITIONAL_CONFIG, description)

    def _saved_partitioner(self) -> FittedPartitioner | None:
        """Returns the partitioner if it can be saved, and warns if there is one that cannot."""
        if self.partitioner is None:
            return None
        why = why_not_saved(self.partitioner.partitioner)
        if why is None:
            return self.partitioner
        warnings.warn(
            f"the partitioner of {self.name!r} cannot be saved and is left out: {why}",
            PgmkitWarning,
            stacklevel=4,
        )
        return None

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
        text, where = reference_of(reference), check_device(device)
        folder = open_folder(text)
        masses = read_masses(folder)
        if masses is None:
            raise LoadError(
                f"{reference} holds no conditional generator: it has no {CONDITIONAL_CONFIG}; load "
                "others with pgmkit.load"
            )
        options = GeneratorOptions(architecture=architecture, model_args=model_args)
        network = read_network(folder, options)
        check_number(network, masses, text)
        described = files.read_json(folder.path(CONDITIONAL_CONFIG), text)
        partitioner = None
        if described.get("partitioner"):
            partitioner = partitioner_from_folder(
                sub_folder(folder, PARTITIONER_FOLDER), f"{text}, in {PARTITIONER_FOLDER},"
            )
        try:
            found = cls(
                network.module,
                network.latent,
                network.image,
                masses,
                name=name_of(folder, network),
                architecture=network.architecture,
                model_args=network.arguments,
                partitioner=partitioner,
                provenance=provenance_of(folder, network),
            )
        except ParameterError as error:
            raise LoadError(
                f"{text} is damaged or of another version: {error}; save the generator again"
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
