"""The kernels of temporal attention: several positions share a tile, and a sequence never leaves its tile.

Row r of a program's tile is position r // T, frame r % T, so T = 12 fills 60 of 64 rows where a tile per
sequence would fill 12. The scores of the tile are block-diagonal: a row sees the rows of its own position.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching


@triton.jit
def _rows(group, lengths, batch, num_tokens, num_skipped, T: tl.constexpr, BLOCK: tl.constexpr):
    """What each row of the tile is: position, frame, token; whether it is stored, and whether it takes part."""
    row = tl.arange(0, BLOCK)
    position = row // T
    frame = row - position * T
    token = group * (BLOCK // T) + position
    is_row = (position < BLOCK // T) & (token < num_tokens)
    is_alive = is_row & (token >= num_skipped)
    if lengths is not None:
        is_alive = is_alive & (frame < tl.load(lengths + batch))
    return position, frame, token, is_row, is_alive


@triton.jit
def _load(start, offset, is_alive, UPCAST: tl.constexpr):
    tile = tl.load(start + offset, mask=is_alive[:, None], other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def _powers(
    query, key, shared_key, bias, position, frame, is_alive, scale, T: tl.constexpr, IS_CAUSAL: tl.constexpr
):
    """Numerators of the softmax, of the tile and of the shared key, and their sum; 0, 0 and 1 for a blind row."""
    log2_e = 1.4426950408889634
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * log2_e)
    if bias is not None:
        scores += tl.load(bias + (frame[:, None] - frame[None, :] + T - 1)).to(tl.float32) * log2_e
    is_seen = (position[:, None] == position[None, :]) & is_alive[:, None] & is_alive[None, :]
    if IS_CAUSAL:
        is_seen = is_seen & (frame[:, None] >= frame[None, :])
    scores = tl.where(is_seen, scores, float("-inf"))
    highest = tl.max(scores, axis=1)
    shared_score = tl.full(highest.shape, float("-inf"), tl.float32)
    if shared_key is not None:
        shared_score = tl.sum(query.to(tl.float32) * shared_key[None, :], axis=1) * (scale * log2_e)
        shared_score = tl.where(is_alive, shared_score, float("-inf"))
        highest = tl.maximum(highest, shared_score)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    powers = tl.exp2(scores - highest[:, None])
    shared_power = tl.exp2(shared_score - highest)
    total = tl.sum(powers, axis=1) + shared_power
    return powers, shared_power, tl.where(total == 0.0, 1.0, total)


@triton.jit
def temporal_attention_fwd_kernel(
    qkv, lengths, time_bias, shared_key_value, out, num_tokens, num_skipped, scale,
    stride_b, stride_t, stride_n, stride_part, stride_h,
    T: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr,
    IS_CAUSAL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    num_groups = tl.cdiv(num_tokens, BLOCK // T)
    # Heads fastest: the rows of neighbouring programs lie side by side in memory.
    head = (tl.program_id(0) % H).to(tl.int64)
    group = tl.program_id(0) // H % num_groups
    batch = (tl.program_id(0) // (H * num_groups)).to(tl.int64)
    position, frame, token, is_row, is_alive = _rows(group, lengths, batch, num_tokens, num_skipped, T, BLOCK)
    column = tl.arange(0, DH)
    start = qkv + batch * stride_b + head * stride_h
    offset = (frame.to(tl.int64) * stride_t + token.to(tl.int64) * stride_n)[:, None] + column[None, :]
    query = _load(start, offset, is_alive, UPCAST)
    key = _load(start + stride_part, offset, is_alive, UPCAST)
    value = _load(start + stride_part + stride_part, offset, is_alive, UPCAST)

    bias = None
    if time_bias is not None:
        bias = time_bias + head * (2 * T - 1)
    shared_key = None
    if shared_key_value is not None:
        shared = shared_key_value + (batch * 2 * H + head) * DH + column
        shared_key = tl.load(shared).to(tl.float32)
    powers, shared_power, total = _powers(
        query, key, shared_key, bias, position, frame, is_alive, scale, T, IS_CAUSAL
    )
    result = tl.dot(powers.to(value.dtype), value, input_precision="ieee")
    if shared_key_value is not None:
        result += shared_power[:, None] * tl.load(shared + H * DH).to(tl.float32)[None, :]
    result = result / total[:, None]

    out_row = (batch * T + frame) * num_tokens + token
    out_offset = ((out_row * H + head) * DH)[:, None] + column[None, :]
    tl.store(out + out_offset, result.to(out.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def _sum_over_pairs(grad_scores, position, frame, is_alive, T: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over all pairs of frames of each distance: element c is that of t - s + T - 1 == c.

    Every row is shifted so that the pairs of one distance stand in one column, and the columns are added up.
    """
    key_frame = frame[:, None] + (T - 1) - tl.arange(0, WIDTH)[None, :]
    is_pair = (key_frame >= 0) & (key_frame < T) & is_alive[:, None]
    key_row = tl.where(is_pair, position[:, None] * T + key_frame, 0)
    return tl.sum(tl.where(is_pair, tl.gather(grad_scores, key_row, axis=1), 0.0), axis=0)


