"""Loading generators: from a folder, a repository or a weight file, whoever wrote it."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from pgmkit import files
from pgmkit.errors import ParameterError, PgmkitNote, PgmkitWarning
from pgmkit.generator import Generator
from pgmkit.loading.batch_norm import recalibrate
from pgmkit.loading.building import Architecture
from pgmkit.loading.folders import WEIGHTS_FILE, ModelFolder
from pgmkit.loading.networks import Network, read_network
from pgmkit.loading.options import GeneratorOptions, Image, Latent
from pgmkit.loading.partitions import taken
from pgmkit.loading.references import open_folder
from pgmkit.loading.saving import terms
from pgmkit.machine import check_device


def load_generator(
    reference: str,
    *,
    architecture: Architecture | None = None,
    latent: Latent | None = None,
    image: Image | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    recalibrate: bool = False,
    partition: int | None = None,
    device: torch.device | str = "auto",
) -> Generator:
    """Loads a pretrained generator: strict weights, eval mode, gradients off.

    Whatever is given here goes before what the folder says. What nobody said and had to be found,
    such as which of several entries are the averaged weights, is told in a `PgmkitNote` and kept
    in `provenance["notes"]`.

    Args:
        reference: a name from the registry, a weight file, a folder ("local-dir:/path"), or
            "hf-hub:org/name[@revision]". `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the Hub's
            cache are honoured.
        architecture: a class or function that builds the network with `model_args`; the name of a
            component; "package.module:Class"; or "auto", which infers it from the weights.
        latent: the prior: a spec, a table of its arguments, a number of normal dimensions, or a
            string such as "100" or "uniform:100".
        image: what comes out: a spec, a table of its arguments, a shape (C, H, W), or a string such
            as "3x64x64" or "3x64x64:0,1", with the range of values.
        model_args: arguments of the architecture.
        weights: the weight file, relative to the folder.
        key: the entry of the weight file that holds the generator, such as "g_ema".
        prefix: what the names of the generator's weights begin with, such as "module.".
        recalibrate: whether to estimate the statistics of batch norms anew, from the prior.
        partition: the one of a conditional generator that is taken, from 0; None takes a
            conditional generator as a whole, with latents that tell the partition.
        device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        UnknownNameError: no such registry name, or no plugin offers the architecture.
        ParameterError: an argument is of another form.
        LoadError: files are missing or damaged, or the weights do not fit.
        GeneratorError: what it makes breaks the contract, or is not finite.

    Example:
        >>> load_generator("mnist-dcgan")
        Generator('mnist-dcgan': 64 normal latents -> 1×32×32 images, 919,424 parameters)
    """
    options = GeneratorOptions(
        architecture=architecture,
        latent=latent,
        image=image,
        model_args=model_args,
        weights=weights,
        key=key,
        prefix=prefix,
        recalibrate=recalibrate,
        partition=partition,
    )
    return generator_from_folder(open_folder(reference), options, device=device)


def load_described(
    source: str, table: Mapping[str, Any], *, device: torch.device | str = "auto"
) -> Generator:
    """Loads a generator with the options of a table, as it stands in a TOML file.

    Args:
        source: as for `load_generator`.
        table: further arguments of `load_generator` by name.
        device: where to put the weights; "auto" is CUDA, then MPS, then the CPU.

    Raises:
        PgmkitError: see `load_generator`.
    """
    return generator_from_folder(
        open_folder(source), GeneratorOptions.from_table(table), device=device
    )


def check_source(values: Mapping[str, Any]) -> None:
    """Raises ParameterError unless settings name a generator as their `source`."""
    if "source" not in values:
        raise ParameterError("no generator is given; name one, such as mnist-dcgan")


def pinned(generator: Generator, table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the table that a generator was loaded with and what identifies the generator."""
    provenance = generator.provenance
    known: dict[str, Any] = {
        key: provenance[key] for key in ("revision", "sha256") if key in provenance
    }
    return {**table, **known, "fingerprint": generator.fingerprint()}


def generator_from_folder(
    folder: ModelFolder,
    options: GeneratorOptions | None = None,
    *,
    device: torch.device | str = "auto",
) -> Generator:
    """Loads the generator of an open folder; see `load_generator`."""
    options, where = options or GeneratorOptions(), check_device(device)
    network = taken(folder, read_network(folder, options), options.partition)
    which = "" if options.partition is None else f", partition {options.partition}"
    generator = Generator(
        network.module,
        network.latent,
        network.image,
        name=f"{name_of(folder, network)}{which}",
        architecture=network.architecture,
        model_args=network.arguments,
        program=network.path if network.is_program else None,
        provenance=provenance_of(folder, network),
    )
    generator.to(where)
    generator.check()
    if damaged := generator.why_not_finite():
        warnings.warn(f"the generator {generator.name!r}{damaged}", PgmkitWarning, stacklevel=3)
    notes = list(network.notes)
    if options.recalibrate:
        notes += [f"batch norm anew: {moved}" for moved in recalibrate(generator)] or [
            "nothing was recalibrated: there is no batch norm with statistics"
        ]
    if notes:
        generator.provenance["notes"] = notes
    for told in notes:
        warnings.warn(told, PgmkitNote, stacklevel=3)
    return generator


def name_of(folder: ModelFolder, network: Network) -> str:
    """Returns what a generator is called: a registry entry by its name, others as they say."""
    if ":" not in folder.reference and folder.weights is None:
        return folder.reference
    return str(network.config.ours.get("name") or folder.reference)


def provenance_of(folder: ModelFolder, network: Network) -> dict[str, Any]:
    """Returns where a network came from: what its folder says, and what pins its weights."""
    ours, path = network.config.ours, network.path
    return {
        **(ours.get("provenance") or {}),
        **terms(ours),
        "reference": folder.reference,
        **folder.provenance,
        **({"weights": path.name} if path.name != WEIGHTS_FILE else {}),
        "sha256": files.sha256(path),
        **network.record,
    }
