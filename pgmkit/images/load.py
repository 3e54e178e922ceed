"""From the name of a source to images in memory."""

from pathlib import Path

from pgmkit.errors import DataError
from pgmkit.images.archive import load_npz
from pgmkit.images.data import ImageData
from pgmkit.images.folder import load_folder
from pgmkit.images.library import find_data_set, load_torchvision

_LIBRARY = "torchvision:"
_FOLDER = "torchvision:ImageFolder:"
"""What torchvision calls so is read here, without hidden folders and whatever the numbers are."""


def load_images(
    source: str, *, split: str = "train", size: int | tuple[int, int] | None = None
) -> ImageData:
    """Loads a whole data set into memory as bytes.

    What is read, and how, is the same for all kinds of sources: docs/images.md.

    Args:
        source: "FILE.npz" with `images`/`labels` or `x_train`/`y_train`; a folder of images, with
            one sub-folder per class or none; or "torchvision:NAME:ROOT", a data set of torchvision
            that lies in the folder ROOT already, with parameters of its own behind, such as
            "torchvision:EMNIST:ROOT:split=letters".
        split: "train" or "test", where the source has both.
        size: side of the square images, or height and width. Images are shrunk until one side
            fits, never enlarged; what is too long is cut off, what is too short is padded with 0,
            alike on both ends (the LASH paper's 28 to 32).

    Raises:
        DataError: nothing is there, or it does not hold images.
        ParameterError: there is not enough memory.
    """
    source = source.removeprefix(_FOLDER)
    check_source(source)
    shape = (size, size) if isinstance(size, int) else size
    if source.startswith(_LIBRARY):
        return load_torchvision(source, split, shape)
    path = Path(source)
    return load_folder(path, split, shape) if path.is_dir() else load_npz(path, split, shape)


def check_source(source: str) -> None:
    """Checks that a source of images is there, without reading it.

    Raises:
        DataError: nothing is there, or it is of no kind that is read.
    """
    source = source.removeprefix(_FOLDER)
    if source.startswith(_LIBRARY):
        find_data_set(source)
        return
    path = Path(source)
    try:
        there, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # no right to look, a name that is none or too long
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{source[:80]!r} cannot be read: {reason}") from error
    if is_folder and source:
        return
    if path.suffix.lower() != ".npz" or (there and not is_file):
        raise DataError(
            f"there are no images at {source!r}; give an .npz file, a folder of images, or "
            "torchvision:NAME:ROOT"
        )
    if not there:
        raise DataError(f"there are no images at {source}; check the path")
