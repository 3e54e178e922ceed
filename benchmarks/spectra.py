"""All ways to Jacobian spectra side by side, on ten generators, on one thread.

    python benchmarks/spectra.py --out benchmarks/spectra.md

Times are for the singular values of one latent, in milliseconds, and interleaved: each way runs in
turn, again and again, and the median of the time that the thread works counts. The floor is what
the dense arithmetic of all convolutions and linear layers would take, M tangents per latent, at the
best rate that this machine shows in the same run on any of the generator's own layers, without
anything else.
"""

import argparse
import copy
import functools
import pickle
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from generators import GENERATORS
from memory import peak, reset_peak
from scipy.stats import spearmanr
from torch import Tensor, nn

from pgmkit import Generator
from pgmkit.machine import machine, seconds_for
from pgmkit.spectrum import Spectrum
from pgmkit.spectrum.jacobian import JacobianSettings, JacobianSpectra

EXACT = "pgmkit, exact"

SKETCHED = ("mnist-dcgan", "sngan", "dcgan-64", "mlp", "vae")
"""On which fast methods are compared, too."""

SAMPLE = 128
"""Latents for rank correlations."""

PATIENCE = 10.0
"""What takes longer than this, in seconds, is measured once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS))
    parser.add_argument("--latents", type=int, default=64, help="per repetition, at most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.peak:
        print(own_peak_mib(args.peak))
        return
    lines = [
        "# Ways to the singular values of a Jacobian",
        "",
        f"`python benchmarks/spectra.py`, {machine()}, one thread, float32, seed {args.seed}, "
        f"torch {torch.__version__}. Medians of {args.repeats} interleaved repetitions.",
        "",
        *(__doc__ or "").strip().splitlines()[4:],
        "Accuracy is the largest difference from singular values by forward mode in float64, "
        "relative, among those above 1e-5 of the largest (a unit that rounding switches on or off "
        "makes some 1e-4); for fast methods it is the rank correlation ρ of the log-volume on 128 "
        "latents (32 of slow generators). Memory is what a way adds at its peak, with its "
        "calibration. Only mnist-dcgan, mlp-gan, wgan and flow are trained. Reverse mode, which "
        "takes 9 to 100 times as long as vmap(jacfwd), is left out.",
    ]
    for name in args.generators:
        torch.manual_seed(args.seed)
        lines += ["", *table(name, GENERATORS[name](), args)]
        print("\n".join(lines[-14:]), flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


def table(name: str, generator: Generator, args: argparse.Namespace) -> list[str]:
    dim = generator.latent.dim
    gflop, rate = gflop_per_latent(generator), best_rate(generator)
    floor = gflop / rate * 1e3
    z = generator.sample_latents(args.latents, args.seed)
    exact = JacobianSpectra(generator)
    ways = all_ways(generator, default_probes(generator), latents_per_call(generator, exact))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, (_, compute, count) in ways.items():
            if seconds[way] and seconds[way][0] * count > PATIENCE:
                continue
            took = seconds_for(functools.partial(compute, z[:count]), generator.device)
            seconds[way].append(took / count)
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
        f"latent at {rate:.0f} GFLOP/s: floor {floor:.1f} ms. "
        f"Plan: {plan_line(exact)}.{live_line(generator)} {auto_line(generator, sample, computed)}",
        "",
        "| way | ms per latent | times vmap(jacfwd) | share of the floor | peak MiB | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for way in sorted(best.values(), key=lambda way: -median(seconds[way])):
        _, compute, count = ways[way]
        ms = median(seconds[way]) * 1e3
        lines.append(
            f"| {way} | {ms:.1f} | {reference * 1e3 / ms:.2f} | {floor / ms:.0%} | "
            f"{'-' if ms > PATIENCE * 1e3 else f'{peak_mib(generator, way):.0f}'} | "
            f"{accuracy(generator, way, compute, sample, exact_values)} |"
        )
    return lines


def all_ways(
    generator: Generator, probes: list[int], many: int, only: str | None = None
) -> dict[str, tuple[str, Callable[[Tensor], Tensor], int]]:
    """Returns each way with its group, what it computes, and how many latents at a time."""
    module = copy.deepcopy(generator.module).requires_grad_(False)

    def flat(z: Tensor) -> Tensor:
        return module(z[None]).flatten()

    jacfwd = torch.func.vmap(torch.func.jacfwd(flat))
    plain = "vmap(jacfwd) + svdvals, batch 2"
    ways: dict[str, tuple[str, Callable[[Tensor], Tensor], int]] = {
        plain: (plain, lambda z: torch.linalg.svdvals(jacfwd(z)), 2)
    }
    for batch in (1, 2, 4, 8, 16):
        if only is None and batch > 2 * many:
            continue
        ways[f"vmap(jacfwd), batch {batch}"] = (
            "vmap(jacfwd)",
            lambda z: svd(jacfwd(z)),
            batch,
        )
    exact: dict[str, JacobianSettings] = {
        EXACT: JacobianSettings(),
        "pgmkit, float64": JacobianSettings(dtype="float64"),
    }
    fast = {
        "pgmkit, bfloat16 tangents": JacobianSettings(dtype="bfloat16"),
        **{f"pgmkit, {m} probes": JacobianSettings(probes=m) for m in probes},
        **{
            f"pgmkit, top {m}": JacobianSettings(probes=m, sketch="top")
            for m in (min(probes, default=0) // 2, min(probes, default=0))
            if m
        },
    }
    for way, settings in (exact | fast if probes else exact).items():
        if only not in (None, way):
            continue
        jacobians = JacobianSpectra(generator, settings)
        ways[way] = (
            way,
            lambda z, jacobians=jacobians: jacobians.compute(z)["singular_values"],
            many,
        )
    return ways


def latents_per_call(generator: Generator, exact: JacobianSpectra) -> int:
    """As many as take about half a second."""
    z = generator.sample_latents(2, 0)
    return max(1, min(64, int(1 / seconds_for(lambda: exact.compute(z), generator.device))))


def svd(jacobians: Tensor) -> Tensor:
    """Singular values as one would write it down: from the float64 Jacobian product."""
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
    return (
        f"{plan.mode}, {plan.batch_size} latents and {plan.tangents} tangents at a time, "
        f"{kernels.count('live')} convolutions by live units, {kernels.count('taps')} by taps"
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
    if "probes" in way or "bfloat16" in way or "top" in way:
        values = compute(sample)
        reference = exact_values[:, : values.shape[1]] if "top" in way else exact_values
        volumes = [sigma.clamp(min=1e-300).log().sum(1).numpy() for sigma in (values, reference)]
        return f"ρ = {spearmanr(*volumes).statistic:.4f}"
    z = sample[:2]
    module = copy.deepcopy(generator.module).double()
    jacobian = torch.func.jacfwd(lambda row: module(row[None]).flatten())
    values = compute(z)
    reference = torch.stack([torch.linalg.svdvals(jacobian(row)) for row in z.double()])
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
    for layer, x in _layers(generator)[1:]:
        layer = copy.deepcopy(layer)
        batch = torch.randn(generator.latent.dim, *x.shape[1:])
        if batch.ndim == 4:
            layer = layer.to(memory_format=torch.channels_last)
            batch = batch.contiguous(memory_format=torch.channels_last)
        call = functools.partial(layer, batch)
        times = [seconds_for(call, generator.device) for _ in range(7)]
        rates.append(_flop(layer, x) * len(batch) / min(times) / 1e9)
    return max(rates)


def peak_mib(generator: Generator, way: str) -> float:
    """How much memory a way adds at its peak, in a process of its own."""
    command = [sys.executable, __file__, "--peak", way]
    sent = pickle.dumps(generator)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, input=sent)
    return float(done.stdout.decode().splitlines()[-1])


def own_peak_mib(way: str) -> float:
    generator: Generator = pickle.load(sys.stdin.buffer)
    with torch.no_grad():
        generator(generator.sample_latents(1, 0))
    before = reset_peak()
    _, compute, count = all_ways(generator, default_probes(generator), many=2, only=way)[way]
    compute(generator.sample_latents(count, 0))
    return (peak() - before) / 2**20


def default_probes(generator: Generator) -> list[int]:
    if generator.name not in SKETCHED:
        return []
    return [generator.latent.dim // 8, generator.latent.dim // 4, generator.latent.dim // 2]


def median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
