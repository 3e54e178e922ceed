"""Compares choices made without labels with the best ones by labels; prints a Markdown table.

python benchmarks/choices.py --pair mnist-dcgan mnist-classifier --latents 20000 --seeds 0 1 2
    --figure benchmarks/choices/mnist.png > benchmarks/choices/mnist.md

A sampler makes its points once for each seed, and parts of them are clustered as it would do it;
nothing is drawn.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pgmkit
from pgmkit import files, progress
from pgmkit.choosing import (
    CRITERIA,
    NUM_CLUSTERS,
    REMOVED_MASS,
    Choice,
    MakeClusterer,
    choose_num_clusters,
    choose_removed_mass,
)
from pgmkit.contracts import prepared_points, space_of
from pgmkit.errors import PgmkitWarning
from pgmkit.evaluate.ablation.tables import Entry
from pgmkit.evaluate.classifier import Classifier, load_classifier
from pgmkit.evaluate.figures import png
from pgmkit.evaluate.metrics import classify_latents, cluster_scores
from pgmkit.images import GeneratedImages, ImageSource, LatentPoints
from pgmkit.machine import machine
from pgmkit.plugins import build
from pgmkit.seeds import random_generator
from pgmkit.selection import keep_scores, num_kept

SCORED = 5_000
"""Most kept latents that are clustered for one candidate."""


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
            Entry.of(reached).text(),
            Entry.of(highest).text(),
            Entry.of([high - got for high, got in zip(highest, reached, strict=True)]).text(),
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
    parser.add_argument("--partitioner", default="kmeans", help="one that takes features")
    parser.add_argument("--features", default="latents")
    parser.add_argument("--density", default="lash")
    parser.add_argument("--latents", type=int, default=20_000)
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
    clusters = len(classifier.classes)
    for seed in options.seeds:
        with progress.shown():
            spectrum = pgmkit.compute_spectrum(generator, options.latents, seed=seed, cache=True)
        classes = classify_latents(generator, classifier, spectrum.latents)
        partitioner = build(
            "partitioners",
            {"name": options.partitioner, "features": options.features},
            num_partitions=clusters,
        )
        images: ImageSource = GeneratedImages(generator, spectrum.latents)
        if space_of(partitioner) == "latents":
            images = LatentPoints(generator.latent, spectrum.latents)
        points = prepared_points(partitioner, images, seed)
        make_clusterer = partitioner.make_clusterer
        estimator = build("density-estimators", options.density)
        weights = keep_scores(estimator, spectrum, seed=seed)
        order = weights.argsort(descending=True, stable=True)

        def scores(
            num_clusters: int,
            remove: float,
            *,
            points: Tensor = points,
            order: Tensor = order,
            make_clusterer: MakeClusterer = make_clusterer,
            classes: Tensor = classes,
            seed: int = seed,
        ) -> tuple[float, float]:
            kept = order[: num_kept(len(points), remove)]
            shuffled = torch.randperm(len(kept), generator=random_generator(seed, "scored"))
            kept = kept[shuffled[:SCORED]]
            clusterer = make_clusterer(num_clusters, seed).fit(points[kept].numpy())
            labels = torch.as_tensor(clusterer.predict(points[kept].numpy()))
            found = cluster_scores(labels, classes[kept], num_clusters, classifier.classes)
            return found.adjusted_mutual_information, found.v_measure

        kept = points[order[: num_kept(len(points), options.remove)].sort().values]
        table = {float(k): scores(k, options.remove) for k in NUM_CLUSTERS}
        for line in by_clusters:
            line.choices.append(
                choose_num_clusters(
                    kept, criterion=line.criterion, make_clusterer=make_clusterer, seed=seed
                )
            )
            line.scores.append(table)
        by_mass.choices.append(
            choose_removed_mass(points, weights, num_clusters=clusters, seed=seed)
        )
        by_mass.scores.append({r: scores(clusters, r) for r in REMOVED_MASS})
        print(f"{name}, seed {seed}: done", file=sys.stderr)
    return [*by_clusters, by_mass]


def print_table(lines: list[Line], pairs: list[list[str]], options: argparse.Namespace) -> None:
    words = " ".join(f"--pair {' '.join(pair)}" for pair in pairs)
    seeds = " ".join(map(str, options.seeds))
    methods = f"{options.partitioner} of {options.features}"
    print(f"# Choices without labels, and the best by labels, with {methods}\n")
    print(
        f"`python benchmarks/choices.py {words} --partitioner {options.partitioner} "
        f"--features {options.features} --density {options.density} --latents {options.latents} "
        f"--remove {options.remove} --seeds {seeds}`\n\n"
        f"Protocol: {options.latents:,} latents from the prior. The number of clusters is chosen "
        f"from 2 to 20 with {options.remove} of the mass removed by {options.density}; the removed "
        "mass from 0 to 0.6 with as many clusters as there are classes. AMI and V-measure are of "
        f"at most {SCORED:,} kept latents, clustered anew for each candidate, against the "
        "classifier's classes; one value per seed, and mean ± standard deviation over "
        "seeds. AMI lost: the best by labels less that of the choice. "
        f"Convincing: for how many seeds no warning was given.\n\nMachine: {machine()}.\n"
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


if __name__ == "__main__":
    main()
