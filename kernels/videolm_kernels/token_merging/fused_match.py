"""Triton kernels of matching, and what starts them."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from videolm_kernels import launching
from videolm_kernels.token_merging.match import sets

# The largest set whose scores one program holds at once: in a tile of 128 × 128, 64 registers of each of 256 threads.
MAX_SMALL_SET = 128


@triton.jit
def _cosines(
    sequence, a, b, first_a, first_b, num_a, num_b, stride_n,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, NUM_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Cosine of each a with each b of a tile, -inf where it is NaN or where there is no b."""
    start_a = sequence + (first_a + 2 * a).to(tl.int64)[:, None] * stride_n
    start_b = sequence + (first_b + 2 * b).to(tl.int64)[:, None] * stride_n
    products = tl.zeros((BLOCK_A, BLOCK_B), dtype=tl.float32)
    squares_a = tl.zeros((BLOCK_A,), dtype=tl.float32)
    squares_b = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for first in range(0, NUM_CHANNELS, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        is_a, is_b = (a < num_a)[:, None], (b < num_b)[:, None]
        if NUM_CHANNELS % BLOCK_C != 0:
            is_a, is_b = is_a & (channel < NUM_CHANNELS)[None, :], is_b & (channel < NUM_CHANNELS)[None, :]
        tokens_a = tl.load(start_a + channel[None, :], mask=is_a, other=0.0)
        tokens_b = tl.load(start_b + channel[None, :], mask=is_b, other=0.0)
        exact_a, exact_b = tokens_a.to(tl.float32), tokens_b.to(tl.float32)
        squares_a += tl.sum(exact_a * exact_a, 1)
        squares_b += tl.sum(exact_b * exact_b, 1)
        if UPCAST:
            tokens_a, tokens_b = exact_a, exact_b
        products += tl.dot(tokens_a, tl.trans(tokens_b), input_precision="ieee")
    inverse_a, inverse_b = tl.rsqrt(tl.maximum(squares_a, 1e-24)), tl.rsqrt(tl.maximum(squares_b, 1e-24))
    cosines = products * inverse_a[:, None] * inverse_b[None, :]
    return tl.where((cosines == cosines) & (b < num_b)[None, :], cosines, float("-inf"))


@triton.jit
def _num_better(best, a, other_best, other, num_a):
    """How many of `other` are merged before each of `a`: of higher score, or of the same and a lower index."""
    is_better = other_best[None, :] > best[:, None]
    is_first = (other_best[None, :] == best[:, None]) & (other[None, :] < a[:, None])
    return tl.sum(((is_better | is_first) & (other < num_a)[None, :]).to(tl.int32), 1)


@triton.jit
def _num_before(partner, a, other_partner, other, other_is_merged):
    """How many merged tokens of `other` have a lower index, and a lower (partner, index), than each of `a`."""
    is_lower = other[None, :] < a[:, None]
    is_lower_partner = other_partner[None, :] < partner[:, None]
    comes_first = is_lower_partner | ((other_partner[None, :] == partner[:, None]) & is_lower)
    lower = tl.sum((is_lower & other_is_merged[None, :]).to(tl.int32), 1)
    return lower, tl.sum((comes_first & other_is_merged[None, :]).to(tl.int32), 1)


@triton.jit
def _store_a(
    src_idx, dst_idx, keep_idx, assignment, a, partner, is_merged, num_lower, slot,
    first_a, first_b, num_a, num_merged, num_protected,
):  # fmt: skip
    """What the match says of some tokens of set a: `num_lower` merged ones have a lower index, `slot` is in src."""
    token = first_a + 2 * a
    row = tl.where(is_merged, num_protected + num_a - num_merged + partner, num_protected + a - num_lower)
    tl.store(assignment + token, row, mask=a < num_a)
    tl.store(keep_idx + row, token, mask=(a < num_a) & (is_merged == 0))
    tl.store(src_idx + slot, token, mask=(a < num_a) & is_merged)
    tl.store(dst_idx + slot, first_b + 2 * partner, mask=(a < num_a) & is_merged)


@triton.jit
def _store_b(keep_idx, assignment, b, first_b, num_a, num_b, num_merged, num_protected):
    row = num_protected + num_a - num_merged + b
    tl.store(assignment + first_b + 2 * b, row, mask=b < num_b)
    tl.store(keep_idx + row, first_b + 2 * b, mask=b < num_b)


@triton.jit
def _store_protected(keep_idx, assignment, num_protected):
    for first in range(0, num_protected, 16):
        token = first + tl.arange(0, 16)
        tl.store(assignment + token, token, mask=token < num_protected)
        tl.store(keep_idx + token, token, mask=token < num_protected)


@triton.jit
def match_small_kernel(
    metric, src_idx, dst_idx, keep_idx, assignment,
    num_tokens, first_a, first_b, num_a, num_b, num_merged, num_protected, stride_b, stride_n,
    NUM_CHANNELS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The whole match of one sequence: its scores never leave the program, and nothing is sorted but by counting."""
    batch = tl.program_id(0).to(tl.int64)
    src_idx += batch * num_merged
    dst_idx += batch * num_merged
    keep_idx += batch * (num_tokens - num_merged)
    assignment += batch * num_tokens
    a, b = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_B)
    cosines = _cosines(
        metric + batch * stride_b, a, b, first_a, first_b, num_a, num_b, stride_n,
        BLOCK_A, BLOCK_B, NUM_CHANNELS, BLOCK_C, UPCAST,
    )  # fmt: skip
    best, partner = tl.max(cosines, 1, return_indices=True, return_indices_tie_break_left=True)
    is_merged = (_num_better(best, a, best, a, num_a) < num_merged) & (a < num_a)
    num_lower, slot = _num_before(partner, a, partner, a, is_merged)
    _store_a(
        src_idx, dst_idx, keep_idx, assignment, a, partner, is_merged, num_lower, slot,
        first_a, first_b, num_a, num_merged, num_protected,
    )  # fmt: skip
    _store_b(keep_idx, assignment, b, first_b, num_a, num_b, num_merged, num_protected)
    _store_protected(keep_idx, assignment, num_protected)


@triton.jit
def match_partner_kernel(
    metric, best_out, partner_out, first_a, first_b, num_a, num_b, stride_b, stride_n,
    NUM_CHANNELS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Partner and score of BLOCK_A tokens of set a, from one tile of set b after the other."""
    num_tiles = tl.cdiv(num_a, BLOCK_A)
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    a = (tl.program_id(0) % num_tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    best = tl.full((BLOCK_A,), float("-inf"), dtype=tl.float32)
    partner = tl.zeros((BLOCK_A,), dtype=tl.int32)
    for first in range(0, num_b, BLOCK_B):
        cosines = _cosines(
            metric + batch * stride_b, a, first + tl.arange(0, BLOCK_B), first_a, first_b, num_a, num_b, stride_n,
            BLOCK_A, BLOCK_B, NUM_CHANNELS, BLOCK_C, UPCAST,
        )  # fmt: skip
        tile_best, tile_partner = tl.max(cosines, 1, return_indices=True, return_indices_tie_break_left=True)
        partner = tl.where(tile_best > best, first + tile_partner, partner)
        best = tl.maximum(best, tile_best)
    tl.store(best_out + batch * num_a + a, best, mask=a < num_a)
    tl.store(partner_out + batch * num_a + a, partner, mask=a < num_a)


@triton.jit
def match_rank_kernel(best, is_merged_out, num_a, num_merged, BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr):
    """Whether each token of set a is among the `num_merged` best."""
    num_tiles = tl.cdiv(num_a, BLOCK)
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    a = (tl.program_id(0) % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    best += batch * num_a
    own = tl.load(best + a, mask=a < num_a, other=float("-inf"))
    rank = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, num_a, BLOCK_OTHER):
        other = first + tl.arange(0, BLOCK_OTHER)
        other_best = tl.load(best + other, mask=other < num_a, other=float("-inf"))
        rank += _num_better(own, a, other_best, other, num_a)
    tl.store(is_merged_out + batch * num_a + a, (rank < num_merged).to(tl.uint8), mask=a < num_a)


@triton.jit
def match_place_kernel(
    partner, is_merged, src_idx, dst_idx, keep_idx, assignment,
    num_tokens, first_a, first_b, num_a, num_b, num_merged, num_protected,
    BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr,
):  # fmt: skip
    """The match, from the partner of each token of set a and whether it is merged."""
    num_tiles = tl.cdiv(tl.maximum(num_a, num_b), BLOCK)
    batch = (tl.program_id(0) // num_tiles).to(tl.int64)
    tile = tl.program_id(0) % num_tiles
    partner += batch * num_a
    is_merged += batch * num_a
    src_idx += batch * num_merged
    dst_idx += batch * num_merged
    keep_idx += batch * (num_tokens - num_merged)
    assignment += batch * num_tokens
    a = tile * BLOCK + tl.arange(0, BLOCK)
    own_partner = tl.load(partner + a, mask=a < num_a, other=0)
    own_is_merged = tl.load(is_merged + a, mask=a < num_a, other=0) != 0
    num_lower = tl.zeros((BLOCK,), dtype=tl.int32)
    slot = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, num_a, BLOCK_OTHER):
        other = first + tl.arange(0, BLOCK_OTHER)
        other_partner = tl.load(partner + other, mask=other < num_a, other=0)
        other_is_merged = tl.load(is_merged + other, mask=other < num_a, other=0) != 0
        lower, before = _num_before(own_partner, a, other_partner, other, other_is_merged)
        num_lower += lower
        slot += before
    _store_a(
        src_idx, dst_idx, keep_idx, assignment, a, own_partner, own_is_merged, num_lower, slot,
        first_a, first_b, num_a, num_merged, num_protected,
    )  # fmt: skip
    _store_b(keep_idx, assignment, a, first_b, num_a, num_b, num_merged, num_protected)
    if tile == 0:
        _store_protected(keep_idx, assignment, num_protected)


def match_tokens_forward(
    metric: Tensor, num_merged: int, num_protected: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of a Match: in one launch where both sets are small, else in three."""
    metric = launching.with_unit_stride(metric)
    batch, num_tokens, num_channels = metric.shape
    first_a, first_b, num_a, num_b = sets(num_tokens, num_protected)
    src_idx, dst_idx, keep_idx, assignment = (
        torch.empty(batch, count, dtype=torch.int32, device=metric.device)
        for count in (num_merged, num_merged, num_tokens - num_merged, num_tokens)
    )
    # float32 is multiplied outside the tensor cores, and in tiles of as many channels and as few warps it would spill.
    is_wide = metric.dtype == torch.float32
    constants = {
        "NUM_CHANNELS": num_channels,
        "BLOCK_C": min(32 if is_wide else 64, max(16, triton.next_power_of_2(num_channels))),
        "UPCAST": launching.needs_upcast(metric.dtype),
    }
    geometry = (first_a, first_b, num_a, num_b)
    strides = (metric.stride(0), metric.stride(1))
    if max(num_a, num_b) <= MAX_SMALL_SET:
        block_a, block_b = (max(16, triton.next_power_of_2(num)) for num in (num_a, num_b))
        num_warps = min(max(block_a, block_b) // (4 if is_wide else 16), 16)
        launching.launch(
            match_small_kernel, (batch,), metric, src_idx, dst_idx, keep_idx, assignment,
            num_tokens, *geometry, num_merged, num_protected, *strides,
            num_warps=num_warps, BLOCK_A=block_a, BLOCK_B=block_b, **constants,
        )  # fmt: skip
        return src_idx, dst_idx, keep_idx, assignment

    best = torch.empty(batch, num_a, dtype=torch.float32, device=metric.device)
    partner = torch.empty(batch, num_a, dtype=torch.int32, device=metric.device)
    is_merged = torch.empty(batch, num_a, dtype=torch.uint8, device=metric.device)
    launching.launch(
        match_partner_kernel, (batch * triton.cdiv(num_a, 64),), metric, best, partner, *geometry, *strides,
        num_warps=16 if is_wide else 8, BLOCK_A=64, BLOCK_B=128, **constants,
    )  # fmt: skip
    launching.launch(
        match_rank_kernel, (batch * triton.cdiv(num_a, 128),), best, is_merged, num_a, num_merged,
        num_warps=4, BLOCK=128, BLOCK_OTHER=32,
    )  # fmt: skip
    launching.launch(
        match_place_kernel, (batch * triton.cdiv(max(num_a, num_b), 128),), partner, is_merged,
        src_idx, dst_idx, keep_idx, assignment, num_tokens, *geometry, num_merged, num_protected,
        num_warps=4, BLOCK=128, BLOCK_OTHER=32,
    )  # fmt: skip
    return src_idx, dst_idx, keep_idx, assignment
