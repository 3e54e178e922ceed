"""Peak memory of spectra within a budget; time and memory from 1,000 to 50,000 latents.

    python benchmarks/memory.py sizes --out benchmarks/memory.md
    python benchmarks/memory.py counts --out benchmarks/scaling.md

Each measurement runs in a process of its own, which reports the largest resident size that the
kernel has seen since the generator was loaded and had run once: calibration is part of it. The
command fails with exit code 3 if a budget is exceeded.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from generators import GENERATORS, dcgan, wrapped

import pgmkit
from pgmkit.machine import machine
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra

SIZES = (32, 64, 128, 256)
LATENTS = (64, 128, 256, 512)
BUDGETS = (2**30, 2**29)
"""Bytes."""

COUNTS = (1_000, 5_000, 10_000, 50_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["sizes", "counts"], nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--long", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.one:
        print(json.dumps(one(*args.one)))
    elif args.long:
        print(json.dumps(long(args.long)))
    elif args.part == "counts":
        counts(args.out)
    else:
        sizes(args.out)


def sizes(out: Path | None) -> None:
    lines = [
        "# Memory of Jacobian spectra",
        "",
        f"`python benchmarks/memory.py sizes`, {machine()}, torch {torch.__version__}, untrained "
        "DCGANs (at most 512 channels), RGB, two latents each, one thread, seed 0. The peak has "
        "calibration in it; seconds are those of one latent after it.",
        "",
        "| image | latent dimension | budget, MiB | peak beside the model, MiB | s per latent "
        "| directions at a time |",
        "|---|---|---|---|---|---|",
    ]
    exceeded = []
    for budget in BUDGETS:
        for size in SIZES:
            for latents in LATENTS:
                row = fresh("--one", str(size), str(latents), str(budget))
                lines.append(
                    f"| {size}×{size} | {latents} | {budget >> 20} | {row['peak'] / 2**20:.0f} | "
                    f"{row['seconds']:.2f} | {row['tangents']} |"
                )
                print(lines[-1], flush=True)
                if row["peak"] > budget:
                    exceeded.append(lines[-1])
    if out:
        write_section(out, lines)
    if exceeded:
        print("over the budget:", *exceeded, sep="\n", file=sys.stderr)
        sys.exit(3)


def counts(out: Path | None) -> None:
    lines = [
        "# From 1,000 to 50,000 latents",
        "",
        f"`python benchmarks/memory.py counts`, {machine()}, torch {torch.__version__}: "
        "`compute_spectrum` of mnist-dcgan on all cores, with its folder, seed 0. The result takes "
        "777 bytes per latent.",
        "",
        "![Time and memory](scaling.png)",
        "",
        "| latents | s | ms per latent | peak beside the model, MiB | result, MiB |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for count in COUNTS:
        row = fresh("--long", str(count))
        rows.append(row)
        lines.append(
            f"| {row['latents']:,} | {row['seconds']:.1f} | "
            f"{row['seconds'] / row['latents'] * 1e3:.2f} | {row['peak'] / 2**20:.0f} | "
            f"{row['result'] / 2**20:.1f} |"
        )
        print(lines[-1], flush=True)
    if out:
        out.write_text("\n".join(lines) + "\n")
        plot(rows, out.with_suffix(".png"))


def write_section(out: Path, lines: list[str]) -> None:
    """Writes lines, of which the first is a title, in the place of what is under it in a file."""
    before = out.read_text() if out.exists() else ""
    old = rf"^{re.escape(lines[0])}\n.*?(?=^# |\Z)"
    others = re.sub(old, "", before, flags=re.DOTALL | re.MULTILINE).strip()
    out.write_text("\n\n".join(filter(None, [others, "\n".join(lines)])) + "\n")


def fresh(*arguments: str) -> dict[str, float]:
    """Runs one measurement in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(size: int, latents: int, budget: int) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = wrapped(dcgan(latents, size, 32), latents, (3, size, size), f"dcgan-{size}")
    with torch.no_grad():
        generator(generator.sample_latents(1, 0))
    before = reset_peak()
    jacobians = JacobianSpectra(generator, JacobianSettings(memory_budget=budget))
    started = time.perf_counter()
    jacobians.compute(generator.sample_latents(2, 0))
    return {
        "peak": peak() - before,
        "seconds": (time.perf_counter() - started) / 2,
        "tangents": jacobians.plan.tangents,
    }


def long(count: int) -> dict[str, float]:
    generator = GENERATORS["mnist-dcgan"]()
    pgmkit.compute_spectrum(generator, latents=16)
    out = Path("runs/memory") / f"{count}-{time.time_ns()}"
    before = reset_peak()
    started = time.perf_counter()
    spectrum = pgmkit.compute_spectrum(generator, latents=count, out=out)
    return {
        "latents": count,
        "seconds": time.perf_counter() - started,
        "peak": peak() - before,
        "result": sum(
            part.nbytes for part in (spectrum.latents, spectrum.singular_values, spectrum.log_prior)
        ),
    }


def plot(rows: list[dict[str, float]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    counts = [row["latents"] for row in rows]
    left.plot(counts, [row["seconds"] for row in rows], "o-")
    left.set(xlabel="latents", ylabel="seconds", title="time", xlim=0, ylim=0)
    right.plot(counts, [row["peak"] / 2**20 for row in rows], "o-", label="peak beside the model")
    right.plot(counts, [row["result"] / 2**20 for row in rows], "o--", label="the result itself")
    right.set(xlabel="latents", ylabel="MiB", title="memory", xlim=0, ylim=0)
    right.legend()
    figure.savefig(path, dpi=120)


def reset_peak() -> int:
    """Starts a new peak and returns the resident size."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Returns the largest resident size since `reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark needs Linux")


if __name__ == "__main__":
    main()
