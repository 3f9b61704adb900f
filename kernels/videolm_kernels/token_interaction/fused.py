"""How the kernels of token interaction are started, forward and backward."""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from videolm_kernels import launching
from videolm_kernels.token_interaction.kernels import (
    token_interaction_bwd_kernel,
    token_interaction_fwd_kernel,
)
from videolm_kernels.token_interaction.op import MOST_TOKENS_IN_A_TILE

# Gradients of products that exist at a time: enough for matrix products at full speed, little beside a GPU's memory.
CHUNK_BYTES = 256 * 2**20

_EXCHANGED = {"both": "both", "words": "frames", "frames": "words"}


class _Side(NamedTuple):
    """Tokens (items, tokens, dim) of one side and what belongs to each of them."""

    tokens: Tensor
    mask: Tensor
    weights: Tensor | None

    def part(self, items: slice) -> "_Side":
        weights = None if self.weights is None else self.weights[items]
        return _Side(self.tokens[items], self.mask[items], weights)


class _Gradients(NamedTuple):
    """Of one side, in float32."""

    tokens: Tensor
    weights: Tensor | None


class _Options(NamedTuple):
    pool_scale: float | None
    total_scale: float | None
    sides: str

    def exchanged(self) -> "_Options":
        return self._replace(sides=_EXCHANGED[self.sides])


class _Tile(NamedTuple):
    """Items and tokens of both sides that one program takes: powers of two."""

    row_items: int
    row_tokens: int
    col_items: int
    col_tokens: int


def token_interaction_forward(
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor,
    frame_mask: Tensor,
    word_weights: Tensor | None,
    frame_weights: Tensor | None,
    pool_scale: float | None,
    total_scale: float | None,
    sides: str,
) -> Tensor:
    """Scores (A, V) in float32."""
    text, video = _side(words, word_mask, word_weights), _side(frames, frame_mask, frame_weights)
    options = _Options(pool_scale, total_scale, sides)
    scores = torch.empty(words.shape[0], frames.shape[0], dtype=torch.float32, device=words.device)
    if words.shape[1] > MOST_TOKENS_IN_A_TILE:
        _score(video, text, scores.T, options.exchanged())
    else:
        _score(text, video, scores, options)
    return scores


