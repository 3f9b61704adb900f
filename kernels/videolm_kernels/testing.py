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


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative_error of an operation that computes in `dtype`, for inputs of unit variance.

    In 16 bits the few roundings between input and output (scaled query, score, weight, result), each of at
    most eps / 2, stand alone, since sums are kept in float32. In float32 and float64 the sums round as well.
    """
    eps = torch.finfo(dtype).eps
    return eps if dtype in (torch.float16, torch.bfloat16) else 4 * eps


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Root mean square of the error over that of the truth, in float64; the shapes must be equal."""
    if actual.shape != truth.shape:
        raise ValueError(f"actual is {tuple(actual.shape)} but truth is {tuple(truth.shape)}")
    truth = truth.detach().double()
    error, size = float((actual.detach().double() - truth).norm()), float(truth.norm())
    return error / size if size else error
