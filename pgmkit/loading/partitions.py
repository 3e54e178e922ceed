"""Conditional networks, one of their partitions or all of them taken as a module of latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.components import check_parameters
from pgmkit.config import check_count, fits
from pgmkit.errors import LoadError, ParameterError
from pgmkit.loading.building import find_architecture
from pgmkit.loading.configs import read_masses
from pgmkit.loading.folders import CONDITIONAL_CONFIG, ModelFolder
from pgmkit.loading.networks import Network
from pgmkit.priors import LatentSpec, Numbers

ONE_PARTITION = "one-partition"
ALL_PARTITIONS = "all-partitions"
"""The components that build a partition, and all, of what another component builds."""

_APART = 16.0
"""How far apart the means of partitions are, in standard deviations: beyond half of it, to both
sides of 20 coordinates, lies a mass of 3e-14."""

_MOST_COORDINATES = 64
_BITS = 32
"""Weights with fewer bits would round latents that lie far from 0."""


class OnePartition(nn.Module):
    """Maps latents to images of one partition: `z -> conditional(z, i)`.

    Args:
        conditional: maps latents z and partitions y, int64 (B,), to images.
        partition: i, from 0.
    """

    def __init__(self, conditional: nn.Module, partition: int) -> None:
        super().__init__()
        self.conditional = conditional
        self.partition = partition

    def forward(self, z: Tensor) -> Any:
        """Returns images for latents z (B, ...)."""
        return self.conditional(z, torch.full((len(z),), self.partition, device=z.device))

    def extra_repr(self) -> str:
        """Returns which partition it is."""
        return f"partition={self.partition}"


class AllPartitions(nn.Module):
    """Maps latents of a mixture to images: the nearest mean tells the partition.

    Args:
        conditional: maps latents z and partitions y, int64 (B,), to images.
        prior: of z, one N(mean, std²) for each coordinate.
        partitions: that of each component of the mixture.
    """

    def __init__(
        self, conditional: nn.Module, prior: LatentSpec, partitions: Sequence[int]
    ) -> None:
        super().__init__()
        self.conditional = conditional
        mean, places, std = _placed(prior, len(partitions))
        self.mean: Tensor
        self.places: Tensor
        self.std: Tensor
        self.partitions: Tensor
        dtypes = [part.dtype for part in conditional.parameters() if part.is_floating_point()]
        for name, value in (("mean", mean), ("places", places), ("std", std)):
            # Rounded to float32 first, as where the network takes the precision of its weights.
            rounded = value.float().to(dtypes[0] if dtypes else torch.float32)
            self.register_buffer(name, rounded, persistent=False)
        self.register_buffer("partitions", torch.tensor(partitions), persistent=False)

    def forward(self, z: Tensor) -> Any:
        """Returns images for latents z (B, ...)."""
        flat = z.flatten(1)
        count = len(self.mean)
        first = (flat.detach()[:, None, :count] - self.mean) / self.std
        nearest = (first - self.places).square().sum(dim=2).argmin(dim=1)
        moved = self.places[nearest] * self.std
        moved = nn.functional.pad(moved, (0, flat.shape[1] - count))
        return self.conditional((flat - moved).reshape(z.shape), self.partitions[nearest])

    def extra_repr(self) -> str:
        """Returns how many partitions there are."""
        return f"partitions={len(self.partitions)}"


@dataclass(frozen=True)
class Unconditional:
    """A conditional network as a module of latents: with what it is drawn from, built and saved."""

    module: nn.Module
    latent: LatentSpec
    architecture: str | None
    model_args: Mapping[str, Any]


def one_partition(
    module: nn.Module,
    latent: LatentSpec,
    partition: int,
    *,
    architecture: str | None,
    model_args: Mapping[str, Any],
) -> Unconditional:
    """Returns one partition of a conditional network.

    Args:
        module: maps latents z and partitions y, int64 (B,), to images.
        latent: the prior of z.
        partition: from 0.
        architecture: the component that builds the module; None if none does.
        model_args: what that is called with.
    """
    made: dict[str, Any] = {"partition": partition}
    return _named(
        OnePartition(module, partition), latent, ONE_PARTITION, architecture, model_args, made
    )


def all_partitions(
    module: nn.Module,
    latent: LatentSpec,
    masses: Sequence[float],
    *,
    architecture: str | None,
    model_args: Mapping[str, Any],
    name: str,
) -> Unconditional:
    """Returns a conditional network whose latents tell the partition; see `one_partition`.

    The prior is a mixture of one Gaussian for each partition of mass above 0, with means so far
    apart that the nearest is that of the partition but for a chance below 1e-12. They lie on the
    smallest lattice, in the first coordinates.

    Args:
        module: maps latents z and partitions y, int64 (B,), to images.
        latent: the prior of z, one N(mean, std²) for each coordinate.
        masses: of all partitions, which sum to 1.
        architecture: the component that builds the module; None if none does.
        model_args: what that is called with.
        name: of the generator, for messages.

    Raises:
        ParameterError: the prior is another, or the weights have too few bits.
    """
    alone = "take one partition, with partition=0 (--partition 0)"
    if latent.parts or latent.distribution != "normal":
        raise ParameterError(
            f"the partitions of {name!r} become one mixture where the prior is normal, and it is "
            f"{latent}; {alone}"
        )
    types = {part.dtype for part in module.parameters() if part.is_floating_point()}
    if any(torch.finfo(dtype).bits < _BITS for dtype in types):
        raise ParameterError(
            f"the weights of {name!r} are in {min(map(str, types))}, which is too coarse for "
            f"latents that tell the partition; {alone}, or turn them into float32"
        )
    partitions = [number for number, mass in enumerate(masses) if mass > 0]
    mean, places, std = _placed(latent, len(partitions))
    count = len(mean)
    means = _each(latent.mean, latent.dim).repeat(len(partitions), 1)
    means[:, :count] += places * std
    mixture = LatentSpec(
        latent.dim,
        "mixture",
        means=tuple(map(tuple, means.tolist())),
        stds=(latent.std,) * len(partitions),
        weights=tuple(masses[number] for number in partitions),
        shape=latent.shape,
    )
    made = {
        "partitions": partitions,
        "latent_dim": latent.dim,
        **{part: getattr(latent, part) for part in ("mean", "std")},
    }
    whole = AllPartitions(module, latent, partitions)
    return _named(whole, mixture, ALL_PARTITIONS, architecture, model_args, made)


def taken(folder: ModelFolder, network: Network, partition: int | None) -> Network:
    """Returns a partition of a network that a folder holds, or a conditional one as a whole.

    A network that is not conditional is returned as it is.

    Raises:
        LoadError: what the folder says of partitions is damaged or missing.
        ParameterError: there is no such partition, or the whole cannot be taken.
    """
    masses = read_masses(folder)
    if masses is None:
        if partition is not None:
            raise ParameterError(
                f"{folder.reference} is not conditional, so it has no partition {partition}; leave "
                "partition out"
            )
        if network.architecture and network.arguments.get("num_partitions") is not None:
            raise LoadError(
                f"{folder.reference} is conditional and not whole: it has no {CONDITIONAL_CONFIG}; "
                "save the generator again"
            )
        return network
    check_number(network, masses, folder.reference)
    named: dict[str, Any] = {
        "architecture": network.architecture,
        "model_args": network.arguments,
    }
    notes = list(network.notes)
    if partition is None:
        found = all_partitions(
            network.module, network.latent, masses, **named, name=folder.reference
        )
        notes.append(
            f"{folder.reference} is conditional and is taken as a whole: latents tell which of its "
            f"{len(masses)} partitions they are of; take one with partition=0 (--partition 0)"
        )
    else:
        check_partition(partition, len(masses))
        found = one_partition(network.module, network.latent, partition, **named)
    record = {name: fact for name, fact in network.record.items() if name != "class"}
    return replace(
        network,
        module=found.module,
        latent=found.latent,
        architecture=found.architecture,
        arguments=found.model_args,
        notes=notes,
        record=record,
    )


def check_number(network: Network, masses: Sequence[float], reference: str) -> None:
    """Raises LoadError unless a network has as many partitions as there are masses."""
    number = network.arguments.get("num_partitions")
    if number != len(masses) and (number is not None or network.architecture is not None):
        raise LoadError(
            f"{CONDITIONAL_CONFIG} of {reference} has masses of {len(masses)} partitions, and "
            f"num_partitions is {number!r:.60}; save the generator again"
        )


def check_partition(partition: Any, count: int) -> None:
    """Raises ParameterError unless there is such a partition among so many."""
    if not fits(partition, int) or not 0 <= partition < count:
        raise ParameterError(
            f"there is no partition {partition!r:.60}; the partitions are 0 to {count - 1}"
        )


def build_one_partition(
    architecture: str, model_args: Mapping[str, Any], partition: int
) -> OnePartition:
    """Builds one partition of a conditional network: the loader `one-partition`.

    Args:
        architecture: the generator loader that builds the network.
        model_args: its arguments, with `num_partitions`.
        partition: from 0.

    Raises:
        ParameterError: an argument is outside its range.
        UnknownNameError: no plugin offers the architecture.
    """
    check_partition(partition, _number(architecture, model_args))
    return OnePartition(_conditional(architecture, model_args), partition)


def build_all_partitions(
    architecture: str,
    model_args: Mapping[str, Any],
    partitions: list[int],
    latent_dim: int,
    mean: float | list[float] = 0.0,
    std: float | list[float] = 1.0,
) -> AllPartitions:
    """Builds a conditional network whose latents tell the partition: the loader `all-partitions`.

    Args:
        architecture: the generator loader that builds the network.
        model_args: its arguments, with `num_partitions`.
        partitions: those that it makes, one for each component of the mixture of its latents.
        latent_dim: M, the number of latent dimensions.
        mean: of the normal prior of the network; one number, or M.
        std: its standard deviation, above 0; one number, or M.

    Raises:
        ParameterError: an argument is outside its range.
        UnknownNameError: no plugin offers the architecture.
    """
    number = _number(architecture, model_args)
    check_count("the number of partitions", len(partitions))
    for partition in partitions:
        check_partition(partition, number)
    if len(set(partitions)) < len(partitions):
        raise ParameterError(f"partitions must differ, and {partitions!r:.60} do not")
    prior = LatentSpec(latent_dim, mean=_numbers(mean), std=_numbers(std))
    return AllPartitions(_conditional(architecture, model_args), prior, partitions)


def _named(
    module: nn.Module,
    latent: LatentSpec,
    loader: str,
    architecture: str | None,
    model_args: Mapping[str, Any],
    made: Mapping[str, Any],
) -> Unconditional:
    """Names what builds a module, if a component builds the network inside."""
    if architecture is None:
        return Unconditional(module, latent, None, {})
    arguments = {"architecture": architecture, "model_args": dict(model_args), **made}
    return Unconditional(module, latent, loader, arguments)


def _number(architecture: str, model_args: Mapping[str, Any]) -> int:
    number = model_args.get("num_partitions")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ParameterError(
            f"a conditional {architecture!r:.60} needs num_partitions among its model_args, a "
            f"whole number from 1, not {number!r:.60}"
        )
    return number


def _conditional(architecture: str, model_args: Mapping[str, Any]) -> nn.Module:
    factory = find_architecture(architecture, "model_args", trusted=False)
    check_parameters(factory, dict(model_args), f"'model_args' of {architecture!r:.60}")
    module: nn.Module = factory(**model_args)
    return module


def _placed(prior: LatentSpec, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where partitions lie: mean and std of d coordinates, and places in units of these.

    Returns:
        Mean (d,), places (count, d) and std (d,), float64.
    """
    places = _lattice(count, prior.dim)
    width = places.shape[1]
    return _each(prior.mean, prior.dim)[:width], places, _each(prior.std, prior.dim)[:width]


def _lattice(count: int, dim: int) -> Tensor:
    """Returns points around 0, float64 (count, d), d from 1 to dim: of the smallest lattice."""
    side, width = 1, 1
    while side ** min(dim, _MOST_COORDINATES) < count:
        side += 1
    while side**width < count:
        width += 1
    powers = torch.tensor([side**place for place in range(width)])
    digits = torch.arange(count)[:, None] // powers % side
    return (digits.double() - (side - 1) / 2) * _APART


def _each(value: Numbers, dim: int) -> Tensor:
    """Returns one number for each of the dimensions, float64 (dim,)."""
    return torch.zeros(dim, dtype=torch.float64) + torch.tensor(value, dtype=torch.float64)


def _numbers(value: float | list[float]) -> Numbers:
    return tuple(value) if isinstance(value, list | tuple) else value
