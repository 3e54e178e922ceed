"""The report of a partitioner that was fitted to images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgmkit import files, pictures
from pgmkit.evaluate import figures, pages
from pgmkit.images.source import ImageSource
from pgmkit.partition.fitted import FittedPartitioner

CURVES = "curves"
"""Folder beside a report, of what loops logged."""


def write_partition_report(
    folder: Path, fitted: FittedPartitioner, source: ImageSource, scores: Mapping[str, Any] | None
) -> Path:
    """Writes report.html of a fresh partitioner: its parts, their sizes, and how it was made.

    Args:
        folder: where to; what was logged in loops lies in its folder `curves`.
        fitted: what `pgmkit.fit_partitioner` returned.
        source: what it was fitted to.
        scores: against labels, see `pgmkit.evaluate.partitions.PartitionScores`, or None.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: the folder cannot be written.
    """
    if source.image.shape == (2,):
        plane = figures.plane(fitted, source)
        parts = pages.figure(plane, "Points in the colours of their parts")
    else:
        parts = pages.wall(_cards(fitted))
    chart = figures.sizes(fitted.sizes, "part", "images")
    loops = sorted((folder / CURVES).iterdir()) if (folder / CURVES).exists() else []
    page = pages.document(
        f"{fitted.num_partitions} parts of {len(source):,} {source.image}",
        _in_words(fitted, scores),
        parts,
        pages.section("Agreement with labels", _scores(scores)),
        pages.section("Sizes of the parts", pages.figure(chart, "Images in each part")),
        *(
            pages.section(
                loop.name,
                pages.figure(
                    figures.curves(sorted(loop.glob("*.csv"))), f"Curves of the {loop.name}"
                ),
            )
            for loop in loops
        ),
        pages.fold("How it was made", pages.record(_facts(fitted))),
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _in_words(fitted: FittedPartitioner, scores: Mapping[str, Any] | None) -> str:
    sizes, name = fitted.sizes, fitted.origin["partitioner"]["name"]
    empty = sizes.count(0)
    found = (
        f"{name} found parts of {min(sizes):,} to {max(sizes):,} images"
        + (f"; {empty} of {len(sizes)} have none" if empty else "")
        + "."
    )
    if scores is None:
        return f"{found} Nothing was asked that knows classes: what they are is for you to see."
    if fitted.origin["findings"].get("supervised"):
        return f"{found} It learned from the labels, so that it agrees with them says little."
    return (
        f"{found} One part for each label, {pages.percent(scores['matched_accuracy'])} of the "
        "images lie in that of theirs; no label was used to find them."
    )


def _cards(fitted: FittedPartitioner) -> Iterator[str]:
    assert fitted.samples is not None
    rows = fitted.samples.chunk(fitted.num_partitions)
    some = [
        pictures.grid(pictures.to_uint8(images[:size], fitted.image.range)) if size else None
        for size, images in zip(fitted.sizes, rows, strict=True)
    ]
    encoded = iter(pages.fitting([picture for picture in some if picture is not None]))
    for part, (size, picture) in enumerate(zip(fitted.sizes, some, strict=True)):
        note = f"{size:,} images, {pages.percent(size / sum(fitted.sizes))}"
        yield pages.card(f"part {part}", note, None if picture is None else next(encoded))


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return ""
    return pages.table(
        [
            (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
            for name, value in scores.items()
        ]
    )


def _facts(fitted: FittedPartitioner) -> dict[str, str]:
    origin, empty = fitted.origin, fitted.sizes.count(0)
    return {
        "partitioner": pages.component(origin["partitioner"]),
        **({"what it found": pages.pairs(origin["findings"])} if origin["findings"] else {}),
        "images": pages.pairs(origin["data"]),
        "parts without images": f"{empty} of {fitted.num_partitions}",
        "seed": str(origin["seed"]),
        "seconds": str(origin["seconds"]),
        "versions": pages.pairs(origin["versions"]),
        "device": str(origin["device"]),
        "machine": str(origin["machine"]),
    }
