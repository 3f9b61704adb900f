"""The backward kernels of frame attention: read README.md in this folder first."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching
from videolm_kernels.frame_attention.tiles import (
    LOG2_E,
    NUM_STAGES,
    addressable,
    key_tile,
    load_bias,
    load_rows,
    padded,
    query_tile,
    store_rows,
)


@triton.jit
def frame_attention_bwd_dq_kernel(
    qkv,
    log2_sizes,
    out,
    lse,
    grad,
    delta,
    dqkv,
    num_tokens,
    num_heads,
    scale,
    log2_scale,
    frame_stride,
    row_stride,
    part_stride,
    head_stride,
    grad_frame_stride,
    grad_row_stride,
    grad_head_stride,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient of one tile of queries of one head, and delta = rowsum(gradient · output), which the keys need."""
    program = tl.program_id(0)
    num_tiles = tl.cdiv(num_tokens, QUERIES)
    head = (program % num_heads).to(tl.int64)
    tile = program // num_heads % num_tiles
    frame = (program // num_heads // num_tiles).to(tl.int64)
    rows = tile * QUERIES + tl.arange(0, QUERIES)
    row_width = num_heads * HEAD_DIM
    query_base = qkv + frame * frame_stride + head * head_stride
    key_base = query_base + part_stride
    of_rows = (frame * num_heads + head) * num_tokens + rows

    query = load_rows(query_base, rows, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
    grad_base = grad + frame * grad_frame_stride + head * grad_head_stride
    upstream = load_rows(grad_base, rows, grad_row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
    out_base = out + frame * num_tokens * row_width + head * HEAD_DIM
    attended = load_rows(out_base, rows, row_width, num_tokens, WIDTH, HEAD_DIM, UPCAST)
    row_delta = tl.sum(upstream.to(tl.float32) * attended.to(tl.float32), 1)
    tl.store(delta + of_rows, row_delta, mask=rows < num_tokens)
    row_lse = tl.load(lse + of_rows, mask=rows < num_tokens, other=float("inf"))

    dq = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, num_tokens, KEYS):
        keys = start + tl.arange(0, KEYS)
        key = load_rows(key_base, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
        value = load_rows(key_base + part_stride, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
        bias = load_bias(log2_sizes, frame, keys, num_tokens)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * log2_scale + bias[None, :]
        weights = tl.exp2(scores - row_lse[:, None])
        dweights = tl.dot(upstream, tl.trans(value), input_precision="ieee")
        dscores = weights * (dweights - row_delta[:, None])
        dq += tl.dot(dscores.to(key.dtype), key, input_precision="ieee")
    dq_base = dqkv + frame * num_tokens * 3 * row_width + head * HEAD_DIM
    store_rows(dq_base, rows, 3 * row_width, num_tokens, dq * scale, WIDTH, HEAD_DIM)


@triton.jit
def frame_attention_bwd_dkdv_kernel(
    qkv,
    log2_sizes,
    lse,
    grad,
    delta,
    dqkv,
    num_tokens,
    num_heads,
    scale,
    log2_scale,
    frame_stride,
    row_stride,
    part_stride,
    head_stride,
    grad_frame_stride,
    grad_row_stride,
    grad_head_stride,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    IS_ONE_TILE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradients of one tile of keys and values of one head.

    With IS_ONE_TILE that tile is all of them: then a query's whole row is at hand, and its delta and its
    gradient come out of the same pass.
    """
    program = tl.program_id(0)
    num_tiles = tl.cdiv(num_tokens, KEYS)
    head = (program % num_heads).to(tl.int64)
    tile = program // num_heads % num_tiles
    frame = (program // num_heads // num_tiles).to(tl.int64)
    keys = tile * KEYS + tl.arange(0, KEYS)
    row_width = num_heads * HEAD_DIM
    query_base = qkv + frame * frame_stride + head * head_stride
    key_base = query_base + part_stride
    grad_base = grad + frame * grad_frame_stride + head * grad_head_stride
    dq_base = dqkv + frame * num_tokens * 3 * row_width + head * HEAD_DIM
    first_row = (frame * num_heads + head) * num_tokens

    key = load_rows(key_base, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
    value = load_rows(key_base + part_stride, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
    bias = load_bias(log2_sizes, frame, keys, num_tokens)
    dk = tl.zeros((KEYS, WIDTH), tl.float32)
    dv = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, num_tokens, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        query = load_rows(query_base, rows, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
        upstream = load_rows(grad_base, rows, grad_row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
        # Rows outside get weights of 0 whatever the bias: 2^bias alone may be infinite.
        row_lse = tl.load(lse + first_row + rows, mask=rows < num_tokens, other=float("inf"))
        # Keys are the rows of these tiles: their products with the queries then need no transpose.
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * log2_scale + bias[:, None]
        weights = tl.exp2(scores - row_lse[None, :])
        dv += tl.dot(weights.to(upstream.dtype), upstream, input_precision="ieee")
        dweights = tl.dot(value, tl.trans(upstream), input_precision="ieee")
        if IS_ONE_TILE:
            row_delta = tl.sum(weights * dweights, 0)
        else:
            row_delta = tl.load(delta + first_row + rows, mask=rows < num_tokens, other=0.0)
        dscores = (weights * (dweights - row_delta[None, :])).to(query.dtype)
        dk += tl.dot(dscores, query, input_precision="ieee")
        if IS_ONE_TILE:
            dq = tl.dot(tl.trans(dscores), key, input_precision="ieee") * scale
            store_rows(dq_base, rows, 3 * row_width, num_tokens, dq, WIDTH, HEAD_DIM)
    store_rows(dq_base + row_width, keys, 3 * row_width, num_tokens, dk * scale, WIDTH, HEAD_DIM)
    store_rows(dq_base + 2 * row_width, keys, 3 * row_width, num_tokens, dv, WIDTH, HEAD_DIM)


def frame_attention_backward(
    grad: Tensor, qkv: Tensor, log2_sizes: Tensor | None, out: Tensor, lse: Tensor
) -> Tensor:
    """Gradient (F, N, 3, H, Dh) of the packed query, key and value, from what the forward pass gave."""
    num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    qkv, grad = addressable(qkv), addressable(grad)
    out, lse = out.contiguous(), lse.contiguous()
    log2_sizes = None if log2_sizes is None else log2_sizes.contiguous()
    dqkv = qkv.new_empty(qkv.shape)
    scale = head_dim**-0.5
    numbers = (num_tokens, num_heads, scale, scale * LOG2_E, *qkv.stride()[:4], *grad.stride()[:3])
    width = padded(head_dim)
    options: dict[str, Any] = {
        "num_stages": NUM_STAGES,
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "UPCAST": launching.needs_upcast(qkv.dtype),
    }
    of_keys = key_tile(num_tokens, width, qkv.dtype)
    is_one_tile = num_tokens <= of_keys.keys
    delta = None if is_one_tile else torch.empty_like(lse)
    if not is_one_tile:
        tile = query_tile(num_tokens, qkv.dtype)
        launching.launch(
            frame_attention_bwd_dq_kernel,
            (num_frames * num_heads * triton.cdiv(num_tokens, tile.queries),),
            *(qkv, log2_sizes, out, lse, grad, delta, dqkv, *numbers),
            num_warps=tile.num_warps,
            QUERIES=tile.queries,
            KEYS=tile.keys,
            **options,
        )
    launching.launch(
        frame_attention_bwd_dkdv_kernel,
        (num_frames * num_heads * triton.cdiv(num_tokens, of_keys.keys),),
        *(qkv, log2_sizes, lse, grad, delta, dqkv, *numbers),
        num_warps=of_keys.num_warps,
        QUERIES=of_keys.queries,
        KEYS=of_keys.keys,
        IS_ONE_TILE=is_one_tile,
        **options,
    )
    return dqkv
