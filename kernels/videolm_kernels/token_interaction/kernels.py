"""The Triton kernels of token interaction: a tile holds all tokens of several texts against those of several videos.

In here the two sides are rows and columns, since fused.py exchanges them where only the frames fit a tile. A row item
(a text) has L tokens, all of them in the tile; a column item has T tokens, of which a tile may hold a chunk. T comes
as a number of units, so that one compiled kernel serves many T and still knows how wide it may store.
"""
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import triton
import triton.language as tl

# Stands for "no token": below every product, and finite after a scale of up to 1e8.
LOWEST = tl.constexpr(-1.0e30)
# Tiles of rows that are worked on side by side, so that what neighbouring programs load stays in the L2 cache.
GROUP = tl.constexpr(8)


@triton.jit
def _first_items(num_row_items, num_col_items, ROW_ITEMS: tl.constexpr, COL_ITEMS: tl.constexpr):
    """Numbers of this program's row tile and column tile."""
    num_row_tiles = tl.cdiv(num_row_items, ROW_ITEMS)
    num_col_tiles = tl.cdiv(num_col_items, COL_ITEMS)
    group = tl.program_id(0) // (GROUP * num_col_tiles)
    within = tl.program_id(0) % (GROUP * num_col_tiles)
    height = tl.minimum(num_row_tiles - group * GROUP, GROUP)
    return group * GROUP + within % height, within // height


@triton.jit
def _offsets(item0, token0, num_items, num_tokens, ITEMS: tl.constexpr, TOKENS: tl.constexpr):
    """Of one side of the tile [ITEMS, TOKENS]: where each token stands in a contiguous tensor, and whether inside."""
    o_item = (item0 + tl.arange(0, ITEMS)).to(tl.int64)[:, None]
    o_token = (token0 + tl.arange(0, TOKENS))[None, :]
    return o_item * num_tokens + o_token, (o_item < num_items) & (o_token < num_tokens)


