"""Data sets of images from an `.npz` file, a folder of images, or a torchvision data set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from pgmkit.errors import DataError

_IMAGE_KEYS = ("images", "image", "x", "data")
_LABEL_KEYS = ("labels", "label", "y", "targets")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageData:
    """Images in memory.

    Args:
        images: bytes (N, C, H, W).
        labels: class numbers (N,), or None.
        source: where they came from, for logs and cards.
    """

    images: Tensor
    labels: Tensor | None
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def require_labels(self) -> Tensor:
        """Returns the labels.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(f"{self.source} has no labels; a classifier cannot be trained on it")
        return self.labels

    def summary(self) -> dict[str, Any]:
        """Returns source, shape and checksum, which tell this data from other data."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        shape = list(self.images.shape)
        return {"source": self.source, "shape": shape, "sha256": digest.hexdigest()}

    def batch(self, index: Tensor, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """Returns the images `index` as float32 (B, C, H, W) in `value_range`."""
        low, high = value_range
        return self.images[index].float().mul_((high - low) / 255).add_(low)


def load_images(source: str, *, split: str = "train", size: int | None = None) -> ImageData:
    """Loads a whole data set into memory as bytes.

    Args:
        source: "FILE.npz" with `images`/`labels` or `x_train`/`y_train`; a folder of images, with
            one sub-folder per class or none; or "torchvision:NAME:ROOT", a data set of torchvision
            that lies in the folder ROOT already.
        split: "train" or "test", where the source has both.
        size: side of the square images. Smaller ones are padded with 0 on all sides (the LASH
            paper's 28 to 32), larger ones resized.

    Raises:
        DataError: nothing is there, or it does not hold images.
    """
    if source.startswith("torchvision:"):
        images, labels = _load_torchvision(source, split, size)
    elif Path(source).is_dir():
        images, labels = _load_folder(Path(source), split, size)
    elif source.endswith(".npz"):
        images, labels = _load_npz(Path(source), split)
    else:
        raise DataError(
            f"there are no images at {source!r}; give an .npz file, a folder of images, or "
            "torchvision:NAME:ROOT"
        )
    if size is not None:
        images = _fit(images, size)
    return ImageData(images.contiguous(), labels, Path(source).name)


def shrunk(images: Tensor, size: int) -> Tensor:
    """Returns images (B, C, H, W) with the longer side at most `size`, in the same proportion.

    Points (B, d) stay as they are.
    """
    if images.ndim == 2:
        return images
    height, width = images.shape[-2:]
    factor = size / max(height, width)
    if factor >= 1:
        return images
    shape = (max(1, round(height * factor)), max(1, round(width * factor)))
    return functional.interpolate(
        images, shape, mode="bilinear", align_corners=False, antialias=True
    )


def _load_npz(path: Path, split: str) -> tuple[Tensor, Tensor | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            whole = split == "train"
            image_key = _first(names, (f"x_{split}", *(_IMAGE_KEYS if whole else ())))
            if image_key is None:
                wanted = "'images' or 'x_train'" if whole else f"'x_{split}'"
                raise DataError(
                    f"{path} holds {', '.join(names) or 'nothing'}; it needs an array called "
                    f"{wanted}"
                )
            label_key = _first(names, (f"y_{split}", *(_LABEL_KEYS if whole else ())))
            images = archive[image_key]
            labels = archive[label_key] if label_key else None
    except FileNotFoundError as error:
        raise DataError(f"there are no images at {path}; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    return _as_bytes(images, str(path)), _as_labels(labels, len(images), str(path))


def _load_folder(root: Path, split: str, size: int | None) -> tuple[Tensor, Tensor | None]:
    train = root / "train" if (root / "train").is_dir() else root
    folder = train if split == "train" else root / split
    if not folder.is_dir():
        raise DataError(f"{root} has no folder {split!r} with images that were not trained on")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DataError(f"there are no images in {folder}; it may hold {', '.join(_SUFFIXES)}")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    strangers = {p.relative_to(folder).parts[0] for p in paths if p.parent != folder}
    if not strangers <= set(classes):
        raise DataError(f"{folder} has classes that {train} has not: {strangers - set(classes)}")
    arrays = [_read_image(path, size) for path in paths]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"the images in {folder} have {len(shapes)} different shapes; set image_size to make "
            "them one"
        )
    labels = None
    if classes and all(p.parent != folder for p in paths):
        numbers = [classes.index(p.relative_to(folder).parts[0]) for p in paths]
        labels = torch.tensor(numbers)
    return _as_bytes(np.stack(arrays), str(folder)), labels


def _read_image(path: Path, size: int | None) -> Any:
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if image.mode in ("1", "L", "LA", "I;16") else "RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}; remove it") from error
    if size is not None and min(converted.size) > size:
        side = min(converted.size)
        left, top = (converted.width - side) // 2, (converted.height - side) // 2
        converted = converted.resize(
            (size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
        )
    return np.asarray(converted)


def _load_torchvision(source: str, split: str, size: int | None) -> tuple[Tensor, Tensor | None]:
    from torchvision import datasets

    parts = source.split(":", 2)
    factory = getattr(datasets, parts[1], None)
    if len(parts) < 3 or factory is None:
        raise DataError(
            f"a torchvision data set is written torchvision:NAME:ROOT, such as "
            f"torchvision:MNIST:data, not {source!r}"
        )
    try:
        try:
            dataset = factory(parts[2], train=split == "train")
        except TypeError:
            dataset = factory(parts[2], split=split)
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(f"torchvision cannot read {source!r}: {error}") from error
    arrays, labels = [], []
    for image, label in dataset:
        if size is not None and max(image.size) > size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        arrays.append(np.asarray(image))
        labels.append(int(label))
    return _as_bytes(np.stack(arrays), source), torch.tensor(labels)


def _as_bytes(images: Any, where: str) -> Tensor:
    """Turns (N, H, W), (N, H, W, C) or (N, C, H, W) bytes into (N, C, H, W)."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise DataError(
            f"the images in {where} are {images.dtype} of shape {images.shape}; they must be uint8 "
            "of shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if tensor.ndim == 3:
        return tensor[:, None]
    if tensor.shape[-1] in (1, 3) and tensor.shape[1] not in (1, 3):
        return tensor.permute(0, 3, 1, 2).contiguous()
    return tensor


def _as_labels(labels: Any, count: int, where: str) -> Tensor | None:
    if labels is None:
        return None
    if len(labels) != count or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"the labels in {where} are {labels.dtype} of shape {labels.shape}; they must be "
            f"{count} integers, one per image"
        )
    return torch.from_numpy(labels.astype(np.int64)).flatten()


def _fit(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    if max(height, width) <= size:
        left, top = (size - width) // 2, (size - height) // 2
        return functional.pad(
            images, (left, size - width - left, top, size - height - top), value=0
        )
    resized = functional.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).byte()


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)
