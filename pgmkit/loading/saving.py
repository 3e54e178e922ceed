"""Writing generators as Hub folders."""

import copy
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pgmkit import files, pictures
from pgmkit.errors import OutputError, in_words
from pgmkit.generator import Generator
from pgmkit.loading.cards import SAMPLES_FILE, generator_card, public
from pgmkit.loading.folders import (
    CONFIG_FILE,
    DISCRIMINATOR_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
)
from pgmkit.loading.hub import check_push, push_folder
from pgmkit.loading.programs import program_bytes
from pgmkit.loading.weights import serialise

CARD_FILE = "README.md"


def terms(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a record says of licence and paper, which stand at the top of `config.json`."""
    return {key: record[key] for key in ("license", "paper") if key in record}


def write_generator(folder: Path, generator: Generator) -> None:
    """Writes `config.json` and `model.safetensors` of a generator, or its program, into `folder`.

    Raises:
        OutputError: it cannot be written, or the program is not any more what was loaded.
    """
    stated = terms(generator.provenance)
    provenance = {k: v for k, v in generator.provenance.items() if k not in stated}
    cls = type(generator.module)
    is_class = generator.architecture is None and generator.program is None
    if is_class and not cls.__module__.startswith("torch."):
        provenance.setdefault("class", f"{cls.__module__}:{cls.__qualname__}")
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": generator.name,
        "architecture": generator.architecture,
        "model_args": generator.model_args,
        **generator.specs(),
        **stated,
        "provenance": provenance,
    }
    if generator.program is None:
        files.write_bytes(folder / WEIGHTS_FILE, serialise(generator.module.state_dict()))
    else:
        config["weights"] = f"program{generator.program.suffix}"
        files.write_bytes(folder / config["weights"], _program(generator, generator.program))
    files.write_json(folder / CONFIG_FILE, config)


def _program(generator: Generator, path: Path) -> bytes:
    """Returns the file that a generator was read from, with what may lie beside it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OutputError(
            f"{generator.name!r} is a program, and its file {path} is not there any more: "
            f"{in_words(error)}; put it back, since all of it is saved"
        ) from error
    known = generator.provenance.get("sha256")
    if known not in (None, hashlib.sha256(data).hexdigest()):
        raise OutputError(
            f"{path} has changed since {generator.name!r} was loaded from it; load it again"
        )
    return program_bytes(path)


def save_generator(
    folder: Path,
    generator: Generator,
    *,
    card: str,
    samples: Tensor,
    discriminator: nn.Module | None = None,
) -> None:
    """Writes a generator as a Hub folder, with a card that shows a grid of samples (N, C, H, W).

    Args:
        folder: where to.
        generator: what.
        card: in Markdown.
        samples: in the range of the generator's images.
        discriminator: of the same backbone and parameters, that it was trained with.

    Raises:
        OutputError: the folder cannot be written.
    """
    with files.replaced_folder(folder) as fresh:
        write_generator(fresh, generator)
        if discriminator is not None:
            weights = serialise(discriminator.state_dict())
            files.write_bytes(fresh / DISCRIMINATOR_FILE, weights)
        files.write_text(fresh / CARD_FILE, card)
        pictures.write_grid(fresh / SAMPLES_FILE, samples, generator.image.range, scale=2)


def published(generator: Generator) -> Generator:
    """Returns the generator as others may see it: without paths of this machine on its record.

    The checksum of its weights stays, which says more than a path.
    """
    copied = copy.copy(generator)
    copied.provenance = public(generator.provenance) or {}
    return copied


def push_generator(
    generator: Generator, repository: str, *, private: bool = False, message: str | None = None
) -> str:
    """Uploads a generator, with a card and samples, to the Hub and returns the address.

    Args:
        generator: what.
        repository: "org/name"; it is created if it is not there.
        private: whether a new repository is private.
        message: of the commit.

    Raises:
        LoadError: the Hub is out of reach, or refuses.
    """
    check_push(repository)
    samples = generator.images(generator.sample_latents(64, seed=0))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        card = generator_card(generator, repository)
        save_generator(folder, published(generator), card=card, samples=samples)
        return push_folder(folder, repository, private=private, message=message)
