"""Numbers of a run as CSV."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgmkit import files


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
