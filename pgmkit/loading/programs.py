"""Files that are whole programs."""

from pathlib import Path


def kind_of_file(path: Path) -> str:
    """Tells by its content what a file is, without running any of it."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "git-lfs-pointer"
    if start.startswith(b"PK\x03\x04"):
        return "torch-zip"
    return "torch-legacy" if start.startswith(b"\x80") else "unknown"
