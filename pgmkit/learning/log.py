"""Numbers of a run as CSV."""

import csv
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgmkit import files

LOSSES, MEASUREMENTS = "losses.csv", "measurements.csv"
"""What a loop logs in its folder."""


class Log:
    """Rows of numbers by step; those later than the step that a run continues from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    def add(self, row: Mapping[str, int], numbers: Mapping[str, float]) -> None:
        """Adds a row: what says when, and the numbers with six digits."""
        self.rows.append({**row, **{name: f"{value:.6g}" for name, value in numbers.items()}})

    def write(self) -> None:
        """Writes the file, if there are rows."""
        if self.rows:
            buffer = io.StringIO()
            names = dict.fromkeys(name for row in self.rows for name in row)
            writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            files.write_text(self.path, buffer.getvalue())


class Board:
    """The same numbers for TensorBoard, where it is installed; without it nothing happens.

    Args:
        folder: of its files.
        step: that the run continues from; what is later is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def write(self) -> None:
        """Writes what was added."""
        if self._writer is not None:
            self._writer.flush()
