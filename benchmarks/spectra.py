"""All ways to Jacobian spectra side by side, on ten generators, on one thread or an accelerator.

    python benchmarks/spectra.py --out benchmarks/spectra.md
    python benchmarks/spectra.py --device cuda --out benchmarks/spectra-cuda.md

Times are for the singular values of one latent, in milliseconds, and interleaved: each way runs in
turn, again and again, and the median counts; on the CPU, of the time that the thread works. The
floor is what the dense arithmetic of all convolutions and linear layers would take, M tangents per
latent, at the best rate that this machine shows in the same run on any of the generator's own
layers, without anything else.
"""

import argparse
import contextlib
import copy
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from timeit import timeit

import torch
from generators import GENERATORS
from memory import peak, reset_peak
from scipy.stats import spearmanr
from torch import Tensor, nn

from pgmkit import Generator
from pgmkit.machine import has_tf32, machine, seconds_for
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra
from pgmkit.tangents.convolutions import LIVE

EXACT = "pgmkit, exact"

SKETCHED = ("mnist-dcgan", "sngan", "dcgan-64", "mlp", "vae")
"""On which sketches and bfloat16 are compared, too, and both cores with one."""

SAMPLE = 128
"""Latents for rank correlations."""

WHOLE = 50_000
"""Latents of the spectra that the command line computes, on an accelerator."""

LATENTS = {"cpu": 64}
"""Per repetition, at most; on all other devices 2048."""

BATCHES = {"cpu": (1, 2, 4, 8, 16)}
"""Latents at a time that vmap is tried with; on all other devices:"""
ACCELERATOR_BATCHES = (4, 16, 64, 256)

ROUNDS, ROUND = 9, 1.0
"""How often one and two threads compute in turn, and about how many seconds."""

