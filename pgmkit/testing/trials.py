"""What components of a kind are tried on: small images, latents, a generator, a spectrum."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pgmkit import contracts
from pgmkit.generator import Generator
from pgmkit.images import ArrayImages, ImageSource, LatentPoints
from pgmkit.images.source import ImageSpec
from pgmkit.priors import LatentSpec
from pgmkit.spectrum import Spectrum
from pgmkit.testing.case import Case

COUNT = 120
"""How many images or latents there are."""

GROUPS = 4
DIM = 3
DRAWS = 24
"""How many latents are drawn of a cluster."""

_SPREAD = 0.05


class Trial(Protocol):
    """Lets a component do its work once."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What it is given, which it must leave alone."""

    def fit(self, component: Any, seed: int) -> None:
        """Fits it, where there is something to fit."""

    def results(self, component: Any, seed: int = 0) -> Mapping[str, Tensor]:
        """Returns what it does, by what messages call it, as its contract has it checked."""


class OfImages:
    """Features or a partitioner, on images or latents in four groups."""

    def __init__(self, kind: str, component: Any, image: tuple[int, ...]) -> None:
        self.kind = kind
        self.source = source_for(component, image)
        self.x = self.source.batch(torch.arange(COUNT))
        self.inputs = (self.x,)

    def fit(self, component: Any, seed: int) -> None:
        """Fits it to all images."""
        contracts.fit(self.kind, component, self.source, seed)

    def results(self, component: Any, seed: int = 0) -> Mapping[str, Tensor]:
        """Returns points or logits of all images."""
        return {self.what: self._make(component, self.x)}

    @property
    def what(self) -> str:
        """What it makes of images."""
        return "points" if self.kind == "features" else "logits"

    def of(self, component: Any, x: Tensor) -> Tensor:
        """Returns points or logits (B, d) of images x (B, C, H, W)."""
        return self._make(component, x.clone())

    def _make(self, component: Any, x: Tensor) -> Tensor:
        make = contracts.points_of if self.kind == "features" else contracts.logits_of
        return make(component, x)


class OfMappers:
    """A mapper, on latents in four clusters."""

    def __init__(self) -> None:
        self.prior = LatentSpec(DIM)
        self.latents = latents()
        self.assign = Nearest(self.latents)
        self.labels = self.assign(self.latents)
        self.inputs = (self.latents, self.labels)

    def fit(self, component: Any, seed: int, num_clusters: int = GROUPS) -> None:
        """Fits it to the latents; clusters from the fifth on are empty."""
        contracts.fit_mapper(
            component,
            self.latents,
            self.labels,
            num_clusters=num_clusters,
            assign=self.assign,
            prior=self.prior,
            seed=seed,
        )

    def results(self, component: Any, seed: int = 0) -> Mapping[str, Tensor]:
        """Returns draws of each cluster."""
        return {f"draws of cluster {c}": self.draw(component, c, seed) for c in range(GROUPS)}

    def draw(
        self, component: Any, cluster: int, seed: int, assign: contracts.Assign | None = None
    ) -> Tensor:
        """Returns latents (24, M) of one cluster."""
        return contracts.drawn_by(
            component, DRAWS, cluster, assign=assign or self.assign, prior=self.prior, seed=seed
        )


class OfSamplers:
    """A cluster sampler, on the latents of a small generator."""

    def __init__(self, image: tuple[int, ...]) -> None:
        self.generator = generator(image)
        self.latents = latents()
        self.inputs = (self.latents,)

    def fit(self, component: Any, seed: int) -> None:
        """Fits it to the latents."""
        contracts.fit_sampler(component, self.latents, generator=self.generator, seed=seed)

    def results(self, component: Any, seed: int = 0) -> Mapping[str, Tensor]:
        """Returns draws of each cluster that has members, and the clusters of all latents."""
        labels, number = contracts.labels_of(component, COUNT)
        predicted = contracts.predicted_by(component, self.latents, most=number)
        drawn = {
            f"draws of cluster {cluster}": contracts.sampled_by(
                component, DRAWS, cluster, seed, dim=DIM
            )
            for cluster in labels.unique().tolist()
        }
        return {"labels_": labels, "predicted clusters": predicted, **drawn}


