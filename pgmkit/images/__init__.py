"""Sources of images: files, archives and data sets, points, and what generators make."""

from pgmkit.images.arrays import ArrayImages
from pgmkit.images.deform import Deformations, deformed, preset
from pgmkit.images.generated import GeneratedImages, LatentPoints, moved_latents
from pgmkit.images.labels import is_number
from pgmkit.images.load import check_source, load_images
from pgmkit.images.pixels import as_channels, resized, shrunk
from pgmkit.images.source import (
    ImageSource,
    ImageSpec,
    Moves,
    batches,
    labels_among,
    require_labels,
)

__all__ = [
    "ArrayImages",
    "Deformations",
    "GeneratedImages",
    "ImageSource",
    "ImageSpec",
    "LatentPoints",
    "Moves",
    "as_channels",
    "batches",
    "check_source",
    "deformed",
    "is_number",
    "labels_among",
    "load_images",
    "moved_latents",
    "preset",
    "require_labels",
    "resized",
    "shrunk",
]
