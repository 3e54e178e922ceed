"""What a generator makes on the way: pictures of it, and numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pgmkit import files, pictures
from pgmkit.config import check_count
from pgmkit.errors import ParameterError
from pgmkit.evaluate.extractors import FeatureExtractor, check_extractor, load_extractor
from pgmkit.evaluate.fidelity_scores import Moments, check_enough, frechet_distance
from pgmkit.evaluate.modes import mode_scores
from pgmkit.evaluate.reference_images import features_of
from pgmkit.images.generated import as_source
from pgmkit.images.points import PLANES
from pgmkit.images.source import ImageSource, ImageSpec
from pgmkit.learning import Clock
from pgmkit.learning.log import Log
from pgmkit.priors import LatentSpec
from pgmkit.seeds import random_generator
from pgmkit.train.conditions import Conditions

SAMPLES = "samples"
"""Folder of a run in which pictures of samples lie."""

_BATCH = 250
_GRID = 64
_ROWS, _PER_ROW = 16, 10
_JUDGED = 1_000
_POINTS = 10_000
_POINTS_NAME = "points:"


@dataclass(frozen=True)
class Fidelity:
    """How close generated images come to those they are trained on, as FID.

    Args:
        features: in whose features; a name, see `pgmkit.evaluate.extractors.load_extractor`.
        samples: generated images, at least 2; all images of the data are compared with them.

    Raises:
        UnknownNameError: there are no such features.
        ParameterError: there are too few samples.
    """

    features: str = "inception"
    samples: int = 10_000

    def __post_init__(self) -> None:
        check_count("fidelity.samples", self.samples)
        check_extractor(self.features)


class Samples:
    """Draws from a generator and looks at what it makes.

    Args:
        latent: the prior.
        source: the images it is trained on.
        fidelity: what FID is measured by; None measures none.
        seed: of the latents.

    Attributes:
        image: what generated images are like.
    """

    def __init__(
        self, latent: LatentSpec, source: ImageSource, fidelity: Fidelity | None, seed: int
    ) -> None:
        self.latent, self.source, self.fidelity, self.seed = latent, source, fidelity, seed
        self.image: ImageSpec = source.image
        self._extractor: FeatureExtractor | None = None
        self._reference: Moments | None = None
        if fidelity is not None:
            if self.image.is_points:
                raise ParameterError("fidelity is of images, and these are points; leave it out")
            check_enough(range(fidelity.samples), "samples in fidelity.samples")

    def made(
        self,
        generator: nn.Module,
        conditions: Conditions | None,
        device: torch.device,
        count: int,
        purpose: str,
        parts: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields so many images, on their device, with the parts that they were asked for.

        Args:
            generator: in any mode, which it keeps.
            conditions: that it has; None for none.
            device: of the generator.
            count: how many.
            purpose: of other latents for each; the same ones at every call.
            parts: of the images (count,); drawn by their masses if left out.
        """
        random = random_generator(self.seed, purpose)
        latents = self.latent.sample(count, random)
        if parts is None and conditions is not None:
            parts = conditions.draw(count, random)
        was_training = generator.training
        generator.eval()
        for index in torch.arange(count).split(_BATCH):
            asked = None if parts is None else parts[index].to(device)
            given = () if asked is None else (asked,)
            with torch.no_grad():
                yield generator(latents[index].to(device), *given).float(), asked
        generator.train(was_training)

    def grid(
        self, generator: nn.Module, conditions: Conditions | None, device: torch.device
    ) -> Tensor:
        """Returns images of the same latents every time, on the CPU; of parts 10 each, in order."""
        parts, count = None, _GRID
        if conditions is not None:
            shown = shown_parts(conditions.masses)
            parts = shown.repeat_interleave(_PER_ROW)
            count = len(parts)
        found = self.made(generator, conditions, device, count, "sample grid", parts)
        return torch.cat([images.cpu() for images, _ in found])

    def measure(
        self,
        generator: nn.Module,
        conditions: Conditions | None,
        device: torch.device,
        clock: Clock,
        folder: Path,
    ) -> dict[str, float]:
        """Writes a picture, and returns what there is to tell by name.

        Of points the modes that they reach; with parts the share of samples that lie in the part
        they were asked for ("inside"), and how many samples of each part do, as a row of
        `partitions.csv`; FID, if it is wanted.
        """
        path = folder / SAMPLES / f"step-{clock.step:07d}.png"
        told: dict[str, float] = {}
        if self.image.is_points:
            told |= self._look_at_points(generator, conditions, device, path)
        elif conditions is None:
            pictures.write_grid(path, self.grid(generator, None, device), self.image.range)
        else:
            images = self.grid(generator, conditions, device)
            pictures.write_rows(path, images, self.image.range, _PER_ROW)
        if conditions is not None:
            _, inside = self._judged(generator, conditions, device)
            told["inside"] = float(inside.sum()) / _JUDGED
            log = Log(folder / "partitions.csv", clock.step - 1)
            log.add({"step": clock.step}, {str(p): float(n) for p, n in enumerate(inside.tolist())})
            log.write()
        if self.fidelity is not None:
            told["FID"] = self._fid(generator, conditions, device)
        return told

    def _look_at_points(
        self,
        generator: nn.Module,
        conditions: Conditions | None,
        device: torch.device,
        path: Path,
    ) -> dict[str, float]:
        """Draws some points, and returns which modes they reach, where these are known."""
        from pgmkit.evaluate import figures

        found = list(self.made(generator, conditions, device, _POINTS, "points"))
        points = torch.cat([x.cpu() for x, _ in found])
        asked = [parts.cpu() for _, parts in found if parts is not None]
        parts = torch.cat(asked) if asked else None
        files.write_bytes(path, figures.points(points, parts, self.image.range))
        plane = PLANES.get(self.source.name.removeprefix(_POINTS_NAME))
        if plane is None:
            return {}
        scores = mode_scores(points, plane)
        assert scores.spread is not None
        return {
            "modes": float(scores.covered),
            "high quality": scores.high_quality,
            "reverse KL": scores.reverse_kl,
            "spread": scores.spread,
        }

    def acceptance(
        self, generator: nn.Module, conditions: Conditions, device: torch.device
    ) -> list[float | None]:
        """Returns the share of samples of each part that lie in it; None of parts without any."""
        asked, inside = self._judged(generator, conditions, device)
        pairs = zip(asked.tolist(), inside.tolist(), strict=True)
        return [right / count if count else None for count, right in pairs]

    def _judged(
        self, generator: nn.Module, conditions: Conditions, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Returns how many of some samples are asked for in each part, and lie in it, (k,)."""
        number = len(conditions.masses)
        counts = torch.zeros(2, number, dtype=torch.int64)
        for x, parts in self.made(generator, conditions, device, _JUDGED, "judged"):
            assert parts is not None
            found = conditions.fitted.assign(as_source(x, self.image))
            for count, some in zip(counts, (parts, parts[found == parts]), strict=True):
                count += some.cpu().bincount(minlength=number)
        return counts[0], counts[1]

    def _fid(
        self, generator: nn.Module, conditions: Conditions | None, device: torch.device
    ) -> float:
        assert self.fidelity is not None
        if self._extractor is None:
            self._extractor = load_extractor(self.fidelity.features, device)
            self._reference = Moments.of(features_of(self.source, self._extractor))
        assert self._reference is not None
        count = self.fidelity.samples
        rows = []
        for x, _ in self.made(generator, conditions, device, count, "fidelity"):
            rows.append(self._extractor.features(pictures.to_uint8(x.cpu(), self.image.range)))
        return frechet_distance(Moments.of(torch.cat(rows)), self._reference)


def shown_parts(masses: Tensor) -> Tensor:
    """Returns the parts that pictures show, in order: all, or the 16 with the most images."""
    if len(masses) <= _ROWS:
        return torch.arange(len(masses))
    return masses.argsort(descending=True, stable=True)[:_ROWS].sort().values
