"""The training loop: epochs, checkpoints, resume, logs. What a step does is the task's business."""

import csv
import io
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pgmkit import files, runs
from pgmkit.errors import PgmkitError
from pgmkit.images import ImageData
from pgmkit.seeds import random_generator
from pgmkit.train.checkpoint import Part, load_checkpoint, save_checkpoint

_LOG_EVERY = 50

SNAPSHOTS = "snapshots"
"""Folder of a run in which models of earlier epochs lie."""


class Task(Protocol):
    """What is trained; the loop knows nothing else of it.

    Attributes:
        parts: the modules and optimizers that make up a checkpoint.
    """

    parts: dict[str, Part]

    def check(self, data: ImageData) -> None:
        """Raises a PgmkitError unless it can learn from such images; changes nothing."""

    def step(
        self, images: Tensor, labels: Tensor | None, random: torch.Generator
    ) -> dict[str, float]:
        """Learns from one batch (B, C, H, W) and returns the losses by name."""

    def end_epoch(self, epoch: int, folder: Path) -> dict[str, float]:
        """Writes pictures of the state after `epoch` and returns measurements by name."""

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the trained model as a Hub folder; `record` tells how it was trained."""


def train(
    task: Task,
    data: ImageData,
    out: Path,
    config: Mapping[str, Any],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    snapshots: Collection[int] = (),
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `task` and leaves checkpoint, logs, pictures and the exported model in `out`.

    A run that was stopped continues from its last checkpoint when it is called again with the same
    settings; one that is complete is left as it is. The order of the images comes from (seed,
    epoch) and all other chance from (seed, step), so a run that was stopped ends as one that was
    not.

    Args:
        task: what is trained.
        data: the training images; the last incomplete batch of an epoch is left out.
        out: the output folder.
        config: the resolved settings, recorded beside the output.
        epochs: passes over the data, at least 1.
        batch_size: B, at most the number of images.
        seed: of the run.
        snapshots: epochs after which the model is exported too, to `snapshots/epoch-NNN`.
        progress: whether to show a progress bar on stderr.
        report: takes one line of text per epoch.

    Raises:
        OutputError: `out` is in use, or holds something else or a run with other settings.
        PgmkitError: the task cannot learn from the data, or a loss is not finite.
    """
    steps_per_epoch = len(data) // batch_size
    task.check(data)
    runs.check_folder(out)
    with files.single_writer(out), _interrupts_after_steps() as interrupted:
        device = "" if (out / "model").exists() else str(getattr(task, "device", ""))
        runs.record(out, config, device=device)
        checkpoint = out / "checkpoint.safetensors"
        if not checkpoint.exists():
            _try_the_end(task, out, {**config, "steps": 0, "seconds": 0})
        step, seconds = 0, 0.0
        if checkpoint.exists():
            metadata = load_checkpoint(checkpoint, task.parts)
            step, seconds = int(metadata["step"]), float(metadata["seconds"])
            if step == epochs * steps_per_epoch and (out / "model").exists():
                return
            report(f"continues at step {step} of {epochs * steps_per_epoch}")
        log = _Log(out / "losses.csv", step)
        started = time.monotonic() - seconds
        bar = tqdm(total=epochs * steps_per_epoch, initial=step, unit="step", disable=not progress)

        def progress_so_far() -> dict[str, Any]:
            return {"steps": step, "seconds": round(time.monotonic() - started)}

        def save() -> None:
            # The log goes first: rows that are newer than the checkpoint are dropped on resume.
            log.write()
            elapsed = time.monotonic() - started
            save_checkpoint(
                checkpoint, task.parts, {"step": str(step), "seconds": f"{elapsed:.1f}"}
            )

        with bar:
            while step < epochs * steps_per_epoch:
                epoch, position = divmod(step, steps_per_epoch)
                order = torch.randperm(len(data), generator=random_generator(seed, "epoch", epoch))
                for start in range(position * batch_size, steps_per_epoch * batch_size, batch_size):
                    index = order[start : start + batch_size]
                    labels = None if data.labels is None else data.labels[index]
                    random = random_generator(seed, "step", step)
                    losses = task.step(data.batch(index), labels, random)
                    step += 1
                    bar.update()
                    _check_finite(losses, step, out)
                    if step % _LOG_EVERY == 0:
                        log.add(step, epoch + 1, losses)
                    if interrupted() and step % steps_per_epoch:
                        save()
                        raise KeyboardInterrupt(*interrupted())
                measured = task.end_epoch(epoch + 1, out)
                if epoch + 1 in snapshots:
                    so_far = {**config, "epochs": epoch + 1, **progress_so_far()}
                    task.export(out / SNAPSHOTS / f"epoch-{epoch + 1:03d}", so_far)
                save()
                if interrupted():
                    raise KeyboardInterrupt(*interrupted())
                report(_epoch_line(epoch + 1, epochs, {**losses, **measured}, started))
        task.export(out / "model", {**config, **progress_so_far()})


def _try_the_end(task: Task, out: Path, record: Mapping[str, Any]) -> None:
    """Does once what comes after the epochs, so that it does not fail when they are done."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".trial-") as trial:
        task.end_epoch(0, Path(trial))
        task.export(Path(trial) / "model", record)


def _check_finite(losses: Mapping[str, float], step: int, out: Path) -> None:
    for name, value in losses.items():
        if not -1e30 < value < 1e30:
            raise PgmkitError(
                f"the {name} loss is {value} at step {step}; lower the learning rate and start "
                f"again in another folder than {out}"
            )


def _epoch_line(epoch: int, epochs: int, values: Mapping[str, float], started: float) -> str:
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    return f"epoch {epoch}/{epochs}: {numbers} ({time.monotonic() - started:.0f} s)"


class _Log:
    """Losses as CSV; rows later than the step that a run continues from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    def add(self, step: int, epoch: int, losses: Mapping[str, float]) -> None:
        rounded = {name: f"{value:.6g}" for name, value in losses.items()}
        self.rows.append({"step": step, "epoch": epoch, **rounded})

    def write(self) -> None:
        if self.rows:
            buffer = io.StringIO()
            writer = csv.DictWriter(buffer, list(self.rows[-1]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            files.write_text(self.path, buffer.getvalue())


@contextmanager
def _interrupts_after_steps() -> Iterator[Callable[[], list[int]]]:
    """Holds back the first Ctrl-C or SIGTERM until the step is done; a second one acts at once.

    Yields:
        What returns the number of the signal that was received, in a list, or an empty one.
    """
    received: list[int] = []
    previous: dict[signal.Signals, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt(number)
        received.append(number)

    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[name] = signal.signal(name, remember)
        except ValueError:  # not in the main thread: signals go elsewhere
            break
    try:
        yield lambda: received
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
