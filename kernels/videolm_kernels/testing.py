"""How close is close enough, and on which shapes: shared by tests and benchmarks."""

import torch
from torch import Tensor

# (B, T, N, H, Dh): one of everything, primes, T around powers of two, CLIP's own, the heads of a small model.
ODD_SHAPES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 1, 1, 1, 1),
    (2, 1, 5, 3, 8),
    (3, 2, 1, 1, 16),
    (2, 7, 5, 2, 24),
    (1, 8, 17, 4, 48),
    (2, 12, 7, 1, 64),
    (1, 13, 3, 5, 33),
    (1, 33, 2, 2, 8),
)

# The same for kernels, which know four head widths: full and partial tiles, T at, below and above a tile's rows.
KERNEL_SHAPES: tuple[tuple[int, int, int, int, int], ...] = (
    (2, 1, 67, 1, 16),
    (3, 2, 1, 2, 16),
    (1, 7, 13, 2, 32),
    (2, 8, 17, 1, 16),
    (2, 12, 7, 2, 64),
    (1, 13, 5, 1, 128),
    (2, 16, 5, 1, 32),
    (1, 20, 7, 2, 16),
    (1, 32, 3, 1, 128),
    (1, 33, 3, 1, 64),
    (1, 64, 1, 2, 16),
)


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
