"""The forward kernel of frame attention: read README.md in this folder first."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching
from videolm_kernels.frame_attention.tiles import (
    LOG2_E,
    NUM_STAGES,
    addressable,
    load_bias,
    load_rows,
    padded,
    query_tile,
    store_rows,
)

# Below every score: what the highest score of a row is while the row has seen nothing. Finite, so that no
# difference of two infinities is ever taken.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _meankey_tile(
    key,
    mean_key,
    rows,
    num_tokens,
    num_heads,
    row_stride,
    head_stride,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Mean of the keys over the heads for one tile of tokens; `key` is the first head's."""
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    for _ in range(num_heads):
        total += load_rows(key, rows, row_stride, num_tokens, WIDTH, HEAD_DIM, True)
        key += head_stride
    store_rows(mean_key, rows, HEAD_DIM, num_tokens, total / num_heads, WIDTH, HEAD_DIM)


@triton.jit
def frame_attention_fwd_kernel(
    qkv,
    log2_sizes,
    out,
    lse,
    mean_key,
    num_tokens,
    num_heads,
    log2_scale,
    frame_stride,
    row_stride,
    part_stride,
    head_stride,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_MEAN_KEY: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of queries of one head; with HAS_MEAN_KEY a tile has one program more, which takes the mean key."""
    program = tl.program_id(0)
    num_tiles = tl.cdiv(num_tokens, QUERIES)
    programs_of_tile = num_heads
    if HAS_MEAN_KEY:
        programs_of_tile += 1
    head = (program % programs_of_tile).to(tl.int64)
    tile = program // programs_of_tile % num_tiles
    frame = (program // programs_of_tile // num_tiles).to(tl.int64)
    rows = tile * QUERIES + tl.arange(0, QUERIES)
    of_frame = qkv + frame * frame_stride

    if HAS_MEAN_KEY and head == num_heads:
        _meankey_tile(
            of_frame + part_stride,
            mean_key + frame * num_tokens * HEAD_DIM,
            rows,
            num_tokens,
            num_heads,
            row_stride,
            head_stride,
            QUERIES,
            WIDTH,
            HEAD_DIM,
        )
    else:
        query_base = of_frame + head * head_stride
        key_base = query_base + part_stride
        query = load_rows(query_base, rows, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
        highest = tl.full((QUERIES,), LOWEST, tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        attended = tl.zeros((QUERIES, WIDTH), tl.float32)
        for start in range(0, num_tokens, KEYS):
            keys = start + tl.arange(0, KEYS)
            key = load_rows(key_base, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
            value = load_rows(key_base + part_stride, keys, row_stride, num_tokens, WIDTH, HEAD_DIM, UPCAST)
            bias = load_bias(log2_sizes, frame, keys, num_tokens)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * log2_scale + bias[None, :]
            higher = tl.maximum(highest, tl.max(scores, 1))
            powers = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(highest - higher)
            total = total * shrink + tl.sum(powers, 1)
            attended *= shrink[:, None]
            attended += tl.dot(powers.to(value.dtype), value, input_precision="ieee")
            highest = higher

        # A row that saw nothing is zero; a log-sum-exp of 0 makes its weights in the backward pass 2^(-inf - 0) = 0.
        is_blind = total == 0
        total = tl.where(is_blind, 1.0, total)
        attended = attended / total[:, None]
        row_width = num_heads * HEAD_DIM
        out_base = out + frame * num_tokens * row_width + head * HEAD_DIM
        store_rows(out_base, rows, row_width, num_tokens, attended, WIDTH, HEAD_DIM)
        row_lse = tl.where(is_blind, 0.0, highest + tl.log2(total))
        tl.store(lse + (frame * num_heads + head) * num_tokens + rows, row_lse, mask=rows < num_tokens)


def frame_attention_forward(
    qkv: Tensor, log2_sizes: Tensor | None, *, with_mean_key: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (F, N, H, Dh), log-sum-exp in base 2 (F, H, N), mean key (F, N, Dh); the last empty if not wanted."""
    num_frames, num_tokens, _, num_heads, head_dim = qkv.shape
    qkv = addressable(qkv)
    out = qkv.new_empty(num_frames, num_tokens, num_heads, head_dim)
    lse = qkv.new_empty(num_frames, num_heads, num_tokens, dtype=torch.float32)
    mean_key = qkv.new_empty(num_frames, num_tokens, head_dim if with_mean_key else 0)
    width = padded(head_dim)
    tile = query_tile(num_tokens, qkv.dtype)
    launching.launch(
        frame_attention_fwd_kernel,
        (num_frames * triton.cdiv(num_tokens, tile.queries) * (num_heads + with_mean_key),),
        qkv,
        None if log2_sizes is None else log2_sizes.contiguous(),
        *(out, lse, mean_key, num_tokens, num_heads, head_dim**-0.5 * LOG2_E, *qkv.stride()[:4]),
        num_warps=tile.num_warps,
        num_stages=NUM_STAGES,
        HEAD_DIM=head_dim,
        WIDTH=width,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        HAS_MEAN_KEY=with_mean_key,
        UPCAST=launching.needs_upcast(qkv.dtype),
    )
    return out, lse, mean_key
