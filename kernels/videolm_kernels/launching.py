"""How a Triton kernel is started: one function, so that a test can see exactly what would run on a GPU."""

import os
from typing import Any

import torch

# Triton decides the same way, once, when a kernel is defined.
IS_INTERPRETING = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any
) -> None:
    """Run `kernel` on `grid` programs: tensors and numbers in order, then its constexprs by name.

    Always called as `launching.launch`: the check that compiles ahead of time puts a recorder in its place and
    gets the very argument types and constants that a launch would have, from tensors without memory.
    """
    if 0 in grid:
        return
    # Triton starts on the current device, which need not be the one that the tensors are on.
    tensor = next(arg for arg in args if isinstance(arg, torch.Tensor))
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)


def needs_upcast(dtype: torch.dtype) -> bool:
    """Whether a kernel has to compute on float32 copies: Triton's interpreter gets bfloat16 arithmetic wrong."""
    return IS_INTERPRETING and dtype == torch.bfloat16


def with_unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only where its last dimension is not contiguous; kernels take every other stride."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()
