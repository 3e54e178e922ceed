"""Scores all density estimators on one spectrum per seed; prints a Markdown table.

python benchmarks/densities.py --latents 20000 --seeds 0 1 2 > benchmarks/densities.md
"""

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

import pgmkit
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.metrics import ClusterScores, score_latents, score_samples
from pgmkit.machine import machine

DENSITIES = ("none", "polarity", "jbt", "lash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="mnist-dcgan")
    parser.add_argument("--classifier", default="mnist-classifier")
    parser.add_argument("--latents", type=int, default=20_000)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--remove", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spectra", type=Path, default=Path("runs/spectra"))
    options = parser.parse_args()
    generator = pgmkit.load_generator(options.generator)
    classifier = load_classifier(options.classifier)
    direct: dict[str, list[ClusterScores]] = {name: [] for name in DENSITIES}
    mapped: dict[str, list[ClusterScores]] = {name: [] for name in DENSITIES}
    sizes: dict[str, list[float]] = {name: [] for name in DENSITIES}
    for seed in options.seeds:
        spectrum = pgmkit.compute_spectrum(
            generator,
            num_latents=options.latents,
            seed=seed,
            out=options.spectra / f"{options.generator}-{options.latents}-{seed}",
            progress=sys.stderr.isatty(),
        )
        for name in DENSITIES:
            shattered = pgmkit.shatter(
                generator,
                density=name,
                num_clusters=options.clusters,
                remove=options.remove,
                seed=seed,
                spectrum=spectrum,
            )
            direct[name].append(score_latents(shattered, classifier))
            mapped[name].append(score_samples(shattered, classifier, seed=seed))
            sizes[name].append(shattered.origin.statistics["effective_sample_size"])
    print(f"# Density estimators with kmeans-gmm on {options.generator}\n")
    print(
        f"`python benchmarks/densities.py --latents {options.latents} --seeds "
        f"{' '.join(map(str, options.seeds))}`\n\n"
        f"Protocol: {options.latents:,} latents from the prior, remove {options.remove}, "
        f"{options.clusters} clusters by k-means on latents, 2-component mixtures; classes by "
        f"{options.classifier} (test accuracy {classifier.measured['test_accuracy']}); direct: all "
        "kept latents; mapper: 10,000 samples. Mean ± standard deviation over "
        f"{len(options.seeds)} seeds.\n\nMachine: {machine()}.\n"
    )
    print(
        "| density | AMI direct | AMI mapper | homogeneity | completeness | class entropy, nats "
        "| effective sample size |\n|---|---|---|---|---|---|---|"
    )
    for name in DENSITIES:
        cells = [
            _cell([s.adjusted_mutual_information for s in direct[name]]),
            _cell([s.adjusted_mutual_information for s in mapped[name]]),
            _cell([s.homogeneity for s in direct[name]]),
            _cell([s.completeness for s in direct[name]]),
            _cell([s.class_entropy for s in direct[name]]),
            f"{mean(sizes[name]):,.0f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def _cell(values: list[float]) -> str:
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


if __name__ == "__main__":
    main()
