"""A map of latents: places in the plane, by what their images look like."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgmkit import contracts
from pgmkit.errors import ParameterError, UnknownNameError
from pgmkit.progress import phase
from pgmkit.states import parts_of

COMPONENTS, UMAP = "principal components", "UMAP"
LAYOUTS = (COMPONENTS, UMAP)
IMAGES, FEATURES = "images", "features"

_NUM_COMPONENTS = 30
_NEIGHBOURS = 15
_NEEDED = "a map by UMAP needs umap-learn: pip install 'pgmkit[umap]'"


@dataclass(frozen=True)
class Map:
    """Latents in the plane.

    Args:
        places: (n, 2), in [0, 1].
        images: bytes (n, C, H, W), no side above 96; or points (n, d).
        clusters: of each (n,); -1 of what is removed.
        weights: log-weights (n,), of 0 for the least to 1, by rank.
        classes: of each (n,), or None without a classifier.
        class_names: of all classes.
        about: what the plane shows, in a sentence.
    """

    places: Tensor
    images: Tensor
    clusters: Tensor
    weights: Tensor
    classes: Tensor | None
    class_names: Sequence[str]
    about: str


def has_umap() -> bool:
    """Returns whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def features_of(component: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns what a fitted sampler or partitioner sees of images x (B, C, H, W), as points (B, d).

    That is what stands before the head of a partitioner that has one, and else its features. None
    where neither is there, or where it looks at latents.
    """
    if contracts.space_of(component) == "latents":
        return None
    if isinstance(component, contracts.Represents):
        return partial(contracts.represented, component)
    features = getattr(component, "features", None)
    if callable(features):
        return partial(contracts.points_of, features)
    found = (features_of(part) for part in parts_of(component).values())
    return next((one for one in found if one is not None), None)


def places_of(points: Tensor, layout: str, of: str, seed: int) -> tuple[Tensor, str]:
    """Returns places (n, 2), in [0, 1], of points (n, d), and what the plane shows.

    Args:
        points: float32.
        layout: one of `LAYOUTS`. UMAP (McInnes et al. 2018) is that of at most 30 principal
            components.
        of: what the points are of, for the sentence.
        seed: of everything random.

    Raises:
        UnknownNameError: there is no such layout.
        ParameterError: umap-learn is not installed, or there are too few points for it.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout of a map", layout, LAYOUTS)
    leading, shares = _components(points, seed)
    if layout == COMPONENTS:
        places = torch.nn.functional.pad(leading[:, :2], (0, max(0, 2 - leading.shape[1])))
        about = (
            f"The two leading principal components of the {of}, which hold "
            f"{float(shares[:2].sum()):.0%} of their variance"
        )
    else:
        places = _umap(leading, seed)
        about = (
            f"UMAP of the {of}, by {leading.shape[1]} principal components: neighbours look alike, "
            "and how far apart groups lie says little"
        )
    low, high = places.amin(dim=0), places.amax(dim=0)
    within = ((places - low) / (high - low).clamp(min=1e-12)).float()
    return within, f"{about}; {len(points):,} latents."


def _components(points: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the leading principal components (n, r), and each one's share of the variance."""
    centred = points - points.mean(dim=0)
    total = float(centred.double().square().sum())
    rank = min(_NUM_COMPONENTS, *centred.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, vectors = torch.svd_lowrank(centred, q=rank)
    return centred @ vectors, values.double().square() / (total or 1.0)


def _umap(points: Tensor, seed: int) -> Tensor:
    if not has_umap():
        raise ParameterError(_NEEDED)
    if len(points) <= _NEIGHBOURS:
        raise ParameterError(
            f"a map by UMAP takes more than {_NEIGHBOURS} latents, and there are {len(points)}; "
            "take principal components"
        )
    with phase("UMAP"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one seed means one thread
        umap = importlib.import_module("umap")  # compiles itself, which takes seconds
        made = umap.UMAP(n_neighbors=_NEIGHBOURS, random_state=seed, n_jobs=1)
        return torch.from_numpy(made.fit_transform(points.numpy()))
