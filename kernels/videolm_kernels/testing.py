"""How close is close enough: shared by tests and benchmarks."""

import torch
from torch import Tensor


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative_error of an operation that computes in `dtype`, for inputs of unit variance.

    In 16 bits the few roundings between input and output (scaled query, score, weight, result), each of at
    most eps / 2, stand alone, since sums are kept in float32. In float32 and float64 the sums round as well.
    """
    eps = torch.finfo(dtype).eps
    return eps if dtype in (torch.float16, torch.bfloat16) else 4 * eps


def fused_tolerance(dtype: torch.dtype, eager_error: float) -> float:
    """Largest relative_error of a kernel where plain torch in the same dtype has `eager_error`.

    Twice that, and one rounding of the result, which torch may be spared by luck and the kernel not. (Triton's
    interpreter cuts float32 off to bfloat16 where a GPU rounds, about twice the error of one rounding.)
    """
    return 2 * eager_error + torch.finfo(dtype).eps / 2


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Root mean square of the error over that of the truth, in float64; the shapes must be equal."""
    if actual.shape != truth.shape:
        raise ValueError(f"actual is {tuple(actual.shape)} but truth is {tuple(truth.shape)}")
    truth = truth.detach().double()
    error, size = float((actual.detach().double() - truth).norm()), float(truth.norm())
    return error / size if size else error
