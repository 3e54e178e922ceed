"""What the processes of `test_ranks.py` do; it runs under torchrun, and alone."""

import json
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tiny import run_pgmkit
from torch import Tensor, nn

from pgmkit.errors import ParameterError
from pgmkit.images import ArrayImages
from pgmkit.learning import Batch, Clock, learn, minimise, ranks
from pgmkit.learning.checkpoints import Part
from pgmkit.learning.optimizers import eager
from pgmkit.learning.schedules import cosine, set_rate

STEPS = 12
POINTS = "points:ring:n=200"
GUIDED = """
task = "gan"
steps = 6
batch_size = 20

[model]
backbone = "mlp-2d"
backbone_args = { width = 16, depth = 2 }
latent = { dim = 2 }
ema = 0.5
accumulate = 2
partitioner = { name = "kmeans", features = "pixels", num_starts = 1 }
partitions = 4
"""


def pictures(count: int = 36) -> ArrayImages:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 4, 4), generator=random, dtype=torch.uint8)
    return ArrayImages(images, name="pictures")


class Small:
    """A GAN without batch norm: two discriminator steps for each of the generator."""

    def __init__(self, stop_at: int | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ranks.rank())  # the coordinator's weights count
            self.generator = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
            self.discriminator = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
            self.discriminator.append(nn.Linear(32, 1))
        self.optimizers = [
            eager(torch.optim.Adam)(module.parameters(), lr=1e-2, betas=(0.5, 0.999), fused=True)
            for module in (self.generator, self.discriminator)
        ]
        self.parts: Mapping[str, Part] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.optimizers[0],
            "discriminator_optimizer": self.optimizers[1],
        }
        self.stop_at = stop_at
        self.made: list[int] = []
        self.measured: list[int] = []

    def step(self, batches: Iterator[Batch], clock: Clock) -> dict[str, Tensor]:
        self.made.append(clock.step)
        for optimizer in self.optimizers:
            set_rate(optimizer, cosine(clock, 1e-2, 1e-3))
        for _ in range(2):
            real = next(batches)
            z = ranks.share(torch.randn(real.size, 3, generator=clock.random))
            fake = self.generator(z)
            loss = self.discriminator(fake.detach()).square().mean()
            loss = loss + (self.discriminator(real.images) - 1).square().mean()
            self.descend(loss, self.discriminator, self.optimizers[1])
        other = (self.discriminator(fake) - 1).square().mean()
        self.descend(other, self.generator, self.optimizers[0])
        if clock.step + 1 == self.stop_at and ranks.rank() == ranks.world_size() - 1:
            signal.raise_signal(signal.SIGTERM)
        return {"discriminator": loss.detach(), "generator": other.detach()}

    def descend(self, loss: Tensor, module: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        ranks.average_gradients(module.parameters())
        optimizer.step()

    def measure(self, clock: Clock, folder: Path) -> dict[str, float]:
        self.measured.append(clock.step)
        return {"steps": float(clock.step)}


def run(task: Small, folder: Path | None = None, batch_size: int = 6) -> Small:
    source = pictures()
    learn(
        task,
        steps=STEPS,
        seed=1,
        name="small",
        source=source,
        batch_size=batch_size,
        folder=folder,
        save_steps=2,
        log_steps=4,
    )
    return task


def weights(task: Small) -> list[list[float]]:
    return [
        p.flatten().tolist()
        for p in (*task.generator.parameters(), *task.discriminator.parameters())
    ]


def alone_in_the_coordinator() -> list[float]:
    """A loop in what one process decides: the others do not take part."""
    place = nn.Parameter(torch.zeros(1))
    losses = minimise(
        lambda clock: (place - 1).square().sum(),
        [place],
        steps=3,
        learning_rate=0.5,
        seed=0,
        name="place",
    )
    return [ranks.world_size(), *losses.tolist()]


def main(folder: Path) -> None:
    ranks.join()
    torch.set_num_threads(1)
    told: dict[str, Any] = {"rank": ranks.rank(), "world size": ranks.world_size()}
    task = run(Small(), folder / "undisturbed")
    told |= {"weights": weights(task), "measured": task.measured}
    try:
        run(Small(stop_at=5), folder / "stopped")
    except KeyboardInterrupt:
        told["stopped at"] = sorted(path.name for path in (folder / "stopped").glob("check*"))
    again = run(Small(), folder / "stopped")
    told |= {"made again": again.made, "same": weights(again) == told["weights"]}
    told["decided"] = ranks.decide(alone_in_the_coordinator)
    try:
        run(Small(), batch_size=5)
    except ParameterError as error:
        told["refused"] = str(error)
    train = ("train", folder / "train.toml", "--data", folder / "noise.npz", "--device", "cpu")
    finished = run_pgmkit(*train, "-o", folder / "trained", "-q")
    told["trained"] = [finished.code, finished.stdout, finished.stderr]
    guided = ("train", folder / "guided.toml", "--data", POINTS, "--device", "cpu")
    finished = run_pgmkit(*guided, "-o", folder / "guided", "-q")
    told["guided"] = [finished.code, finished.stderr]
    finished = run_pgmkit(*train, "-o", folder / "mine", "-q")
    told["refused folder"] = [finished.code, finished.stderr]
    rank = ranks.rank()
    torch.distributed.destroy_process_group()
    told["threads"] = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