PATIENCE = 10.0
"""What takes longer than this, in seconds, is measured once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole", type=int, default=WHOLE, help="on an accelerator; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = torch.device(args.device)
    on_cpu = args.device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # float32 for all, but where TF32 is asked for
    warnings.simplefilter("ignore")
    if args.peak:
        print(own_peak_mib(*args.peak, args))
        return
    command = "python benchmarks/spectra.py" + ("" if on_cpu else f" --device {args.device}")
    lines = [
        "# Ways to the singular values of a Jacobian",
        "",
        f"`{command}`, {machine()}, {'one thread' if on_cpu else driver()}, float32, seed "
        f"{args.seed}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}. Medians of "
        f"{args.repeats} interleaved repetitions.",
        "",
        *(__doc__ or "").strip().splitlines()[5:],
        "Accuracy is the largest difference from singular values by forward mode in float64, "
        "relative, among those above 1e-5 of the largest (a unit that rounding switches on or off "
        "makes some 1e-4); for fast methods it is the rank correlation ρ of the log-volume on 128 "
        "latents (32 of slow generators). Memory is what a way adds at its peak, with its "
        "calibration. mnist-dcgan, mlp-gan, wgan and flow are trained. Reverse mode, which takes "
        "9 to 100 times as long as vmap(jacfwd), is left out.",
    ]
    for name in args.generators:
        torch.manual_seed(args.seed)
        found = ["", *table(name, GENERATORS[name]().to(args.device), args)]
        print("\n".join(found), flush=True)
        lines += found
    if not on_cpu and args.whole:
        found = ["", *whole(args)]
        print("\n".join(found), flush=True)
        lines += found
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def table(name: str, generator: Generator, args: argparse.Namespace) -> list[str]:
    dim = generator.latent.dim
    gflop, rate = gflop_per_latent(generator), best_rate(generator)
    floor = gflop / rate * 1e3
    z = generator.sample_latents(LATENTS.get(args.device.type, 2048), args.seed)
    exact = JacobianSpectra(generator)
    ways = all_ways(generator, default_probes(generator), latents_per_call(generator, exact))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, (_, compute, count) in ways.items():
            if seconds[way] and seconds[way][0] * count > PATIENCE:
                continue
            if not seconds[way] and args.device.type != "cpu":
                compute(z[:count])  # which loads and chooses its kernels at the first call
            seconds[way].append(seconds_for(partial(compute, z[:count]), args.device) / count)
    # Only the best batch size of each way stays.
    best: dict[str, str] = {}
    for way, (group, _, _) in ways.items():
        if group not in best or median(seconds[way]) < median(seconds[best[group]]):
            best[group] = way
    reference = median(seconds[best["vmap(jacfwd)"]])
    sample = generator.sample_latents(SAMPLE if seconds[EXACT][0] < 0.05 else SAMPLE // 4, 1)
    computed = exact.compute(sample)
    exact_values = computed["singular_values"]
    lines = [
        f"## {name}",
        "",
        f"{dim} latents to {'×'.join(map(str, generator.image.shape))}; {gflop:.2f} GFLOP per "
        f"latent at {rate:.0f} GFLOP/s: floor {number(floor)} ms. "
        f"Plan: {plan_line(exact)}.{live_line(generator)} {auto_line(generator, sample, computed)}"
        f"{both_cores(exact, z) if args.device.type == 'cpu' and name in SKETCHED else ''}",
        "",
        "| way | ms per latent | times vmap(jacfwd) | share of the floor | peak MiB | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for way in sorted(best.values(), key=lambda way: -median(seconds[way])):
        _, compute, count = ways[way]
        ms = median(seconds[way]) * 1e3
        lines.append(
            f"| {way} | {number(ms)} | {reference * 1e3 / ms:.2f} | {floor / ms:.0%} | "
            f"{'-' if ms > PATIENCE * 1e3 else f'{peak_mib(name, way, args):.0f}'} | "
            f"{accuracy(generator, way, compute, sample, exact_values)} |"
        )
    return lines


def all_ways(
    generator: Generator, probes: list[int], many: int, only: str | None = None
) -> dict[str, tuple[str, Callable[[Tensor], Tensor], int]]:
    """Returns each way with its group, what it computes, and how many latents at a time."""
    module = copy.deepcopy(generator.module).requires_grad_(False)
    device, on_cpu = generator.device, generator.device.type == "cpu"

    def flat(z: Tensor) -> Tensor:
        return module(z[None]).flatten()

    ways: dict[str, tuple[str, Callable[[Tensor], Tensor], int]] = {}
    jacfwd = torch.func.vmap(torch.func.jacfwd(flat))
    plain = "vmap(jacfwd) + svdvals, batch 2"
    if on_cpu:
        ways[plain] = (plain, lambda z: torch.linalg.svdvals(jacfwd(z)), 2)
    for batch in BATCHES.get(device.type, ACCELERATOR_BATCHES):
        if only is None and batch > 2 * many:
            continue
        ways[f"vmap(jacfwd), batch {batch}"] = (
            "vmap(jacfwd)",
            lambda z: svd(jacfwd(z.to(device))).cpu(),
            batch,
        )
    settings_of = {
        EXACT: JacobianSettings(),
        "pgmkit, float64": JacobianSettings(dtype="float64"),
        "pgmkit, TF32 tangents": JacobianSettings(dtype="tf32"),
        "pgmkit, bfloat16 tangents": JacobianSettings(dtype="bfloat16"),
    }
    if not has_tf32(device):
        del settings_of["pgmkit, TF32 tangents"]
    if not probes:
        settings_of.pop("pgmkit, bfloat16 tangents")
    if on_cpu and probes:
        settings_of |= {f"pgmkit, {m} probes": JacobianSettings(probes=m) for m in probes}
        settings_of |= {
            f"pgmkit, top {m}": JacobianSettings(probes=m, sketch="top")
            for m in (probes[0] // 2, probes[0])
        }
    for way, settings in settings_of.items():
        if only not in (None, way):
            continue
        jacobians = JacobianSpectra(generator, settings)
        slow = settings.dtype == "float64" and not on_cpu
        ways[way] = (
            way,
            lambda z, jacobians=jacobians: jacobians.compute(z)["singular_values"],
            max(1, many // 16) if slow else many,
        )
    return ways


def both_cores(exact: JacobianSpectra, z: Tensor) -> str:
    """Says how much more two threads and two processes do than one, at the median of rounds."""
    seconds = seconds_for(lambda: exact.compute(z[:4]), z.device) / 4
    mine = z.repeat(4, 1)[: max(2, int(ROUND / seconds))]
    parts = mine.split(4 * exact.plan.batch_size)  # of which threads take one after the other
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(2)]

    def answer(pipe: Connection) -> None:
        while pipe.recv():
            for part in parts:
                exact.compute(part)
            pipe.send(True)

    def asked(count: int) -> None:
        for pipe, _ in pipes[:count]:
            pipe.send(True)
        for pipe, _ in pipes[:count]:
            pipe.recv()

    processes = [context.Process(target=answer, args=(pipe,), daemon=True) for _, pipe in pipes]
    for process in processes:
        process.start()
    gains: list[list[float]] = [[], []]
    with ThreadPoolExecutor(2) as threads:
        work = {
            "thread": lambda: [*map(exact.compute, parts)],
            "threads": lambda: [*threads.map(exact.compute, [*parts, *parts])],
            "process": lambda: asked(1),
            "processes": lambda: asked(2),
        }
        for index in range(ROUNDS + 1):
            taken = [timeit(way, number=1) for way in work.values()]
            if index:  # the first round starts the threads
                gains[0].append(2 * taken[0] / taken[1])
                gains[1].append(2 * taken[2] / taken[3])
    for process in processes:
        process.terminate()
    return (
        f" Two threads do {median(gains[0]):.2f} times as much as one, two processes "
        f"{median(gains[1]):.2f} times ({ROUNDS} rounds of each in turn)."
    )


def latents_per_call(generator: Generator, exact: JacobianSpectra) -> int:
    """As many as take about half a second; on an accelerator whole batches, and a fourth of it."""
    on_cpu = generator.device.type == "cpu"
    count = 2 if on_cpu else exact.plan.batch_size
    z = generator.sample_latents(count, 0)
    for _ in range(1 if on_cpu else 2):  # the first loads kernels
        seconds = seconds_for(partial(exact.compute, z), generator.device)
    if on_cpu:
        return max(1, min(64, int(1 / seconds)))
    return min(2048, count * max(1, int(0.125 / seconds)))


def svd(jacobians: Tensor) -> Tensor:
    """Singular values as one would write it down.

    On the CPU that is from the float64 Jacobian product, which is quicker there.
    """
    if jacobians.device.type != "cpu":
        return torch.linalg.svdvals(jacobians)
    wide = jacobians.double()
    return torch.linalg.eigvalsh(wide.transpose(1, 2) @ wide).clamp(min=0).sqrt().flip(1)


def auto_line(generator: Generator, z: Tensor, computed: dict[str, Tensor]) -> str:
    """What was done in float64, and how far off log-volumes are: as used, with their floor."""
    few = z[: len(z) // 4]
    exact = JacobianSpectra(generator, JacobianSettings(dtype="float64")).compute(few)
    spectra = [
        Spectrum(few, values["singular_values"][: len(few)], torch.zeros(len(few)))
        for values in (computed, exact)
    ]
    ranks = spectra[1].numeric_rank()
    volumes = [spectrum.log_volume() for spectrum in spectra]
    return (
        f"Numeric rank {int(ranks.min())} to {int(ranks.max())}, condition number "
        f"{float(spectra[1].condition_number().median()):.0e}; "
        f"{float(computed['float64'].float().mean()):.1%} of {len(z)} latents are done in float64, "
        f"and the log-volumes of {len(few)} are within "
        f"{float((volumes[0] - volumes[1]).abs().max()):.0e} nats."
    )


def plan_line(jacobians: JacobianSpectra) -> str:
    plan = jacobians.plan
    kernels = sorted(plan.kernels.values())
    live = sum(map(kernels.count, LIVE))
    return (
        f"{plan.mode}, {plan.batch_size} latents and {plan.tangents} tangents at a time, "
        f"{live} convolutions by live units, {kernels.count('taps')} by taps, "
        f"{kernels.count('split')} in three passes of TF32"
    )


@torch.no_grad()
def live_line(generator: Generator) -> str:
    """Which shares of the units behind its ReLUs are not zero, on 128 latents."""
    shares: list[float] = []
    hooks = [
        part.register_forward_hook(lambda *call: shares.append(float((call[2] > 0).float().mean())))
        for part in generator.module.modules()
        if isinstance(part, nn.ReLU)
    ]
    generator(generator.sample_latents(SAMPLE, 1))
    for hook in hooks:
        hook.remove()
    if not shares:
        return ""
    return f" Live units behind its ReLU modules: {', '.join(f'{share:.0%}' for share in shares)}."


def accuracy(
    generator: Generator,
    way: str,
    compute: Callable[[Tensor], Tensor],
    sample: Tensor,
    exact_values: Tensor,
) -> str:
    if any(word in way for word in ("probes", "TF32", "bfloat16", "top")):
        values = compute(sample)
        reference = exact_values[:, : values.shape[1]] if "top" in way else exact_values
        volumes = [sigma.clamp(min=1e-300).log().sum(1).numpy() for sigma in (values, reference)]
        return f"ρ = {spearmanr(*volumes).statistic:.4f}"
    z = sample[:2]
    module = copy.deepcopy(generator.module).double()
    jacobian = torch.func.jacfwd(lambda row: module(row[None]).flatten())
    values = compute(z)
    rows = z.double().to(generator.device)
    reference = torch.stack([torch.linalg.svdvals(jacobian(row).cpu()) for row in rows])
    safe = reference > 1e-5 * reference[:, :1]
    return f"{float(((values - reference).abs() / reference)[safe].max()):.0e}"


def _layers(generator: Generator) -> list[tuple[nn.Module, Tensor]]:
    """Returns convolutions and linear layers with an input each."""
    layers: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda part, args, _: layers.append((part, args[0])))
        for part in generator.module.modules()
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        generator(generator.sample_latents(1, 0))
    for hook in hooks:
        hook.remove()
    return layers


def _flop(layer: nn.Module, x: Tensor) -> int:
    """Multiplications and additions of one tangent."""
    if isinstance(layer, nn.Linear):
        return 2 * layer.weight.numel()
    positions = layer(x)[0, 0].numel() if isinstance(layer, nn.Conv2d) else x[0, 0].numel()
    return 2 * layer.weight.numel() * positions


@torch.no_grad()
def gflop_per_latent(generator: Generator) -> float:
    """The first layer's Jacobian is its weights: it needs no arithmetic."""
    flop = sum(_flop(layer, x) for layer, x in _layers(generator)[1:])
    return flop * generator.latent.dim / 1e9


