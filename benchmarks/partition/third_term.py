"""What the third term of Eq. 5 does to the parts of iresnet.

    python benchmarks/partition/third_term.py --data ../data/mnist.npz

The paper weights a term of Eq. 5 by β = 1e-3, and what it is could not be read. One pretext is
trained, and from it the partition stage once for each term and weight.
"""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from pgmkit import files
from pgmkit.evaluate.partitions import partition_scores
from pgmkit.images import load_images
from pgmkit.machine import machine
from pgmkit.partition.parts import gathered_logits
from pgmkit.plugins import build

VARIANTS = (
    ("none", 0.0),
    ("confidence", 1e-3),
    ("confidence", 0.1),
    ("confidence", 1.0),
    ("weights", 1e-3),
    ("weights", 0.1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("third-term.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    source = load_images(args.data, size=32)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    source = source.subset(order[: args.images])
    table = {"name": "iresnet", "preset": "tiny", "pretext": {"steps": args.steps}}
    rows: dict[tuple[str, float], list[str]] = {variant: [] for variant in VARIANTS}
    for seed in args.seeds:
        partitioner = build("partitioners", table)
        partitioner.prepare(source, seed=seed)
        for term, beta in VARIANTS:
            partitioner.partition = replace(
                partitioner.partition, steps=args.steps, third_term=term, beta=beta
            )
            partitioner.split(source, seed=seed)
            logits = gathered_logits(partitioner, source)
            scores = partition_scores(logits.argmax(dim=1), source.labels)
            p = logits.softmax(dim=1)
            doubt = -torch.xlogy(p, p).sum(dim=1).mean()
            size = partitioner.network_.head.weight.square().sum()
            rows[term, beta].append(
                f"{scores.normalized_mutual_information:.3f} | {p.amax(dim=1).mean():.3f} | "
                f"{doubt:.3f} | {size:.1f}"
            )
            print(seed, term, beta, rows[term, beta][-1], flush=True)
    lines = [
        "# The third term of Eq. 5",
        "",
        f"`python benchmarks/partition/third_term.py --data mnist.npz --images {args.images} "
        f"--steps {args.steps}`: {args.images:,} images of "
        f"MNIST, `iresnet` as `tiny` with {args.steps:,} steps of each stage, seeds "
        f"{', '.join(map(str, args.seeds))}; {machine()}, torch {torch.__version__}. Of each "
        "the largest probability and the entropy, in nats, as means; of W the sum of its squares.",
        "",
        "| T | β |" + " NMI | largest p | entropy | ‖W‖² |" * len(args.seeds),
        "|---|---|" + "---|---|---|---|" * len(args.seeds),
    ]
    lines += [
        f"| {term} | {beta:g} | {' | '.join(found)} |" for (term, beta), found in rows.items()
    ]
    files.write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
