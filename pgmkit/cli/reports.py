"""The report that `pgmkit shatter` leaves beside a result, as other commands read it."""

from collections.abc import Sequence
from typing import Any

from pgmkit import files
from pgmkit.errors import LoadError
from pgmkit.loading.folders import ModelFolder

_REPORT = "report.json"


def report_beside(folder: ModelFolder, cluster_sizes: Sequence[int]) -> dict[str, Any] | None:
    """Returns the report that lies beside a result, if it is one of the same clusters."""
    path = folder.fetch(_REPORT)
    if path is None:
        return None
    try:
        numbers = files.read_json(path, folder.reference)
        same = [cluster["size"] for cluster in numbers["clusters"]] == list(cluster_sizes)
    except (LoadError, KeyError, TypeError):
        return None
    return numbers if same else None


def class_of(cluster: dict[str, Any]) -> str | None:
    """Returns the class that a classifier finds the most often in a cluster of a report."""
    return cluster.get("mostly") or None
