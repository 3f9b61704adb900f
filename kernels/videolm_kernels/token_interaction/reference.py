"""The truth that every other implementation of token interaction is held against: plain torch, no tricks."""

import torch
from torch import Tensor


def token_interaction_reference(
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
    """Scores (A, V) from the whole tensor of products (A, V, L, T), in float32 (float64 for float64 input).

    Weights are None exactly where `total_scale` is not.
    """
    exact = torch.promote_types(words.dtype, torch.float32)
    # Tokens that do not exist are zero, and so are their products: what is drawn from them alone is zero, too.
    existing_words = words.to(exact).masked_fill(~word_mask[:, :, None], 0)
    existing_frames = frames.to(exact).masked_fill(~frame_mask[:, :, None], 0)
    products = torch.einsum("ald,vtd->avlt", existing_words, existing_frames)
    own_words, own_frames = word_mask[:, None, :], frame_mask[None, :, :]

    best = _pooled(products, own_frames[:, :, None, :], pool_scale)
    words_side = _total(best, own_words, None if word_weights is None else word_weights[:, None], total_scale)
    best = _pooled(products.mT, own_words[:, :, None, :], pool_scale)
    frames_side = _total(best, own_frames, frame_weights, total_scale)
    if sides == "both":
        return (words_side + frames_side) / 2
    return words_side if sides == "words" else frames_side


def _pooled(products: Tensor, exists: Tensor, scale: float | None) -> Tensor:
    """Maximum over the last dimension, or the mean under softmax(scale * products)."""
    if scale is None:
        # argmax is the first of several; max would be free to share the gradient among them.
        first_best = products.masked_fill(~exists, -torch.inf).argmax(dim=-1, keepdim=True)
        return products.gather(-1, first_best).squeeze(-1)
    return (products * _softmax(products * scale, exists)).sum(dim=-1)


def _total(pooled: Tensor, exists: Tensor, weights: Tensor | None, scale: float | None) -> Tensor:
    if weights is None:
        assert scale is not None
        weights = _softmax(pooled * scale, exists)
    return (pooled * weights).sum(dim=-1)


def _softmax(logits: Tensor, exists: Tensor) -> Tensor:
    """Softmax over the existing entries of the last dimension; uniform where none exists, never NaN."""
    return logits.masked_fill(~exists, torch.finfo(logits.dtype).min).softmax(dim=-1)
