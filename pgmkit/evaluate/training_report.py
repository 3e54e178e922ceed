"""The report of a training."""

from collections.abc import Mapping
from pathlib import Path

from pgmkit import files
from pgmkit.evaluate import figures, pages
from pgmkit.learning.log import LOSSES, MEASUREMENTS


def write_training_report(
    folder: Path,
    lead: str,
    facts: Mapping[str, str],
    measured: Mapping[str, str],
    partitioner: Path | None,
) -> Path:
    """Writes report.html of a training that is over.

    Args:
        folder: of the run, with what `pgmkit.learning.learn` logged in it, and pictures in
            `samples`.
        lead: what was trained, in a sentence.
        facts: of the model and its making, by name.
        measured: at the end, by name.
        partitioner: folder with a report of its own, within `folder`; None for none.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: the folder cannot be written.
    """
    logs = [path for name in (LOSSES, MEASUREMENTS) if (path := folder / name).exists()]
    drawn = sorted((folder / "samples").glob("*.png"))
    shown = list(dict.fromkeys([*drawn[-1:], *drawn[:1]]))
    encoded = pages.fitting([pages.read(path) for path in shown])
    own = (
        f'<p><a href="{partitioner.name}/report.html">The parts that it is conditioned on</a></p>'
        if partitioner
        else ""
    )
    page = pages.document(
        folder.name,
        lead,
        pages.beside(
            *(
                pages.figure(picture, f"Samples at {path.stem.replace('-', ' ')}", "pixels")
                for picture, path in zip(encoded, shown, strict=True)
            )
        ),
        own,
        pages.section("Measured at the end", pages.table(list(measured.items())))
        if measured
        else "",
        pages.section("Curves", pages.figure(figures.curves(logs), "Losses and measurements"))
        if logs
        else "",
        pages.fold("The record", pages.record(facts)),
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"
