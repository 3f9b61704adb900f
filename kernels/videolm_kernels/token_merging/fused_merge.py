"""Triton kernels of merging, and what starts them."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching


@triton.jit
def _load_share(sizes, weights, index, mask, HAS_SIZES: tl.constexpr, HAS_WEIGHTS: tl.constexpr):
    """Size of some tokens and what they weigh in their group, 0 where the mask is."""
    size = tl.load(sizes + index, mask=mask, other=0.0) if HAS_SIZES else mask.to(tl.float32)
    share = size * tl.load(weights + index, mask=mask, other=0.0) if HAS_WEIGHTS else size
    return size, share


@triton.jit
def _coefficient(share, total, if_zero):
    """share / total, exactly 1 for all of the total; `if_zero` where the total is 0."""
    is_zero = total == 0
    return tl.where(is_zero, if_zero, tl.where(share == total, 1.0, share / tl.where(is_zero, 1.0, total)))


@triton.jit
def _load_rows(
    tokens, residual, token, exists, column, stride, residual_stride,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Some columns of some rows of tokens + residual, in float32."""
    mask = exists[:, None]
    if WIDTH % BLOCK_D != 0:
        mask = mask & (column < WIDTH)[None, :]
    row = token.to(tl.int64)[:, None]
    rows = tl.load(tokens + row * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        rows += tl.load(residual + row * residual_stride + column[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    return rows


@triton.jit
def merge_fwd_kernel(
    tokens, residual, sizes, weights, src_idx, dst_idx, keep_idx, merged, new_sizes, totals,
    num_tokens, num_merged, stride_b, stride_n, residual_stride_b, residual_stride_n,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_SIZES: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the output of one sequence: each gathers the token that remains, then those that join it."""
    num_kept = num_tokens - num_merged
    num_tiles = tl.cdiv(num_kept, ROWS)
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    row = (tl.program_id(0) % num_tiles) * ROWS + tl.arange(0, ROWS)
    exists = row < num_kept
    tokens += batch * stride_b
    residual += batch * residual_stride_b
    sizes += batch * num_tokens
    weights += batch * num_tokens
    src_idx += batch * num_merged
    dst_idx += batch * num_merged

    kept = tl.load(keep_idx + batch * num_kept + row, mask=exists, other=-1)
    # dst_idx ascends: the sources of a row are one stretch of src_idx.
    start = tl.zeros((ROWS,), dtype=tl.int32)
    count = tl.zeros((ROWS,), dtype=tl.int32)
    for first in range(0, num_merged, BLOCK_R):
        source = first + tl.arange(0, BLOCK_R)
        dst = tl.load(dst_idx + source, mask=source < num_merged, other=num_tokens)
        start += tl.sum((dst[None, :] < kept[:, None]).to(tl.int32), 1)
        count += tl.sum((dst[None, :] == kept[:, None]).to(tl.int32), 1)
    most = tl.max(count, 0)

    new_size, kept_share = _load_share(sizes, weights, kept, exists, HAS_SIZES, HAS_WEIGHTS)
    total = kept_share
    for i in range(most):
        src = tl.load(src_idx + (start + i), mask=i < count, other=0)
        size, share = _load_share(sizes, weights, src, i < count, HAS_SIZES, HAS_WEIGHTS)
        new_size += size
        total += share
    tl.store(new_sizes + batch * num_kept + row, new_size, mask=exists)
    tl.store(totals + batch * num_kept + row, total, mask=exists)

    for first in range(0, WIDTH, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mean = _load_rows(
            tokens, residual, kept, exists, column, stride_n, residual_stride_n, WIDTH, BLOCK_D, HAS_RESIDUAL
        )
        mean *= _coefficient(kept_share, total, 1.0)[:, None]
        for i in range(most):
            src = tl.load(src_idx + (start + i), mask=i < count, other=0)
            _, share = _load_share(sizes, weights, src, i < count, HAS_SIZES, HAS_WEIGHTS)
            joining = _load_rows(
                tokens, residual, src, i < count, column, stride_n, residual_stride_n,
                WIDTH, BLOCK_D, HAS_RESIDUAL,
            )  # fmt: skip
            mean += joining * _coefficient(share, total, 0.0)[:, None]
        out = merged + (batch * num_kept + row)[:, None] * WIDTH + column[None, :]
        tl.store(out, mean.to(merged.dtype.element_ty), mask=exists[:, None] & (column < WIDTH)[None, :])


@triton.jit
def merge_bwd_kernel(
    grad_merged, sizes, weights, totals, keep_idx, assignment, grad_tokens,
    num_tokens, num_kept, stride_b, stride_n,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_SIZES: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the gradient of one sequence: each token takes its part of that of its output row."""
    num_tiles = tl.cdiv(num_tokens, ROWS)
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    token = (tl.program_id(0) % num_tiles) * ROWS + tl.arange(0, ROWS)
    exists = token < num_tokens
    row = tl.load(assignment + batch * num_tokens + token, mask=exists, other=0)
    total = tl.load(totals + batch * num_kept + row, mask=exists, other=1.0)
    kept = tl.load(keep_idx + batch * num_kept + row, mask=exists, other=0)
    _, share = _load_share(
        sizes + batch * num_tokens, weights + batch * num_tokens, token, exists, HAS_SIZES, HAS_WEIGHTS
    )
    coefficient = _coefficient(share, total, (kept == token).to(tl.float32))
    grad_merged += batch * stride_b
    for first in range(0, WIDTH, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        rows = _load_rows(grad_merged, grad_merged, row, exists, column, stride_n, 0, WIDTH, BLOCK_D, False)
        out = grad_tokens + (batch * num_tokens + token)[:, None] * WIDTH + column[None, :]
        tl.store(
            out,
            (rows * coefficient[:, None]).to(grad_tokens.dtype.element_ty),
            mask=exists[:, None] & (column < WIDTH)[None, :],
        )


def merge_tokens_forward(
    tokens: Tensor,
    sizes: Tensor | None,
    residual: Tensor | None,
    weights: Tensor | None,
    src_idx: Tensor,
    dst_idx: Tensor,
    keep_idx: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens, their sizes, and the sums of their weights, which the backward pass reads."""
    tokens = launching.with_unit_stride(tokens)
    residual = None if residual is None else launching.with_unit_stride(residual)
    batch, num_tokens, width = tokens.shape
    num_merged, num_kept = src_idx.shape[1], keep_idx.shape[1]
    merged = torch.empty(batch, num_kept, width, dtype=tokens.dtype, device=tokens.device)
    new_sizes = torch.empty(batch, num_kept, dtype=torch.float32, device=tokens.device)
    totals = torch.empty_like(new_sizes)
    launching.launch(
        merge_fwd_kernel,
        (batch * triton.cdiv(num_kept, 4),),
        tokens,
        tokens if residual is None else residual,
        *_or_any(sizes, weights, any_float=totals),
        src_idx.contiguous(),
        dst_idx.contiguous(),
        keep_idx.contiguous(),
        merged,
        new_sizes,
        totals,
        num_tokens,
        num_merged,
        *tokens.stride()[:2],
        *(tokens if residual is None else residual).stride()[:2],
        num_warps=4,
        WIDTH=width,
        ROWS=4,
        BLOCK_D=_num_columns(width),
        BLOCK_R=min(256, max(16, triton.next_power_of_2(num_merged))),
        HAS_RESIDUAL=residual is not None,
        HAS_SIZES=sizes is not None,
        HAS_WEIGHTS=weights is not None,
    )
    return merged, new_sizes, totals


def merge_tokens_backward(
    grad_merged: Tensor,
    sizes: Tensor | None,
    weights: Tensor | None,
    totals: Tensor,
    keep_idx: Tensor,
    assignment: Tensor,
) -> Tensor:
    """Gradient of the tokens, which is that of the residual too."""
    grad_merged = launching.with_unit_stride(grad_merged)
    batch, num_kept, width = grad_merged.shape
    num_tokens = assignment.shape[1]
    grad_tokens = torch.empty(batch, num_tokens, width, dtype=grad_merged.dtype, device=grad_merged.device)
    launching.launch(
        merge_bwd_kernel,
        (batch * triton.cdiv(num_tokens, 8),),
        grad_merged,
        *_or_any(sizes, weights, any_float=totals),
        totals.contiguous(),
        keep_idx.contiguous(),
        assignment.contiguous(),
        grad_tokens,
        num_tokens,
        num_kept,
        *grad_merged.stride()[:2],
        num_warps=4,
        WIDTH=width,
        ROWS=8,
        BLOCK_D=_num_columns(width),
        HAS_SIZES=sizes is not None,
        HAS_WEIGHTS=weights is not None,
    )
    return grad_tokens


def _num_columns(width: int) -> int:
    """Columns of a program's tile; 256 divide the widths of CLIP's towers."""
    columns: int = min(256, max(16, triton.next_power_of_2(width)))
    return columns


def _or_any(*tensors: Tensor | None, any_float: Tensor) -> tuple[Tensor, ...]:
    """The tensors, contiguous; a pointer that the kernel does not read where there is none."""
    return tuple(any_float if tensor is None else tensor.contiguous() for tensor in tensors)
