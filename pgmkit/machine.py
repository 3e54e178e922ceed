"""A line about the machine that numbers were made on."""

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """Returns processor, cores, accelerator and Python version."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{processor}, {cores} cores{accelerator}, {platform.system()}, "
        f"Python {platform.python_version()}"
    )
