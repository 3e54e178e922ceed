"""Reports, each one self-contained HTML page: of a shattering, of a partitioner, of a training."""

import base64
import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from pgmkit import files, pictures
from pgmkit.choosing import CHOSEN, describe_choice
from pgmkit.config import in_toml
from pgmkit.errors import LoadError, ParameterError
from pgmkit.evaluate import figures
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.metrics import ClusterScores, score_latents, score_samples
from pgmkit.images.source import ImageSource, ImageSpec
from pgmkit.learning.log import LOSSES, MEASUREMENTS
from pgmkit.machine import machine
from pgmkit.partition.fitted import FittedPartitioner
from pgmkit.shattering import ShatteredGenerator

CURVES = "curves"
"""Folder beside a report, of what loops logged."""

_PER_CLUSTER = 32
_MOST_SCORED = 10_000

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2a33; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left;
       vertical-align: top } td.number { text-align: right; font-variant-numeric: tabular-nums }
.clusters { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { margin-bottom: .25rem } img { max-width: 100% }
.clusters img { width: 100%; image-rendering: pixelated }
"""


def describe(
    shattered: ShatteredGenerator,
    classifier: Classifier | None = None,
    *,
    seconds: Mapping[str, float] | None = None,
    spectrum: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns all numbers of a fresh result as plain values.

    As many samples are scored as latents are kept, at most 10,000.

    Args:
        shattered: what `pgmkit.shatter` returned.
        classifier: gives class labels for the scores.
        seconds: times to report beside those of shattering itself.
        spectrum: where the spectrum was read from, its `folder` and the `manifest_sha256`; None if
            it was computed.
    """
    scores: dict[str, ClusterScores] = {}
    if classifier is not None:
        scores["kept latents"] = score_latents(shattered, classifier)
        seed = int(shattered.origin.settings["seed"])
        count = min(_MOST_SCORED, sum(shattered.cluster_sizes))
        scores["mapper samples"] = score_samples(shattered, classifier, count, seed)
    return {
        "generator": repr(shattered.generator),
        **asdict(shattered.origin),
        "spectrum": {
            **(spectrum or {}),
            "settings": dict(shattered.spectrum.provenance) if shattered.spectrum else {},
        },
        "clusters": _clusters(shattered, scores.get("kept latents")),
        "classifier": None
        if classifier is None
        else {"name": classifier.name, **classifier.measured},
        "scores": {protocol: asdict(score) for protocol, score in scores.items()},
        "seconds": {k: round(v, 2) for k, v in {**shattered.seconds, **(seconds or {})}.items()},
        "device": str(shattered.generator.device),
        "machine": machine(),
    }


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Checks that numbers that were read from a file are those of a report.

    Raises:
        LoadError: something is missing, or of another kind.
    """
    try:
        _facts(numbers)
        _scores(numbers)
        for cluster in numbers["clusters"]:
            _caption(cluster)
        for what, record in numbers["settings"].get("chosen", {}).items():
            describe_choice(what, record)
        sum(numbers["seconds"].values())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LoadError(
            f"report.json is damaged or of another kind ({type(error).__name__}: {error})"
        ) from error


def write_report(folder: Path, shattered: ShatteredGenerator, numbers: Mapping[str, Any]) -> Path:
    """Writes report.html, report.json and PNGs of a fresh result and what `describe` says of it.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: the folder cannot be written.
    """
    if shattered.spectrum is None or shattered.selection is None:
        raise ParameterError("a loaded result has no spectrum to report on; report a fresh one")
    seed = int(shattered.origin.settings["seed"])
    grids = {
        f"clusters/cluster-{cluster:02d}.png": _grid(images, shattered.generator.image)
        for cluster, images in enumerate(shattered.images_of_each(_PER_CLUSTER, seed))
    }
    charts = {
        "cluster-sizes.png": figures.sizes(shattered.cluster_sizes, "cluster", "kept latents"),
        "log-density.png": figures.log_density(
            shattered.selection, str(numbers["density"]["name"])
        ),
        "singular-values.png": figures.singular_values(shattered.spectrum),
    }
    charts |= {
        _choice_file(what): figures.choice(record, CHOSEN[what])
        for what, record in numbers["settings"].get("chosen", {}).items()
    }
    for name, data in {**grids, **charts}.items():
        files.write_bytes(folder / name, data)
    files.write_json(folder / "report.json", numbers)
    page = _page(numbers, grids, charts)
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def write_partition_report(
    folder: Path, fitted: FittedPartitioner, source: ImageSource, scores: Mapping[str, Any] | None
) -> Path:
    """Writes report.html of a fresh partitioner: its parts, its sizes, and how it was made.

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
        parts = _image(figures.plane(fitted, source), "points in the colours of their parts")
    else:
        parts = f"<div class=clusters>{''.join(_part_figures(fitted))}</div>"
    chart = figures.sizes(fitted.sizes, "part", "images")
    loops = sorted((folder / CURVES).iterdir()) if (folder / CURVES).exists() else []
    curves = "".join(
        f"<h2>{html.escape(loop.name)}</h2>"
        f"{_image(figures.curves(sorted(loop.glob('*.csv'))), f'curves of the {loop.name}')}"
        for loop in loops
    )
    page = _document(
        f"{fitted.num_partitions} parts of {len(source):,} {source.image}",
        f"{_partition_facts(fitted)}{_partition_scores(scores)}<h2>Parts</h2>{parts}"
        f"<h2>Sizes of the parts</h2>{_image(chart, 'sizes of the parts')}{curves}",
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def write_training_report(folder: Path, facts: Mapping[str, str], partitioner: Path | None) -> Path:
    """Writes report.html of a training that is over.

    Args:
        folder: of the run, with what `pgmkit.learning.learn` logged in it, and pictures in
            `samples`.
        facts: of the model and its making, by name.
        partitioner: folder with a report of its own, within `folder`; None for none.

    Returns:
        The path of `report.html`.

    Raises:
        OutputError: the folder cannot be written.
    """
    logs = [path for name in (LOSSES, MEASUREMENTS) if (path := folder / name).exists()]
    pictures = sorted((folder / "samples").glob("*.png"))
    shown = "".join(
        f"<figure><figcaption>{_text(path.stem)}</figcaption>"
        f"{_image(path.read_bytes(), path.stem)}</figure>"
        for path in dict.fromkeys([*pictures[-1:], *pictures[:1]])
    )
    own = f'<p><a href="{partitioner.name}/report.html">The parts</a></p>' if partitioner else ""
    curves = _image(figures.curves(logs), "losses and measurements") if logs else ""
    page = _document(
        folder.name,
        f"{_table(list(facts.items()))}{own}<h2>Samples</h2>{shown}<h2>Curves</h2>{curves}",
    )
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _part_figures(fitted: FittedPartitioner) -> Iterator[str]:
    assert fitted.samples is not None
    rows = fitted.samples.chunk(fitted.num_partitions)
    for part, (size, images) in enumerate(zip(fitted.sizes, rows, strict=True)):
        share = size / sum(fitted.sizes)
        caption = f"<b>part {part}</b>: {size:,} images, {share:.1%}"
        picture = _image(_grid(images[:size], fitted.image), caption) if size else ""
        yield f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _partition_facts(fitted: FittedPartitioner) -> str:
    origin, empty = fitted.origin, fitted.sizes.count(0)
    rows = {
        "partitioner": _component(origin["partitioner"]),
        **_findings(origin),
        "images": _pairs(origin["data"]),
        "parts without images": f"{empty} of {fitted.num_partitions}",
        "seed": str(origin["seed"]),
        "seconds": str(origin["seconds"]),
        "versions": _pairs(origin["versions"]),
        "device": str(origin["device"]),
        "machine": str(origin["machine"]),
    }
    return _table(list(rows.items()))


def _partition_scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return ""
    rows = {
        name.replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        for name, value in scores.items()
    }
    return f"<h2>Agreement with labels</h2>{_table(list(rows.items()))}"


def _clusters(shattered: ShatteredGenerator, scores: ClusterScores | None) -> list[dict[str, Any]]:
    """Returns for each cluster what it is called, its size and, with scores, its classes."""
    total = sum(shattered.cluster_sizes)
    return [
        {
            "index": index,
            "name": f"cluster {index}" + (f", mostly {scores.majority[index]}" if scores else ""),
            "size": size,
            "share": size / total,
            "purity": scores.purity[index] if scores else None,
            "class_entropy": scores.cluster_entropy[index] if scores else None,
        }
        for index, size in enumerate(shattered.cluster_sizes)
    ]


def _grid(images: Tensor, image: ImageSpec) -> bytes:
    picture = pictures.grid(pictures.to_uint8(images, image.range))
    width = picture.shape[1] if image.is_points else images.shape[-1]
    return pictures.png(picture, scale=max(1, math.ceil(64 / width)))


def _page(
    numbers: Mapping[str, Any], grids: Mapping[str, bytes], charts: Mapping[str, bytes]
) -> str:
    captions = []
    for cluster, grid in zip(numbers["clusters"], grids.values(), strict=True):
        caption = _caption(cluster)
        captions.append(
            f"<figure><figcaption>{caption}</figcaption>{_image(grid, caption)}</figure>"
        )
    chosen = numbers["settings"].get("chosen", {})
    charts_html = "".join(
        f"<h2>{_text(title)}</h2>{_image(charts[name], title)}"
        for name, title in [
            *((_choice_file(what), describe_choice(what, chosen[what])) for what in chosen),
            ("cluster-sizes.png", "Cluster sizes"),
            ("log-density.png", "Log-density and what was removed"),
            ("singular-values.png", "Singular values and numeric rank"),
        ]
    )
    settings = numbers["settings"]
    return _document(
        f"{settings['clusters']} clusters of {numbers['generator']}",
        f"{_facts(numbers)}{_scores(numbers)}"
        f"<h2>Samples of each cluster</h2><div class=clusters>{''.join(captions)}</div>"
        f"{charts_html}",
    )


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1>{body}</body></html>\n"
    )


def _caption(cluster: Mapping[str, Any]) -> str:
    caption = (
        f"<b>{_text(cluster['name'])}</b>: {cluster['size']:,} latents, {cluster['share']:.1%}"
    )
    if cluster["purity"] is not None:
        caption += (
            f", purity {cluster['purity']:.2f}, class entropy {cluster['class_entropy']:.2f} nats"
        )
    return caption


def _facts(numbers: Mapping[str, Any]) -> str:
    statistics, rank = numbers["statistics"], numbers["statistics"]["numeric_rank"]
    rows = {
        "density estimator": _component(numbers["density"]),
        "cluster sampler": _component(numbers["sampler"]),
        **_findings(numbers["sampler"]),
        "spectrum": _spectrum(numbers["spectrum"]),
        "latents": f"{statistics['num_kept']:,} of {statistics['num_latents']:,} kept",
        "mass kept": f"{statistics['mass_kept']:.3f}",
        "effective sample size": f"{statistics['effective_sample_size']:,.0f}",
        "numeric rank": f"{rank['smallest']} to {rank['largest']} of {rank['of']}, "
        f"median {rank['median']} (rank_rtol {rank['rtol']:g})",
        "condition number": f"median {_number(statistics['median_condition_number'])}",
        "latents without a finite Jacobian": f"{statistics['not_finite']:,}",
        "latents computed in float64": _share(statistics["float64_share"]),
        "standard deviation over latents": f"log p(z) {statistics['std_log_prior']:.3g}, "
        f"log-volume {statistics['std_log_volume']:.3g} nats",
        "seed": str(numbers["settings"]["seed"]),
        "seconds": _pairs(numbers["seconds"]),
        "versions": _pairs(numbers["versions"]),
        "device": str(numbers["device"]),
        "machine": str(numbers["machine"]),
    }
    return _table(list(rows.items()))


def _scores(numbers: Mapping[str, Any]) -> str:
    if not numbers["scores"]:
        return ""
    rows = [
        (name.replace("_", " "), *(f"{s[name]:.4f}" for s in numbers["scores"].values()))
        for name in (
            "homogeneity",
            "completeness",
            "v_measure",
            "adjusted_mutual_information",
            "normalized_mutual_information",
            "overall_purity",
            "class_entropy",
            "mean_cluster_entropy",
        )
    ]
    counts = [f"{s['num_samples']:,}" for s in numbers["scores"].values()]
    header = ("", *numbers["scores"])
    judge = _pairs({k: v for k, v in numbers["classifier"].items() if k != "name"})
    return (
        f"<h2>Agreement with the classes of {_text(numbers['classifier']['name'])} ({judge})</h2>"
        + _table([header, *rows, ("samples", *counts)])
    )


def _choice_file(what: str) -> str:
    return f"choice-of-{what.replace('_', '-')}.png"


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def _findings(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the row of what a sampler or partitioner tells of itself, if it tells anything."""
    findings = record.get("findings")
    return {"what it found": _pairs(findings)} if findings else {}


def _component(record: Mapping[str, Any]) -> str:
    given = {name: value for name, value in record["params"].items() if value is not None}
    parameters = [f"{name.replace('_', ' ')} {in_toml(value)}" for name, value in given.items()]
    return f"{record['name']} ({', '.join(parameters)})" if parameters else str(record["name"])


def _spectrum(record: Mapping[str, Any]) -> str:
    plan, dtype = record["settings"].get("jacobian", {}), record["settings"].get("dtype", "unknown")
    how = f"{plan.get('mode', 'unknown')} mode, {dtype}"
    if "folder" not in record:
        return f"computed in this run ({how})"
    return f"read from {record['folder']} ({how}; manifest SHA-256 {record['manifest_sha256']})"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _image(data: bytes, description: str) -> str:
    encoded = base64.b64encode(data).decode()
    alt = html.escape(description.replace("<b>", "").replace("</b>", ""), quote=True)
    return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"


def _text(value: Any) -> str:
    return html.escape(str(value))
