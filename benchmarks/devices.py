"""What another device computes, beside the CPU.

    python benchmarks/devices.py --device cuda --out benchmarks/devices.md

Singular values of the device, as users get them, are compared with the CPU's in float64: the
largest relative difference among those above 1e-5 of the latent's largest. Partitioners are fitted
on the CPU to images of the shipped MNIST generator; the device then makes and splits the same
images, and differences are told as shares of the largest value on the CPU.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from generators import GENERATORS
from torch import Tensor

import pgmkit
from pgmkit.images import GeneratedImages
from pgmkit.machine import machine
from pgmkit.partition.parts import gathered_logits, guide
from pgmkit.plugins import build

LATENTS = {"sngan": 8, "dcgan-64": 8}
"""Large generators get fewer; all others 64."""

PARTITIONERS: tuple[str | dict[str, Any], ...] = (
    "kmeans",
    "mixture",
    {"name": "kmeans", "features": {"name": "contrastive", "steps": 40}},
    {"name": "self-trained", "base": "mixture", "steps": 40},
    {"name": "kmeans", "features": {"name": "timm", "pretrained": False, "input_size": 32}},
)
IMAGES, GUIDED, PART = 1500, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "# Devices beside the CPU",
        "",
        f"`python benchmarks/devices.py --device {args.device}`, {machine()}, torch "
        f"{torch.__version__}, seed {args.seed}.",
        "",
        *(__doc__ or "").strip().splitlines()[4:],
        "",
        "| generator | latents | singular values | largest relative difference | over 1e-4 |",
        "|---|---|---|---|---|",
    ]
    for name in GENERATORS:
        lines.append(spectra(name, args.device, args.seed))
        print(lines[-1], flush=True)
    lines += [
        "",
        "Convolutions of features run in TF32 on CUDA, as torch has it; those of spectra do not.",
        "",
        "| partitioner | logits | images in the same part | guide |",
        "|---|---|---|---|",
    ]
    for what in PARTITIONERS:
        lines.append(partitioner(what, args.device, args.seed))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def spectra(name: str, device: str, seed: int) -> str:
    """Returns the row of a generator."""
    torch.manual_seed(seed)
    generator = GENERATORS[name]()
    latents = generator.sample_latents(LATENTS.get(name, 64), seed)
    here = pgmkit.compute_spectrum(generator.to("cpu"), latents, dtype="float64")
    there = pgmkit.compute_spectrum(generator.to(device), latents)
    large = here.singular_values > 1e-5 * here.singular_values[:, :1]
    difference = (there.singular_values / here.singular_values - 1).abs()[large]
    return (
        f"| {name} | {len(latents)} | {int(large.sum())} | {float(difference.max()):.1e} "
        f"| {int((difference > 1e-4).sum())} |"
    )


def partitioner(what: str | dict[str, Any], device: str, seed: int) -> str:
    """Returns the row of a partitioner."""
    generator = pgmkit.load_generator("mnist-dcgan")
    built = build("partitioners", what, num_partitions=10)
    found: list[tuple[Tensor, Tensor]] = []
    for place in ("cpu", device):
        latents = generator.sample_latents(IMAGES, seed)
        images = GeneratedImages(generator.to(place), latents)
        if not found:
            built.fit(images, seed=seed)
        guided = guide(built, images.batch(torch.arange(GUIDED)), PART)
        found.append((gathered_logits(built, images).cpu(), guided.detach().cpu()))
    (logits, guides), (logits_there, guides_there) = found
    same = float((logits.argmax(1) == logits_there.argmax(1)).double().mean())
    return (
        f"| {label(what)} | {distance(logits_there, logits):.1e} | {same:.1%} "
        f"| {distance(guides_there, guides):.1e} |"
    )


def distance(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).abs().max() / reference.abs().max())


def label(what: str | dict[str, Any]) -> str:
    if isinstance(what, str):
        return what
    inner = what.get("features", what.get("base"))
    return f"{what['name']} of {inner if isinstance(inner, str) else inner['name']}"


if __name__ == "__main__":
    main()
