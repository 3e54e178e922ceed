"""Compares mappers on the clusters of one shattering; prints a Markdown table.

python benchmarks/mappers.py --latents 20000 > benchmarks/mappers.md
"""

import argparse
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

import pgmkit
from pgmkit.evaluate.classifier import load_classifier
from pgmkit.evaluate.metrics import classify_latents, cluster_scores
from pgmkit.machine import machine
from pgmkit.plugins import build_component

MAPPERS: list[tuple[str, dict[str, Any]]] = [
    ("mixture", {"num_components": 1}),
    ("mixture", {"num_components": 2}),
    ("mixture", {"num_components": "bic"}),
    ("refined", {}),
    ("rejection", {"proposal": "mixture"}),
    ("rejection", {"proposal": "refined"}),
    ("rejection", {"proposal": "prior"}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="mnist-dcgan")
    parser.add_argument("--classifier", default="mnist-classifier")
    parser.add_argument("--sampler", default="kmeans-gmm")
    parser.add_argument("--density", default="lash")
    parser.add_argument("--latents", type=int, default=20_000)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--remove", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=500, help="Of each cluster.")
    parser.add_argument(
        "--spectra", type=int, default=200, help="Samples whose density is computed; 0 for none."
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = pgmkit.load_generator(options.generator)
    classifier = load_classifier(options.classifier)
    spectrum = pgmkit.compute_spectrum(
        generator,
        num_latents=options.latents,
        seed=options.seed,
        cache=True,
        progress=sys.stderr.isatty(),
    )
    error = math.sqrt(options.remove * (1 - options.remove) / max(options.spectra, 1))
    estimator = build_component("density-estimators", options.density)
    print(f"# Mappers of {options.sampler} on {options.generator}\n")
    print(
        f"`python benchmarks/mappers.py {' '.join(sys.argv[1:])}`\n\n"
        f"Protocol: {options.latents:,} latents from the prior, {options.density}, remove "
        f"{options.remove}, {options.clusters} clusters, seed {options.seed}; "
        f"{options.samples} samples of each cluster. Fidelity: share of samples that `predict` "
        "gives back to their cluster. Fit: clusters and mapper. Time: of one thread, per sample "
        "that is returned; compare rows only. Spread: mean distance of two samples of a cluster, "
        "by that of two of its kept latents. Back: share of "
        f"{options.spectra} samples, clusters mixed by size, whose density is below the cut; the "
        f"prior has {options.remove}, standard error {error:.2f}. Classes by {options.classifier} "
        f"(test accuracy {classifier.measured['test_accuracy']}).\n\nMachine: {machine()}.\n"
    )
    print(
        "| mapper | fidelity | in the worst cluster | acceptance | fit, s | ms per sample "
        "| by that of the first | AMI | class entropy, nats | spread | back |\n" + "|---" * 11 + "|"
    )
    torch.set_num_threads(1)
    first = None
    for name, parameters in MAPPERS:
        shattered = pgmkit.shatter(
            generator,
            density=options.density,
            sampler=options.sampler,
            num_clusters=options.clusters,
            remove=options.remove,
            seed=options.seed,
            spectrum=spectrum,
            sampler_args={"mapper": name, "mapper_args": parameters},
        )
        assert shattered.selection is not None
        sampler, k = shattered.sampler, shattered.num_clusters
        shattered.sample_latents(options.samples, 0, options.seed + 1)  # warms up
        started = time.perf_counter()
        drawn = [shattered.sample_latents(options.samples, c, options.seed) for c in range(k)]
        milliseconds = 1000 * (time.perf_counter() - started) / (k * options.samples)
        first = first or milliseconds
        fidelity = torch.stack(
            [(shattered.predict(z) == c).double().mean() for c, z in enumerate(drawn)]
        )
        rates = [sampler.acceptance_rate(c) for c in range(k)]
        accepted = "" if rates[0] is None else f"{torch.tensor(rates).mean():.3f}"
        labels = [classify_latents(generator, classifier, z) for z in drawn]
        scores = cluster_scores(
            torch.arange(k).repeat_interleave(options.samples),
            torch.cat(labels),
            k,
            classifier.classes,
        )
        kept = spectrum.latents[shattered.selection.kept]
        spread = [
            distance(z) / distance(members)
            for c, z in enumerate(drawn)
            if len(members := kept[torch.as_tensor(sampler.labels_) == c]) > 1
        ]
        back = ""
        if options.spectra and shattered.selection.cut is not None:
            mixed = shattered.sample_latents(options.spectra, seed=options.seed)
            weights = estimator.log_weights(pgmkit.compute_spectrum(generator, mixed))
            back = f"{(weights < shattered.selection.cut).double().mean():.2f}"
        cells = [
            " ".join([name, *map(str, parameters.values())]),
            f"{fidelity.mean():.4f}",
            f"{fidelity.min():.4f}",
            accepted,
            f"{shattered.seconds['clusters']:.1f}",
            f"{milliseconds:.3f}",
            f"{milliseconds / first:.1f}",
            f"{scores.adjusted_mutual_information:.4f}",
            f"{scores.class_entropy:.4f}",
            f"{torch.tensor(spread).mean():.3f}",
            back,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def distance(latents: Tensor) -> float:
    """Returns the mean distance of two of the first 500 latents (n, M)."""
    return float(torch.pdist(latents[:500].double()).mean())


if __name__ == "__main__":
    main()
