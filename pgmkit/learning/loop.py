"""The one training loop. It counts steps; what a step does is the task's business.

Chance belongs to steps: before each, the global generators are set from (seed, "step", step), and
`Clock.random` comes from it too, so that two runs of one seed, and a run that was stopped and one
that was not, end with the same bytes. The caller's global generators are left as they were. One
loop runs in a process at a time, or one inside the other.
"""

import contextlib
import functools
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pgmkit import progress
from pgmkit.config import check_count, check_seed
from pgmkit.errors import ParameterError, PgmkitError
from pgmkit.images.source import ImageSource
from pgmkit.learning import ranks
from pgmkit.learning.batches import Batch, Batches
from pgmkit.learning.checkpoints import Checkpoints, Part, synchronise
from pgmkit.learning.clock import Clock, clock_at
from pgmkit.learning.folder import folder_of
from pgmkit.learning.log import LOSSES, MEASUREMENTS, Board, Log
from pgmkit.learning.trial import batch_of_trial, is_trial, try_steps, unlearned
from pgmkit.seeds import derive_seed

_STOP, _SAVE = 2, 1
_BOARD = "tensorboard"
_TOO_LARGE = 1e30


class Task(Protocol):
    """What is trained; the loop knows nothing else of it. See `Measures` and `Exports`."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """All that a step changes and a later one needs, by name; it makes up a checkpoint.

        Parts are modules, optimizers, schedulers, gradient scalers, averages and whatever else has
        `state_dict` and `load_state_dict`; tensors; and dictionaries of numbers and tensors.
        """

    def step(self, batches: Iterator[Batch], clock: Clock) -> Mapping[str, Tensor | float]:
        """Makes one step and returns its losses by name.

        It takes as many batches as it likes. Losses are detached and may stay on their device:
        they are looked at when they are logged.
        """


@runtime_checkable
class Measures(Protocol):
    """A task that is measured on the way."""

    def measure(self, clock: Clock, folder: Path) -> Mapping[str, float]:
        """Returns measurements after `clock.step` steps by name; may write pictures into a folder.

        It changes nothing that is trained, and runs in the coordinator alone.
        """


@runtime_checkable
class Exports(Protocol):
    """A task whose model can be written."""

    def export(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the model as a folder; `record` tells how it was trained.

        It changes nothing that is trained, and runs in the coordinator alone.
        """


def learn(
    task: Task,
    *,
    steps: int,
    seed: int,
    name: str,
    source: ImageSource | None = None,
    batch_size: int = 64,
    identity: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    save_steps: int | None = None,
    save_minutes: float | None = 5.0,
    measure_steps: int | None = None,
    log_steps: int = 50,
    exports: Mapping[Path, int] | None = None,
) -> None:
    """Trains a task.

    In a folder it keeps two generations of checkpoints and `losses.csv`, which has the losses every
    so many steps, and for a task that `Measures` its `measurements.csv` and what it draws. A loop
    that was stopped there continues when it is called again, and ends as one that was not; one that
    is done gives the parts their final state at once. Ctrl-C and SIGTERM stop it after the step
    that is under way, with a checkpoint. Without a folder it keeps nothing and does not measure.

    Under torchrun all processes call it, each with the same arguments; see `pgmkit.learning.ranks`.

    Args:
        task: what is trained, as it is before the first step.
        steps: how many, at least 1.
        seed: of the run.
        name: of the loop, unique in its run: what progress calls it, and where it keeps what it
            has within the folder of `pgmkit.learning.keeping`.
        source: where batches come from; None for a task that takes none.
        batch_size: images of a batch, over all processes.
        identity: plain values that tell what is trained from all else, such as parameters and the
            source's `summary()`. A checkpoint with others is set aside, with a warning.
        folder: where to keep instead of what `name` says.
        save_steps: steps between checkpoints; None for none.
        save_minutes: minutes after which the next step is followed by a checkpoint; None for none.
        measure_steps: steps between measurements; by default a pass over the source. The last
            step is always measured.
        log_steps: steps between rows of losses.
        exports: folders that the model of a task that `Exports` is written to, each with the step
            after which. In a new folder export and measurement are tried before the first step, so
            that they do not fail after the last.

    Raises:
        ParameterError: a number is outside its range.
        DataError: the source has fewer images than a batch.
        LoadError: all checkpoints are damaged, or hold other parts.
        OutputError: the folder cannot be written.
        PgmkitError: a loss is not finite; the last checkpoint was before.
    """
    for what, count in (
        ("steps", steps),
        ("log_steps", log_steps),
        ("save_steps", save_steps or 1),
        ("measure_steps", measure_steps or 1),
    ):
        check_count(what, count)
    check_seed(seed)
    if any(not 1 <= step <= steps for step in (exports or {}).values()):
        raise ParameterError(f"a model is written after steps from 1 to {steps:,}")
    ranks.join()
    own = folder_of(name)
    size = batch_size
    if source is not None and is_trial():
        size = batch_of_trial(batch_size, source.image.shape)
    run = _Run(
        task,
        steps=steps,
        seed=seed,
        batches=None if source is None else Batches(source, size, seed),
        identity={
            **(identity or {}),
            "steps": steps,
            "seed": seed,
            **({} if source is None else {"batch_size": batch_size}),
        },
        folder=None if is_trial() else folder or own,
        save_steps=save_steps,
        save_seconds=None if save_minutes is None else 60 * save_minutes,
        measure_steps=measure_steps,
        log_steps=log_steps,
        exports=exports or {},
    )
    hidden = contextlib.nullcontext() if ranks.is_coordinator() else progress.shown(False)
    with hidden, torch.random.fork_rng(_cuda_devices()), torch.enable_grad(), _repeatable():
        if is_trial():
            with unlearned(task.parts):
                try_steps(run.advance, steps, batch_size / size)
            return
        run.begin()
        with progress.phase(name, steps, initial=run.step) as bar, run.interrupts:
            while run.step < steps:
                run.advance()
                bar.advance()
        run.end()


