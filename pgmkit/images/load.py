"""From a reference to a source of images."""

from pathlib import Path
from stat import S_ISDIR, S_ISREG

from pgmkit.config import IMAGES, expect, fits
from pgmkit.errors import DataError, ParameterError
from pgmkit.images.archive import SUFFIXES, Archive
from pgmkit.images.folder import Folder, load_tree
from pgmkit.images.library import find_data_set, load_torchvision
from pgmkit.images.npz import load_npz
from pgmkit.images.points import find_points, load_points
from pgmkit.images.rows import Images
from pgmkit.images.stacked import StackedImages, parse_stacked

_LIBRARY = "torchvision:"
_FOLDER = "torchvision:ImageFolder:"
"""What torchvision calls so is read here, without hidden folders and whatever the numbers are."""
_POINTS = "points:"
_STACKED = "stacked:"
_SPLITS = ("train", "test")


def load_images(
    reference: str, *, split: str = "train", size: int | tuple[int, int] | None = None
) -> Images:
    """Opens a data set, whose images are read when they are asked for.

    What is read, and how, is the same for all kinds of sources: docs/images.md.

    Args:
        reference: "FILE.npz" with `images`/`labels` or `x_train`/`y_train`; a folder of images, or
            a zip or tar archive of one, with one sub-folder per class or none;
            "torchvision:NAME:ROOT", a data set of torchvision that lies in the folder ROOT already,
            with parameters of its own behind, such as "torchvision:EMNIST:ROOT:split=letters";
            "points:ring" and "points:grid", with ":n=50000" and ":seed=1" behind; or "stacked:" and
            any of the former that are grey, likewise.
        split: "train" or "test", where the source has both.
        size: side of the square images, or height and width. Images are shrunk until one side
            fits, never enlarged; what is too long is cut off, what is too short is padded with 0,
            alike on both ends (the LASH paper's 28 to 32).

    Raises:
        DataError: nothing is there, or it does not hold images.
        ParameterError: there is no such split, or not enough memory for labels, or disk space for
            what is compressed.
    """
    if split not in _SPLITS:
        raise ParameterError(f"split must be one of {', '.join(_SPLITS)}, not {split!r:.60}")
    if not fits(size, int | tuple[int, int] | None):
        raise ParameterError(f"size is a side, or (height, width), not {size!r:.60}")
    check_source(reference)
    reference = reference.removeprefix(_FOLDER)
    shape = (size, size) if isinstance(size, int) else size
    if reference.startswith(_POINTS):
        if shape is not None:
            raise DataError(f"{reference} are points, which have no size; leave image_size out")
        return load_points(reference, split)
    if reference.startswith(_STACKED):
        source, numbers = parse_stacked(reference)
        grey = load_images(source, split=split, size=size)
        return StackedImages(grey, split, numbers.get("n"), numbers.get("seed", 0))
    if reference.startswith(_LIBRARY):
        return load_torchvision(reference, split, shape)
    path = Path(reference)
    if path.is_dir():
        return load_tree(Folder(path), split, shape)
    if path.suffix.lower() == ".npz":
        return load_npz(path, split, shape)
    return load_tree(Archive(path), split, shape)


def check_source(reference: str) -> None:
    """Checks that a source of images is there, without reading it.

    Raises:
        DataError: nothing is there, or it is of no kind that is read.
        ParameterError: it is no text.
    """
    expect(reference, str, f"images are named by a text: {IMAGES}")
    reference = reference.removeprefix(_FOLDER)
    if reference.startswith(_POINTS):
        find_points(reference)
        return
    if reference.startswith(_STACKED):
        check_source(parse_stacked(reference)[0])
        return
    if reference.startswith(_LIBRARY):
        find_data_set(reference)
        return
    path, mode = Path(reference), 0
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no right to look, a name that is none or too long
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{reference[:80]!r} cannot be read: {reason}") from error
    if reference and S_ISDIR(mode):
        return
    if not path.name.lower().endswith((".npz", *SUFFIXES)) or (mode and not S_ISREG(mode)):
        raise DataError(f"there are no images at {reference!r}; give {IMAGES}")
    if not mode:
        raise DataError(f"there are no images at {reference}; check the path")
