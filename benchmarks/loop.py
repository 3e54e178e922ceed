"""What the training loop costs over a bare loop around the same steps.

    python benchmarks/loop.py --out benchmarks/loop.md

Chunks of steps of the loop and of a bare loop take turns in one process, so that both meet the same
machine. The bare loop draws batches from a shuffled order and looks at the losses every 50 steps,
as the loop does; it sets no seeds, counts no progress and heeds no signals. A checkpoint is timed
on its own. The command fails with exit code 3 if the loop costs 2 % or more.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgmkit.images import ArrayImages, ImageSource
from pgmkit.learning import Batch, Clock, learn
from pgmkit.learning.batches import Batches
from pgmkit.learning.checkpoints import write
from pgmkit.learning.clock import clock_at
from pgmkit.machine import machine
from pgmkit.priors import LatentSpec
from pgmkit.train.gan import GANSettings, GANTask

SEED = 0
LIMIT = 0.02
BATCH = 64


class Tiny:
    """A perceptron on 32×32 images: a step of about five milliseconds."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(SEED)
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(1024, width), nn.ReLU(), nn.Linear(width, 1)
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), fused=True)
        self.parts = {"network": self.network, "optimizer": self.optimizer}

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        loss = self.network(next(batches).images).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


def bare(task: Any, source: ImageSource, steps: int) -> None:
    """Makes steps with as little around them as a script would have."""
    batches = Batches(source, BATCH, SEED)
    clock = clock_at(SEED, 0, steps)
    for step in range(steps):
        losses: Mapping[str, Tensor] = task.step(batches, clock)
        if (step + 1) % 50 == 0:
            [float(value) for value in losses.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    noise = torch.randint(256, (6400, 1, 32, 32), dtype=torch.uint8)
    source = ArrayImages(noise, name="noise")
    dcgan = GANTask(
        GANSettings(backbone_args={"channels": [256, 128, 64]}, latent=LatentSpec(64)),
        seed=SEED,
        device=torch.device("cpu"),
    )
    lines = [
        "# What the training loop costs",
        "",
        f"`python benchmarks/loop.py --rounds {args.rounds}`, {machine()}, torch "
        f"{torch.__version__}, seed {SEED}, one thread, batches of {BATCH}. Processor time: "
        "medians over rounds in which both loops take turns, and quartiles of the cost in a round. "
        "Other work ran on the machine at the same time. By default a checkpoint is written every "
        "five minutes; the last column is wall time.",
        "",
        "| step | steps of a chunk | bare, ms per step | cost of the loop | ms per checkpoint |",
        "|---|---|---|---|---|",
    ]
    costs = []
    tasks: list[tuple[str, Any, int]] = [
        ("the shipped DCGAN's, 32×32", dcgan, 5),
        ("a perceptron's", Tiny(1280), 100),
    ]
    for name, task, steps in tasks:
        bare_seconds, seconds = interleaved(task, source, steps, args.rounds)
        per_step = 1000 * statistics.median(bare_seconds) / steps
        shares = [mine / theirs - 1 for mine, theirs in zip(seconds, bare_seconds, strict=True)]
        low, _, high = statistics.quantiles(shares, n=4)
        costs.append(statistics.median(seconds) / statistics.median(bare_seconds) - 1)
        lines.append(
            f"| {name} | {steps} | {per_step:.2f} | {costs[-1]:+.2%} ({low:+.2%} to {high:+.2%}) "
            f"| {1000 * checkpoint_seconds(task):.0f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    if max(costs) >= LIMIT:
        print(f"the loop costs {max(costs):.2%}, which is {LIMIT:.0%} or more", file=sys.stderr)
        sys.exit(3)


def interleaved(
    task: Any, source: ImageSource, steps: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Returns the processor seconds of every chunk of the bare loop and of the loop."""
    settings: dict[str, Any] = {"steps": steps, "seed": SEED, "name": "benchmark"}
    settings |= {"source": source, "batch_size": BATCH}
    kinds: list[Callable[[], None]] = [
        lambda: bare(task, source, steps),
        lambda: learn(task, **settings),
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-1, rounds):
        for kind in (0, 1) if round_ % 2 else (1, 0):
            started = time.process_time()
            kinds[kind]()
            if round_ >= 0:
                seconds[kind].append(time.process_time() - started)
    return seconds


def checkpoint_seconds(task: Any) -> float:
    """Returns the median time that it takes to write a checkpoint."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(9):
            started = time.perf_counter()
            write(Path(folder) / "checkpoint.safetensors", task.parts, {})
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
