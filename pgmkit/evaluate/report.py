"""The report of a shattering: its numbers, and a page of pictures with them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgmkit import files, pictures
from pgmkit.choosing import CHOSEN, describe_choice
from pgmkit.errors import LoadError, ParameterError
from pgmkit.evaluate import figures, pages
from pgmkit.evaluate.classifier import Classifier
from pgmkit.evaluate.metrics import ClusterScores, score_latents, score_samples
from pgmkit.evaluate.neighbours import Neighbours, neighbours
from pgmkit.images.source import ImageSpec
from pgmkit.machine import machine
from pgmkit.seeds import random_generator
from pgmkit.shattering import ShatteredGenerator

_PER_CLUSTER = 32
_MOST_SCORED = 10_000
_BESIDE = 48
_LARGEST_SIDE = 64
"""Images are enlarged to about so many pixels where they are written as files."""

_AGREEMENT = ((0.8, "closely"), (0.5, "largely"), (0.2, "in part"), (-1.0, "hardly"))
"""Adjusted mutual information from which on clusters are said to agree with classes so."""


def describe(
    shattered: ShatteredGenerator,
    classifier: Classifier | None = None,
    *,
    seconds: Mapping[str, float] | None = None,
    spectrum: Mapping[str, str] | None = None,
    edited_from: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns all numbers of a fresh result as plain values.

    As many samples are scored as latents are kept, at most 10,000.

    Args:
        shattered: what `pgmkit.shatter` returned.
        classifier: gives class labels for the scores.
        seconds: times to report beside those of shattering itself.
        spectrum: where the spectrum was read from, its `folder` and the `manifest_sha256`; None if
            it was computed.
        edited_from: the `result` whose clusters were named, merged, split or hidden, or that other
            methods were tried on; None where a run found them.
    """
    scores: dict[str, ClusterScores] = {}
    if classifier is not None:
        scores["kept latents"] = score_latents(shattered, classifier)
        seed = int(shattered.origin.settings["seed"])
        count = min(_MOST_SCORED, sum(shattered.cluster_sizes))
        scores["mapper samples"] = score_samples(shattered, classifier, count, seed)
    around = neighbours(shattered, seed=int(shattered.origin.settings["seed"]))
    return {
        "name": shattered.generator.name,
        "generator": repr(shattered.generator),
        "image": shattered.generator.specs()["image"],
        **asdict(shattered.origin),
        "spectrum": {
            **(spectrum or {}),
            "settings": dict(shattered.spectrum.provenance) if shattered.spectrum else {},
        },
        "clusters": _clusters(shattered, scores.get("kept latents"), around),
        "neighbours": {"step": around.step, "latents": around.num_latents, "stay": around.stay},
        "classifier": None
        if classifier is None
        else {"name": classifier.name, **classifier.measured},
        "scores": {protocol: asdict(score) for protocol, score in scores.items()},
        "seconds": {k: round(v, 2) for k, v in {**shattered.seconds, **(seconds or {})}.items()},
        "device": str(shattered.generator.device),
        "machine": machine(),
        **({"edited_from": edited_from} if edited_from else {}),
    }