@triton.jit
def temporal_attention_bwd_kernel(
    grad, qkv, lengths, time_bias, shared_key_value, grad_qkv, grad_bias, grad_shared,
    num_tokens, num_skipped, scale,
    grad_stride_b, grad_stride_t, grad_stride_n, grad_stride_h,
    stride_b, stride_t, stride_n, stride_part, stride_h,
    T: tl.constexpr, H: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    IS_CAUSAL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    num_groups = tl.cdiv(num_tokens, BLOCK // T)
    head = (tl.program_id(0) % H).to(tl.int64)
    group = tl.program_id(0) // H % num_groups
    batch = (tl.program_id(0) // (H * num_groups)).to(tl.int64)
    position, frame, token, is_row, is_alive = _rows(group, lengths, batch, num_tokens, num_skipped, T, BLOCK)
    column = tl.arange(0, DH)
    start = qkv + batch * stride_b + head * stride_h
    offset = (frame.to(tl.int64) * stride_t + token.to(tl.int64) * stride_n)[:, None] + column[None, :]
    query = _load(start, offset, is_alive, UPCAST)
    key = _load(start + stride_part, offset, is_alive, UPCAST)
    value = _load(start + stride_part + stride_part, offset, is_alive, UPCAST)
    grad_start = grad + batch * grad_stride_b + head * grad_stride_h
    grad_offset = (frame.to(tl.int64) * grad_stride_t + token.to(tl.int64) * grad_stride_n)[:, None]
    grad_out = _load(grad_start, grad_offset + column[None, :], is_alive, UPCAST)

    bias = None
    if time_bias is not None:
        bias = time_bias + head * (2 * T - 1)
    shared_key = None
    if shared_key_value is not None:
        shared = shared_key_value + (batch * 2 * H + head) * DH + column
        shared_key = tl.load(shared).to(tl.float32)
    powers, shared_power, total = _powers(
        query, key, shared_key, bias, position, frame, is_alive, scale, T, IS_CAUSAL
    )
    weights = powers / total[:, None]

    # What is ready is stored at once: few tiles fit in registers at a time.
    element = grad_qkv.dtype.element_ty
    out_row = (batch * T + frame) * num_tokens + token
    out_start = grad_qkv + ((out_row * 3 * H + head) * DH)[:, None] + column[None, :]
    grad_value = tl.dot(tl.trans(weights.to(query.dtype)), grad_out, input_precision="ieee")
    tl.store(out_start + 2 * H * DH, grad_value.to(element), mask=is_row[:, None])
    grad_weights = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
    # Of each row, the mean of its gradients: what the softmax takes off every one of them.
    mean_grad = tl.sum(weights * grad_weights, axis=1)
    if shared_key_value is not None:
        shared_weight = shared_power / total
        shared_value = tl.load(shared + H * DH).to(tl.float32)
        grad_shared_weight = tl.sum(grad_out.to(tl.float32) * shared_value[None, :], axis=1)
        mean_grad += shared_weight * grad_shared_weight
        if grad_shared is not None:
            shared_out = grad_shared + ((batch * num_groups + group) * 2 * H + head) * DH + column
            tl.store(shared_out + H * DH, tl.sum(shared_weight[:, None] * grad_out.to(tl.float32), axis=0))
    grad_scores = weights * (grad_weights - mean_grad[:, None])
    if grad_bias is not None:
        distance = tl.arange(0, WIDTH)
        sums = _sum_over_pairs(grad_scores, position, frame, is_alive, T, WIDTH)
        bias_out = grad_bias + tl.program_id(0).to(tl.int64) * (2 * T - 1)
        tl.store(bias_out + distance, sums, mask=distance < 2 * T - 1)

    rounded = grad_scores.to(query.dtype)
    grad_key = tl.dot(tl.trans(rounded), query, input_precision="ieee") * scale
    tl.store(out_start + H * DH, grad_key.to(element), mask=is_row[:, None])
    grad_query = tl.dot(rounded, key, input_precision="ieee")
    if shared_key is not None:
        grad_shared_score = shared_weight * (grad_shared_weight - mean_grad)
        grad_query += grad_shared_score[:, None] * shared_key[None, :]
        if grad_shared is not None:
            grad_shared_key = tl.sum(grad_shared_score[:, None] * query.to(tl.float32), axis=0) * scale
            tl.store(shared_out, grad_shared_key)
    tl.store(out_start, (grad_query * scale).to(element), mask=is_row[:, None])


def temporal_attention_forward(
    qkv: Tensor,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
) -> Tensor:
    """The attention, contiguous."""
    batch, num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    qkv = launching.with_unit_stride(qkv)
    block, num_warps = _tile(num_frames, qkv.dtype, head_dim)
    out = qkv.new_empty(batch, num_frames, num_tokens, num_heads, head_dim)
    launching.launch(
        temporal_attention_fwd_kernel,
        (batch * triton.cdiv(num_tokens, block // num_frames) * num_heads,),
        qkv, *_contiguous(lengths, time_bias, shared_key_value), out,
        num_tokens, num_skipped, head_dim**-0.5,
        *qkv.stride()[:5],
        T=num_frames, H=num_heads, DH=head_dim, BLOCK=block,
        IS_CAUSAL=is_causal, UPCAST=launching.needs_upcast(qkv.dtype), num_warps=num_warps,
    )  # fmt: skip
    return out


def temporal_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    lengths: Tensor | None,
    time_bias: Tensor | None,
    shared_key_value: Tensor | None,
    is_causal: bool,
    num_skipped: int,
    *,
    needs_bias: bool,
    needs_shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, time_bias and shared_key_value, contiguous; without elements where it is not needed.

    The last two are float32: each program leaves its share, and torch adds the shares up, so without atomics.
    """
    batch, num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    qkv, grad = launching.with_unit_stride(qkv), launching.with_unit_stride(grad)
    block, num_warps = _tile(num_frames, qkv.dtype, head_dim)
    num_groups, num_distances = triton.cdiv(num_tokens, block // num_frames), 2 * num_frames - 1
    grad_qkv = qkv.new_empty(qkv.shape)
    bias_shares = shared_shares = None
    if needs_bias:
        bias_shares = qkv.new_empty(batch * num_groups, num_heads, num_distances, dtype=torch.float32)
    if needs_shared:
        shared_shares = qkv.new_empty(batch, num_groups, 2, num_heads, head_dim, dtype=torch.float32)
    launching.launch(
        temporal_attention_bwd_kernel,
        (batch * num_groups * num_heads,),
        grad, qkv, *_contiguous(lengths, time_bias, shared_key_value), grad_qkv, bias_shares, shared_shares,
        num_tokens, num_skipped, head_dim**-0.5,
        *grad.stride()[:4], *qkv.stride()[:5],
        T=num_frames, H=num_heads, DH=head_dim, BLOCK=block, WIDTH=triton.next_power_of_2(num_distances),
        IS_CAUSAL=is_causal, UPCAST=launching.needs_upcast(qkv.dtype), num_warps=num_warps,
    )  # fmt: skip
    grad_bias = qkv.new_empty(0) if bias_shares is None else bias_shares.sum(dim=0)
    grad_shared = qkv.new_empty(0) if shared_shares is None else shared_shares.sum(dim=1)
    return grad_qkv, grad_bias, grad_shared


def _tile(num_frames: int, dtype: torch.dtype, head_dim: int) -> tuple[int, int]:
    """Rows of a tile, a power of 2 that a sequence fits in, and the warps that share it."""
    if dtype == torch.float32:
        # No tensor cores: a thread holds its operands in registers. The larger tile spills with a shared key and heads
        # of 64, with any number of warps.
        return (32, max(head_dim // 8, 4)) if num_frames <= 32 else (64, 8)
    # 64 rows are what one tensor-core instruction of sm_90 takes, and leave room for four programs at a time. 128 rows
    # spill, with more warps as well; "auto" does not choose them.
    if num_frames <= 64:
        return 64, 8 if head_dim == 128 else 4
    return 128, 8


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
