"""The one place that answers "triton, eager or reference?" and says why."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from videolm_kernels.launching import IS_INTERPRETING

Backend = Literal["auto", "triton", "eager", "reference"]

_HAS_TRITON = find_spec("triton") is not None


@dataclass(frozen=True)
class Choice:
    """Which implementation of an operation runs, and the reason in words."""

    backend: Literal["triton", "eager", "reference"]
    reason: str


def choose_backend(
    op: str, *, backend: Backend, device: torch.device, cannot: str = "", slower: str = ""
) -> Choice:
    """Implementation of `op` that runs for tensors on `device`.

    `cannot` is what stands in the way of the kernel for this very call, `slower` why it runs but should not;
    each empty where there is nothing to say. "auto" takes Triton on a CUDA device where neither speaks against
    it, and eager everywhere else. "triton" never falls back: where it cannot run, RuntimeError says why. In a
    process started with TRITON_INTERPRET=1 "triton" runs on the CPU too, in Triton's interpreter.
    """
    if backend == "eager" or backend == "reference":
        return Choice(backend, "asked for")
    if backend not in ("auto", "triton"):
        raise ValueError(f"backend ({backend!r}) must be one of 'auto', 'triton', 'eager', 'reference'")
    obstacle = cannot or _why_not_triton(device)
    if backend == "auto":
        if not obstacle and not slower and device.type == "cuda":
            return Choice("triton", f"{op} has a kernel for cuda")
        return Choice("eager", obstacle or slower or "an interpreted kernel is only for tests")
    if obstacle:
        raise RuntimeError(f"backend='triton' cannot run {op}: {obstacle}; use backend='auto' or 'eager'")
    return Choice("triton", "asked for")


def _why_not_triton(device: torch.device) -> str:
    """The first thing that stands in the way of any kernel, empty where nothing does."""
    if not _HAS_TRITON:
        return "triton is not installed"
    if device.type != "cuda" and not IS_INTERPRETING:
        return f"the tensors are on {device.type}, and Triton kernels need cuda"
    if device.type == "cuda" and _is_old(device):
        return "a kernel needs compute capability 8.0 or newer"
    return ""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_old(device: torch.device) -> bool:
    """Whether this is a GPU from before bfloat16 in tensor cores."""
    return _compute_capability(device) < (8, 0)


@cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    # Fake tensors stand on a device that need not be there; what runs on none needs no refusal.
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (8, 0)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Inside it an operation computes in the dtypes that it says, also where autocast would take 16 bits."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
