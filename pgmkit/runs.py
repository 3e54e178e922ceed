"""Output folders of runs: which run a folder belongs to, and whether another may write there."""

import json
import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pgmkit import files
from pgmkit.errors import LoadError, OutputError, PgmkitWarning, shortened
from pgmkit.plugins import installed

RUN_FILE = "run.json"
RESULT_FILES = (RUN_FILE, "sampler.json", "manifest.json")
"""Each of them says that a folder holds a result of pgmkit."""


def check_folder(folder: Path, *, mark: str = RUN_FILE, what: str = "run", parts: str = "") -> None:
    """Checks that a run may write into a folder: it is new, empty, or holds a run.

    Args:
        folder: where to write.
        mark: the file that says that the folder is one's own.
        what: what the folder is to hold, for the message.
        parts: pattern of files that may be there before the mark is.

    Raises:
        OutputError: it is a file, or holds something else.
    """
    check_place(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another output folder")
    if folder.is_dir() and not (folder / mark).exists():
        names = [path.name for path in folder.iterdir()]
        strangers = [n for n in names if not n.startswith(".") and not fnmatch(n, parts)]
        if strangers:
            raise OutputError(
                f"{folder} is in use: it holds {', '.join(sorted(strangers)[:3])} and no pgmkit "
                f"{what}; choose another output folder"
            )


def check_place(path: Path) -> None:
    """Checks that a path can be made, and does not lie in a folder with a result of pgmkit.

    Raises:
        OutputError: it lies in one, or its name is one that the system does not take.
    """
    try:
        path.exists()
        found = [
            parent
            for parent in path.absolute().parents
            if any((parent / name).is_file() for name in RESULT_FILES)
        ]
    except OSError as error:
        raise OutputError(
            f"cannot write to {shortened(str(path), 100)}: {files.remedied(error)}"
        ) from error
    if found:
        raise OutputError(
            f"{path} lies in {found[0]}, which holds a result of pgmkit; choose a place outside"
        )


def record(folder: Path, settings: Mapping[str, Any], *, device: str = "") -> None:
    """Records a run's settings and plugin versions, or checks that they are those on record.

    Args:
        folder: of the run.
        settings: all that the result depends on.
        device: where it is computed; a run that continues on one of another kind is warned of.

    Raises:
        OutputError: the folder holds a run with other settings.
        LoadError: the record is damaged.
    """
    path = folder / RUN_FILE
    plain = json.loads(json.dumps(settings))
    kind = device.partition(":")[0]
    if not path.exists():
        versions = {r.name: r.version for r in installed().records if r.status == "loaded"}
        used = {"devices": [kind]} if kind else {}
        files.write_json(path, {"settings": plain, "plugins": versions, **used})
        return
    try:
        known = files.read_json(path, str(folder))
        recorded, devices = dict(known["settings"]), list(known.get("devices", []))
    except (LoadError, ValueError, TypeError, KeyError) as error:
        raise LoadError(
            f"{path} is damaged ({error}); remove the folder {folder} and start again"
        ) from error
    for key in sorted({*recorded, *plain}):
        if recorded.get(key) != plain.get(key):
            raise OutputError(
                f"{folder} holds a run with {key} {recorded.get(key)!r}, not {plain.get(key)!r}; "
                "choose another output folder or remove this one"
            )
    if kind and kind not in devices:
        warnings.warn(
            f"the run in {folder} was begun on {devices[0] if devices else 'another device'} and "
            f"continues on {kind}: its numbers may differ in the last digits from those of a run "
            "on one device",
            PgmkitWarning,
            stacklevel=2,
        )
        files.write_json(path, {**known, "devices": [*devices, kind]})
