"""The run behind `pgmkit train`."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pgmkit import files, runs
from pgmkit.config import make_settings
from pgmkit.errors import UnknownNameError
from pgmkit.images import check_source
from pgmkit.images.source import ImageSource
from pgmkit.learning import learn, ranks
from pgmkit.learning.batches import Batches
from pgmkit.learning.trial import trying
from pgmkit.machine import check_device
from pgmkit.train.settings import SNAPSHOTS, TrainSettings
from pgmkit.train.tasks import TASKS, TrainTask

_NOT_ON_RECORD = ("device", "save_steps", "save_minutes")
"""Settings that may change when a run continues."""


@dataclass(frozen=True)
class Job:
    """A training whose settings have been checked, with its images and what is trained."""

    settings: TrainSettings
    source: ImageSource
    task: TrainTask

    @property
    def models(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {n: part for n, part in self.task.parts.items() if isinstance(part, nn.Module)}

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return self._step_after(self.settings.length)

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, with what tells the data from other data."""
        plain = {k: v for k, v in asdict(self.settings).items() if k not in _NOT_ON_RECORD}
        return {**plain, "data": self.source.summary()}

    def estimate(self) -> float:
        """Returns about how many seconds the steps would take, by making the first of them.

        It uses up the task.
        """
        with trying() as loops:
            self._learn()
        return loops.whole

    def run(self, out: Path) -> Path | None:
        """Trains in a folder, continues there, or finds that all is done.

        Args:
            out: the folder: the model goes to `model`, and beside it are kept checkpoints, losses,
                measurements, and pictures.

        Returns:
            The folder of the exported model; None where another process of torchrun is to tell.

        Raises:
            OutputError: `out` is in use, or holds something else or a run with other settings.
            PgmkitError: a loss is not finite.
        """
        settings, resolved, model = self.settings, self.resolved(), out / "model"

        def take() -> None:
            runs.check_folder(out)
            held.enter_context(files.single_writer(out))
            runs.record(out, resolved, device="" if model.exists() else str(self.task.device))

        exports = {
            out / SNAPSHOTS / f"{settings.unit}-{at:03d}": self._step_after(at)
            for at in settings.snapshots
        }
        with contextlib.ExitStack() as held:
            ranks.decide(take)
            self._learn(
                identity=resolved,
                folder=out,
                save_steps=settings.save_steps,
                save_minutes=settings.save_minutes,
                measure_steps=settings.measure_steps,
                exports={**exports, model: self.steps},
            )
        return model if ranks.is_coordinator() else None

    def _learn(self, **more: Any) -> None:
        settings = self.settings
        learn(
            self.task,
            steps=self.steps,
            seed=settings.seed,
            name="training",
            source=self.source,
            batch_size=settings.batch_size,
            **more,
        )

    def _step_after(self, length: int) -> int:
        """Returns after which step so many epochs, or steps, are over."""
        if self.settings.epochs is None:
            return length
        batches = length * (len(self.source) // self.settings.batch_size)
        return -(-batches // self.task.batches_per_step)


def prepare(values: Mapping[str, Any]) -> Job:
    """Checks all settings (`TrainSettings`), reads the images, builds networks; writes nothing.

    Raises:
        ParameterError: a setting is unknown or outside its range.
        DataError: the data cannot be read, or are fewer than one batch.
    """
    settings = make_settings(TrainSettings, values, "the training config")
    settings.check()
    if settings.task not in TASKS:
        raise UnknownNameError("training task", settings.task, list(TASKS))
    check_source(settings.data)
    ranks.join()  # each process on its own device, before anything lies on one
    source, task = TASKS[settings.task](settings, check_device(settings.device))
    Batches(source, settings.batch_size, settings.seed)  # which says if they are too few
    return Job(settings, source, task)
