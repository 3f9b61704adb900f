"""The one place that answers "triton, eager or reference?" and says why."""

from dataclasses import dataclass
from typing import Literal

import torch

Backend = Literal["auto", "triton", "eager", "reference"]

# Operations that have a Triton kernel in this version.
TRITON_OPS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """Which implementation of an operation runs, and the reason in words."""

    backend: Literal["triton", "eager", "reference"]
    reason: str


def choose_backend(op: str, *, backend: Backend, device: torch.device) -> Choice:
    """Implementation of `op` that runs for tensors on `device`.

    "auto" takes Triton where `op` has a kernel and the device can run it, and eager everywhere else. "triton"
    never falls back: where it cannot run, RuntimeError says why.
    """
    if backend == "eager" or backend == "reference":
        return Choice(backend, "asked for")
    if backend not in ("auto", "triton"):
        raise ValueError(f"backend ({backend!r}) must be one of 'auto', 'triton', 'eager', 'reference'")
    obstacle = _why_not_triton(op, device)
    if backend == "auto":
        return Choice("eager", obstacle) if obstacle else Choice("triton", f"{op} has a kernel for cuda")
    if obstacle:
        raise RuntimeError(f"backend='triton' cannot run: {obstacle}; use backend='auto' or 'eager'")
    return Choice("triton", "asked for")


def _why_not_triton(op: str, device: torch.device) -> str:
    """The first thing that stands in the way of Triton, empty where nothing does."""
    if op not in TRITON_OPS:
        return f"{op} has no Triton kernel in this version"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and Triton kernels need cuda"
    return ""
