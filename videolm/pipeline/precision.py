"""The number format that a model computes in when nobody chose one."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from videolm.files import read_json, write_json

# A smaller model is not what takes the time; in float32 its vectors are the same on every machine.
_MIN_PARAMETERS = 20_000_000
# bfloat16 has to be this much faster on the CPU; with AVX512-BF16 or AMX it is 3 to 8 times.
_MIN_GAIN = 1.5


def auto_dtype(device: torch.device, *, num_parameters: int) -> torch.dtype:
    """bfloat16 for a large model where `device` is faster with it, else float32.

    A CPU is measured once (0.2 s); the answer is remembered in the user's cache folder, for this processor and
    this torch, so that every later run computes alike.
    """
    if num_parameters < _MIN_PARAMETERS:
        return torch.float32
    if device.type == "cuda":
        is_faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_faster = device.type == "cpu" and _remembered_gain() > _MIN_GAIN
    return torch.bfloat16 if is_faster else torch.float32


def _remembered_gain() -> float:
    path = _cache_folder() / "bfloat16_gain.json"
    machine = f"{_processor()}, torch {torch.__version__}"
    known = _read_gains(path)
    if machine in known:
        return known[machine]
    gain = round(bfloat16_gain(), 2)
    # what another program has written meanwhile counts, so that both compute alike
    known = {machine: gain} | _read_gains(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    except OSError:
        # a home that cannot be written to: measured again next time
        pass
    return known[machine]


def _read_gains(path: Path) -> dict[str, float]:
    try:
        return {machine: float(gain) for machine, gain in read_json(path).items()}
    # nothing is lost with a cache: a missing, damaged or foreign file is measured again
    except (OSError, ValueError, TypeError):
        return {}


def bfloat16_gain() -> float:
    """Time of a product of a ViT-B's size in float32 over that in bfloat16, on this CPU."""
    seconds = {dtype: _seconds_of_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _seconds_of_product(dtype: torch.dtype) -> float:
    tokens, weight = torch.ones(600, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            F.linear(tokens, weight)
            best = min(best, time.perf_counter() - started)
    return best


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videolm"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
