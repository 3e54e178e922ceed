"""A training config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgmkit.config import check_count, check_seed
from pgmkit.errors import ParameterError

SNAPSHOTS = "snapshots"
"""Folder of a run in which models of earlier steps lie."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A whole training config, as in `examples/mnist-dcgan.toml`.

    Args:
        task: what is trained; a name in `pgmkit.train.tasks.TASKS`.
        data: the images; see `pgmkit.images.load_images`.
        batch_size: images per batch, at least 2.
        epochs: passes over the data, at least 1; or else `steps`.
        steps: how often the model is changed, for a GAN its generator; or else `epochs`.
        seed: of everything random.
        device: "cpu", "cuda:1", ...; "auto" is CUDA, then MPS, then the CPU.
        snapshots: epochs after which the model is exported too, or steps where `steps` are given.
        measure_steps: steps between measurements and pictures; an epoch if left out.
        save_steps: steps between checkpoints; None for none.
        save_minutes: minutes between checkpoints; None for none.
        test_fraction: share of the images, in (0, 1), that a classifier is tested on and not
            trained on; None where the data have a test split of their own.
        image_size: side to which images are padded or resized; None leaves them.
        model: settings of the task.
        optimizer: `learning_rate`, `betas` and `end_learning_rate` of Adam.
        card: what the model card says beside the recipe: title, data, data_license, license, paper.
    """

    task: str
    data: str
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    snapshots: Sequence[int] = ()
    measure_steps: int | None = None
    save_steps: int | None = None
    save_minutes: float | None = 5.0
    test_fraction: float | None = None
    image_size: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ParameterError if a setting is outside its range, as far as can be told here."""
        if (self.epochs is None) == (self.steps is None):
            raise ParameterError("the length of training is either epochs or steps; give one")
        if (self.epochs or self.steps or 0) < 1 or self.batch_size < 2:
            raise ParameterError(
                f"{self.unit}s must be at least 1 and batch_size at least 2, not "
                f"{self.length} and {self.batch_size}"
            )
        if not all(isinstance(at, int) and 1 <= at <= self.length for at in self.snapshots):
            raise ParameterError(
                f"snapshots must be {self.unit}s from 1 to {self.length}, not "
                f"{list(self.snapshots)}"
            )
        for name in ("measure_steps", "save_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_seed(self.seed)
        if not (self.save_minutes or 0) >= 0:
            raise ParameterError(f"save_minutes must be at least 0, not {self.save_minutes}")

    @property
    def unit(self) -> str:
        """What the length is counted in: "epoch" or "step"."""
        return "step" if self.epochs is None else "epoch"

    @property
    def length(self) -> int:
        """How many epochs, or steps, there are."""
        return self.epochs or self.steps or 0
