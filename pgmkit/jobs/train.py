"""The run behind `pgmkit train`."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pgmkit import contracts, files, runs
from pgmkit.config import in_toml, make_settings
from pgmkit.errors import UnknownNameError
from pgmkit.images import check_source
from pgmkit.images.rows import Images
from pgmkit.learning import learn, ranks
from pgmkit.learning.batches import Batches
from pgmkit.learning.log import MEASUREMENTS, Log
from pgmkit.learning.trial import trying
from pgmkit.machine import check_device, machine
from pgmkit.partition import FittedPartitioner, fit_partitioner, load_partitioner
from pgmkit.train.gan import GANTask
from pgmkit.train.settings import SNAPSHOTS, TrainSettings
from pgmkit.train.tasks import TASKS, TrainTask

if TYPE_CHECKING:
    from pgmkit.jobs.partition import Job as PartitionJob

PARTITIONER = "partitioner"
"""Folder of a run in which the partitioner lies that a GAN is conditioned on."""
REPORT = "report.html"
_NOT_ON_RECORD = ("device", "save_steps", "save_minutes")
"""Settings that may change when a run continues."""


@dataclass(frozen=True)
class Job:
    """A training whose settings have been checked, with its images and what is trained."""

    settings: TrainSettings
    source: Images
    task: TrainTask

    @property
    def models(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {n: part for n, part in self.task.parts.items() if isinstance(part, nn.Module)}

    @property
    def sizes(self) -> dict[str, int]:
        """How many parameters each network has."""
        return {n: sum(p.numel() for p in m.parameters()) for n, m in self.models.items()}

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
        task = self.task
        parts = 0.0
        if isinstance(task, GANTask) and task.settings.recluster_steps:
            task.condition_by_itself(self.source)
        elif isinstance(task, GANTask) and task.partitioner is not None:
            parts = self._parts().estimate()
            with trying():
                task.condition(self._few_parts(task), self.source)
        with trying() as loops:
            self._learn()
        return loops.whole + parts

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
            self._condition(out / PARTITIONER)
            self._learn(
                identity=resolved,
                folder=out,
                save_steps=settings.save_steps,
                save_minutes=settings.save_minutes,
                measure_steps=settings.measure_steps,
                exports={**exports, model: self.steps},
            )
            ranks.decide(lambda: self._report(out))
        return model if ranks.is_coordinator() else None

    def _report(self, out: Path) -> None:
        """Writes report.html, unless a run that was complete before left it."""
        if (out / REPORT).exists():
            return
        settings = self.settings
        facts = {
            "task": settings.task,
            "steps": f"{self.steps:,}",
            "images": f"{self.source.name}, {len(self.source):,} of {self.source.image}",
            "batch size": f"{settings.batch_size:,}",
            "model": in_toml(dict(settings.model)),
            "optimizer": in_toml(dict(settings.optimizer)),
            "parameters": ", ".join(f"{n} {count:,}" for n, count in self.sizes.items()),
            **self._last_measured(out),
            "seed": str(settings.seed),
            "device": str(self.task.device),
            "machine": machine(),
        }
        from pgmkit.evaluate.report import write_training_report

        parts = out / PARTITIONER
        write_training_report(out, facts, parts if parts.exists() else None)

    def _last_measured(self, out: Path) -> dict[str, str]:
        log = Log(out / MEASUREMENTS, self.steps)
        return {k: v for k, v in (log.rows[-1] if log.rows else {}).items() if k != "step" and v}

    def _condition(self, folder: Path) -> None:
        """Fits the partitioner of a conditional GAN, or reads it where it was fitted before."""
        task = self.task
        if isinstance(task, GANTask) and task.settings.recluster_steps:
            task.condition_by_itself(self.source)
        elif isinstance(task, GANTask) and task.partitioner is not None:
            ranks.decide(lambda: self._parts().run_within(folder))
            task.condition(load_partitioner(folder), self.source)

    def _parts(self) -> "PartitionJob":
        """Returns the fit of a partitioner to the training images, as a run of its own."""
        from pgmkit.jobs import partition

        settings = self.settings
        assert isinstance(self.task, GANTask)
        model = self.task.settings
        assert model.partitioner is not None
        return partition.Job(
            partition.PartitionSettings(
                data=settings.data,
                partitioner=model.partitioner,
                partitions=model.partitions,
                size=settings.image_size,
                seed=settings.seed,
                device=str(self.task.device),
            )
        )

    def _few_parts(self, task: GANTask) -> FittedPartitioner:
        """Returns the partitioner fitted to few images, for a trial."""
        least = contracts.least_images_of(task.partitioner)
        few = torch.arange(min(max(8 * task.partitioner.num_partitions, least), len(self.source)))
        return fit_partitioner(task.partitioner, self.source.subset(few), seed=self.settings.seed)

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