class OfDensities:
    """A density estimator, on a spectrum."""

    def __init__(self) -> None:
        self.spectrum = spectrum()
        self.inputs = tuple(
            getattr(self.spectrum, name) for name in ("latents", "singular_values", "log_prior")
        )

    def fit(self, component: Any, seed: int) -> None:
        """Does nothing."""

    def results(self, component: Any, seed: int = 0) -> Mapping[str, Tensor]:
        """Returns the log-weights."""
        return {"log-weights": contracts.log_weights_of(component, self.spectrum)}


def trial_of(case: Case) -> Trial:
    """Returns what a component is tried on, anew, so that no check changes it for another."""
    if case.kind == "density-estimators":
        return OfDensities()
    if case.kind == "mappers":
        return OfMappers()
    if case.kind == "cluster-samplers":
        return OfSamplers(case.image)
    return OfImages(case.kind, case.built(), case.image)


class Nearest:
    """The cluster of a latent is the nearest of four centres."""

    def __init__(self, points: Tensor) -> None:
        self._centres = torch.tensor([[x, y, 0.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
        self._margins = self._looked_at(points)[1]

    def __call__(self, latents: Tensor, core: float = 1.0) -> Tensor:
        """Returns the cluster of each latent, -1 outside the core; see `contracts.Assign`."""
        clusters, margins = self._looked_at(latents)
        if core >= 1:
            return clusters
        return clusters.masked_fill(margins < self._margins.quantile(1 - core), -1)

    def _looked_at(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.cdist(latents.float(), self._centres).sort(dim=1)
        return nearest.indices[:, 0], nearest.values[:, 1] - nearest.values[:, 0]


def nowhere(latents: Tensor, core: float = 1.0) -> Tensor:
    """Says of each latent that it lies in no cluster."""
    return torch.full((len(latents),), -1)


def latents(count: int = COUNT) -> Tensor:
    """Returns latents (count, 3) of a normal prior."""
    return torch.randn(count, DIM, generator=_random("latents"))


def generator(image: tuple[int, ...] = (3, 8, 8)) -> Generator:
    """Returns a generator of two layers, 3 latents to images."""
    random = _random("generator")
    inner = nn.utils.skip_init(nn.Linear, DIM, 8)
    outer = nn.utils.skip_init(nn.Linear, 8, math.prod(image))
    with torch.no_grad():
        for layer in (inner, outer):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=random))
            layer.bias.zero_()
    net = nn.Sequential(inner, nn.Tanh(), outer, nn.Tanh(), nn.Unflatten(1, image))
    return Generator(net, LatentSpec(DIM), ImageSpec(image), name="a small generator")


def source_for(component: Any, image: tuple[int, ...]) -> ImageSource:
    """Returns what features or a partitioner are fitted to: labelled images, or latents."""
    if contracts.space_of(component) == "latents":
        return LatentPoints(LatentSpec(DIM), latents())
    random = _random("images")
    group = torch.arange(COUNT) % GROUPS
    coarse = torch.randn(GROUPS, image[0], *(2 for _ in image[1:]), generator=random)
    patterns = coarse if len(image) == 1 else nn.functional.interpolate(coarse, size=image[1:])
    noise = torch.randn(COUNT, *image, generator=random)
    pictures = (0.3 * patterns[group] + _SPREAD * noise).clamp(-1, 1)
    return ArrayImages(pictures, group, name="images to try", value_range=(-1.0, 1.0))


def spectrum(count: int = COUNT) -> Spectrum:
    """Returns singular values of a full Jacobian, 3 for each latent."""
    z = latents(count)
    values = z.double().exp().sort(dim=1, descending=True).values
    return Spectrum(z, values, LatentSpec(DIM).log_prior(z))


def _random(part: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(part.encode()))
