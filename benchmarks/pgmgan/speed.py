"""How fast a step of `pgmkit train` is beside a loop written by hand, and what the guide costs.

    python benchmarks/pgmgan/speed.py
    python benchmarks/pgmgan/speed.py --device cuda

Both train the same networks with the same losses, optimizers and batches, in turns in one process
and on one thread, so that both meet the same machine. The loop by hand draws shuffled batches from
memory, looks at the losses every 50 steps, and does what tutorials do: the discriminator sees real
and generated images one after the other, and images are made anew for the generator's step. Seconds
are of the processor on a CPU. Networks of the paper's width are trained on CUDA alone. The exit
code is 3 if pgmkit's step is the slower one anywhere.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import relu

from pgmkit.images import ArrayImages, load_images
from pgmkit.learning import learn
from pgmkit.machine import check_device, machine
from pgmkit.partition import FittedPartitioner, fit_partitioner
from pgmkit.priors import LatentSpec
from pgmkit.train.conditions import Guide
from pgmkit.train.gan import GANSettings, GANTask
from pgmkit.train.optimizer import Adam

SEED, PARTS, DECAY = 0, 10, 0.999


@dataclass(frozen=True)
class Case:
    """What is trained, and how many steps make a turn of each loop."""

    name: str
    settings: GANSettings
    images: Any
    batch_size: int
    steps: int


def cases(device: torch.device) -> list[Case]:
    """Returns points and images, with networks of examples: ring-, mnist- and cifar10-pgmgan."""
    random = torch.Generator().manual_seed(SEED)
    noise = torch.randint(256, (2_000, 1, 32, 32), dtype=torch.uint8, generator=random)
    shared: dict[str, Any] = {"loss": "hinge", "ema": DECAY, "partitions": PARTS}
    shared["partitioner"] = {"name": "kmeans", "features": "pixels", "num_starts": 1}
    points = GANSettings(
        "mlp-2d", latent=LatentSpec(2), optimizer=Adam(1e-4, (0.8, 0.999)), **shared
    )
    images = GANSettings(
        "sngan-32",
        {"width": 64, "image_channels": 1},
        latent=LatentSpec(128),
        optimizer=Adam(2e-4, (0.0, 0.999)),
        **shared,
    )
    small = [
        Case("mlp-2d, points", points, load_images("points:ring:n=20000"), 100, 100),
        Case("sngan-32, width 64", images, ArrayImages(noise, name="noise"), 64, 2),
    ]
    if device.type != "cuda":
        return small
    whole = replace(images, backbone_args={}, discriminator_steps=4)
    colours = ArrayImages(noise.expand(-1, 3, -1, -1), name="noise")
    cases = [
        *(replace(case, steps=20) for case in small),
        Case("sngan-32, full width, 4 + 1", whole, colours, 100, 10),
        Case("the same in bfloat16", replace(whole, precision="bfloat16"), colours, 100, 10),
    ]
    return [replace(case, images=case.images.kept_on(device)) for case in cases]


def task_of(case: Case, fitted: FittedPartitioner, device: torch.device, guide: Guide) -> GANTask:
    """Returns what `pgmkit train` trains, with or without the guide."""
    task = GANTask(replace(case.settings, guide=guide), seed=SEED, device=device)
    task.condition(fitted, case.images)
    return task


def by_hand(
    case: Case, fitted: FittedPartitioner, device: torch.device, guided: bool
) -> Callable[[], None]:
    """Returns a turn of a loop as a script would have it, on networks of its own."""
    task = task_of(case, fitted, device, Guide())
    conditions = task.conditions
    assert conditions is not None
    assert task.average is not None
    labels, masses, partitioner = conditions.labels, conditions.masses, fitted.partitioner
    generator, discriminator, average = task.generator, task.discriminator, task.average.module
    of_generator, of_discriminator = task.generator_optimizer, task.discriminator_optimizer
    images, size, latent = case.images, case.batch_size, case.settings.latent.dim

    def precision() -> torch.autocast:
        is_mixed = case.settings.precision == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=is_mixed)

    def fake() -> tuple[Tensor, Tensor]:
        parts = torch.multinomial(masses, size, replacement=True).to(device)
        with precision():
            return generator(torch.randn(size, latent, device=device), parts), parts

    def turn() -> None:
        order = torch.randperm(len(images))
        for step in range(case.steps):
            for turn in range(case.settings.discriminator_steps):
                place = step * case.settings.discriminator_steps + turn
                index = order[torch.arange(place * size, (place + 1) * size) % len(order)]
                real, y = images.batch(index).to(device), labels[index].to(device)
                with torch.no_grad():
                    made, parts = fake()
                with precision():
                    loss_d = relu(1 - discriminator(real, y)).mean()
                    loss_d = loss_d + relu(1 + discriminator(made, parts)).mean()
                of_discriminator.zero_grad()
                loss_d.backward()
                of_discriminator.step()
            made, parts = fake()
            with precision():
                loss_g = -discriminator(made, parts).mean()
            if guided:
                logits = partitioner.logits(made.float())
                pull = (logits - logits.gather(1, parts[:, None])).relu().sum(dim=1).mean()
                loss_g = loss_g + 6.0 * pull
            of_generator.zero_grad()
            loss_g.backward()
            of_generator.step()
            with torch.no_grad():
                for kept, new in zip(average.parameters(), generator.parameters(), strict=True):
                    kept.lerp_(new, 1 - DECAY)
                for kept, new in zip(average.buffers(), generator.buffers(), strict=True):
                    kept.copy_(new)
            if (step + 1) % 50 == 0:
                loss_d.item(), loss_g.item()

    return turn


def by_pgmkit(case: Case, task: GANTask) -> Callable[[], None]:
    """Returns a turn of pgmkit's loop."""
    given = {"seed": SEED, "source": case.images, "batch_size": case.batch_size}
    return lambda: learn(task, steps=case.steps, name="speed", **given)


def seconds_of(turn: Callable[[], None], device: torch.device) -> float:
    """Returns the seconds of one turn: of the processor, or on an accelerator of the wall."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    turn()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--only", help="A part of the name of a case.")
def main(rounds: int, device: str, only: str | None) -> None:
    """Print images per second of both loops, their ratio, and what the guide costs."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    where, slower = check_device(device), False
    click.echo(f"{machine()}, torch {torch.__version__}, {where}, one thread, {rounds} rounds\n")
    click.echo(
        "| networks | by hand, images/s | pgmkit, images/s | ms a step | ratio | the guide costs |"
    )
    click.echo("|---|---|---|---|---|---|")
    for case in cases(where):
        if only is not None and only not in case.name:
            continue
        fitted = fit_partitioner(case.settings.partitioner, case.images, partitions=PARTS)
        turns = [
            by_hand(case, fitted, where, guided=True),
            by_pgmkit(case, task_of(case, fitted, where, Guide())),
            by_pgmkit(case, task_of(case, fitted, where, Guide(0, 0))),
        ]
        for turn in turns:
            turn()
        times = [[seconds_of(turn, where) for turn in turns] for _ in range(rounds)]
        hand, guided, _ = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(row[0] / row[1] for row in times)
        cost = statistics.median(row[1] / row[2] for row in times) - 1
        count = case.steps * case.batch_size
        per_second = f"{count / hand:,.0f} | {count / guided:,.0f}"
        step = f"{1e3 * guided / case.steps:.1f}"
        click.echo(f"| {case.name} | {per_second} | {step} | {ratio:.2f} | {cost:.1%} |")
        slower |= ratio < 1
    sys.exit(3 if slower else 0)


if __name__ == "__main__":
    main()
