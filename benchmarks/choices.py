"""Compares choices made without labels with the best ones by labels; prints a Markdown table.

python benchmarks/choices.py --pair mnist-dcgan mnist-classifier --latents 20000 --seeds 0 1 2
    > benchmarks/choices.md

The sampler "pixels" is k-means on 50 principal components of the images, with nothing to sample.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

import pgmkit
from pgmkit import files
from pgmkit.choice import (
    CRITERIA,
    NUM_CLUSTERS,
    REMOVED_MASS,
    Choice,
    choose_num_clusters,
    choose_removed_mass,
)
from pgmkit.errors import PgmkitWarning
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.figures import png
from pgmkit.evaluate.metrics import cluster_scores
from pgmkit.machine import machine
from pgmkit.plugins import as_component
from pgmkit.seeds import derive_seed
from pgmkit.selection import keep_scores


class Pixels:
    """k-means on 50 principal components of the images, which are computed once."""

    def __init__(self, num_clusters: int = 10) -> None:
        self.num_clusters = num_clusters
        self._seen: tuple[Tensor, Tensor] | None = None

    def set_params(self, num_clusters: int) -> "Pixels":
        self.num_clusters = num_clusters
        return self

    def features(self, latents: Tensor, *, generator: pgmkit.Generator, seed: int) -> Tensor:
        with torch.no_grad():
            images = torch.cat([generator(part).flatten(1).cpu() for part in latents.split(256)])
        points = PCA(50, random_state=seed % 2**32).fit_transform(images.numpy())
        self._seen = latents, torch.from_numpy(points)
        return self._seen[1]

    def fit(self, latents: Tensor, *, images=None, generator=None, seed: int = 0) -> "Pixels":
        known, points = self._seen
        rows = {row.tobytes(): index for index, row in enumerate(known.numpy())}
        kept = [rows[row.tobytes()] for row in latents.numpy()]
        kmeans = KMeans(self.num_clusters, n_init=4, random_state=derive_seed(seed, "k") % 2**32)
        self.labels_ = torch.from_numpy(kmeans.fit(points[kept].numpy()).labels_).long()
        return self


@dataclass
class Line:
    """One line of the table: a choice for each seed, and what the labels say."""

    generator: str
    what: str
    criterion: str
    choices: list[Choice] = field(default_factory=list)
    scores: list[dict[float, tuple[float, float]]] = field(default_factory=list)
    """For each seed and candidate, AMI and V-measure."""

    def best(self, index: int) -> list[float]:
        return [max(found, key=lambda value: found[value][index]) for found in self.scores]

    def cells(self) -> list[str]:
        pairs = list(zip(self.choices, self.scores, strict=True))
        reached = [found[choice.value][0] for choice, found in pairs]
        highest = [max(ami for ami, _ in found.values()) for _, found in pairs]
        return [
            self.generator,
            self.what,
            self.criterion,
            _values([choice.value for choice in self.choices]),
            f"{sum(choice.convincing for choice in self.choices)} of {len(self.choices)}",
            _values(self.best(0)),
            _values(self.best(1)),
            _cell(reached),
            _cell(highest),
            _cell([high - got for high, got in zip(highest, reached, strict=True)]),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("GENERATOR", "CLASSIFIER"),
        help="may be repeated; mnist-dcgan mnist-classifier by default",
    )
    parser.add_argument("--sampler", default="kmeans-gmm", help='a component, or "pixels"')
    parser.add_argument("--density", default="lash")
    parser.add_argument("--latents", type=int, default=20_000)
    parser.add_argument("--clusters", type=int, default=10, help="where the mass is chosen")
    parser.add_argument("--remove", type=float, default=0.2, help="where k is chosen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="PNG of AMI over all candidates")
    options = parser.parse_args()
    warnings.simplefilter("ignore", PgmkitWarning)  # the table says what is not convincing
    pairs = options.pair or [["mnist-dcgan", "mnist-classifier"]]
    lines: list[Line] = []
    for reference, judge in pairs:
        lines += compare(
            pgmkit.load_generator(reference), load_classifier(judge), reference, options
        )
    print_table(lines, pairs, options)
    if options.figure:
        files.write_bytes(options.figure, png(draw(lines)))


def compare(
    generator: pgmkit.Generator, classifier: Classifier, name: str, options: argparse.Namespace
) -> list[Line]:
    by_clusters = [Line(name, "clusters", criterion) for criterion in CRITERIA]
    by_mass = Line(name, "removed mass", "margin")
    for seed in options.seeds:
        spectrum = pgmkit.compute_spectrum(
            generator,
            num_latents=options.latents,
            seed=seed,
            cache=True,
            progress=sys.stderr.isatty(),
        )
        with torch.no_grad():
            images = torch.cat([generator(part).cpu() for part in spectrum.latents.split(256)])
        classes = classifier.labels(images, generator.image.range)
        sampler: Any = Pixels() if options.sampler == "pixels" else options.sampler
        built = as_component("cluster-samplers", sampler)
        points = spectrum.latents
        if hasattr(built, "features"):
            points = built.features(points, generator=generator, seed=seed)

        def scores(
            num_clusters: int,
            remove: float,
            *,
            built: Any = built,
            spectrum: pgmkit.Spectrum = spectrum,
            classes: Tensor = classes,
            seed: int = seed,
        ) -> tuple[float, float]:
            result = pgmkit.shatter(
                generator,
                density=options.density,
                sampler=built.set_params(num_clusters=num_clusters),
                num_clusters=num_clusters,
                remove=remove,
                seed=seed,
                spectrum=spectrum,
            )
            kept = classes[result.selection.kept]
            found = cluster_scores(built.labels_, kept, num_clusters, classifier.classes)
            return found.adjusted_mutual_information, found.v_measure

        weights = keep_scores(
            as_component("density-estimators", options.density), spectrum, seed=seed
        )
        count = round((1 - options.remove) * len(points))
        kept = points[weights.argsort(descending=True, stable=True)[:count].sort().values]
        table = {float(k): scores(k, options.remove) for k in NUM_CLUSTERS}
        for line in by_clusters:
            line.choices.append(choose_num_clusters(kept, criterion=line.criterion, seed=seed))
            line.scores.append(table)
        by_mass.choices.append(
            choose_removed_mass(points, weights, num_clusters=options.clusters, seed=seed)
        )
        by_mass.scores.append({r: scores(options.clusters, r) for r in REMOVED_MASS})
    return [*by_clusters, by_mass]


def print_table(lines: list[Line], pairs: list[list[str]], options: argparse.Namespace) -> None:
    words = " ".join(f"--pair {' '.join(pair)}" for pair in pairs)
    seeds = " ".join(map(str, options.seeds))
    print(f"# Choices without labels, and the best by labels, with {options.sampler}\n")
    print(
        f"`python benchmarks/choices.py {words} --sampler {options.sampler} --density "
        f"{options.density} --latents {options.latents} --clusters {options.clusters} --remove "
        f"{options.remove} --seeds {seeds}`\n\n"
        f"Protocol: {options.latents:,} latents from the prior. The number of clusters is chosen "
        f"from 2 to 20 with {options.remove} of the mass removed by {options.density}; the removed "
        f"mass from 0 to 0.6 with {options.clusters} clusters. AMI and V-measure of the clusters "
        "of all kept latents against the classes of the classifier; one value per seed, and mean "
        "± standard deviation over seeds. AMI lost: the best by labels less that of the choice. "
        'Convincing: for how many seeds no warning was given. Sampler "pixels": k-means on 50 '
        f"principal components of the images.\n\nMachine: {machine()}.\n"
    )
    print(
        "| generator | chosen | criterion | without labels | convincing | best by AMI "
        "| best by V-measure | AMI of the choice | best AMI | AMI lost |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for line in lines:
        print(f"| {' | '.join(line.cells())} |")


def draw(lines: list[Line]) -> Figure:
    """Draws AMI over the candidates, mean over seeds, and the choices of all seeds."""
    names = list(dict.fromkeys(line.generator for line in lines))
    figure = Figure(figsize=(10, 3.4 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False)
    for row, name in zip(panels, names, strict=True):
        for axes, what in zip(row, ("clusters", "removed mass"), strict=True):
            shown = [line for line in lines if (line.generator, line.what) == (name, what)]
            scores = shown[0].scores
            values = list(scores[0])
            axes.plot(values, [mean(s[v][0] for s in scores) for v in values], color="#b8c4cc")
            for line, marker in zip(shown, "osD", strict=False):
                chosen = [choice.value for choice in line.choices]
                reached = [s[v][0] for s, v in zip(scores, chosen, strict=True)]
                axes.plot(chosen, reached, marker, label=line.criterion, alpha=0.8)
            axes.set_title(name, fontsize="medium")
            axes.set_xlabel("number of clusters" if what == "clusters" else what)
            axes.set_ylabel("AMI with the classes")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
    return figure


def _values(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(values: list[float]) -> str:
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
