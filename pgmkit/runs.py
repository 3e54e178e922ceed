"""Output folders of runs: which run a folder belongs to, and whether another may write there."""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pgmkit import files
from pgmkit.errors import LoadError, OutputError
from pgmkit.plugins import registry

RUN_FILE = "run.json"


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


def record(folder: Path, settings: Mapping[str, Any]) -> None:
    """Records a run's settings and plugin versions, or checks that they are those on record.

    Raises:
        OutputError: the folder holds a run with other settings.
        LoadError: the record is damaged.
    """
    path = folder / RUN_FILE
    plain = json.loads(json.dumps(settings))
    if not path.exists():
        versions = {r.name: r.version for r in registry().records if r.status == "loaded"}
        files.write_json(path, {"settings": plain, "plugins": versions})
        return
    try:
        recorded = dict(json.loads(path.read_text())["settings"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadError(
            f"{path} is damaged ({error}); remove the folder {folder} and start again"
        ) from error
    for key in sorted({*recorded, *plain}):
        if recorded.get(key) != plain.get(key):
            raise OutputError(
                f"{folder} holds a run with {key} {recorded.get(key)!r}, not {plain.get(key)!r}; "
                "choose another output folder or remove this one"
            )
