"""What a task costs the process that starts it: memory at its peak, descriptors and processes left behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Toll:
    """Filled when the context ends."""

    peak_bytes: int = 0
    """Of resident memory, above what there was at the start."""
    num_descriptors: int = 0
    """Open at the end and not at the start."""
    num_processes: int = 0
    """Children, and theirs, at the end and not at the start."""


@contextlib.contextmanager
def pay_toll() -> Iterator[Toll]:
    """Count from here to the end of the context (Linux)."""
    # makes the peak of resident memory start again
    Path("/proc/self/clear_refs").write_text("5")
    resident, descriptors, processes = _status("VmRSS"), _num_descriptors(), _num_descendants(os.getpid())
    toll = Toll()
    yield toll
    toll.peak_bytes = _status("VmHWM") - resident
    toll.num_descriptors = _num_descriptors() - descriptors
    toll.num_processes = _num_descendants(os.getpid()) - processes


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _num_descendants(process: int) -> int:
    """A zombie counts too."""
    children: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text().split())
    return len(children) + sum(_num_descendants(child) for child in children)