def describe_named(
    numbers: Mapping[str, Any], names: Sequence[str], edited_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the numbers of a result whose clusters have other names; nothing is measured again.

    Args:
        numbers: what `describe` said of it.
        names: of its clusters, each "" if it has none.
        edited_from: see `describe`.
    """
    clusters = [
        {**cluster, "name": _called(index, name, cluster["mostly"])}
        for index, (cluster, name) in enumerate(zip(numbers["clusters"], names, strict=True))
    ]
    return {**numbers, "clusters": clusters, "edited_from": edited_from}


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Checks that numbers that were read from a file are those of a report.

    Raises:
        LoadError: something is missing, or of another kind.
    """
    try:
        _facts(numbers)
        _scores(numbers)
        _in_words(numbers)
        _cluster_table(numbers["clusters"])
        for cluster in numbers["clusters"]:
            _told(cluster, numbers)
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
    seed, image = int(shattered.origin.settings["seed"]), shattered.generator.image
    grids = [_grid(images, image) for images in shattered.images_of_each(_PER_CLUSTER, seed)]
    scale = max(
        1, math.ceil(_LARGEST_SIDE / (grids[0].shape[1] if image.is_points else image.shape[-1]))
    )
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
    for cluster, grid in enumerate(grids):
        data = pictures.png(grid, scale)
        files.write_bytes(folder / "clusters" / f"cluster-{cluster:02d}.png", data)
    for name, data in charts.items():
        files.write_bytes(folder / name, data)
    files.write_json(folder / "report.json", numbers)
    page = _page(numbers, grids, _kept_and_removed(shattered, seed), charts)
    files.write_text(folder / "report.html", page)
    return folder / "report.html"


def _clusters(
    shattered: ShatteredGenerator, scores: ClusterScores | None, around: Neighbours
) -> list[dict[str, Any]]:
    """Returns for each cluster what it is called, its size and what is known of it."""
    total = sum(shattered.cluster_sizes)
    majority = scores.majority if scores else [None] * shattered.num_clusters
    return [
        {
            "index": index,
            "name": _called(index, shattered.names[index], mostly),
            "mostly": mostly,
            "hidden": index in shattered.hidden,
            "size": size,
            "share": size / total,
            "purity": scores.purity[index] if scores else None,
            "class_entropy": scores.cluster_entropy[index] if scores else None,
            "stays": around.stays[index],
            "nearest": around.nearest[index],
        }
        for index, (size, mostly) in enumerate(zip(shattered.cluster_sizes, majority, strict=True))
    ]


def _called(index: int, name: str, mostly: str | None) -> str:
    """Returns what a cluster is called: its number, and its name, or else its classes."""
    if name:
        return f"cluster {index}, {name}"
    return f"cluster {index}" + ("" if mostly is None else f", mostly {mostly}")


def _grid(images: Tensor, image: ImageSpec) -> pages.Picture:
    return pictures.grid(pictures.to_uint8(images, image.range))


def _kept_and_removed(
    shattered: ShatteredGenerator, seed: int
) -> Iterator[tuple[str, pages.Picture]]:
    """Yields images of some kept and some removed latents, in the order of their weights."""
    assert shattered.spectrum is not None
    assert shattered.selection is not None
    weights, image = shattered.selection.log_weights, shattered.generator.image
    kept = torch.zeros(len(weights), dtype=torch.bool)
    kept[shattered.selection.kept] = True
    for name, which in (("kept", kept), ("removed", ~kept)):
        index = which.nonzero().flatten()
        some = torch.randperm(len(index), generator=random_generator(seed, "report", name))
        index = index[some[:_BESIDE]]
        if len(index):
            index = index[weights[index].argsort(descending=True)]
            images = shattered.images(shattered.spectrum.latents[index])
            yield f"{name}: {len(index)} of {int(which.sum()):,}", _grid(images, image)


def _page(
    numbers: Mapping[str, Any],
    grids: Sequence[pages.Picture],
    beside: Iterator[tuple[str, pages.Picture]],
    charts: Mapping[str, bytes],
) -> str:
    clusters, names = numbers["clusters"], []
    for name, picture in beside:
        names.append(name)
        grids = [*grids, picture]
    encoded = pages.fitting(grids)
    cards = [
        pages.card(cluster["name"], _note(cluster), picture, _told(cluster, numbers))
        for cluster, picture in zip(clusters, encoded, strict=False)
    ]
    compared = [
        pages.figure(picture, name, "pixels")
        for name, picture in zip(names, encoded[len(clusters) :], strict=True)
    ]
    chosen = numbers["settings"].get("chosen", {})
    curves = [
        pages.figure(charts[name], title)
        for name, title in [
            *((_choice_file(what), describe_choice(what, chosen[what])) for what in chosen),
            ("cluster-sizes.png", "Cluster sizes"),
            ("log-density.png", "Log-density and what was removed"),
            ("singular-values.png", "Singular values and numeric rank"),
        ]
    ]
    about = (
        "<p>Taken at random, and sorted from the largest weight to the smallest, row by row.</p>"
    )
    return pages.document(
        f"{numbers['name']} in {len(clusters)} clusters",
        _in_words(numbers),
        pages.wall(cards),
        pages.section("Kept and removed", about, pages.beside(*compared)),
        pages.section("How far apart", _apart(numbers), _cluster_table(clusters)),
        _scores(numbers),
        pages.section("Choices and distributions", pages.beside(*curves)),
        pages.fold("The record", pages.record(_facts(numbers))),
    )


def _in_words(numbers: Mapping[str, Any]) -> str:
    """Returns what was found, and how far to trust it."""
    sizes = [cluster["size"] for cluster in numbers["clusters"]]
    statistics, around = numbers["statistics"], numbers["neighbours"]
    found = (
        f"Of {statistics['num_latents']:,} latents {statistics['num_kept']:,} were kept, in "
        f"{len(sizes)} clusters of {min(sizes):,} to {max(sizes):,}."
    )
    stay = f"{pages.percent(around['stay'])} of those that are moved a little stay in their cluster"
    if not numbers["scores"]:
        return (
            f"{found} {stay}. Nothing was asked that knows classes, so what they are is for you to "
            "see."
        )
    scores = numbers["scores"]["kept latents"]
    agreement = scores["adjusted_mutual_information"]
    word = next(word for least, word in _AGREEMENT if agreement >= least)
    return (
        f"{found} They agree {word} with the classes of {numbers['classifier']['name']} (AMI "
        f"{agreement:.2f}, of 0 by chance to 1), and {stay}."
    )


def _apart(numbers: Mapping[str, Any]) -> str:
    around = numbers["neighbours"]
    return (
        f"<p>{around['latents']:,} kept latents were moved by a step of {around['step']:g}, where "
        "at 1 they would be drawn anew. The nearest cluster is the one that most of those went to "
        "that left theirs.</p>"
    )


def _cluster_table(clusters: Sequence[Mapping[str, Any]]) -> str:
    judged = clusters[0]["purity"] is not None
    header = ["cluster", "latents", "share", "stay", "nearest"]
    rows = [
        (
            cluster["name"],
            f"{cluster['size']:,}",
            pages.percent(cluster["share"]),
            pages.percent(cluster["stays"]),
            _named(clusters, cluster["nearest"]),
            *([f"{cluster['purity']:.2f}", f"{cluster['class_entropy']:.2f}"] if judged else []),
        )
        for cluster in clusters
    ]
    return pages.table(rows, [*header, *(["purity", "class entropy, nats"] if judged else [])])


def _named(clusters: Sequence[Mapping[str, Any]], index: int | None) -> str:
    return "none" if index is None else str(clusters[index]["name"])


def _note(cluster: Mapping[str, Any]) -> str:
    hidden = ", hidden" if cluster["hidden"] else ""
    return f"{cluster['size']:,} latents, {pages.percent(cluster['share'])}{hidden}"


def _told(cluster: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    told = (
        f"Nearest: {_named(numbers['clusters'], cluster['nearest'])}. "
        f"{pages.percent(cluster['stays'])} of its latents stay in it when they are moved a little."
    )
    if cluster["purity"] is not None:
        told += (
            f" Purity {cluster['purity']:.2f}, class entropy {cluster['class_entropy']:.2f} nats."
        )
    return told


def _facts(numbers: Mapping[str, Any]) -> dict[str, str]:
    statistics, rank = numbers["statistics"], numbers["statistics"]["numeric_rank"]
    findings, edited = numbers["sampler"].get("findings"), numbers.get("edited_from")
    return {
        "generator": numbers["generator"],
        "density estimator": pages.component(numbers["density"]),
        "cluster sampler": pages.component(numbers["sampler"]),
        **({"what it found": pages.pairs(findings)} if findings else {}),
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
        **({"edited from": pages.pairs(edited)} if edited else {}),
        "seed": str(numbers["settings"]["seed"]),
        "seconds": pages.pairs(numbers["seconds"]),
        "versions": pages.pairs(numbers["versions"]),
        "device": str(numbers["device"]),
        "machine": str(numbers["machine"]),
    }


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
    judge = pages.pairs({k: v for k, v in numbers["classifier"].items() if k != "name"})
    return pages.section(
        f"Agreement with the classes of {numbers['classifier']['name']} ({judge})",
        pages.table([*rows, ("samples", *counts)], ("", *numbers["scores"])),
    )


def _choice_file(what: str) -> str:
    return f"choice-of-{what.replace('_', '-')}.png"


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def _spectrum(record: Mapping[str, Any]) -> str:
    plan, dtype = record["settings"].get("jacobian", {}), record["settings"].get("dtype", "unknown")
    how = f"{plan.get('mode', 'unknown')} mode, {dtype}"
    if "folder" not in record:
        return f"computed in this run ({how})"
    return f"read from {record['folder']} ({how}; manifest SHA-256 {record['manifest_sha256']})"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3g}"
