"""What the training loop costs over a bare loop around the same steps.

    python benchmarks/loop.py --out benchmarks/loop.md

The loop adds the same to every step, whatever the step does. What it adds is measured with a step
that does little, in chunks of a bare loop and of the loop that take turns in one process, so that
both meet the same machine; then it is told as a share of larger steps. The bare loop draws batches
from a shuffled order and looks at the losses every 50 steps, as the loop does; it sets no seeds,
counts no progress and heeds no signals. A checkpoint is timed on its own. The command fails with
exit code 3 if the loop costs 2 % or more of a step of five milliseconds.
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
CHUNK = 1000
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
    parser.add_argument("--rounds", type=int, default=20)
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
        f"{torch.__version__}, seed {SEED}, one thread, batches of {BATCH}. Processor time, but "
        "for checkpoints; by default one is written every five minutes.",
        "",
    ]
    bare_seconds, seconds = interleaved(Tiny(16), source, CHUNK, args.rounds)
    added = sorted(
        (mine - theirs) / CHUNK for mine, theirs in zip(seconds, bare_seconds, strict=True)
    )
    low, cost, high = statistics.quantiles(added, n=4)
    lines += [
        f"The loop adds {1e6 * cost:.0f} µs to a step (quartiles {1e6 * low:.0f} and "
        f"{1e6 * high:.0f}), beside a step of {1e3 * statistics.median(bare_seconds) / CHUNK:.2f} "
        f"ms in chunks of {CHUNK:,}, of which the start of the loop is part.",
        "",
        "| step | bare, ms per step | cost of the loop | ms per checkpoint |",
        "|---|---|---|---|",
    ]
    costs = []
    tasks: list[tuple[str, Any, int]] = [
        ("the shipped DCGAN's, 32×32", dcgan, 5),
        ("a perceptron's", Tiny(1280), 100),
    ]
    for name, task, steps in tasks:
        per_step = statistics.median(timed(task, source, steps) for _ in range(5)) / steps
        costs.append(cost / per_step)
        lines.append(
            f"| {name} | {1000 * per_step:.2f} | {costs[-1]:.2%} "
            f"| {1000 * checkpoint_seconds(task):.0f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)
    if max(costs) >= LIMIT:
        print(f"the loop costs {max(costs):.2%}, which is {LIMIT:.0%} or more", file=sys.stderr)
        sys.exit(3)


def timed(task: Any, source: ImageSource, steps: int) -> float:
    """Returns the processor seconds of a chunk of the bare loop."""
    started = time.process_time()
    bare(task, source, steps)
    return time.process_time() - started


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
