"""What the benchmarks of this folder share: times, memory, rates of the device, rows with their origin."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call on a CPU; on a GPU the median of many, each with a cold cache."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=5, rep=20, return_mode="median"))
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def measure_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes a second of a large copy (read + written) and FLOP a second of a large matrix product, the best of many."""
    is_gpu = device.type == "cuda"
    source = torch.empty(2**29 if is_gpu else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if is_gpu else 2048
    left, right = torch.randn(2, side, side, device=device).to(dtype)

    def best_seconds(call: Callable[[], Any]) -> float:
        times = [milliseconds(call, device)]
        # A product in float16 takes half a minute on some CPUs.
        while len(times) < 11 and sum(times) < 5000:
            times.append(milliseconds(call, device))
        return min(times) / 1000

    bytes_per_second = 2 * source.nbytes / best_seconds(lambda: target.copy_(source))
    return bytes_per_second, 2 * side**3 / best_seconds(lambda: left @ right)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """What a call allocates at its peak, its result included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results = profiler.profiler.kineto_results if profiler.profiler else None
    events = [event for event in results.events() if event.name() == "[memory]"] if results else []
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def append(path: Path, rows: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Add the rows with device, versions, commit and date."""
    where = {
        "device": device_name(device),
        "threads": "" if device.type == "cuda" else torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    add_rows(path, [row | where for row in rows])


def add_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add to a CSV file, which gets a header where it is new."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """Short hash of the tree that was measured, with a plus where it had changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
