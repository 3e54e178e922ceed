"""Data sets of images: `.npz` files, folders of pictures, and torchvision's, as bytes in memory."""

from pgmkit.images.data import ImageData
from pgmkit.images.labels import is_number
from pgmkit.images.load import check_source, load_images
from pgmkit.images.pixels import as_channels, shrunk

__all__ = ["ImageData", "as_channels", "check_source", "is_number", "load_images", "shrunk"]
