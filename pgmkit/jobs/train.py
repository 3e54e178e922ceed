"""The run behind `pgmkit train`."""

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pgmkit import files, runs
from pgmkit.config import in_toml, make_settings
from pgmkit.errors import UnknownNameError
from pgmkit.images import check_source
from pgmkit.images.rows import Images
from pgmkit.learning import learn, ranks
from pgmkit.learning.batches import Batches
from pgmkit.learning.log import MEASUREMENTS, Log
from pgmkit.learning.memory import Activations, lasting_memory
from pgmkit.learning.trial import batch_of_trial, trying
from pgmkit.machine import check_device, machine
from pgmkit.partition import fit_partitioner, load_partitioner
from pgmkit.partition.fixed import FixedPartitioner
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
class Estimate:
    """What a training would take.

    Args:
        seconds: of all of it.
        memory: bytes by what they are for, and in "total", of one process.
        batch_size: of the trial, over all processes. Where it is smaller than that of the settings,
            seconds are larger in proportion.
    """

    seconds: float
    memory: Mapping[str, int]
    batch_size: int


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

    @property
    def shapes(self) -> dict[str, Any]:
        """What images are like, and what a GAN makes them of."""
        told: dict[str, Any] = {"image": list(self.source.image.shape)}
        if isinstance(self.task, GANTask):
            told["latent"] = [self.task.settings.latent.dim]
            told["partitions"] = self.task.num_partitions
        return told

    def resolved(self) -> dict[str, Any]:
        """Returns the settings as plain values, with what tells the data from other data."""
        plain = {k: v for k, v in asdict(self.settings).items() if k not in _NOT_ON_RECORD}
        return {**plain, "data": self.source.summary()}

    def estimate(self) -> Estimate:
        """Makes a few steps, and tells what all would take; it uses up the task.

        A step is tried with one batch for each turn, and with fewer images in it where they are
        large; see `pgmkit.learning.trial.batch_of_trial`. What autograd keeps of a batch is counted
        at two sizes, from which a straight line leads to the whole batch.
        """
        task, source = self.task, self.source
        batches, seconds = 1, 0.0
        if isinstance(task, GANTask):
            batches, task.accumulate = task.accumulate, 1
            if task.partitioner is not None:
                seconds, source = self._condition_on_few(task)
        whole = self.settings.batch_size
        few = batch_of_trial(whole, source.image.shape)
        with trying() as loops:
            self._learn(source=source)
        if isinstance(task, GANTask):
            task.graphs.stop()  # which nothing that counts can look into
        kept: float = self._activations(source, few)
        if few < whole:
            least = 2 * ranks.world_size()
            other = few - least if few > least else least // 2
            kept += (kept - self._activations(source, other)) / (few - other) * (whole - few)
        memory = lasting_memory(task.parts)
        memory["activations"] = round(kept)
        return Estimate(
            seconds + batches * loops.whole, {**memory, "total": sum(memory.values())}, few
        )

    def _activations(self, source: Images, batch_size: int) -> int:
        """Returns the most bytes that autograd keeps in steps with batches of a size."""
        with trying(), Activations(self.models.values()) as activations:
            self._learn(source=source, batch_size=batch_size)
        return activations.most

    def _condition_on_few(self, task: GANTask) -> tuple[float, Images]:
        """Gives a GAN the parts of few images.

        Returns:
            About how many seconds those of all would take, and the few images.
        """
        from pgmkit.jobs import partition

        settings, source = self.settings, self.source
        batch = batch_of_trial(settings.batch_size, source.image.shape)
        is_fitted = isinstance(task.partitioner, FixedPartitioner)
        few = 1 if is_fitted else partition.few_images(task.partitioner)
        count = min(max(few, batch + 2 * ranks.world_size()), len(source))
        some = source.subset(torch.arange(count) * len(source) // count)
        if task.settings.recluster_steps:
            task.condition_by_itself(some)
            return 0.0, some
        with trying(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            task.condition(fit_partitioner(task.partitioner, some, seed=settings.seed), some)
        return self._parts().estimate(), some

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
            source = self.source.kept_on(self.task.device)
            self._condition(out / PARTITIONER, source)
            self._learn(
                source=source,
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
            "seed": str(settings.seed),
            "device": str(self.task.device),
            "machine": machine(),
        }
        lead = (
            f"{settings.model.get('backbone', settings.task)}, trained on {len(self.source):,} of "
            f"{self.source.image} in {self.steps:,} steps; the model is in the folder model."
        )
        from pgmkit.evaluate.training_report import write_training_report

        parts = out / PARTITIONER
        measured = self._last_measured(out)
        write_training_report(out, lead, facts, measured, parts if parts.exists() else None)

    def _last_measured(self, out: Path) -> dict[str, str]:
        log = Log(out / MEASUREMENTS, self.steps)
        return {k: v for k, v in (log.rows[-1] if log.rows else {}).items() if k != "step" and v}

    def _condition(self, folder: Path, source: Images) -> None:
        """Fits the partitioner of a conditional GAN, or reads it where it was fitted before."""
        task = self.task
        if isinstance(task, GANTask) and task.settings.recluster_steps:
            task.condition_by_itself(source)
        elif isinstance(task, GANTask) and task.partitioner is not None:
            ranks.decide(lambda: self._parts().run_within(folder))
            task.condition(load_partitioner(folder), source)

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

    def _learn(self, **more: Any) -> None:
        settings = self.settings
        given = {"source": self.source, "batch_size": settings.batch_size, **more}
        learn(self.task, steps=self.steps, seed=settings.seed, name="training", **given)

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
