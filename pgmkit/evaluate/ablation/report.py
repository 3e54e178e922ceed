"""The report of an ablation: tables, figures and the record on one page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pgmkit import files
from pgmkit.evaluate import pages
from pgmkit.evaluate.ablation.measures import MEASURES
from pgmkit.evaluate.ablation.tables import Table

_MOST_FIGURES = 40


def write_ablation_report(
    folder: Path,
    tables: Sequence[Table],
    figures: Mapping[str, bytes],
    summary: Mapping[str, Any],
) -> Path:
    """Writes report.html of an ablation.

    Args:
        folder: of the run, where the figures lie in `figures`, too.
        tables: of all measures.
        figures: PNGs by file name; of more than 40 the first are shown.
        summary: what `ablation.json` holds.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: the folder cannot be written.
    """
    shown = dict(list(figures.items())[:_MOST_FIGURES])
    encoded = pages.fitting([pages.read(io.BytesIO(data)) for data in shown.values()])
    drawn = [
        pages.figure(picture, name.removesuffix(".png").replace("-", " "))
        for name, picture in zip(shown, encoded, strict=True)
    ]
    more = len(figures) - len(shown)
    page = pages.document(
        f"Ablation: {folder.name}",
        _in_words(tables, summary),
        *(pages.section(MEASURES[table.measure].title, _table(table)) for table in tables),
        pages.section(
            "Figures",
            pages.beside(*drawn),
            f"<p>{more} more are in the folder figures.</p>" if more else "",
        )
        if drawn
        else "",
        pages.section("Cells that failed", pages.table(list(summary["errors"].items())))
        if summary["errors"]
        else "",
        pages.fold("The record", pages.record(_facts(summary))),
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _in_words(tables: Sequence[Table], summary: Mapping[str, Any]) -> str:
    """Returns how many cells there are, and which methods the first metric puts first."""
    failed = summary["failed"]
    cells = f"{summary['cells']:,} cells, {f'of which {failed:,} failed' if failed else 'all done'}"
    if not tables:
        return f"{cells}."
    words, place = [], ""
    first = next(iter(MEASURES[tables[0].measure].metrics.values()))
    for title, metric, entries in tables[0].lines():
        place = title or place
        best = [m for m, e in zip(tables[0].methods, entries, strict=True) if e.best]
        if metric is first and best and len(entries) > 1:
            words.append(f"{' and '.join(best)} on {place}" if place else " and ".join(best))
    led = f" By {first.title.lower()} the best is {'; '.join(words)}." if words else ""
    return f"{cells}.{led} The spread behind ± is over seeds alone."


def _table(table: Table) -> str:
    rows = [
        (title, metric.title, *(_marked(entry.text(metric.form), entry.best) for entry in entries))
        for title, metric, entries in table.lines()
    ]
    caption = f"<p>{pages.text(table.caption)} The best of a line is marked *.</p>"
    return caption + pages.table(rows, ("", "", *table.methods))


def _marked(told: str, best: bool) -> str:
    return f"{told} *" if best else told


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    settings = summary["settings"]
    return {
        "generators": ", ".join(str(one["name"]) for one in settings["generators"]),
        "densities": "; ".join(pages.component(one) for one in settings["densities"]),
        "samplers": "; ".join(pages.component(one) for one in settings["samplers"]),
        **{name: ", ".join(map(str, settings[name])) for name in ("latents", "remove", "seeds")},
        "seconds": pages.pairs(summary["seconds"]),
        "versions": pages.pairs(
            {name: " and ".join(found) for name, found in summary["versions"].items()}
        ),
        "machines": "; ".join(summary["machines"]),
    }