@triton.jit
def _products(
    rows,
    cols,
    row0,
    col0,
    t0,
    m_row,
    m_col,
    row_stride_item,
    row_stride_token,
    col_stride_item,
    col_stride_token,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Products [ROW_ITEMS, ROW_TOKENS, COL_ITEMS, COL_TOKENS]; 0 where a token does not exist."""
    row_items: tl.constexpr = m_row.shape[0]
    row_tokens: tl.constexpr = m_row.shape[1]
    col_items: tl.constexpr = m_col.shape[0]
    col_tokens: tl.constexpr = m_col.shape[1]
    o_r = tl.arange(0, row_items * row_tokens)
    o_c = tl.arange(0, col_items * col_tokens)
    p_row = rows + (row0 + o_r // row_tokens).to(tl.int64) * row_stride_item
    p_row += (o_r % row_tokens).to(tl.int64) * row_stride_token
    p_col = cols + (col0 + o_c // col_tokens).to(tl.int64) * col_stride_item
    p_col += (t0 + o_c % col_tokens).to(tl.int64) * col_stride_token
    m_r = tl.reshape(m_row, (row_items * row_tokens,))[:, None]
    m_c = tl.reshape(m_col, (col_items * col_tokens,))[:, None]
    acc = tl.zeros((row_items * row_tokens, col_items * col_tokens), tl.float32)
    for d in range(0, D, BLOCK_D):
        o_d = (d + tl.arange(0, BLOCK_D))[None, :]
        # [rows, BLOCK_D] and [columns, BLOCK_D]
        b_row = tl.load(p_row[:, None] + o_d, mask=m_r & (o_d < D), other=0.0)
        b_col = tl.load(p_col[:, None] + o_d, mask=m_c & (o_d < D), other=0.0)
        if UPCAST:
            b_row = b_row.to(tl.float32)
            b_col = b_col.to(tl.float32)
        acc = tl.dot(b_row, tl.trans(b_col), acc, input_precision="ieee")
    return tl.reshape(acc, (row_items, row_tokens, col_items, col_tokens))


@triton.jit
def _candidates(s, exists):
    """What a maximum is taken of: +inf in place of NaN, which it would drop."""
    return tl.where(exists, tl.where(s == s, s, float("inf")), LOWEST)


@triton.jit
def _pool(s, exists, scale_log2e, AXIS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Along an axis: the highest s; for the softmax also the sums of its powers and of powers * s."""
    highest = tl.max(_candidates(s, exists), AXIS)
    powers, weighted = highest, highest
    if SOFTMAX:
        power = _power(s, exists, highest, scale_log2e, AXIS)
        powers = tl.sum(power, AXIS)
        weighted = tl.sum(power * s, AXIS)
    return highest, powers, weighted


@triton.jit
def _power(s, exists, highest, scale_log2e, AXIS: tl.constexpr):
    below = tl.where(exists, s - tl.expand_dims(highest, AXIS), 0.0)
    return tl.where(exists, tl.exp2(below * scale_log2e), 0.0)


@triton.jit
def _merged(one, other, scale_log2e, SOFTMAX: tl.constexpr):
    """What `_pool` would have given for the tokens of both."""
    highest, powers, weighted = one
    other_highest, other_powers, other_weighted = other
    new_highest = tl.maximum(highest, other_highest)
    if SOFTMAX:
        factor = tl.exp2((highest - new_highest) * scale_log2e)
        other_factor = tl.exp2((other_highest - new_highest) * scale_log2e)
        powers = powers * factor + other_powers * other_factor
        weighted = weighted * factor + other_weighted * other_factor
    return new_highest, powers, weighted


@triton.jit
def _value(pooled, SOFTMAX: tl.constexpr):
    """The pooled value: 0 where there was no token."""
    highest, powers, weighted = pooled
    value = tl.where(highest == LOWEST, 0.0, tl.where(highest == float("inf"), float("nan"), highest))
    if SOFTMAX:
        value = weighted / tl.where(powers == 0.0, 1.0, powers)
    return value


@triton.jit
def _first_best(s, exists, AXIS: tl.constexpr):
    return tl.max(_candidates(s, exists), AXIS, return_indices=True)


@triton.jit
def _share(s, exists, pooled, scale_log2e, AXIS: tl.constexpr):
    """Derivative of the mean under softmax(scale * s) by each s."""
    highest, powers, _ = pooled
    power = _power(s, exists, highest, scale_log2e, AXIS)
    total = tl.expand_dims(tl.where(powers == 0.0, 1.0, powers), AXIS)
    above = s - tl.expand_dims(_value(pooled, True), AXIS)
    return power / total * (1.0 + above * (scale_log2e * 0.6931471805599453))


@triton.jit
def token_interaction_fwd_kernel(
    scores,
    score_stride_row,
    score_stride_col,
    rows,
    cols,
    row_mask,
    col_mask,
    row_weights,
    col_weights,
    A,
    V,
    L,
    T_UNITS,
    row_stride_item,
    row_stride_token,
    col_stride_item,
    col_stride_token,
    pool_log2e,
    total_log2e,
    UNIT: tl.constexpr,
    IS_ONE_CHUNK: tl.constexpr,
    D: tl.constexpr,
    ROW_ITEMS: tl.constexpr,
    ROW_TOKENS: tl.constexpr,
    COL_ITEMS: tl.constexpr,
    COL_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTMAX_POOL: tl.constexpr,
    SOFTMAX_TOTAL: tl.constexpr,
    ROW_SIDE: tl.constexpr,
    COL_SIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """scores[a, v]: the mean of the row side and the column side, or the one of them that is wanted."""
    num_tokens = T_UNITS * UNIT
    end = COL_TOKENS if IS_ONE_CHUNK else num_tokens
    i_row, i_col = _first_items(A, V, ROW_ITEMS, COL_ITEMS)
    row0, col0 = i_row * ROW_ITEMS, i_col * COL_ITEMS
    o_row, m_row = _offsets(row0, 0, A, L, ROW_ITEMS, ROW_TOKENS)
    row_exists = tl.load(row_mask + o_row, mask=m_row, other=0) != 0

    nothing = tl.zeros((ROW_ITEMS, ROW_TOKENS, COL_ITEMS), tl.float32)
    row_pooled = (nothing + LOWEST, nothing, nothing)
    col_nothing = tl.zeros((ROW_ITEMS, COL_ITEMS), tl.float32)
    col_pooled = (col_nothing + LOWEST, col_nothing, col_nothing)
    total = col_nothing
    for t0 in range(0, end, COL_TOKENS):
        o_col, m_col = _offsets(col0, t0, V, num_tokens, COL_ITEMS, COL_TOKENS)
        col_exists = tl.load(col_mask + o_col, mask=m_col, other=0) != 0
        s = _products(
            rows, cols, row0, col0, t0, row_exists, col_exists,
            row_stride_item, row_stride_token, col_stride_item, col_stride_token, D, BLOCK_D, UPCAST,
        )  # fmt: skip
        if ROW_SIDE:
            chunk = _pool(s, col_exists[None, None, :, :], pool_log2e, 3, SOFTMAX_POOL)
            row_pooled = _merged(row_pooled, chunk, pool_log2e, SOFTMAX_POOL)
        if COL_SIDE:
            # [ROW_ITEMS, COL_ITEMS, COL_TOKENS]
            best = _value(_pool(s, row_exists[:, :, None, None], pool_log2e, 1, SOFTMAX_POOL), SOFTMAX_POOL)
            if SOFTMAX_TOTAL:
                col_chunk = _pool(best, col_exists[None, :, :], total_log2e, 2, True)
                col_pooled = _merged(col_pooled, col_chunk, total_log2e, True)
            else:
                b_weights = tl.load(col_weights + o_col, mask=m_col, other=0.0)
                total += tl.sum(best * b_weights[None, :, :], 2)

    if COL_SIDE and SOFTMAX_TOTAL:
        total = _value(col_pooled, True)
    if ROW_SIDE:
        row_best = _value(row_pooled, SOFTMAX_POOL)  # [ROW_ITEMS, ROW_TOKENS, COL_ITEMS]
        if SOFTMAX_TOTAL:
            total += _value(_pool(row_best, row_exists[:, :, None], total_log2e, 1, True), True)
        else:
            b_weights = tl.load(row_weights + o_row, mask=m_row, other=0.0)
            total += tl.sum(row_best * b_weights[:, :, None], 1)
    if ROW_SIDE and COL_SIDE:
        total *= 0.5
    o_a = (row0 + tl.arange(0, ROW_ITEMS)).to(tl.int64)[:, None]
    o_v = (col0 + tl.arange(0, COL_ITEMS)).to(tl.int64)[None, :]
    tl.store(scores + o_a * score_stride_row + o_v * score_stride_col, total, mask=(o_a < A) & (o_v < V))


@triton.jit
def token_interaction_bwd_kernel(
    upstream,
    d_products,
    d_row_weights,
    d_col_weights,
    upstream_stride_row,
    upstream_stride_col,
    rows,
    cols,
    row_mask,
    col_mask,
    row_weights,
    col_weights,
    A,
    V,
    L,
    T_UNITS,
    row_stride_item,
    row_stride_token,
    col_stride_item,
    col_stride_token,
    pool_log2e,
    total_log2e,
    UNIT: tl.constexpr,
    IS_ONE_CHUNK: tl.constexpr,
    D: tl.constexpr,
    ROW_ITEMS: tl.constexpr,
    ROW_TOKENS: tl.constexpr,
    COL_ITEMS: tl.constexpr,
    COL_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SOFTMAX_POOL: tl.constexpr,
    SOFTMAX_TOTAL: tl.constexpr,
    ROW_SIDE: tl.constexpr,
    COL_SIDE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient of every product, d_products (A, L, V, T), and this tile's part in the gradients of the weights.

    The parts are d_row_weights (column tiles, A, L) and d_col_weights (row tiles, V, T), for the caller to add up.
    Two passes over the columns: what a token's pooled value is must be known before its derivative is. Where one
    chunk is all there is, the second pass finds the products of the first.
    """
    num_tokens = T_UNITS * UNIT
    end = COL_TOKENS if IS_ONE_CHUNK else num_tokens
    i_row, i_col = _first_items(A, V, ROW_ITEMS, COL_ITEMS)
    row0, col0 = i_row * ROW_ITEMS, i_col * COL_ITEMS
    o_row, m_row = _offsets(row0, 0, A, L, ROW_ITEMS, ROW_TOKENS)
    row_exists = tl.load(row_mask + o_row, mask=m_row, other=0) != 0
    o_a = (row0 + tl.arange(0, ROW_ITEMS)).to(tl.int64)[:, None]
    o_v = (col0 + tl.arange(0, COL_ITEMS)).to(tl.int64)[None, :]
    p_up = upstream + o_a * upstream_stride_row + o_v * upstream_stride_col
    up = tl.load(p_up, mask=(o_a < A) & (o_v < V), other=0.0)  # [ROW_ITEMS, COL_ITEMS]
    if ROW_SIDE and COL_SIDE:
        up *= 0.5

    nothing = tl.zeros((ROW_ITEMS, ROW_TOKENS, COL_ITEMS), tl.float32)
    row_pooled = (nothing + LOWEST, nothing, nothing)
    first = nothing.to(tl.int32)
    col_nothing = tl.zeros((ROW_ITEMS, COL_ITEMS), tl.float32)
    col_pooled = (col_nothing + LOWEST, col_nothing, col_nothing)
    s = tl.zeros((ROW_ITEMS, ROW_TOKENS, COL_ITEMS, COL_TOKENS), tl.float32)
    for t0 in range(0, end, COL_TOKENS):
        o_col, m_col = _offsets(col0, t0, V, num_tokens, COL_ITEMS, COL_TOKENS)
        col_exists = tl.load(col_mask + o_col, mask=m_col, other=0) != 0
        s = _products(
            rows, cols, row0, col0, t0, row_exists, col_exists,
            row_stride_item, row_stride_token, col_stride_item, col_stride_token, D, BLOCK_D, UPCAST,
        )  # fmt: skip
        if ROW_SIDE:
            if SOFTMAX_POOL:
                chunk = _pool(s, col_exists[None, None, :, :], pool_log2e, 3, True)
                row_pooled = _merged(row_pooled, chunk, pool_log2e, True)
            else:
                highest, index = _first_best(s, col_exists[None, None, :, :], 3)
                first = tl.where(highest > row_pooled[0], t0 + index, first)
                row_pooled = _merged(row_pooled, (highest, highest, highest), pool_log2e, False)
        if COL_SIDE:
            # [ROW_ITEMS, COL_ITEMS, COL_TOKENS]
            best = _value(_pool(s, row_exists[:, :, None, None], pool_log2e, 1, SOFTMAX_POOL), SOFTMAX_POOL)
            if SOFTMAX_TOTAL:
                col_chunk = _pool(best, col_exists[None, :, :], total_log2e, 2, True)
                col_pooled = _merged(col_pooled, col_chunk, total_log2e, True)
            else:
                part = tl.sum(best * up[:, :, None], 0)
                tl.store(d_col_weights + i_row.to(tl.int64) * V * num_tokens + o_col, part, mask=m_col)

    if ROW_SIDE:
        row_best = _value(row_pooled, SOFTMAX_POOL)  # [ROW_ITEMS, ROW_TOKENS, COL_ITEMS]
        if SOFTMAX_TOTAL:
            row_total = _pool(row_best, row_exists[:, :, None], total_log2e, 1, True)
            d_row_best = _share(row_best, row_exists[:, :, None], row_total, total_log2e, 1)
        else:
            part = tl.sum(row_best * up[:, None, :], 2)
            tl.store(d_row_weights + i_col.to(tl.int64) * A * L + o_row, part, mask=m_row)
            d_row_best = tl.load(row_weights + o_row, mask=m_row, other=0.0)[:, :, None]
        d_row_best = d_row_best * up[:, None, :]

    for t0 in range(0, end, COL_TOKENS):
        o_col, m_col = _offsets(col0, t0, V, num_tokens, COL_ITEMS, COL_TOKENS)
        col_exists = tl.load(col_mask + o_col, mask=m_col, other=0) != 0
        if not IS_ONE_CHUNK:
            s = _products(
                rows, cols, row0, col0, t0, row_exists, col_exists,
                row_stride_item, row_stride_token, col_stride_item, col_stride_token, D, BLOCK_D, UPCAST,
            )  # fmt: skip
        d_s = tl.zeros((ROW_ITEMS, ROW_TOKENS, COL_ITEMS, COL_TOKENS), tl.float32)
        if ROW_SIDE:
            if SOFTMAX_POOL:
                share = _share(s, col_exists[None, None, :, :], row_pooled, pool_log2e, 3)
            else:
                o_token = (t0 + tl.arange(0, COL_TOKENS))[None, None, None, :]
                share = (first[:, :, :, None] == o_token).to(tl.float32)
            d_s += share * d_row_best[:, :, :, None]
        if COL_SIDE:
            if SOFTMAX_POOL:
                pooled = _pool(s, row_exists[:, :, None, None], pool_log2e, 1, True)
                share = _share(s, row_exists[:, :, None, None], pooled, pool_log2e, 1)
                best_again = _value(pooled, True)
            else:
                best_again, index = _first_best(s, row_exists[:, :, None, None], 1)
                o_token = tl.arange(0, ROW_TOKENS)[None, :, None, None]
                share = (index[:, None, :, :] == o_token).to(tl.float32)
            if SOFTMAX_TOTAL:
                d_best = _share(best_again, col_exists[None, :, :], col_pooled, total_log2e, 2)
            else:
                d_best = tl.load(col_weights + o_col, mask=m_col, other=0.0)[None, :, :]
            d_s += share * (d_best * up[:, :, None])[:, None, :, :]
        d_s = tl.where(row_exists[:, :, None, None] & col_exists[None, None, :, :], d_s, 0.0)
        p_products = d_products + o_row[:, :, None, None] * (V * num_tokens) + o_col[None, None, :, :]
        tl.store(
            p_products,
            d_s.to(d_products.dtype.element_ty),
            mask=m_row[:, :, None, None] & m_col[None, None, :, :],
        )