@torch.no_grad()
def best_rate(generator: Generator) -> float:
    """The best GFLOP/s of any layer, for the tangents of one latent."""
    rates = []
    latents = 1 if generator.device.type == "cpu" else 32
    for layer, x in _layers(generator)[1:]:
        layer = copy.deepcopy(layer)
        batch = torch.randn(latents * generator.latent.dim, *x.shape[1:], device=x.device)
        if batch.ndim == 4:
            layer = layer.to(memory_format=torch.channels_last)
            batch = batch.contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(7):
            times.append(seconds_for(partial(layer, batch), x.device))
        rates.append(_flop(layer, x) * len(batch) / min(times) / 1e9)
    return max(rates)


def peak_mib(name: str, way: str, args: argparse.Namespace) -> float:
    """How much memory a way adds at its peak: of the device, or of a process of its own."""
    if args.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return own_peak_mib(name, way, args)
    command = [sys.executable, __file__, "--seed", str(args.seed), "--peak", name, way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def own_peak_mib(name: str, way: str, args: argparse.Namespace) -> float:
    torch.manual_seed(args.seed)
    generator = GENERATORS[name]().to(args.device)
    with torch.no_grad():
        generator(generator.sample_latents(1, args.seed))
    cuda = args.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else reset_peak()
    many = 256 if cuda else 2
    _, compute, count = all_ways(generator, default_probes(generator), many, only=way)[way]
    compute(generator.sample_latents(count, args.seed))
    return ((torch.cuda.max_memory_allocated() if cuda else peak()) - before) / 2**20


def whole(args: argparse.Namespace) -> list[str]:
    """What the command line takes for many latents, from its start to its end."""
    lines = [
        f"## {args.whole:,} latents of mnist-dcgan, as the command line computes them",
        "",
        "| command | s | ms per latent |",
        "|---|---|---|",
    ]
    for options in ([], ["--dtype", "tf32"]):
        with tempfile.TemporaryDirectory() as folder:
            told = ["spectrum", "compute", "mnist-dcgan", "--latents", str(args.whole), *options]
            command = [sys.executable, "-m", "pgmkit", *told, "--device", str(args.device)]
            started = time.perf_counter()
            # Without the cache, which may have it.
            environment = {**os.environ, "PGMKIT_CACHE": f"{folder}/cache"}
            subprocess.run(
                [*command, "-o", f"{folder}/spectrum"],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - started
        lines.append(
            f"| `pgmkit {' '.join(told)}` | {seconds:.1f} | {seconds / args.whole * 1e3:.3f} |"
        )
    return lines


def driver() -> str:
    """Returns the version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True).stdout
        return f"driver {found.split()[0]}"
    return "unknown driver"


def number(ms: float) -> str:
    """Returns milliseconds with three digits, or those before the point."""
    return f"{ms:.{max(1, 2 - math.floor(math.log10(ms)))}f}" if ms < 10 else f"{ms:.1f}"


def default_probes(generator: Generator) -> list[int]:
    if generator.name not in SKETCHED:
        return []
    return [generator.latent.dim // 8, generator.latent.dim // 4, generator.latent.dim // 2]


def median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