def token_interaction_backward(
    upstream: Tensor,
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor,
    frame_mask: Tensor,
    word_weights: Tensor | None,
    frame_weights: Tensor | None,
    pool_scale: float | None,
    total_scale: float | None,
    sides: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of words, frames and both weights; the last two are empty where there are no weights."""
    text, video = _side(words, word_mask, word_weights), _side(frames, frame_mask, frame_weights)
    options = _Options(pool_scale, total_scale, sides)
    unit = upstream.new_ones(())
    if words.dtype == torch.float16 and upstream.numel() > 0:
        # A product's gradient is far below a token's, and float16 has nothing below 6e-8: relative to the largest.
        unit = upstream.abs().amax().clamp(min=1e-30)
    if words.shape[1] > MOST_TOKENS_IN_A_TILE:
        of_video, of_text = _gradients(upstream.T / unit, video, text, options.exchanged())
    else:
        of_text, of_video = _gradients(upstream / unit, text, video, options)
    return (
        (of_text.tokens * unit).to(words.dtype),
        (of_video.tokens * unit).to(frames.dtype),
        upstream.new_empty(0) if of_text.weights is None else of_text.weights * unit,
        upstream.new_empty(0) if of_video.weights is None else of_video.weights * unit,
    )


def _side(tokens: Tensor, mask: Tensor, weights: Tensor | None) -> _Side:
    weights = None if weights is None else weights.contiguous()
    return _Side(launching.with_unit_stride(tokens), mask.contiguous(), weights)


def _score(rows: _Side, cols: _Side, scores: Tensor, options: _Options) -> None:
    tile = _tile(rows, cols, width=128 if options.pool_scale is None else 64)
    num_row_tiles, num_col_tiles = _num_tiles(rows, cols, tile)
    launching.launch(
        token_interaction_fwd_kernel,
        (num_row_tiles * num_col_tiles,),
        scores,
        *scores.stride(),
        *_inputs(rows, cols, tile, options),
        **_constants(rows, cols, tile, options),
    )


def _gradients(
    upstream: Tensor, rows: _Side, cols: _Side, options: _Options
) -> tuple[_Gradients, _Gradients]:
    """Chunk by chunk: a kernel writes the gradients of the products, matrix products make the tokens' from them."""
    of_rows, of_cols = _zeros(rows), _zeros(cols)
    # What a token that does not exist holds may be NaN, which a gradient of 0 would not stop.
    existing_rows = rows.tokens.masked_fill(~rows.mask[:, :, None], 0)
    existing_cols = cols.tokens.masked_fill(~cols.mask[:, :, None], 0)
    tile = _tile(rows, cols, width=_gradient_width(rows, cols, options))
    row_step, col_step = _chunk(rows, cols, tile)
    for r in range(0, upstream.shape[0], row_step):
        for c in range(0, upstream.shape[1], col_step):
            at_r, at_c = slice(r, r + row_step), slice(c, c + col_step)
            of_products, of_row_weights, of_col_weights = _product_gradients(
                upstream[at_r, at_c], rows.part(at_r), cols.part(at_c), tile, options
            )
            of_some_rows, of_some_cols = of_rows.tokens[at_r], of_cols.tokens[at_c]
            of_some_rows += _product(of_products, existing_cols[at_c].flatten(0, 1)).view_as(of_some_rows)
            of_some_cols += _product(of_products.T, existing_rows[at_r].flatten(0, 1)).view_as(of_some_cols)
            if of_rows.weights is not None and options.sides != "frames":
                of_rows.weights[at_r] += of_row_weights.sum(dim=0)
            if of_cols.weights is not None and options.sides != "words":
                of_cols.weights[at_c] += of_col_weights.sum(dim=0)
    return of_rows, of_cols


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in float32: the sum over a chunk can be more than float16 holds."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _zeros(side: _Side) -> _Gradients:
    tokens = torch.zeros(side.tokens.shape, dtype=torch.float32, device=side.tokens.device)
    return _Gradients(tokens, None if side.weights is None else torch.zeros_like(side.weights))


def _product_gradients(
    upstream: Tensor, rows: _Side, cols: _Side, tile: _Tile, options: _Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the products (all row tokens, all column tokens), and of both weights, tile by tile."""
    num_row_tiles, num_col_tiles = _num_tiles(rows, cols, tile)
    of_products = rows.tokens.new_empty(rows.mask.numel(), cols.mask.numel())
    of_row_weights = upstream.new_empty(num_col_tiles, *rows.mask.shape)
    of_col_weights = upstream.new_empty(num_row_tiles, *cols.mask.shape)
    launching.launch(
        token_interaction_bwd_kernel,
        (num_row_tiles * num_col_tiles,),
        upstream,
        of_products,
        of_row_weights,
        of_col_weights,
        *upstream.stride(),
        *_inputs(rows, cols, tile, options),
        **_constants(rows, cols, tile, options),
    )
    return of_products, of_row_weights, of_col_weights


def _chunk(rows: _Side, cols: _Side, tile: _Tile) -> tuple[int, int]:
    """Items of each side whose products are differentiated at a time: all columns, where one tile of rows allows it."""
    pairs = CHUNK_BYTES // (rows.tokens.element_size() * rows.mask.shape[1] * cols.mask.shape[1])
    num_cols = max(tile.col_items, min(cols.mask.shape[0], pairs // tile.row_items))
    return max(1, pairs // (num_cols * tile.row_items)) * tile.row_items, num_cols


def _tile(rows: _Side, cols: _Side, *, width: int) -> _Tile:
    """Tile of `width` columns at most.

    Registers decide: 128 x 128 products feed the 16-bit tensor cores best, but only the forward pass with a maximum
    keeps so little of each product that they fit; 64 columns do for the rest, and 64 x 64 in float32.
    """
    height, width = (64, min(64, width)) if rows.tokens.dtype == torch.float32 else (128, width)
    row_tokens = triton.next_power_of_2(rows.mask.shape[1])
    col_tokens = min(triton.next_power_of_2(cols.mask.shape[1]), width)
    return _Tile(max(1, height // row_tokens), row_tokens, width // col_tokens, col_tokens)


def _gradient_width(rows: _Side, cols: _Side, options: _Options) -> int:
    """Columns of a tile in the backward pass: with few tokens to pool, a tile has as many pooled values as products."""
    few_tokens = min(rows.mask.shape[1], cols.mask.shape[1]) <= 8
    return 32 if few_tokens and options.pool_scale is not None and options.sides == "both" else 64


def _num_tiles(rows: _Side, cols: _Side, tile: _Tile) -> tuple[int, int]:
    num_row_tiles: int = triton.cdiv(rows.mask.shape[0], tile.row_items)
    num_col_tiles: int = triton.cdiv(cols.mask.shape[0], tile.col_items)
    return num_row_tiles, num_col_tiles


def _inputs(rows: _Side, cols: _Side, tile: _Tile, options: _Options) -> tuple[Any, ...]:
    """What both kernels take: the two sides, their sizes and strides, the scales."""
    return (
        rows.tokens,
        cols.tokens,
        rows.mask,
        cols.mask,
        rows.weights,
        cols.weights,
        rows.tokens.shape[0],
        cols.tokens.shape[0],
        rows.tokens.shape[1],
        cols.tokens.shape[1] // _unit(cols, tile),
        *rows.tokens.stride()[:2],
        *cols.tokens.stride()[:2],
        (options.pool_scale or 0.0) / math.log(2),
        (options.total_scale or 0.0) / math.log(2),
    )


def _unit(cols: _Side, tile: _Tile) -> int:
    """What the number of column tokens is a multiple of, for the compiler: a power of two, so that few are compiled.

    In chunks it is the number itself. Those are patches, always the same of a model, and registers are scarce.
    """
    num_tokens = cols.mask.shape[1]
    return num_tokens if num_tokens > tile.col_tokens else min(num_tokens & -num_tokens, 16)


def _constants(rows: _Side, cols: _Side, tile: _Tile, options: _Options) -> dict[str, Any]:
    dtype, dim = rows.tokens.dtype, rows.tokens.shape[2]
    most_columns, num_stages = (32, 2) if dtype == torch.float32 else (64, 3)
    return {
        "UNIT": _unit(cols, tile),
        "IS_ONE_CHUNK": cols.mask.shape[1] <= tile.col_tokens,
        "D": dim,
        "ROW_ITEMS": tile.row_items,
        "ROW_TOKENS": tile.row_tokens,
        "COL_ITEMS": tile.col_items,
        "COL_TOKENS": tile.col_tokens,
        "BLOCK_D": max(16, min(most_columns, triton.next_power_of_2(dim))),
        "SOFTMAX_POOL": options.pool_scale is not None,
        "SOFTMAX_TOTAL": options.total_scale is not None,
        "ROW_SIDE": options.sides != "frames",
        "COL_SIDE": options.sides != "words",
        "UPCAST": launching.needs_upcast(dtype),
        "num_warps": 4 if tile.row_items * tile.row_tokens <= 64 else 8,
        "num_stages": num_stages,
    }
