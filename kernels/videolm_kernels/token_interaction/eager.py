"""Token interaction from torch's own operations, block by block: what runs where no kernel does."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Products that exist at a time, in float32. The whole tensor's time over the blocks', forward and forward + backward
# on one CPU core (torch 2.13), for 128 texts of 32 words and 128 videos of 12 frames: with a maximum 1.1 and 1.0 in
# float32, 1.3 and 1.5 in bfloat16; with a softmax 2.5 and 1.2, 4.3 and 1.9. Blocks of 4 and 64 MiB are no faster.
BLOCK_BYTES = 16 * 2**20


class _Products(torch.autograd.Function):
    """words @ frames.T with both rounded to `dtype`, the result and the gradients in that of the words.

    It keeps words and frames as they came, views of what exists in any case. Autograd's own would keep the rounded
    copies of every block, together more than all products.
    """

    @staticmethod
    def forward(ctx: Any, words: Tensor, frames: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(words, frames)
        ctx.dtype = dtype
        return (words.to(dtype).flatten(0, 1) @ frames.to(dtype).flatten(0, 1).T).to(words.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        words, frames = ctx.saved_tensors
        upstream = upstream.to(ctx.dtype)
        of_words = of_frames = None
        if ctx.needs_input_grad[0]:
            of_words = upstream @ frames.to(ctx.dtype).flatten(0, 1)
            of_words = of_words.to(words.dtype).view(words.shape)
        if ctx.needs_input_grad[1]:
            of_frames = upstream.T @ words.to(ctx.dtype).flatten(0, 1)
            of_frames = of_frames.to(frames.dtype).view(frames.shape)
        return of_words, of_frames, None


class _Options(NamedTuple):
    dtype: torch.dtype
    pool_scale: float | None
    total_scale: float | None
    sides: str


def token_interaction_eager(
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
    """Scores (A, V); the products are rounded to the dtype of the tokens, all that follows is float32."""
    dtype = torch.promote_types(words.dtype, torch.float32)
    # In `dtype` until a block needs them, so that the gradients of many blocks add up without rounding. Tokens that
    # do not exist are zero, and so are their products: what is drawn from them alone is zero, too.
    words_in_full = words.to(dtype).masked_fill(~word_mask[:, :, None], 0)
    frames_in_full = frames.to(dtype).masked_fill(~frame_mask[:, :, None], 0)
    num_texts, num_videos = _block_shape(words, frames)
    options = _Options(words.dtype, pool_scale, total_scale, sides)

    # Frames stand before videos: pooling over them then runs along rows of videos. Along rows of 12 frames torch's
    # softmax takes 20 times as long on a CPU, and its maximum 7 times.
    frames_first = frames_in_full.transpose(0, 1).contiguous()
    video_blocks = list(
        zip(
            torch.split(frames_first, num_videos, dim=1),
            torch.split(frame_mask.T, num_videos, dim=1),
            _split(frame_weights, frame_mask, num_videos),
            strict=True,
        )
    )
    text_blocks = list(
        zip(
            torch.split(words_in_full, num_texts),
            torch.split(word_mask, num_texts),
            _split(word_weights, word_mask, num_texts),
            strict=True,
        )
    )
    # The backward pass of a maximum keeps indices only; that of a softmax would keep every product.
    recompute = pool_scale is not None and len(text_blocks) * len(video_blocks) > 1
    rows = []
    for texts in text_blocks:
        blocks = [
            checkpoint(_scores, *texts, *videos, options, use_reentrant=False, preserve_rng_state=False)
            if recompute
            else _scores(*texts, *videos, options)
            for videos in video_blocks
        ]
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows)


def _block_shape(words: Tensor, frames: Tensor) -> tuple[int, int]:
    """Texts and videos of a block: all the videos, where a single text with them stays under BLOCK_BYTES."""
    pairs = max(1, BLOCK_BYTES // (4 * words.shape[1] * frames.shape[1]))
    num_videos = max(1, min(frames.shape[0], pairs))
    return max(1, pairs // num_videos), num_videos


def _split(weights: Tensor | None, mask: Tensor, num_items: int) -> tuple[Tensor | None, ...]:
    """Weights of each block of items; None for every block where there are none."""
    if weights is not None:
        return torch.split(weights, num_items)
    return (None,) * len(torch.split(mask, num_items))


def _scores(
    words: Tensor,
    word_mask: Tensor,
    word_weights: Tensor | None,
    frames: Tensor,
    frame_mask: Tensor,
    frame_weights: Tensor | None,
    options: _Options,
) -> Tensor:
    """Scores of one block: words (n, L, d), frames (T, m, d) and frame_mask (T, m) give (n, m)."""
    dtype, pool_scale, total_scale, sides = options
    (n, num_words, _), (num_frames, m, _) = words.shape, frames.shape
    products: Tensor = _Products.apply(words, frames, dtype)  # type: ignore[no-untyped-call]
    products = products.view(n, num_words, num_frames, m)
    totals = []
    if sides != "frames":
        best = _pooled(products, frame_mask[None, None], pool_scale, dim=2)
        weights = None if word_weights is None else word_weights[:, :, None]
        totals.append(_total(best, word_mask[:, :, None], weights, total_scale))
    if sides != "words":
        best = _pooled(products, word_mask[:, :, None, None], pool_scale, dim=1)
        weights = None if frame_weights is None else frame_weights.T
        totals.append(_total(best, frame_mask, weights, total_scale))
    return totals[0] if len(totals) == 1 else (totals[0] + totals[1]) / 2


def _pooled(products: Tensor, exists: Tensor, scale: float | None, *, dim: int) -> Tensor:
    bias = _bias(exists, products.dtype)
    if scale is not None:
        return (products * torch.add(bias, products, alpha=scale).softmax(dim)).sum(dim)
    shifted = products + bias
    # max gives the gradient to the first of several; amax would share it, but is 10 times faster where there is none.
    best = shifted.max(dim).values if shifted.requires_grad else shifted.amax(dim)
    return best.masked_fill(~exists.any(dim), 0)


def _total(pooled: Tensor, exists: Tensor, weights: Tensor | None, scale: float | None) -> Tensor:
    if weights is None:
        assert scale is not None
        weights = torch.add(_bias(exists, pooled.dtype), pooled, alpha=scale).softmax(dim=1)
    return (pooled * weights).sum(dim=1)


def _bias(exists: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for a token that exists, the lowest number for one that does not: adding costs less than masked_fill."""
    return torch.zeros(exists.shape, dtype=dtype, device=exists.device).masked_fill(
        ~exists, torch.finfo(dtype).min
    )