@dataclass
class _Run:
    """What happens around the steps of one loop; see `learn`."""

    task: Task
    steps: int
    seed: int
    batches: Batches | None
    identity: Mapping[str, Any]
    folder: Path | None
    save_steps: int | None
    save_seconds: float | None
    measure_steps: int | None
    log_steps: int
    exports: Mapping[Path, int]
    step: int = 0
    losses: Mapping[str, Tensor | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.interrupts = _Interrupts(self.folder is not None)
        self.own = () if ranks.is_coordinator() else ("rank", ranks.rank())

    def begin(self) -> None:
        """Takes up the newest checkpoint, or tries what comes at the end."""
        self.started = self.saved = time.monotonic()
        if self.folder is None:
            synchronise(self.task.parts)
            return
        self.checkpoints = Checkpoints(self.folder, self.identity)
        self.step, taken, seconds = ranks.decide(self._take_up)
        synchronise(self.task.parts)
        if self.batches is not None:
            self.batches.taken = taken
        self.started -= seconds
        if self.step == 0:
            ranks.decide(self._try_the_end)
        elif self.step < self.steps:
            progress.tell(f"continues at step {self.step} of {self.steps}")
        self.losses_log = Log(self.folder / LOSSES, self.step)
        self.measured_log = Log(self.folder / MEASUREMENTS, self.step)
        wanted = bool(self.exports) and ranks.is_coordinator()
        self.board = Board(self.folder / _BOARD, self.step) if wanted else None

    def _take_up(self) -> tuple[int, int, float]:
        saved = self.checkpoints.newest()
        if saved is None:
            return 0, 0, 0.0
        saved.give(self.task.parts)
        header = saved.header
        return int(header["step"]), int(header["batches"]), float(header["seconds"])

    def _try_the_end(self) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".trial-") as trial:
            self._measure(Path(trial))
            if self.exports:
                self._export(Path(trial) / "model")

    def advance(self) -> None:
        """Makes one step, and whatever is due after it."""
        epoch = self._epoch
        clock = clock_at(self.seed, self.step, self.steps, epoch)
        _set_seed(derive_seed(clock.seed, *self.own) if self.own else clock.seed)
        batches: Iterator[Batch] = iter(()) if self.batches is None else self.batches
        self.losses = self.task.step(batches, clock)
        self.step += 1
        if self.folder is None:
            if self.step % self.log_steps == 0 or self.step == self.steps:
                self._numbers()
            return
        if self.step % self.log_steps == 0:
            self._log(self.losses_log, self._numbers())
        if self._is_measured(epoch):
            self._tell(ranks.decide(functools.partial(self._measure, self.folder)))
        if self.step < self.steps and self.step in self.exports.values():
            self._numbers()
            ranks.decide(self._export_all)
        wants = ranks.largest(_STOP * bool(self.interrupts.received) + _SAVE * self._is_late())
        due = self.save_steps is not None and self.step % self.save_steps == 0
        if wants or due or self.step == self.steps:
            self._save()
        if wants >= _STOP:
            raise KeyboardInterrupt(*self.interrupts.received[:1])

    def end(self) -> None:
        """Writes the final model, unless it is there."""
        ranks.decide(self._export_all)

    @property
    def _epoch(self) -> int:
        return 0 if self.batches is None else self.batches.epoch

    def _when(self) -> dict[str, int]:
        if self.batches is None:
            return {"step": self.step}
        return {"step": self.step, "epoch": -(-self.batches.taken // self.batches.per_epoch)}

    def _is_late(self) -> bool:
        if self.save_seconds is None:
            return False
        return time.monotonic() - self.saved >= self.save_seconds

    def _is_measured(self, epoch: int) -> bool:
        if self.step == self.steps:
            return True
        if self.measure_steps is not None:
            return self.step % self.measure_steps == 0
        return self._epoch > epoch

    def _measure(self, folder: Path) -> dict[str, float]:
        if not isinstance(self.task, Measures):
            return {}
        clock = clock_at(self.seed, self.step, self.steps, self._epoch, purpose="measure")
        _set_seed(clock.seed)
        return dict(self.task.measure(clock, folder))

    def _tell(self, measured: Mapping[str, float]) -> None:
        """Logs what was measured and says it in a line."""
        if not isinstance(self.task, Measures):
            return
        if measured:
            self._log(self.measured_log, measured)
        numbers = {**self._numbers(), **measured}
        values = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        at = f"step {self.step}/{self.steps}"
        if self.batches is not None and self.measure_steps is None:
            per_step = self.batches.taken / self.step
            epochs = max(round(self.steps * per_step / self.batches.per_epoch), self._epoch)
            at = f"epoch {self._epoch}/{epochs}"
        progress.tell(f"{at}: {values} ({time.monotonic() - self.started:.0f} s)")

    def _log(self, log: Log, numbers: Mapping[str, float]) -> None:
        log.add(self._when(), numbers)
        if self.board is not None:
            self.board.add(self.step, numbers)

    def _numbers(self) -> dict[str, float]:
        """Returns the losses of the last step, averaged over all processes.

        Raises:
            PgmkitError: one is not finite.
        """
        numbers = ranks.average({name: float(value) for name, value in self.losses.items()})
        for name, value in numbers.items():
            if not -_TOO_LARGE < value < _TOO_LARGE:
                kept = "" if self.folder is None else f" in another folder than {self.folder}"
                raise PgmkitError(
                    f"the {name} loss is {value} at step {self.step}; lower the learning rate and "
                    f"start again{kept}"
                )
        return numbers

    def _save(self) -> None:
        """Writes a checkpoint, after it was made sure that the losses are finite."""
        self._numbers()
        ranks.decide(self._write)
        self.saved = time.monotonic()

    def _write(self) -> None:
        # The logs go first: rows that are newer than the checkpoint are dropped on resume.
        self.losses_log.write()
        self.measured_log.write()
        if self.board is not None:
            self.board.write()
        header = {
            "step": self.step,
            "batches": 0 if self.batches is None else self.batches.taken,
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.checkpoints.save(self.task.parts, header)

    def _export(self, folder: Path) -> None:
        if not isinstance(self.task, Exports):
            return
        epochs = {} if self.batches is None else {"epochs": self._epoch}
        seconds = round(time.monotonic() - self.started)
        record = {**self.identity, **epochs, "steps": self.step, "seconds": seconds}
        self.task.export(folder, record)

    def _export_all(self) -> None:
        """Writes the model to the folders that are due, save those that have the final one."""
        for folder, step in self.exports.items():
            if step == self.step and not (step == self.steps and folder.exists()):
                self._export(folder)


class _Interrupts:
    """Holds back the first Ctrl-C or SIGTERM until the step is done; a second one acts at once.

    Attributes:
        received: the numbers of signals that were received.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.received: list[int] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        with contextlib.suppress(ValueError):  # not in the main thread: signals go elsewhere
            for name in (signal.SIGINT, signal.SIGTERM) if self.wanted else ():
                if signal.getsignal(name) not in (signal.SIG_IGN, None):
                    self._previous[name] = signal.signal(name, self._remember)

    def __exit__(self, *_: object) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt(number)
        self.received.append(number)


def _set_seed(seed: int) -> None:
    """Sets the global generators of the CPU and of accelerators that are in use.

    `torch.manual_seed` takes 100 µs to do so, most of it to note where it was called for those
    that are not.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Lets convolutions on CUDA sum in the same order every time."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _cuda_devices() -> list[int]:
    """Returns the CUDA devices whose generators a step may move."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
