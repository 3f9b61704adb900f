"""What the kernels of frame attention share: loads and stores of a tile, and how large a tile is."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching

LOG2_E = 1.4426950408889634


@triton.jit
def _is_inside(rows, columns, num_rows, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    mask = (rows < num_rows)[:, None]
    if WIDTH != HEAD_DIM:
        mask = mask & (columns < HEAD_DIM)[None, :]
    return mask


@triton.jit
def load_rows(
    base, rows, stride, num_rows, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr, UPCAST: tl.constexpr
):
    """Rows of one head, zero outside."""
    columns = tl.arange(0, WIDTH)
    mask = _is_inside(rows, columns, num_rows, WIDTH, HEAD_DIM)
    tile = tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def store_rows(base, rows, stride, num_rows, tile, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    mask = _is_inside(rows, columns, num_rows, WIDTH, HEAD_DIM)
    tl.store(base + rows[:, None] * stride + columns[None, :], tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_bias(log2_sizes, frame, keys, num_tokens):
    """What each key adds to its scores, in base 2: -inf where there is no key."""
    bias = tl.where(keys < num_tokens, 0.0, float("-inf"))
    if log2_sizes is not None:
        sizes = log2_sizes + frame * num_tokens + keys
        bias = tl.load(sizes, mask=keys < num_tokens, other=float("-inf")).to(tl.float32)
    return bias


@dataclass(frozen=True)
class Tile:
    """Rows that a program has at hand at once, and its warps."""

    queries: int
    keys: int
    num_warps: int


# Chosen by the machine code for sm_80 and sm_90 (tests/aot), not by a clock: nothing spills, and at head widths up
# to 64 the registers leave room for three programs of four warps on a multiprocessor of sm_90. A longer queue of
# loads (num_stages=3) costs 26 registers of a thread in the forward pass, and with them the third program.
NUM_STAGES = 2


def query_tile(num_tokens: int, dtype: torch.dtype) -> Tile:
    """For the kernels that walk over the keys, with one tile of queries each."""
    if dtype == torch.float32:  # no tensor cores: larger products unroll into more than there are registers
        return Tile(16, 16, num_warps=8)
    return Tile(32, 32, num_warps=4) if num_tokens <= 32 else Tile(64, 64, num_warps=4)


def key_tile(num_tokens: int, width: int, dtype: torch.dtype) -> Tile:
    """For the kernel that walks over the queries, with one tile of keys each and two sums instead of one."""
    if dtype == torch.float32 or num_tokens <= 32:
        return query_tile(num_tokens, dtype)
    if width > 64:
        return Tile(32 if num_tokens <= 64 else 64, 64, num_warps=8)
    # 128 keys in one tile: 5 products of matrices and 7 passes over memory, where two kernels take 7 and 12.
    return Tile(32, 128, num_warps=8) if 64 < num_tokens <= 128 else Tile(32, 64, num_warps=4)


def padded(head_dim: int) -> int:
    """Columns of a tile: a power of two, and no fewer than tensor cores multiply at once."""
    return max(16, 1 << (head_dim - 1).bit_length())


def addressable(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous or a frame spans 2^31 numbers or more."""
    tensor = launching.with_unit_stride(tensor)
    # Kernels count the numbers within a frame in 32 bits.
    return tensor if tensor.stride(1) * tensor.shape[1] < 2**31 else tensor.contiguous()
